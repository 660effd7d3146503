"""The picture of the layers in architecture.md, drawn from the contract that holds them (pyproject.toml).

python docs/layers.py          rewrites the picture; tests/test_docs.py fails where it is out of date
"""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = {"anomalysd_export": "export/anomalysd_export", "anomalysd_runtime": "runtime/anomalysd_runtime"}


def layers() -> list[list[str]]:
    """Packages from the highest layer to the lowest; those of one layer do not import each other."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (found,) = [c["layers"] for c in contracts["contracts"] if c["type"] == "layers"]
    return [[name.strip() for name in layer.split("|")] for layer in found]


def purpose(package: str) -> str:
    """The first sentence of a package's or module's docstring."""
    folder = ROOT / FOLDERS.get(package, package.replace(".", "/"))
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = file.read_text(encoding="utf-8")
    return text[3 : text.index('"""', 3)].split("\n")[0].split(":")[0].split(". ")[0].rstrip(".")


def picture() -> str:
    """A Mermaid flow chart: a box a layer, an arrow to the layer below, which it may import."""
    lines = ["```mermaid", "flowchart TD"]
    names = []
    for number, layer in enumerate(layers()):
        for place, package in enumerate(layer):
            short = package.removeprefix("anomalysd_edge.")
            lines.append(f'    L{number}{"ab"[place]}["{short}<br/><small>{purpose(package)}</small>"]')
        names.append([f"L{number}{'ab'[place]}" for place in range(len(layer))])
    for upper, lower in pairwise(names):
        lines += [f"    {a} --> {b}" for a in upper for b in lower]
    return "\n".join([*lines, "```"])


def page() -> str:
    """architecture.md with the picture of today."""
    text = PAGE.read_text(encoding="utf-8")
    return re.sub(r"```mermaid\nflowchart TD.*?```", lambda _: picture(), text, count=1, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
