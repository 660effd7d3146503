"""Figures on labelled photos, and how far two backends agree."""
