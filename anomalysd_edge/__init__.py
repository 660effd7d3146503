"""anomalysd-edge: few-shot anomaly detection by repainting with Stable Diffusion, for edge boxes.

This package's root is the algorithm, in numpy. Networks come through the door of :mod:`anomalysd_edge.method.networks`.
"""

import os as _os

__version__ = "0.1.0"

# Read by numpy's OpenBLAS when it is loaded, so before any module below imports numpy. After a product its threads keep
# spinning and take the cores from the networks' threads: a photo took a quarter longer. Whoever set it is right.
_os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Read by libgomp, on which PyTorch's threads run, when it is loaded: how long a thread that waits for the others spins
# before it sleeps. The default outlasts a scheduler's time slice: beside two busy processes on two cores a step of
# 25 ms took 240 to 2100 ms, and so it takes 97 to 190. On an idle machine training takes as long as before.
if "OMP_WAIT_POLICY" not in _os.environ:
    _os.environ.setdefault("GOMP_SPINCOUNT", "3000")
