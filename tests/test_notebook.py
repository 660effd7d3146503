"""The notebook of the documents: it runs from its first cell to its last, and what is committed was executed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import ROOT

NOTEBOOK = ROOT / "docs/notebooks/getting_started.ipynb"
MOST_BYTES = 1 << 20


def code_cells(file: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook, outputs included."""
    return [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_what_is_committed_was_executed_in_order_and_is_small() -> None:
    cells = code_cells(NOTEBOOK)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not [entry for cell in cells for entry in cell["outputs"] if entry["output_type"] == "error"]
    pictures = [cell for cell in cells if any("image/jpeg" in entry.get("data", {}) for entry in cell["outputs"])]
    assert len(pictures) == 3, "the good photos, repaints and maps of bad ones, of a good one"
    assert NOTEBOOK.stat().st_size < MOST_BYTES
    text = "".join(str(entry.get("text", "")) for cell in cells for entry in cell["outputs"])
    assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|var)/|\x1b\[", text), "paths of a machine, colours"


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    missing = [package for package in ("nbclient", "ipykernel") if find_spec(package) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed: pip install 'anomalysd-edge[notebook]'")
    out = tmp_path / "executed.ipynb"
    path = os.pathsep.join([str(ROOT), str(ROOT / "export"), str(ROOT / "runtime"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, ROOT / "docs/notebooks/execute.py", out],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cells = code_cells(out)
    assert [cell["source"] for cell in cells] == [cell["source"] for cell in code_cells(NOTEBOOK)]
    said = "".join(str(entry.get("text", "")) for cell in cells for entry in cell["outputs"])
    assert "run written: RUN" in said
    assert "bundle written: BUNDLE" in said
    assert "anomalous" in said
