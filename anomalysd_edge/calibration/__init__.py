"""What is fitted to a class's good photos: memory bank, score statistics, thresholds, settings."""
