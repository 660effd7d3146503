"""The bundle: a folder of graphs and constants that describes itself; reading, writing, signing it."""
