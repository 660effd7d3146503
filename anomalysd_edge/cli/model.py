"""The verbs that make models: train, distill, export and add-class. Each imports its workflow when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from anomalysd_edge.cli import options
from anomalysd_edge.cli.options import listed, numbers
from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_edge.reports.console import progress_bars, say, show_json, show_table

_OWN_OPTIONS = ("base", "shots")
"""Settings that decide the others' defaults: options of train, not of --set."""


def train(
    data: options.DataDir,
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    shots: Annotated[int, typer.Option(help="K: good photos per class; 0 leaves the base model as it is.")] = 4,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    shot_seed: Annotated[
        int | None, typer.Option(help="Random seed that draws the K photos; the first K if left out.")
    ] = None,
    classes: options.Classes = None,
    class_file: options.ClassFile = None,
    base: Annotated[
        str, typer.Option(help="Base model: nano, a folder in diffusers' layout, a .safetensors file, or a hub id.")
    ] = "nano",
    steps: Annotated[int | None, typer.Option(help="UNet training steps; the base's default if left out.")] = None,
    decoder_steps: Annotated[
        int | None, typer.Option(help="VAE decoder training steps; the base's default if left out.")
    ] = None,
    batch_size: options.BatchSize = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the UNet.")] = None,
    lora_rank: Annotated[int, typer.Option(help="Rank of LoRA adapters; 0 fine-tunes all weights.")] = 0,
    vae: Annotated[
        str | None,
        typer.Option(help="Use a small autoencoder: tiny for TAESD, or an AutoencoderTiny's folder or hub id."),
    ] = None,
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any other training setting; repeatable. See docs/stable-diffusion.md."
        ),
    ] = None,
    device: options.Device = "cpu",
    resume: options.Resume = False,
    quiet: options.Quiet = False,
) -> None:
    """Fine-tune the UNet and the VAE decoder on a few good photos of every class: one model for all classes.

    Example: sd-edge train --data PHOTOS --shots 4 --out RUN
    """
    from anomalysd_edge.workflows.train import train_on

    chosen = {
        "shots": shots, "seed": seed, "steps": steps, "decoder_steps": decoder_steps, "batch": batch_size, "lr": lr,
        "lora_rank": lora_rank, "vae": vae, "device": device, **settings_of(more or []),
    }  # fmt: skip
    names = list(listed(classes)) or None
    with progress_bars(quiet) as progress:
        train_on(data, out, base, chosen, shot_seed, names, class_file, resume, progress)
    say(f"run written: {out}; next: sd-edge export {out} --out BUNDLE")


