"""The few test photos of a quick benchmark."""

from __future__ import annotations

import numpy as np

from anomalysd_edge.data.datasets import ClassData, Dataset
from anomalysd_edge.errors import SettingsError


def few_tests(data: Dataset, count: int, seed: int = 0) -> Dataset:
    """At most `count` test photos of each class, half of them good where there are so many, by a seeded permutation.

    A smaller choice lies within a larger one of the same seed. Raises SettingsError for count < 2.
    """
    if count < 2:
        raise SettingsError(f"asked for {count} test photos a class; expected at least 2, a good and a bad one")
    classes = {}
    for name, part in data.classes.items():
        good = [s for s in part.test if not s.label]
        bad = [s for s in part.test if s.label]
        wanted_good = min(len(good), max(count // 2, count - len(bad)))
        chosen = []
        for pool, wanted in ((good, wanted_good), (bad, count - wanted_good)):
            order = np.random.default_rng(seed).permutation(len(pool))[:wanted]
            chosen += [pool[i] for i in sorted(order)]
        classes[name] = ClassData(name, part.train, tuple(chosen))
    return Dataset(data.root, data.layout, classes)
