"""`sd-edge demo`: the whole chain on rendered parts, from a few good photos to a verdict, with nothing left out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from anomalysd_edge.core.files import write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.demo.dataset import render_demo
from anomalysd_edge.errors import InputError
from anomalysd_edge.evaluation import evaluate
from anomalysd_edge.workflows.evaluate import evaluate_bundle
from anomalysd_edge.workflows.export import export_to
from anomalysd_edge.workflows.train import train_on
from anomalysd_edge.workflows.verify import verify_against

SHOTS = 4
TEST_GOOD, TEST_BAD = 8, 10
MARKER = "demo.json"


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves on the screen."""

    columns: tuple[str, ...]
    """Of the table."""
    rows: list[tuple[str, ...]]
    """Per class, then the mean."""
    sentence: str
    """Where the report is, and how long each part took."""
    passed: bool
    """Whether torch and ONNX Runtime agreed."""


def run_demo(out: Path, seed: int, progress: Progress) -> DemoResult:
    """Render, train, export, verify, inspect, report; everything lands below `out`, which may hold an earlier demo.

    Raises InputError where `out` holds something that no demo wrote.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARKER).exists())):
        raise InputError(f"{out} is there and was not written by a demo; name another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARKER, {"seed": seed, "finished": False})
    took: dict[str, float] = {}

    def timed(name: str, began: float) -> None:
        took[name] = round(time.monotonic() - began, 1)

    data, run, bundle, report = (out / name for name in ("data", "run", "bundle", "report"))
    _clear(data)
    began = time.monotonic()
    render_demo(
        data, seed, train_good=SHOTS, test_good=TEST_GOOD, test_bad=TEST_BAD,
        progress=lambda done, total: progress("render", done, total, ""),
    )  # fmt: skip
    timed("render", began)
    began = time.monotonic()
    train_on(data, run, "nano", {"shots": SHOTS, "seed": seed}, None, None, None, False, progress)
    timed("train", began)
    began = time.monotonic()
    export_to(run, bundle, None, None, progress)
    timed("export", began)
    began = time.monotonic()
    agreed = verify_against(bundle, run, data, 20, "edge", None, progress)
    timed("verify", began)
    began = time.monotonic()
    measured = evaluate_bundle(bundle, data, None, report, ("edge", "cpu", None), progress)
    timed("inspect", began)
    write_json(
        out / MARKER,
        {"seed": seed, "finished": True, "seconds": took, "verify": agreed.to_json(), "results": measured.to_json()},
    )
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items())
    image = evaluate.mean_figure(measured.results, "fused", "image_auroc")
    repaint = evaluate.mean_figure(measured.results, "multiscale", "pixel_auroc")
    return DemoResult(
        columns=measured.columns,
        rows=measured.rows,
        sentence=(
            f"{agreed.sentence()}\n"
            f"fused mean image AUROC {image:.3f}; repaint alone (S_ms) mean pixel AUROC {repaint:.3f}\n"
            f"report: {report / 'report.html'}   bundle: {bundle}   ({parts})"
        ),
        passed=agreed.passed,
    )


def _clear(data: Path) -> None:
    """Remove the data of an earlier demo, which the marker vouches for."""
    import shutil

    if data.exists():
        shutil.rmtree(data)
