"""What a data set is once its folders are read: classes of good photos to train with and labelled ones to test on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anomalysd_edge.errors import DatasetError, SettingsError

GOOD = "good"
_LINES_OF_CLASSES = 8
"""Data sets of more classes are described by their totals."""


@dataclass(frozen=True)
class Sample:
    """One test photo."""

    path: Path
    """The photo."""
    class_name: str
    """The class of part it shows."""
    defect: str
    """The kind of defect, or "good"."""
    mask_path: Path | None
    """Where the defect is: a mask, or a folder of masks that count together; None for a good photo, and for a bad one
    of a data set that has no masks."""

    @property
    def label(self) -> int:
        """0 good, 1 bad."""
        return int(self.defect != GOOD)


@dataclass(frozen=True)
class ClassData:
    """The photos of one class, each list sorted by path."""

    name: str
    """The class, as its folder is called."""
    train: tuple[Path, ...]
    """Good photos from which shots are chosen."""
    test: tuple[Sample, ...]
    """Photos to measure on; empty where the folder has none."""
    notes: tuple[str, ...] = ()
    """What was understood that the folders do not say word for word."""

    def described(self) -> str:
        """Counts of photos and masks, as one line without the class's name."""
        bad = [sample for sample in self.test if sample.label]
        words = [f"{len(self.train)} good to train with"]
        if self.test:
            words.append(f"{len(self.test) - len(bad)} good and {len(bad)} bad to test on")
        if bad:
            masks = sum(sample.mask_path is not None for sample in bad)
            words.append(f"{masks or 'no'} masks" if masks in (0, len(bad)) else f"{masks} of {len(bad)} with a mask")
        endings = Counter(path.suffix.lower() for path in (*self.train, *(sample.path for sample in self.test)))
        if len(endings) > 1:
            words.append(" and ".join(f"{count} {ending}" for ending, count in sorted(endings.items())))
        return ", ".join(words)


@dataclass(frozen=True)
class Dataset:
    """A folder of photos, read."""

    root: Path
    """The folder."""
    layout: str
    """One of datasets.LAYOUTS."""
    classes: Mapping[str, ClassData]
    """By class name, sorted, or in the order that was asked for."""
    lone: bool = False
    """Whether `root` is itself the folder of its only class, so that the class's name is the folder's by chance."""
    left_out: tuple[str, ...] = ()
    """A sentence for each group of files that was not understood."""

    def renamed(self, new_name: Callable[[str], str]) -> Dataset:
        """The same with other names for classes, as a bundle writes them."""
        classes = {}
        for old, part in self.classes.items():
            name = new_name(old)
            classes[name] = replace(part, name=name, test=tuple(replace(s, class_name=name) for s in part.test))
        return replace(self, classes=classes)

    def described(self) -> list[str]:
        """A few lines for people: layout, classes, counts, what was read in another sense, what was left out."""
        names = list(self.classes)
        lines = [f"{self.root}: {self.layout} layout, {len(names)} {'class' if len(names) == 1 else 'classes'}"]
        if len(names) == 1:
            lines[0] = f"{self.root}: {self.layout} layout, class {names[0]}: {self.classes[names[0]].described()}"
        elif len(names) <= _LINES_OF_CLASSES:
            lines += [f"  {name}: {part.described()}" for name, part in self.classes.items()]
        else:
            train = tuple(path for part in self.classes.values() for path in part.train)
            test = tuple(sample for part in self.classes.values() for sample in part.test)
            lines[0] += f" ({', '.join(names)}): {ClassData('', train, test).described()}"
        lines += [f"  {note}" for note in dict.fromkeys(n for part in self.classes.values() for n in part.notes)]
        return lines + [f"  left out: {words}" for words in self.left_out]


def few_shot(paths: Sequence[Path], k: int, seed: int | None = None, name: str = "the class") -> tuple[Path, ...]:
    """Choose `k` of the good photos: the first k of the sorted paths, or with a seed k of a seeded permutation.

    The permutation does not depend on k, so the 1-shot choice lies within the 2-shot choice. `name` stands in errors.
    Raises DatasetError, which says how many there are, where there are fewer than k; SettingsError for k < 0.
    """
    if k < 0:
        raise SettingsError(f"asked for {k} shots; expected 0 or more")
    ordered = sorted(paths)
    if len(ordered) < k:
        raise DatasetError(
            f"asked for {k} good photos of {name}, found {len(ordered) or 'none'}; add photos or ask for fewer shots"
        )
    if seed is None:
        return tuple(ordered[:k])
    return tuple(ordered[i] for i in np.random.default_rng(seed).permutation(len(ordered))[:k])
