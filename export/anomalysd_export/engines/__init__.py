"""From a bundle to engines: precision graphs, profiles, building in a process of its own. Needs no torch."""
