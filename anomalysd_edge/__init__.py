"""anomalysd-edge: few-shot anomaly detection by repainting with Stable Diffusion, for edge boxes.

This package's root is the algorithm, in numpy. Networks come through the door of :mod:`anomalysd_edge.networks`.
"""

import os as _os

__version__ = "0.1.0"

# Read by numpy's OpenBLAS when it is loaded, so before any module below imports numpy. After a product its threads keep
# spinning and take the cores from the networks' threads: a photo took a quarter longer. Whoever set it is right.
_os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
