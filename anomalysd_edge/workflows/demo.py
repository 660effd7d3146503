"""`sd-edge demo`: the whole chain on rendered parts: photos, training, bundle, verification, inspection, report."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from anomalysd_edge.core.files import write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.demo.dataset import render_demo
from anomalysd_edge.errors import InputError
from anomalysd_edge.evaluation import evaluate
from anomalysd_edge.workflows.quickstart import run_chain

SHOTS = 4
TEST_GOOD, TEST_BAD = 8, 10
MARKER = "demo.json"


@dataclass(frozen=True)
class DemoResult:
    """What the demo shows at its end."""

    columns: tuple[str, ...]
    """Titles of the table's columns."""
    rows: list[tuple[str, ...]]
    """Per class, then the mean."""
    sentence: str
    """Where the report is, and how long each part took."""
    passed: bool
    """Whether torch and ONNX Runtime agreed."""


def run_demo(out: Path, seed: int, progress: Progress) -> DemoResult:
    """Render, then the chain of quickstart.py; everything lands below `out`; an earlier demo there is replaced.

    Raises InputError where `out` holds something that no demo wrote.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).exists())):
        raise InputError(f"{out} is there and was not written by a demo; name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARKER, {"seed": seed, "finished": False})
    data = out / "data"
    for earlier in (data, out / "run", out / "run.partial", out / "bundle", out / "bundle.versions", out / "report"):
        if earlier.exists():
            shutil.rmtree(earlier)
    began = time.monotonic()
    render_demo(
        data, seed, train_good=SHOTS, test_good=TEST_GOOD, test_bad=TEST_BAD,
        progress=lambda done, total: progress("render", done, total, ""),
    )  # fmt: skip
    rendered = time.monotonic() - began
    found = run_chain(data, out, {"shots": SHOTS, "seed": seed}, progress)
    write_json(out / MARKER, {"seed": seed, "finished": True, **found.to_json()})
    assert found.measured is not None  # the demo's photos are labelled
    image = evaluate.mean_figure(found.measured.results, "fused", "image_auroc")
    repaint = evaluate.mean_figure(found.measured.results, "multiscale", "pixel_auroc")
    return DemoResult(
        columns=found.measured.columns,
        rows=found.measured.rows,
        sentence=(
            f"{found.verified['sentence']}\n"
            f"fused mean image AUROC {image:.3f}; repaint alone (S_ms) mean pixel AUROC {repaint:.3f}\n"
            f"report: {out / 'report' / 'report.html'}   bundle: {out / 'bundle'}   "
            f"(render {rendered:.0f} s, {found.parts})"
        ),
        passed=found.passed,
    )
