"""The artifact that a box runs: a folder of graphs and constants that describes itself. Reading, writing, signing."""
