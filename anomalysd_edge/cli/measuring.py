"""The verbs that measure over many runs. Like cli.py it opens the heavy rooms inside functions only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anomalysd_edge.errors import SettingsError
from anomalysd_edge.reports.console import progress_bars, say, show_json


def protocol(
    data: Annotated[Path, typer.Option(help="Labelled photos: MVTec-AD layout, VisA layout, or plain folders.")],
    out: Annotated[Path, typer.Option(help="Folder for runs, bundles, results.json, report.html and plots.")],
    dataset: Annotated[
        str | None, typer.Option(help="mvtec-ad or visa: the published classes and split, checked.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Classes to use, by commas; all if left out.")] = None,
    shots: Annotated[str, typer.Option(help="Numbers of good photos per class, in this order.")] = "0,1,2,4",
    seeds: Annotated[
        str, typer.Option(help="Each chooses the shots and seeds the training; 'first' = the first K photos.")
    ] = "0,1,2",
    class_file: Annotated[
        Path | None, typer.Option(help="TOML file with your classes' nouns, parts, kinds and symmetries.")
    ] = None,
    base: Annotated[str, typer.Option(help="nano, a folder in diffusers' layout, or a hub id.")] = "nano",
    steps: Annotated[int | None, typer.Option(help="UNet steps; the base's default if left out.")] = None,
    device: Annotated[str, typer.Option(help="Of the training: cpu or cuda.")] = "cpu",
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Choose settings per class on synthetic anomalies, as calibrate does.")
    ] = False,
    preset: Annotated[str, typer.Option(help="Inspection preset: edge or paper.")] = "edge",
    backend: Annotated[str, typer.Option(help="What inspects, as for eval.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Train and measure for every number of shots and seed: mean and spread per class. Goes on where it was stopped."""
    from anomalysd_edge.reports.protocol import show, write
    from anomalysd_edge.workflows.open_options import Opening
    from anomalysd_edge.workflows.protocol import ProtocolRequest, run_protocol

    asked = ProtocolRequest(
        data, out, dataset, _listed(classes) if classes else None, numbers(shots), _listed(seeds), class_file, base,
        steps, device, calibrate, Opening(preset, backend, threads),
    )  # fmt: skip
    with progress_bars(quiet) as progress:
        found = run_protocol(asked, progress)
    write(found.report(), found.to_json(), out)
    show_json(found.to_json()) if as_json else show(found.report())
    for note in found.notes:
        say(f"not the published photos: {note}")
    say(f"written: {out / 'results.json'}, {out / 'report.html'}, {out / 'plots'}")


def _listed(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


def numbers(words: str) -> tuple[int, ...]:
    """'1,4' -> (1, 4). Raises SettingsError."""
    listed = _listed(words)
    if not all(word.isdecimal() for word in listed):
        raise SettingsError(f"found {words!r}; expected whole numbers by commas, as 0,1,2,4")
    return tuple(map(int, listed))


def register(app: typer.Typer) -> None:
    """Hang the verbs into the command."""
    app.command()(protocol)
