"""The recipe of the patch scorer."""
