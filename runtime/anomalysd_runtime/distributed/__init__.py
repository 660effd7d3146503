"""Beyond one machine: the same detector on engines that exist. Ray and Triton are imported inside functions only."""
