"""The only room of this package where torch and diffusers live."""
