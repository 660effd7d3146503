"""The verbs of a model's later life, distill and add-class, and words of train and export. Opens rooms in functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from anomalysd_edge.errors import SettingsError
from anomalysd_edge.reports.console import progress_bars, say, show_json

ClassFile = Annotated[
    Path | None, typer.Option(help="TOML file with your classes' nouns, parts, kinds and symmetries.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all cores if left out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


_OPTIONS = ("base", "shots")
"""Settings that train has options for and that decide what the others mean."""


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE words as training settings: numbers, true and false, lists with commas where the setting is one.

    Raises SettingsError for a word of another form, an unknown name or a value of another type.
    """
    from anomalysd_edge.training.settings import TrainSettings

    defaults = {name: value for name, value in TrainSettings().to_json().items() if name not in _OPTIONS}
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in defaults:
            raise SettingsError(
                f"--set {word!r} is no NAME=VALUE of a training setting; expected some of {', '.join(sorted(defaults))}"
            )
        found[name] = _typed(name, text.strip(), defaults[name])
    return found


def _typed(name: str, text: str, like: Any) -> Any:
    if isinstance(like, list):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        if isinstance(like, bool):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        return type(like)(text)
    except (KeyError, ValueError) as error:
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[type(like)]
        raise SettingsError(f"--set {name}={text}: expected {kind}") from error


def graphs_of(precision: str, size: int | None, batch: str, features: Path | None = None) -> dict[str, Any]:
    """The words of `export` as the fields of ExportSettings. Raises SettingsError for sizes that are no numbers."""
    try:
        batches = () if batch == "dynamic" else tuple(int(word) for word in batch.split(","))
    except ValueError as error:
        raise SettingsError(f"--batch is {batch!r}, expected dynamic or whole numbers by commas, as 1,4,13") from error
    return {"precisions": tuple(precision.split(",")), "size_px": size or 0, "batches": batches, "features": features}


def distill(
    run: Annotated[Path, typer.Argument(help="Run folder that train wrote.")],
    out: Annotated[Path, typer.Option(help="Run folder to write: the same model, for fewer steps.")],
    passes: Annotated[int, typer.Option(help="UNet passes that the new model is for, 1 to 4.")] = 2,
    strength: Annotated[float, typer.Option(help="lambda: inspections start at lambda*T.")] = 0.3,
    steps: Annotated[int, typer.Option(help="Steps of the distillation.")] = 300,
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapters that learn; merged at the end.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    batch: Annotated[int | None, typer.Option(help="Samples a step; the run's if left out.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    quiet: Quiet = False,
) -> None:
    """Teach a fine-tuned UNet to repaint in 1 to 4 passes from lambda*T (consistency distillation, as LCM does)."""
    from anomalysd_edge.training.distilling import DistillSettings
    from anomalysd_edge.training.distilling import distill as body
    from anomalysd_edge.training.run import read_run

    how = DistillSettings(
        passes=passes, strength=strength, steps=steps, lora_rank=lora_rank, lr=lr, batch=batch or 0, device=device
    )
    with progress_bars(quiet) as progress:
        body(read_run(run), out, how, resume, progress)
    say(f"run written: {out}; next: sd-edge export {out} --out BUNDLE")


def add_class(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder; it is replaced unless --out says otherwise.")],
    name: Annotated[str, typer.Option(help="The class's name, as data sets and inspect will call it.")],
    photos: Annotated[Path, typer.Option(help="Folder of its good photos.")],
    text_encoder: Annotated[
        Path | None, typer.Option(help="Run or model folder with the text encoder; the bundle's base if left out.")
    ] = None,
    class_file: ClassFile = None,
    shots: Annotated[int | None, typer.Option(help="The first K photos; all if left out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the new bundle there.")] = None,
    false_alarm_rate: Annotated[float, typer.Option(help="Share of good photos that may raise an alarm.")] = 0.02,
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Add a class to a bundle without training: its prompts, prototypes and threshold. Needs the text encoder."""
    from anomalysd_edge.calibration.settings import CalibrationSettings
    from anomalysd_edge.workflows.add_class import AddRequest
    from anomalysd_edge.workflows.add_class import add_class as body

    asked = AddRequest(
        bundle, name, photos, text_encoder, class_file, shots, out,
        CalibrationSettings(false_alarm_rate=false_alarm_rate), threads,
    )  # fmt: skip
    with progress_bars(quiet) as progress:
        added = body(asked, progress)
    if as_json:
        show_json(added.to_json())
    say(added.sentence())


def register(app: typer.Typer) -> None:
    """Give the command its verbs."""
    app.command()(distill)
    app.command("add-class")(add_class)
