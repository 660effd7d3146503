"""What every layer may use: files written whole, threads, array types. Knows nothing of photos."""
