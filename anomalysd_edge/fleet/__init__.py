"""Many boxes: a registry of bundles, what a box has installed of it, and how the boxes are. No torch, no runtime."""
