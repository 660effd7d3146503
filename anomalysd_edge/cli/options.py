"""Options that several verbs share: one spelling, one meaning, one help text; and how their values are parsed.

Older spellings stay valid: `RENAMED` maps them to today's, and no help shows them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option
from typer.core import TyperCommand

from anomalysd_edge.cli.help_groups import grouped
from anomalysd_edge.errors import SettingsError

if TYPE_CHECKING:
    from anomalysd_edge.data.datasets import NamedFolders
    from anomalysd_runtime.distributed.ray_inspect import RaySettings

BundleDir = Annotated[Path, Argument(metavar="BUNDLE", help="Bundle folder, as export wrote it.")]
BundleToChange = Annotated[
    Path, Argument(metavar="BUNDLE", help="Bundle folder; replaced by the new bundle unless --out is given.")
]
DataDir = Annotated[
    Path,
    Option("--data", help="Data set: MVTec-AD or VisA layout, plain folders, or a .yaml of anomalib's Folder."),
]
Classes = Annotated[
    list[str] | None, Option(metavar="NAMES", help="Classes to use, separated by commas; repeatable; else all.")
]
DatasetName = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="Published data set, checked: mvtec-ad, visa, mvtec-loco, mvtec-ad2, btad, mpdd or real-iad.",
    ),
]
NormalDirs = Annotated[
    list[Path] | None,
    Option("--normal-dir", metavar="DIR", help="Folder in --data or --photos: good photos of one class; repeatable."),
]
AbnormalDirs = Annotated[
    list[Path] | None,
    Option("--abnormal-dir", metavar="DIR", help="With --normal-dir: folder of bad photos; repeatable."),
]
NormalTestDirs = Annotated[
    list[Path] | None,
    Option("--normal-test-dir", metavar="DIR", help="With --normal-dir: good photos to test on; repeatable."),
]
MaskDirs = Annotated[
    list[Path] | None,
    Option("--mask-dir", metavar="DIR", help="With --abnormal-dir: masks of the bad photos; one, or one for each."),
]
Base = Annotated[str, Option(help="Base model: nano, a diffusers folder, .safetensors file or hub id.")]
ClassFile = Annotated[Path | None, Option(help="TOML file that describes your classes: noun, parts, kind, symmetries.")]
Features = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="Features from DINOv2 in place of EfficientNet-Lite2: dinov2-small, dinov2-base, a hub id or a folder; "
        "with @672 behind it at 672 px.",
    ),
]
Preset = Annotated[str, Option(help="Inspection settings of the bundle: edge (fast) or paper (as published).")]
Backend = Annotated[
    str,
    Option(
        help="cpu, cuda, rtx, tensorrt, ort-tensorrt, ort-rtx, openvino or webgpu; with a precision as in cuda:fp16."
    ),
]
Device = Annotated[str, Option(help="Device to train on: cpu or cuda.")]
Threads = Annotated[int | None, Option(help="CPU threads; all cores if left out.")]
MaxBatch = Annotated[
    int | None,
    Option(help="Most samples in one UNet pass: memory and speed, never a verdict; else 3 on a CPU, 16 elsewhere."),
]
BatchSize = Annotated[int | None, Option(help="Samples in one training step; the model's default if left out.")]
StaticBatches = Annotated[
    str | None, Option(metavar="SIZES", help="Fixed batch sizes of the graphs or engines, as 1,4,13.")
]
PublicKey = Annotated[
    Path | None, Option("--require-signature", metavar="KEY", help="Public key (PEM) that must have signed the bundle.")
]
OnMismatch = Annotated[
    str, Option(help="Without a TensorRT engine for this machine: error, rebuild (build one) or onnxruntime.")
]
Force = Annotated[bool, Option("--force", help="Run a precision although verify has refused it.")]
Resume = Annotated[bool, Option("--resume", help="Continue from the last checkpoint in --out.")]
FalseAlarmRate = Annotated[
    float,
    Option(help="Share of good photos that may be alarms, 0 to 0.5; used only where nothing is known of defects."),
]
MissedCost = Annotated[float, Option(help="Cost of a missed defect, in false alarms.")]
ReferralCost = Annotated[
    float, Option(help="Cost of an uncertain verdict, that is of asking a person, in false alarms, between 0 and 1.")
]
DefectRate = Annotated[float, Option(help="Share of defective photos to expect, between 0 and 1.")]
Full = Annotated[
    bool, Option("--full", help="Repaint every photo's whole plan, also where its verdict is settled before.")
]
AsJson = Annotated[bool, Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, Option("--quiet", help="No progress bars.")]

Ray = Annotated[str | None, Option(help="Inspect on Ray: 'local' starts it here, or an address, or auto.")]
Workers = Annotated[int, Option(help="With --ray: workers, each with --threads threads (1 if left out).")]
Gpus = Annotated[float, Option(help="With --ray: GPUs that each worker reserves; with 0.5 two share one.")]
JournalFile = Annotated[
    Path | None, Option(help="With --ray: file of finished photos; the same command resumes from it.")
]

RENAMED = {
    "train": {"--batch": "--batch-size"},
    "distill": {"--batch": "--batch-size"},
    "export": {"--batch": "--static-batches"},
    "build": {"--batch": "--static-batches"},
    "bench": {"--batch": "--max-batch", "--plan": "--preset"},
    "serve": {
        "--max-record-mb": "--max-record-size",
        "--memory-mb": "--memory-budget",
        "--max-body-mb": "--max-body-size",
    },
}
"""By verb: spelling of 0.1.0 -> spelling of today. A value of an option in -mb was a number of MiB."""


class Verb(TyperCommand):
    """A command that also takes the spellings of RENAMED, and shows many options under several headings."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Replace old spellings, then parse."""
        return super().parse_args(ctx, modern(args, RENAMED.get(self.name or "", {})))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The sections of arguments and options (help_groups.py)."""
        shown = [one for one in self.get_params(ctx) if one.get_help_record(ctx) is not None]
        arguments = [one for one in shown if one.param_type_name == "argument"]
        rest = [one for one in shown if one.param_type_name != "argument"]
        for heading, some in (("Arguments", arguments), *grouped(self.name or "", rest)):
            if some:
                with formatter.section(heading):
                    formatter.write_dl([one.get_help_record(ctx) for one in some])


def modern(args: list[str], renamed: dict[str, str]) -> list[str]:
    """`args` with today's spellings; what follows '--' stays as it is.

    >>> modern(["--memory-mb", "500", "--batch=2"], {"--memory-mb": "--memory-budget", "--batch": "--batch-size"})
    ['--memory-budget=500MiB', '--batch-size=2']
    """
    found: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*found, word, *rest]
        name, equals, value = word.partition("=")
        if name in renamed:
            if not equals and rest:
                equals, value = "=", rest.pop(0)
            word = renamed[name] + equals + value + ("MiB" if name.endswith("-mb") and equals else "")
        found.append(word)
    return found


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def time_of_photo(deadline_ms: float | None, photos_per_second: float | None) -> float | None:
    """Milliseconds that a photo may take, from whichever was given; SettingsError where both were, or no rate."""
    if photos_per_second is None:
        return deadline_ms
    if deadline_ms is not None:
        raise SettingsError("--deadline-ms and --photos-per-second say the same; give one of them")
    if not photos_per_second > 0:
        raise SettingsError(f"--photos-per-second is {photos_per_second:g}; it must be above 0")
    return 1000 / photos_per_second


def size_bytes(text: str | None, option: str) -> int | None:
    """'600MiB', '6GiB', '800MB' or a number of bytes; None stays None. Raises SettingsError."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    if found is None or float(found[1]) <= 0:
        raise SettingsError(f"{option} is {text!r}, expected a size such as 6GiB or 800MB")
    return int(float(found[1]) * _UNITS[found[2] or ""])


