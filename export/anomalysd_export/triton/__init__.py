"""A bundle as a model repository of NVIDIA's Triton Inference Server. Needs no torch, onnx or Triton."""
