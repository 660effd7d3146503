"""The verbs that make models: train, distill, export, teach, versions. Each imports its workflow when it is called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from anomalysd_edge.cli import options
from anomalysd_edge.cli.options import listed, numbers
from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_edge.reports.console import percent, progress_bars, say, score_limits, show_json, show_table

_OWN_OPTIONS = ("base", "shots")
"""Settings that decide the others' defaults: options of train, not of --set."""


def train(
    data: options.DataDir,
    out: Annotated[Path, Option(help="Run folder to write.")],
    shots: Annotated[int, Option(help="K: good photos per class; 0 leaves the base model as it is.")] = 4,
    seed: Annotated[int, Option(help="Random seed.")] = 0,
    shot_seed: Annotated[int | None, Option(help="Random seed that draws the K photos; else the first K.")] = None,
    classes: options.Classes = None,
    dataset: options.DatasetName = None,
    normal_dir: options.NormalDirs = None,
    abnormal_dir: options.AbnormalDirs = None,
    normal_test_dir: options.NormalTestDirs = None,
    mask_dir: options.MaskDirs = None,
    class_file: options.ClassFile = None,
    base: options.Base = "nano",
    steps: Annotated[int | None, Option(help="UNet training steps; else the base's default.")] = None,
    decoder_steps: Annotated[int | None, Option(help="VAE decoder training steps; else the base's default.")] = None,
    batch_size: options.BatchSize = None,
    lr: Annotated[float | None, Option(help="Peak learning rate of the UNet.")] = None,
    lora_rank: Annotated[int, Option(help="Rank of LoRA adapters; 0 fine-tunes all weights.")] = 0,
    vae: Annotated[str | None, Option(help="Small autoencoder: tiny (TAESD), a folder or hub id.")] = None,
    more: Annotated[
        list[str] | None,
        Option(
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
    names = options.class_names(classes)
    named = options.named_folders(normal_dir, abnormal_dir, normal_test_dir, mask_dir, dataset, names)
    with progress_bars(quiet) as progress:
        train_on(data, out, base, chosen, shot_seed, names, class_file, resume, progress, dataset, named)
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
    precision: str, size: int | None, static_batches: str | None, features: str | None = None
) -> dict[str, Any]:
    """The options of `export` as fields of ExportSettings. Raises SettingsError for sizes that are no numbers."""
    fixed = static_batches not in (None, "dynamic")
    batches = numbers(static_batches or "", "--static-batches", 1) if fixed else ()
    return {"precisions": listed(precision), "size_px": size or 0, "batches": batches, "features": features}


def distill(
    run: Annotated[Path, Argument(metavar="RUN", help="Run folder, as train wrote it.")],
    out: Annotated[Path, Option(help="Run folder to write.")],
    passes: Annotated[int, Option(help="UNet passes per inspection of the new model, 1 to 4.")] = 2,
    strength: Annotated[float, Option(help="lambda: repainting starts at timestep lambda*T, in (0,1].")] = 0.3,
    steps: Annotated[int, Option(help="Training steps.")] = 300,
    lora_rank: Annotated[int, Option(help="Rank of the LoRA adapters; merged into the UNet at the end.")] = 16,
    lr: Annotated[float, Option(help="Peak learning rate.")] = 5e-4,
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
    run: Annotated[Path, Argument(metavar="RUN", help="Run folder, as train wrote it; with --triton also a bundle.")],
    out: Annotated[Path | None, Option(help="Bundle folder to write.")] = None,
    class_file: options.ClassFile = None,
    precision: Annotated[str, Option(help="Precisions of the graphs, by commas: fp32, fp16, bf16.")] = "fp32",
    size: Annotated[int | None, Option(help="Side of the model's image in px; the run's if left out.")] = None,
    features: options.Features = None,
    static_batches: options.StaticBatches = None,
    missed_cost: options.MissedCost = 1.0,
    referral_cost: options.ReferralCost = 0.25,
    defect_rate: options.DefectRate = 0.5,
    threads: options.Threads = None,
    triton: Annotated[Path | None, Option("--triton", help="Folder for a Triton model repository.")] = None,
    name: Annotated[str | None, Option(help="With --triton: model name; the bundle's if left out.")] = None,
    backend: Annotated[str, Option(help="With --triton: cpu, cuda or ort-tensorrt, as cuda:fp16.")] = "cuda",
    preset: options.Preset = "edge",
    instances: Annotated[int, Option(help="With --triton: model instances that run at a time.")] = 2,
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
    from anomalysd_edge.calibration.settings import CalibrationSettings
    from anomalysd_edge.method.score_model import Costs
    from anomalysd_edge.reports.calibration import show_thresholds
    from anomalysd_edge.workflows.export import export_to

    settings = CalibrationSettings(costs=Costs(missed_cost, referral_cost, defect_rate))
    with progress_bars(quiet) as progress:
        graphs = graphs_of(precision, size, static_batches, features)
        bundle = export_to(run, out, class_file, threads, progress, graphs, settings)
    figures = [
        (network, record.dtype, f"{record.parity['max_abs']:.1e}", f"{record.tolerance:.0e}")
        for network, record in bundle.manifest.networks.items()
    ]
    show_table("Largest difference from torch", ("network", "dtype", "difference", "allowed"), figures)
    show_thresholds({name: record.calibration.get("edge") for name, record in bundle.manifest.classes.items()})
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


def teach(
    bundle: options.BundleToChange,
    name: Annotated[
        str, Option("--class", "--name", help="The class, as data sets and inspect --class spell it; new or known.")
    ],
    photos: Annotated[Path, Option(help="Good photos of the class, 1 to 20: folder.")],
    noun: Annotated[str | None, Option(help="What the prompts call it, as 'steel bracket'; else its name.")] = None,
    text_encoder: Annotated[
        Path | None, Option(help="Run or model with the text encoder; else the bundle's base.")
    ] = None,
    class_file: options.ClassFile = None,
    shots: Annotated[int | None, Option(help="Use the first K photos; all if left out.")] = None,
    out: Annotated[Path | None, Option(help="Folder for the new bundle.")] = None,
    sign: Annotated[Path | None, Option(metavar="KEY", help="Sign the new bundle with this private key.")] = None,
    missed_cost: options.MissedCost = 1.0,
    referral_cost: options.ReferralCost = 0.25,
    defect_rate: options.DefectRate = 0.5,
    false_alarm_rate: options.FalseAlarmRate = 0.02,
    threads: options.Threads = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Teach a class from good photos, without training: memory bank, thresholds, limits.

    A class that the bundle knows is taught anew. The bundle of before is kept: sd-edge versions BUNDLE.

    Example: sd-edge teach BUNDLE --class bracket --photos GOOD
    """
    from anomalysd_edge.bundle.teaching import NEGATIVES
    from anomalysd_edge.calibration.settings import CalibrationSettings
    from anomalysd_edge.core.files import printable
    from anomalysd_edge.method.score_model import Costs
    from anomalysd_edge.reports.inspection import limits_json
    from anomalysd_edge.workflows import teach as body

    request = body.TeachRequest(
        bundle=bundle, name=name, photos=photos, noun=noun, text_encoder=text_encoder, class_file=class_file,
        shots=shots, out=out, key=sign, threads=threads, settings=CalibrationSettings(
            negatives=NEGATIVES, false_alarm_rate=false_alarm_rate,
            costs=Costs(missed_cost, referral_cost, defect_rate),
        ),
    )  # fmt: skip
    with progress_bars(quiet) as progress:
        taught = body.teach_class(request, progress)
    for sentence in (*(finding.sentence for finding in taught.findings), *taught.notes):
        say(printable(sentence))
    if as_json:
        show_json(taught.to_json())
    else:
        rows = [
            (preset, score_limits(found.threshold, limits_json(found.decision)),
             *(("-", "-") if found.expected is None else
               (percent(found.expected.false_alarms), percent(found.expected.missed))))
            for preset, found in taught.calibrations.items()
        ]  # fmt: skip
        columns = ("preset", "threshold (limits)", "false alarms expected", "misses expected")
        show_table(printable(f"{taught.name}, from {len(taught.photos)} photos"), columns, rows)
    say(taught.sentence())


def versions(
    bundle: options.BundleDir,
    restore: Annotated[str | None, Option(metavar="ID", help="Go back to this version.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """List what a bundle was before it was taught or calibrated, and go back. The last 5 versions are kept.

    Example: sd-edge versions BUNDLE --restore 0a1b2c3d4e5f6789
    """
    from anomalysd_edge.bundle import versions as body
    from anomalysd_edge.core.files import printable

    if restore is not None:
        back = body.restore(bundle, restore)
        say(f"{bundle} is {back.bundle_id} again; what it was is kept as a version")
    found = body.versions(bundle)
    if as_json:
        show_json(found)
        return
    rows = [
        (v.bundle_id, v.created, printable(v.change) or "exported", "signed" * v.signed, "now" * v.current)
        for v in found
    ]  # fmt: skip
    show_table("Versions", ("id", "written", "what changed", "", ""), rows)
