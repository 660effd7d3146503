"""The lean side: runs a bundle with ONNX Runtime or TensorRT. Never imports torch."""

import anomalysd_edge as anomalysd_edge  # before numpy: it says how many threads numpy's products take
