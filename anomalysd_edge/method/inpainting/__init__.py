"""The diffusion half: noise schedule, masks, the plan of slots, repainting, reconstruction error."""
