"""From a decoded photo to a verdict: queue, worker processes, open bundles."""
