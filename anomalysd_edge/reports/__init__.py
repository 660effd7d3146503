"""Results for people: HTML pages, plots, pictures, tables and progress at a terminal."""
