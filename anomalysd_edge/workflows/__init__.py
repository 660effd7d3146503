"""The bodies of the verbs: each opens training, export or runtime inside its functions."""
