"""Files, threads and array types: what every layer may use. Knows nothing of photos."""
