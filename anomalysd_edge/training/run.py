"""A run folder: the result of a fine-tuning, and all that the export reads.

RUN/run.json       settings, seed, versions, classes, digests of photos and base, losses, seconds
RUN/model/         diffusers' folder layout: StableDiffusionInpaintPipeline.from_pretrained(RUN/model) loads it
RUN/lora/          the adapter by itself, where one was trained (its effect is merged into RUN/model)
RUN/shots/CLASS/   the good photos, byte for byte (class names percent-encoded)
RUN/log.jsonl      one line a step
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anomalysd_edge.core.files import read_json, sha256_file, write_json
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.errors import RunError
from anomalysd_edge.profiling.hardware import package_versions
from anomalysd_edge.training.checkpoints import partial_folder
from anomalysd_edge.training.models.base import PARTS, Base, forget_origin, load_base
from anomalysd_edge.training.models.features import FEATURES_PX, features_of
from anomalysd_edge.training.models.perceptual import load_perceptual
from anomalysd_edge.training.models.torch_networks import TorchNetworks
from anomalysd_edge.training.prompt_tuning import CONTEXTS_FILE, load_contexts
from anomalysd_edge.training.settings import TrainSettings

SCHEMA_VERSION = 1
MARKER = "run.json"
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy", "pillow")


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    settings: TrainSettings
    specs: dict[str, ClassSpec]
    """By class name: what the prompts were made from."""
    shots: dict[str, tuple[Path, ...]]
    """By class name: the good photos inside the run folder; empty for 0 shots."""
    record: dict[str, Any]
    """All of run.json."""

    @property
    def model(self) -> Path:
        """The fine-tuned model in diffusers' layout."""
        return self.path / "model"

    @property
    def size_px(self) -> int:
        """Side of the square training photo in px."""
        return int(self.record["size_px"])

    @property
    def perceptual_kind(self) -> str | None:
        """The perceptual network of L_D; None if it used none."""
        found = self.record["perceptual"]
        return None if found is None else str(found["kind"])

    @property
    def round_trip(self) -> bool:
        """Whether photos are compared with their own VAE round trip, because a smaller VAE replaced the base's."""
        return self.record.get("vae") is not None

    @property
    def few_steps(self) -> tuple[float, int] | None:
        """(lambda, number of UNet passes) that the run was distilled for; None if it was not."""
        found = self.record.get("distilled")
        return None if found is None else (float(found["strength"]), int(found["passes"]))

    def contexts(self) -> dict[str, Any]:
        """(M,E) learned context vectors by class; empty if none were learned. Raises RunError for a changed file."""
        wanted = self.record.get("contexts_sha256")
        if wanted is None:
            return {}
        file = self.path / CONTEXTS_FILE
        if not file.is_file() or sha256_file(file) != wanted:
            raise RunError(f"{file} was changed since the run was written; train again or restore it")
        return load_contexts(self.path)

    @property
    def sha256(self) -> str:
        """SHA-256 of run.json, which holds the digests of all other files."""
        return sha256_file(self.path / MARKER)

    def load(self) -> Base:
        """Load the fine-tuned model, float32, eval mode. Raises RunError if a file of it was changed."""
        loaded = load_base(self.model)
        if loaded.sha256 != self.record["model_sha256"]:
            raise RunError(f"a file in {self.model} was changed since the run was written; train again or restore it")
        loaded.name = str(self.record["base"]["name"])
        return loaded


def read_run(path: Path) -> Run:
    """Open a run folder. Raises RunError if it is missing, unfinished, broken or of a newer schema."""
    if not (path / MARKER).is_file():
        if partial_folder(path).is_dir():
            raise RunError(f"the training of {path} is unfinished; finish it with the same sd-edge train and --resume")
        raise RunError(f"{path} holds no {MARKER}, expected a run folder; make one with sd-edge train")
    record = read_json(path / MARKER)
    found = record.get("schema_version") if isinstance(record, dict) else None
    if not isinstance(found, int) or found > SCHEMA_VERSION:
        raise RunError(
            f"{path / MARKER} has schema version {found}, this product reads up to {SCHEMA_VERSION}; update the product"
        )
    try:
        specs = {name: _spec(name, entry) for name, entry in record["classes"].items()}
        shots = {
            name: tuple(path / shot["file"] for shot in entry["shots"]) for name, entry in record["classes"].items()
        }
        run = Run(path, TrainSettings.from_json(record["settings"]), specs, shots, record)
    except (KeyError, TypeError) as error:
        raise RunError(f"{path / MARKER} lacks {error}, expected what sd-edge train writes; train again") from error
    missing = [file for files in shots.values() for file in files if not file.is_file()]
    if missing or not run.model.is_dir():
        what = missing[0] if missing else run.model
        raise RunError(f"the run {path} lacks {what.relative_to(path)}; copy the whole folder or train again")
    return run


