"""Networks in torch: the diffusers base, autoencoders, feature and perceptual networks."""
