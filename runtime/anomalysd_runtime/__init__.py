"""Runs bundles without torch: a bundle's networks with ONNX Runtime or TensorRT. Never imports torch."""

import anomalysd_edge as anomalysd_edge  # before numpy: it says how many threads numpy's products take
