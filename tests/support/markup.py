"""Names of what reports are written in."""

SVG = "{http://www.w3.org/2000/svg}"
"""Prefix of SVG's elements, as ElementTree writes it."""
