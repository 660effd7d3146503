"""Where a judged photo of a watched folder goes: a name that is free, that the file system takes, and its verdict's."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from anomalysd_edge.data.classes import find_class

LONGEST_NAME = 180
"""Bytes of a file's name in ok/ and its siblings: file systems take 255, and the verdict's file and the one that is
written aside have longer names than the photo."""


_PLACES = {"good": "ok", "anomalous": "ng", "uncertain": "unsure", "unknown": "unknown", "error": "error"}


@dataclass(frozen=True)
class ClaimedPhoto:
    """A photo that is this process's to finish."""

    uid: str
    """Its request key is watch:UID."""
    path: Path
    """In .sd-edge/work/UID/."""
    relative: Path
    """Where it lay in the folder."""


def places(classes: Collection[str]) -> dict[str, str]:
    """By verdict, or 'error', the folder of the photos that got it.

    Where a class is called as such a folder, the class's photos come in there, and the folder has a longer name.
    """
    found = {}
    for kind, name in _PLACES.items():
        while find_class(name, classes) is not None:
            name += "-verdicts"  # noqa: PLW2901 - until it is free
        found[kind] = name
    return found


def is_judged(photo: Path) -> bool:
    """Whether a photo lies where an inspection has put it, in a folder that a class of today is called like: its own
    verdict is beside it."""
    return photo.parent.name in _PLACES.values() and (_owner(photo) or "").startswith("watch:")


def verdict_file(photo: Path) -> Path:
    """The verdict beside a photo."""
    return photo.with_name(photo.name + ".json")


def free_name(target: Path, uid: str) -> Path:
    """`target`, or with the UID in its name where another photo has it or its own name is too long."""
    stem = target.stem
    if fits := len(os.fsencode(target.name)) <= LONGEST_NAME:
        fits = _owner(target) in (None, f"watch:{uid}")
    while len(os.fsencode(f"{stem}-{uid[:8]}{target.suffix}")) > LONGEST_NAME:
        stem = stem[:-1]
    return target if fits else target.with_name(f"{stem}-{uid[:8]}{target.suffix}")


def _owner(target: Path) -> str | None:
    """The request key of the photo or verdict that lies at `target`; None where nothing does."""
    try:
        document = json.loads(verdict_file(target).read_text(encoding="utf-8"))
        return str(document.get("request_key"))
    except FileNotFoundError:
        return "another" if target.exists() else None
    except (ValueError, AttributeError):
        return "another"


def remove_empty(folder: Path, root: Path) -> None:
    """Remove `folder` and the folders above it, up to `root`, as far as they are empty."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
