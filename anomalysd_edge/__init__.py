"""anomalysd-edge: few-shot anomaly detection by repainting with Stable Diffusion, for edge boxes.

This package's root is the algorithm, in numpy. Networks come through the door of :mod:`anomalysd_edge.networks`.
"""

__version__ = "0.1.0"
