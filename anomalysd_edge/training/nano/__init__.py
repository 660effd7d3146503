"""The recipe of the embedded base "nano": drawn scenes and crops of photos, an autoencoder, an inpainting UNet."""
