"""Known classes made from a folder of photos, and the recipe that fits the threshold prior to them."""
