"""Array types by element type, and the callback through which long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
"""Boolean planes; of an inpainting mask True = repaint, of a defect mask True = defect."""
Array = npt.NDArray[Any]
"""An array whose element type is known at run time alone: a graph's tensors, for instance."""
Progress = Callable[[str, int, int, str], None]
"""progress(phase, done, total, detail): `done` of `total` steps of `phase`, and a few words on the present one."""
