"""From a run folder to a bundle: ONNX graphs, proof per network, engines."""