def settings_of(words: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE words of --set as training settings: numbers, true or false, lists separated by commas.

    Raises SettingsError for a word of another form, an unknown name or a value of another type.
    """
    from anomalysd_edge.training.settings import TrainSettings

    defaults = {name: value for name, value in TrainSettings().to_json().items() if name not in _OWN_OPTIONS}
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
        return listed(text)
    try:
        if isinstance(like, bool):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        return type(like)(text)
    except (KeyError, ValueError) as error:
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[type(like)]
        raise SettingsError(f"--set {name}={text}: expected {kind}") from error


def graphs_of(
    precision: str, size: int | None, static_batches: str | None, features: Path | None = None
) -> dict[str, Any]:
    """The options of `export` as fields of ExportSettings. Raises SettingsError for sizes that are no numbers."""
    fixed = static_batches not in (None, "dynamic")
    batches = numbers(static_batches or "", "--static-batches", 1) if fixed else ()
    return {"precisions": listed(precision), "size_px": size or 0, "batches": batches, "features": features}


def distill(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, as train wrote it.")],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    passes: Annotated[int, typer.Option(help="UNet passes per inspection of the new model, 1 to 4.")] = 2,
    strength: Annotated[float, typer.Option(help="lambda: repainting starts at timestep lambda*T, in (0,1].")] = 0.3,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 300,
    lora_rank: Annotated[int, typer.Option(help="Rank of the LoRA adapters; merged into the UNet at the end.")] = 16,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    batch_size: options.BatchSize = None,
    device: options.Device = "cpu",
    resume: options.Resume = False,
    quiet: options.Quiet = False,
) -> None:
    """Distil a trained UNet to repaint in 1 to 4 passes (consistency distillation, as LCM does).

    Example: sd-edge distill RUN --out FAST --passes 2
    """
    from anomalysd_edge.training.distilling import DistillSettings
    from anomalysd_edge.training.distilling import distill as body
    from anomalysd_edge.training.run import read_run

    settings = DistillSettings(
        passes=passes, strength=strength, steps=steps, lora_rank=lora_rank, lr=lr, batch=batch_size or 0, device=device
    )
    with progress_bars(quiet) as progress:
        body(read_run(run), out, settings, resume, progress)
    say(f"run written: {out}; next: sd-edge export {out} --out BUNDLE")


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder, as train wrote it; with --triton also a bundle.")
    ],
    out: Annotated[Path | None, typer.Option(help="Bundle folder to write.")] = None,
    class_file: options.ClassFile = None,
    precision: Annotated[
        str, typer.Option(help="Precisions of the graphs, separated by commas: fp32, and fp16 or bf16 beside it.")
    ] = "fp32",
    size: Annotated[int | None, typer.Option(help="Side of the model's image in px; the run's if left out.")] = None,
    features: options.Features = None,
    static_batches: options.StaticBatches = None,
    threads: options.Threads = None,
    triton: Annotated[
        Path | None, typer.Option("--triton", help="Folder for a Triton model repository, made from the bundle.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="With --triton: model name; the bundle's if left out.")] = None,
    backend: Annotated[
        str, typer.Option(help="With --triton: cpu, cuda or ort-tensorrt; a precision as in cuda:fp16.")
    ] = "cuda",
    preset: options.Preset = "edge",
    instances: Annotated[
        int, typer.Option(help="With --triton: model instances, each with a group of photos at a time.")
    ] = 2,
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Export a run to a bundle: ONNX graphs compared with torch, prompt states, prototypes, thresholds, manifest.

    Graphs take any batch size; --static-batches writes ones of fixed sizes beside them.

    Example: sd-edge export RUN --out BUNDLE
    """
    from anomalysd_edge.bundle.reader import MANIFEST

    repository = (triton, name, backend, preset, instances, force)
    if (run / MANIFEST).is_file():
        _write_triton(run, *repository)
        return
    if out is None:
        raise InputError(f"export needs --out BUNDLE, the folder to write the bundle of {run} to")
    from anomalysd_edge.workflows.export import export_to

    with progress_bars(quiet) as progress:
        graphs = graphs_of(precision, size, static_batches, features)
        bundle = export_to(run, out, class_file, threads, progress, graphs)
    figures = [
        (network, record.dtype, f"{record.parity['max_abs']:.1e}", f"{record.tolerance:.0e}")
        for network, record in bundle.manifest.networks.items()
    ]
    show_table("Largest difference from torch", ("network", "dtype", "difference", "allowed"), figures)
    say(f"bundle written: {out}; next: sd-edge inspect {out} PHOTO...")
    if triton is not None:
        _write_triton(out, *repository)


def _write_triton(
    bundle: Path, out: Path | None, name: str | None, backend: str, preset: str, instances: int, force: bool
) -> None:
    """The model repository of a bundle. Raises InputError without a folder for it."""
    from anomalysd_edge.bundle.open_options import OpenOptions
    from anomalysd_edge.bundle.reader import read_bundle
    from anomalysd_edge.fleet.registry import check_name
    from anomalysd_export.triton.repository import TritonSettings, write_repository

    if out is None:
        raise InputError(f"{bundle} is a bundle already; give --triton DIR for a model repository of it")
    settings = TritonSettings(
        name=check_name(name or bundle.resolve().name),
        options=OpenOptions(backend=backend, preset=preset, force=force),
        instances=instances,
    )
    models = write_repository(read_bundle(bundle), out, settings)
    say(f"model repository written: {out} ({', '.join(models)}); next: tritonserver --model-repository {out}")


def add_class(
    bundle: options.BundleToChange,
    name: Annotated[str, typer.Option(help="Name of the new class, as data sets and inspect --class spell it.")],
    photos: Annotated[Path, typer.Option(help="Good photos of the new class: folder.")],
    text_encoder: Annotated[
        Path | None,
        typer.Option(help="Run or model folder that holds the text encoder; the bundle's base if left out."),
    ] = None,
    class_file: options.ClassFile = None,
    shots: Annotated[int | None, typer.Option(help="Use the first K photos; all if left out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the new bundle.")] = None,
    false_alarm_rate: options.FalseAlarmRate = 0.02,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Add a class to a bundle without training: its prompt states, prototypes and threshold.

    Needs the text encoder, which is no part of a bundle: run it where the model was trained.

    Example: sd-edge add-class BUNDLE --name bracket --photos GOOD
    """
    from anomalysd_edge.calibration.settings import CalibrationSettings
    from anomalysd_edge.workflows.add_class import AddClassRequest
    from anomalysd_edge.workflows.add_class import add_class as body

    request = AddClassRequest(
        bundle=bundle, name=name, photos=photos, text_encoder=text_encoder, class_file=class_file, shots=shots,
        out=out, settings=CalibrationSettings(false_alarm_rate=false_alarm_rate), threads=threads,
    )  # fmt: skip
    with progress_bars(quiet) as progress:
        added = body(request, progress)
    if as_json:
        show_json(added.to_json())
    say(added.sentence())
