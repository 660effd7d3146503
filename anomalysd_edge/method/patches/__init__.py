"""The feature half: memory bank of good patches, distances to it, and what is made of them."""
