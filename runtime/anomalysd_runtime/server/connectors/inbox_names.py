"""Where a judged photo of a watched folder goes: a name that is free, that the file system takes, and its verdict's."""

from __future__ import annotations

import json
import os
from pathlib import Path

LONGEST_NAME = 180
"""Bytes of a file's name in ok/ and its siblings: file systems take 255, and the verdict's file and the one that is
written aside have longer names than the photo."""


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
