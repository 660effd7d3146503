"""Classes of parts, their prompts, and data sets as folders."""