def limit_bytes(text: str, option: str) -> int:
    """A size as for size_bytes, or 0 for no limit. Raises SettingsError."""
    return 0 if re.fullmatch(r"\s*0+([kmg]i?)?b?\s*", text.lower()) else size_bytes(text, option) or 0


def listed(text: str | None) -> tuple[str, ...]:
    """'a, b' -> ('a', 'b'); nothing of None."""
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def class_names(words: Sequence[str] | None) -> list[str] | None:
    """The values of --classes, for data.classes.choose_classes, which splits them at commas; None where all are meant.

    >>> class_names(["bolt, M4", "nut", " ,"])
    ['bolt, M4', 'nut']
    """
    return [word for word in words or () if listed(word)] or None


def named_folders(
    normal: Sequence[Path] | None,
    abnormal: Sequence[Path] | None,
    normal_test: Sequence[Path] | None,
    masks: Sequence[Path] | None,
    dataset: str | None,
    classes: Sequence[str] | None,
) -> NamedFolders | None:
    """The folders of --normal-dir and the like; None without any. --classes may name the one class that they are of.

    Raises SettingsError for options that do not go together.
    """
    others = {"--abnormal-dir": abnormal, "--normal-test-dir": normal_test, "--mask-dir": masks}
    if not normal:
        for option, given in others.items():
            if given:
                raise SettingsError(f"{option} goes with --normal-dir, the folder of good photos of the same class")
        return None
    if dataset is not None:
        raise SettingsError(f"--normal-dir names folders, and --dataset {dataset} has its own: give one of the two")
    if masks and not abnormal:
        raise SettingsError("--mask-dir goes with --abnormal-dir, the folder of the bad photos that the masks are of")
    if classes is not None and len(classes) > 1:
        raise SettingsError(f"--normal-dir gives photos of one class, and --classes names {len(classes)}; name one")
    from anomalysd_edge.data.datasets import NamedFolders

    name = None if classes is None else classes[0].strip()
    return NamedFolders(normal, abnormal or (), normal_test or (), masks or (), name)


def numbers(text: str, option: str, least: int = 0) -> tuple[int, ...]:
    """'1,4' -> (1, 4). Raises SettingsError for other words, numbers below `least`, or none at all."""
    words = listed(text)
    if not words or not all(word.isdecimal() and int(word) >= least for word in words):
        raise SettingsError(
            f"{option} is {text!r}, expected whole numbers from {least}, separated by commas, as 1,4,16"
        )
    return tuple(map(int, words))


def cluster(ray: str | None, workers: int, gpus: float, journal: Path | None) -> RaySettings | None:
    """The Ray cluster of --ray and its options; None without --ray. Raises SettingsError."""
    if ray is None:
        if journal is not None:
            raise SettingsError("--journal goes with --ray; give --ray local to use this machine's cores")
        return None
    from anomalysd_runtime.distributed.ray_inspect import RaySettings

    return RaySettings(ray, workers, gpus, journal)
