"""Fine-tuning: the only package, beside the export, that imports torch and diffusers."""
