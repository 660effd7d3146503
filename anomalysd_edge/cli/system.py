"""The verbs quickstart, demo and doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from anomalysd_edge.cli import options
from anomalysd_edge.reports.console import progress_bars, say, show_json, show_table


def quickstart(
    photos: Annotated[
        Path,
        Argument(metavar="PHOTOS", help="Folder of good photos a class, or any layout that train takes as --data."),
    ],
    out: Annotated[Path, Option(help="Folder for run, bundle and report; the same command goes on in it.")] = Path(
        "out"
    ),
    shots: Annotated[int, Option(help="K: good photos per class.")] = 4,
    seed: Annotated[int, Option(help="Random seed.")] = 0,
    base: options.Base = "nano",
    classes: options.Classes = None,
    class_file: options.ClassFile = None,
    steps: Annotated[int | None, Option(help="UNet training steps; else the base's default.")] = None,
    decoder_steps: Annotated[int | None, Option(help="VAE decoder training steps; else the base's default.")] = None,
    device: options.Device = "cpu",
    quiet: options.Quiet = False,
) -> None:
    """Train on a few good photos of every class, export, verify, and measure where there are test photos.

    Test photos lie in test/good and test/DEFECT. What was interrupted goes on with the same command.

    Example: sd-edge quickstart PHOTOS --out OUT
    """
    from anomalysd_edge.reports.calibration import show_thresholds
    from anomalysd_edge.workflows import quickstart as chain

    chosen = {"shots": shots, "seed": seed, "steps": steps, "decoder_steps": decoder_steps, "device": device}
    with progress_bars(quiet) as progress:
        found = chain.quickstart(photos, out, chosen, options.class_names(classes), class_file, progress, base)
    show_thresholds({name: r.calibration.get("edge") for name, r in found.bundle.manifest.classes.items()})
    say(found.verified["sentence"])
    if found.measured is not None:
        show_table("Test photos, percent", found.measured.columns, found.measured.rows)
        say(f"report: {out / 'report' / 'report.html'}")
    say(f"bundle: {out / 'bundle'} ({found.parts}); next: sd-edge serve {out / 'bundle'}")
    if not found.passed:
        raise typer.Exit(1)


def demo(
    out: Annotated[Path, Option(help="Folder for everything that the demo makes.")] = Path("out/demo"),
    seed: Annotated[int, Option(help="Random seed of the photos and the training.")] = 0,
    quiet: options.Quiet = False,
) -> None:
    """Run the whole chain on rendered parts: photos, training, bundle, verification, figures, report.

    Takes about 6 minutes on 2 idle cores.

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
