"""The networks in ONNX Runtime."""
