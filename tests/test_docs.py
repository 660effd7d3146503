"""The documents that say what the code is: kept true by the code itself."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])


def test_the_picture_of_the_layers_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    layers = importlib.import_module("layers")

    try:
        assert layers.page() == layers.PAGE.read_text(encoding="utf-8"), "run python docs/layers.py"
    finally:
        sys.modules.pop("layers")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_documents_name_are_there(page: Path) -> None:
    """A path in backticks that looks like one of ours: moved modules must not live on in the documents."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:anomalysd_edge|runtime|export|benchmarks|tests|docs)/[\w/.-]+)`", text)
    for name in named:
        assert (ROOT / name).exists(), f"{page.name} names {name}"
