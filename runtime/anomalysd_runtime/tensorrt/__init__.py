"""The networks as TensorRT or TensorRT for RTX engines."""
