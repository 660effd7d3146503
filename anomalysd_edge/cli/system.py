"""The verbs demo and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from anomalysd_edge.cli import options
from anomalysd_edge.reports.console import progress_bars, say, show_json, show_table


def demo(
    out: Annotated[Path, Option(help="Folder for everything that the demo makes.")] = Path("out/demo"),
    seed: Annotated[int, Option(help="Random seed of the photos and the training.")] = 0,
    quiet: options.Quiet = False,
) -> None:
    """Run the whole chain on rendered parts: photos, training, bundle, verification, figures, report.

    Takes about 5 minutes on 2 cores.

    Example: sd-edge demo --out out/demo
    """
    from anomalysd_edge.workflows.demo import run_demo

    with progress_bars(quiet) as progress:
        found = run_demo(out, seed, progress)
    show_table(
        "Demo, percent: verdicts first (balanced error, at best threshold), then image/pixel AUROC per map",
        found.columns,
        found.rows,
    )
    say(found.sentence)
    if not found.passed:
        raise typer.Exit(1)


def doctor(as_json: options.AsJson = False) -> None:
    """Show what this machine can run, and what is missing for the rest.

    Example: sd-edge doctor
    """
    from anomalysd_edge.workflows.doctor import examine

    findings = examine()
    if as_json:
        show_json([vars(f) for f in findings])
        return
    for f in findings:
        print(f"{'yes' if f.able else 'no ':3}  {f.what:24}  {f.because}")
