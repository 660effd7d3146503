"""Memory banks and thresholds from good photos alone: memory bank, score statistics, thresholds, settings."""
