"""Classes of parts: noun, kind, parts and symmetries; from them the hierarchical prompts and the allowed copies.

MVTec-AD's 15, VisA's 12 and the demo's classes come from class_tables.toml beside this file; a user's classes come from
a file of the same form, or from their name alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anomalysd_edge.errors import ClassError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_TILES = 8
"""Windows along a side through which prototypes may see a photo."""
KINDS = ("object", "texture")
SYMMETRIES = ("rotate90", "rotate180", "flip_x", "flip_y")
_KEYS = ("noun", "kind", "parts", "symmetries", "tiles")

# What the ear hears, not the letter: a unit, an hour, an LED, a PCB.
_LIKE_CONSONANT = re.compile(r"(uni[tfovqc]|us[eu]|uti|eu|one)", re.IGNORECASE)
_SILENT_H = re.compile(r"(hour|honest|hono|heir)", re.IGNORECASE)
_SPELLED_OUT = re.compile(r"[A-Z]{2,}[0-9]*s?$")


@dataclass(frozen=True)
class Prompts:
    """The two levels of prompt of one class."""

    whole: str
    """For instance "A perfect bottle."."""
    detail: str | None
    """For instance "A bottle with intact neck, body and rim."; None where no parts are known."""


@dataclass(frozen=True)
class ClassSpec:
    """What is known of one class of parts. Raises ClassError where a field is wrong."""

    name: str
    """The class as data sets and bundles call it; it names folders, so it holds no slash."""
    noun: str
    """The class as the prompts call it, in the singular: "metal nut"."""
    kind: str = "object"
    """"object": a part before a background. "texture": the surface fills the photo."""
    parts: tuple[str, ...] = ()
    """What the detail prompt calls intact, in the order of speaking."""
    symmetries: tuple[str, ...] = ()
    """Which copies of a good photo are good photos again: rotate90 (includes rotate180), rotate180, flip_x (left and
    right swapped), flip_y (top and bottom swapped)."""
    tiles: int = 0
    """Prototypes look at tiles x tiles windows of the photo, so that fine defects of large photos survive; 0 = by their
    size (feature_windows.py)."""

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.noun.strip():
            raise ClassError(f"class {self.name!r} has an empty noun; give the word that a prompt should use")
        if self.kind not in KINDS:
            raise ClassError(f"class {self.name!r} has the kind {self.kind!r}; expected one of {', '.join(KINDS)}")
        if any(not part.strip() for part in self.parts):
            raise ClassError(f"class {self.name!r} has an empty entry in parts; remove it or name the part")
        if type(self.tiles) is not int or not 0 <= self.tiles <= MAX_TILES:
            raise ClassError(f"class {self.name!r} has tiles = {self.tiles!r}; expected a number from 0 to {MAX_TILES}")
        for symmetry in self.symmetries:
            if symmetry not in SYMMETRIES:
                raise ClassError(
                    f"class {self.name!r} has the symmetry {symmetry!r}; expected some of {', '.join(SYMMETRIES)}"
                )

    def prompts(self) -> Prompts:
        """The whole and the detail prompt (Yan et al., arXiv 2408.01960: hierarchical text description)."""
        detail = f"{_article(self.noun)} {self.noun} with intact {_listed(self.parts)}." if self.parts else None
        return Prompts(whole=f"A perfect {self.noun}.", detail=detail)


def check_name(name: str) -> None:
    """Raise ClassError unless `name` can name a class and its folder."""
    if not name.strip() or name.startswith(".") or len(name) > 100 or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise ClassError(
            f"{name!r} cannot name a class; expected 1 to 100 characters without slashes, and no dot in front"
        )


def class_spec(name: str, user: Mapping[str, ClassSpec] | None = None) -> ClassSpec:
    """The class called `name`: from the user's classes, else the shipped tables, else from the name alone.

    The last gives an object without known parts or symmetries: "steel_bracket" is told as "A perfect steel bracket.".
    Its photos may say more (class_inference.py).
    """
    if user is not None and name in user:
        return user[name]
    shipped = shipped_classes()
    if name in shipped:
        return shipped[name]
    check_name(name)
    return ClassSpec(name=name, noun=" ".join(re.split(r"[_\s]+", name)).strip() or name)


def is_described(name: str, user: Mapping[str, ClassSpec] | None = None) -> bool:
    """Whether anything but the name tells of a class."""
    return (user is not None and name in user) or name in shipped_classes()


@cache
def shipped_classes() -> Mapping[str, ClassSpec]:
    """The classes that come with the product: MVTec-AD, VisA and the demo."""
    return load_classes(Path(__file__).with_name("class_tables.toml"))


def load_classes(path: Path) -> dict[str, ClassSpec]:
    """Read a TOML file with a table per class: noun (default: the name), kind, parts, symmetries, tiles.

    Raises ClassError, naming the file, the class and the key, for anything that is not of that form.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ClassError(f"class file {path} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise ClassError(f"class file {path} is not UTF-8 text; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ClassError(f"class file {path} is not valid TOML: {error}") from error
    return {name: _from_table(name, table, path) for name, table in tables.items()}


def symmetry_group(symmetries: Sequence[str]) -> tuple[tuple[int, bool], ...]:
    """All distinct views that `symmetries` generate together, as (quarter turns, mirrored); the identity comes first.

    rotate90 with flip_x gives all 8 elements of the square's symmetry group, flip_x with flip_y gives 4, and so on.
    """
    generators = {"rotate90": (1, False), "rotate180": (2, False), "flip_x": (0, True), "flip_y": (2, True)}
    found = [(0, False)]
    for turns, mirrored in found:  # The list grows while it is walked: a breadth-first closure.
        for symmetry in symmetries:
            more, flip = generators[symmetry]
            # A mirror before a turn reverses the turn: turn^a mirror = mirror turn^-a.
            view = ((more + (-turns if flip else turns)) % 4, mirrored != flip)
            if view not in found:
                found.append(view)
    return tuple(sorted(found, key=lambda view: (view[1], view[0])))


def apply_view(array: npt.NDArray[Any], view: tuple[int, bool]) -> npt.NDArray[Any]:
    """(H,W,...) array -> a contiguous copy under a view of :func:`symmetry_group`: first mirrored, then turned."""
    turns, mirrored = view
    return np.ascontiguousarray(np.rot90(array[:, ::-1] if mirrored else array, turns))


def _from_table(name: str, table: object, path: Path) -> ClassSpec:
    where = f"class file {path}, class {name!r}"
    if not isinstance(table, dict):
        raise ClassError(f"{where}: found a bare value, expected a table: write [{name}] on a line of its own")
    for key in table:
        if key not in _KEYS:
            raise ClassError(f"{where}: unknown key {key!r}; expected some of {', '.join(_KEYS)}")
    noun, kind = table.get("noun", name.replace("_", " ")), table.get("kind", "object")
    for key, text in (("noun", noun), ("kind", kind)):
        if not isinstance(text, str):
            raise ClassError(f"{where}: {key} is {text!r}; expected a string")
    lists = {}
    for key in ("parts", "symmetries"):
        entries = table.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise ClassError(f"{where}: {key} is {entries!r}; expected a list of strings")
        lists[key] = tuple(entries)
    try:
        return ClassSpec(name, noun, kind, lists["parts"], lists["symmetries"], table.get("tiles", 0))
    except ClassError as error:
        raise ClassError(f"class file {path}: {error}") from error


def _article(noun: str) -> str:
    first = re.split(r"[\s-]+", noun)[0]
    if _SPELLED_OUT.fullmatch(first):
        return "An" if first[0] in "AEFHILMNORSX" else "A"
    if _SILENT_H.match(first):
        return "An"
    return "An" if first[:1].lower() in set("aeiou") and not _LIKE_CONSONANT.match(first) else "A"


def _listed(parts: tuple[str, ...]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
