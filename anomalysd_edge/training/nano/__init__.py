"""The recipe of the embedded base "nano"."""