def copy_shots(
    folder: Path, shots: Mapping[str, Sequence[Path]], specs: Mapping[str, ClassSpec]
) -> dict[str, dict[str, Any]]:
    """Copy the photos to folder/shots/CLASS/ and return the entry "classes" of run.json: specs, files, digests."""
    classes: dict[str, dict[str, Any]] = {}
    for name, paths in shots.items():
        spec, entries = specs[name], []
        prompts = spec.prompts()
        stems = [path.name for path in paths]
        for number, path in enumerate(paths):
            # Photos of the same file name from several folders get a number in front.
            file = path.name if stems.count(path.name) == 1 else f"{number:02d}-{path.name}"
            target = folder / "shots" / quote(name, safe=" ", errors="surrogateescape") / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            entries.append({"file": target.relative_to(folder).as_posix(), "sha256": sha256_file(target)})
        classes[name] = {
            "noun": spec.noun,
            "kind": spec.kind,
            "parts": list(spec.parts),
            "symmetries": list(spec.symmetries),
            "tiles": spec.tiles,
            "prompts": {"whole": prompts.whole, "detail": prompts.detail},
            "shots": entries,
        }
    return classes


def write_model(folder: Path, base: Base, unet_changed: bool, vae_changed: bool) -> None:
    """Write diffusers' layout: trained networks in float32, all other files copied from the base byte for byte."""
    folder.mkdir(parents=True)
    index = read_json(base.folder / "model_index.json")
    for part, value in index.items():
        if isinstance(value, list) and part not in PARTS:
            index[part] = [None, None]  # for instance a safety checker, which no inspection uses
    if base.vae_swap:
        index["vae"] = ["diffusers", type(base.vae).__name__]
    write_json(folder / "model_index.json", {**index, "requires_safety_checker": False})
    for part in PARTS:
        if part == "unet" and unet_changed:
            base.unet.save_pretrained(folder / part)
            forget_origin(folder / part)
        elif part == "vae" and vae_changed:
            base.vae.save_pretrained(folder / part)
            forget_origin(folder / part)
        else:
            _copy_part(base.folder / part, folder / part)
    config = folder / "scheduler" / "scheduler_config.json"
    if read_json(config) != base.scheduler:  # its prediction type was set by TrainSettings.prediction_type
        write_json(config, base.scheduler)


def versions() -> dict[str, str]:
    """Versions of Python, the machine's architecture and the packages that influence a result, where installed."""
    return {"python": platform.python_version(), "machine": platform.machine(), **package_versions(_PACKAGES)}


def networks_of_run(
    run: Run,
    threads: int | None = None,
    max_batch: int = 16,
    device: str = "cpu",
    features: str | None = None,
) -> TorchNetworks:
    """The networks of a finished run: its model, the perceptual network of its training, the feature network.

    `features`: as features_of takes them.
    Raises RunError, InputError or MissingExtra if one of them cannot be loaded.
    """
    base = run.load()
    perceptual, _ = load_perceptual(run.perceptual_kind or "auto")
    described, _, _ = features_of(features)
    side: int = getattr(described, "side", FEATURES_PX)
    return TorchNetworks(
        base.unet,
        base.vae,
        perceptual,
        described,
        size_px=run.size_px,
        features_px=side,
        max_batch=max_batch,
        device=device,
        threads=threads,
    )


def _copy_part(source: Path, target: Path) -> None:
    """Copy configs and safetensors, no pickles; weights that exist only in float16 get the name without variant."""
    target.mkdir()
    names = {file.name for file in source.iterdir()}
    for file in sorted(source.iterdir()):
        plain = file.name.replace(".fp16.safetensors", ".safetensors")
        if file.suffix in (".json", ".txt", ".safetensors") and (plain == file.name or plain not in names):
            shutil.copyfile(file, target / plain)


def _spec(name: str, entry: Mapping[str, Any]) -> ClassSpec:
    return ClassSpec(
        name, entry["noun"], entry["kind"], tuple(entry["parts"]), tuple(entry["symmetries"]), entry.get("tiles", 0)
    )
