"""Fine-tuning and its networks: the only subpackage that imports torch and diffusers."""
