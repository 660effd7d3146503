"""The lean side: runs a bundle with ONNX Runtime or TensorRT. Never imports torch."""
