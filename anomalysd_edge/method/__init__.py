"""The algorithm (AnomalySD, arXiv 2408.01960) in numpy, against the protocol of networks.Networks."""
