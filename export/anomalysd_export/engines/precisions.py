"""Precision graphs in a bundle: made from its float32 graphs, written beside them, named in its manifest."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from anomalysd_edge.bundle.detector_factory import detector_of
from anomalysd_edge.bundle.engine_records import PRECISIONS, QUANTISED, PrecisionRecord, VariantRecord
from anomalysd_edge.bundle.reader import Bundle, joined_digest, read_bundle
from anomalysd_edge.bundle.update import read_manifest, remove_folders, replace_files, write_manifest
from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.core.types import U8, Progress
from anomalysd_edge.errors import SettingsError
from anomalysd_export.engines.calibrating import recorded_feeds
from anomalysd_export.engines.lowering import lower
from anomalysd_export.engines.quantise import quantise
from anomalysd_export.engines.ranges import MEASURED, examples, prove_half, wide_tensors
from anomalysd_export.graph_metadata import carry_over

INLINE_BYTES = 100 * 2**20
"""Weights above this lie in a file of their own: a protobuf file holds 2 GiB at most."""


@dataclass(frozen=True)
class PrecisionSettings:
    """Which graphs to make."""

    precision: str = "fp16"
    """fp16, bf16, int8 or fp8."""
    quantised: tuple[str, ...] = ("unet",)
    """Networks that int8 and fp8 quantise; the others are fp16. The UNet runs many times a photo, the rest once."""
    preset: str = "edge"
    """Preset whose masks, latents and timesteps the ranges are found with."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS[1:]:
            raise SettingsError(
                f"the precision {self.precision!r} is unknown or needs no graphs; expected {', '.join(PRECISIONS[1:])}"
            )


def graph_digest(file: Path) -> str:
    """The sha256 over a graph and its external weights."""
    data = file.with_name(file.name + ".data")
    return joined_digest(sha256_file(file), sha256_file(data) if data.is_file() else None)


def make_precision(
    bundle: Bundle,
    settings: PrecisionSettings,
    photos: Sequence[tuple[str, U8]] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Make the graphs of one precision, replacing older ones, and read the bundle back. Call it inside `writing`.

    `photos`: good photos with their classes, for int8 and fp8. The verdict of an earlier gate is dropped: it was about
    other graphs. Raises SettingsError, BundleError.
    """
    unknown = sorted(set(settings.quantised) - set(bundle.manifest.networks))
    if unknown:
        raise SettingsError(
            f"the bundle has no network {unknown[0]!r} to quantise; it has {', '.join(bundle.manifest.networks)}"
        )
    feeds: Mapping[str, Any] = {}
    calibration: dict[str, Any] = {}
    if settings.precision in QUANTISED:
        if not photos:
            raise SettingsError(f"{settings.precision} needs good photos to find its ranges; give them with --photos")
        feeds, calibration = _record(bundle, settings, photos, threads, progress)
    folder = f"precisions/{settings.precision}-{secrets.token_hex(4)}"
    try:
        (bundle.path / folder).mkdir(parents=True)
        variants = {}
        for number, name in enumerate(bundle.manifest.networks):
            if progress:
                progress(settings.precision, number, len(bundle.manifest.networks), name)
            variants[name] = _make(bundle, name, settings, feeds.get(name, ()), folder)
        if progress:
            progress(settings.precision, len(variants), len(variants), "done")
        _enter(bundle.path, settings.precision, folder, PrecisionRecord(variants, calibration))
    except BaseException:
        shutil.rmtree(bundle.path / folder, ignore_errors=True)
        raise
    return read_bundle(bundle.path, verify=False)


def _record(
    bundle: Bundle,
    settings: PrecisionSettings,
    photos: Sequence[tuple[str, U8]],
    threads: int | None,
    progress: Progress | None,
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    from anomalysd_runtime.onnx.networks import OnnxNetworks

    if progress:
        progress("calibrate", 0, 1, f"{len(photos)} photos")
    with OnnxNetworks.of_bundle(bundle, "cpu", threads) as networks:
        feeds = recorded_feeds(detector_of(bundle, networks, settings.preset), photos)
    if progress:
        progress("calibrate", 1, 1, f"{len(photos)} photos")
    timesteps = sorted({int(t) for run in feeds["unet"] for t in run["timestep"]}, reverse=True)
    return feeds, {
        "photos": len(photos),
        "classes": sorted({name for name, _ in photos}),
        "preset": settings.preset,
        "timesteps": timesteps,
        "samples": {name: sum(len(next(iter(run.values()))) for run in runs) for name, runs in feeds.items()},
        "method": "min-max, symmetric, per channel for weights",
        "quantised": list(settings.quantised),
    }


def _make(bundle: Bundle, name: str, settings: PrecisionSettings, feeds: Sequence[Any], folder: str) -> VariantRecord:
    source = bundle.network_file(name)
    target = bundle.path / folder / f"{name}.onnx"
    quantised: tuple[str, ...] = ()
    if settings.precision in QUANTISED and name in settings.quantised:
        if not feeds:
            raise SettingsError(
                f"the preset {settings.preset!r} never runs the network {name!r}, so its ranges cannot be found: leave "
                "it out of --quantise, or name a --preset that runs it"
            )
        named = settings.precision
        made = quantise(source, name, named, feeds)
        model, quantised, islands = made.model, made.nodes, made.islands
    else:
        named = half = "bf16" if settings.precision == "bf16" else "fp16"
        exact = onnx.load(str(source))
        inputs = examples(exact)
        wide = wide_tensors(exact, name, inputs) if half == "fp16" and name in MEASURED else set[str]()
        lowered = lower(exact, name, half, wide)
        model, islands = lowered.model, tuple(lowered.islands)
        del exact
    carry_over(onnx.load(str(source), load_external_data=False), model, precision=named)
    save_graph(model, target)
    proof = None
    if settings.precision == "fp16":
        del model, lowered  # gigabytes, before two sessions want theirs
        proof = prove_half(source, target, name, inputs)
    return VariantRecord(
        f"{folder}/{target.name}",
        graph_digest(target),
        len(islands),
        len(quantised),
        max_abs=proof.max_abs if proof else None,
    )


def save_graph(model: onnx.ModelProto, file: Path) -> None:
    """Write `model`, its weights inline up to INLINE_BYTES and in `file`.data above."""
    large = sum(len(entry.raw_data) for entry in model.graph.initializer) > INLINE_BYTES
    if large:
        onnx.save(model, str(file), save_as_external_data=True, location=f"{file.name}.data", size_threshold=1024)
        # onnx writes it for its owner alone; whoever may read the graph must be able to read its weights.
        file.with_name(f"{file.name}.data").chmod(file.stat().st_mode & 0o777)
    else:
        onnx.save(model, str(file))


def _enter(path: Path, precision: str, folder: str, record: PrecisionRecord) -> None:
    manifest = read_manifest(path)
    old = manifest.precisions.get(precision)
    old_folders = {variant.file.rpartition("/")[0] for variant in old.networks.values()} if old else set()
    gone = [entry.path for entry in manifest.files if entry.path.rpartition("/")[0] in old_folders]
    new = [file.relative_to(path).as_posix() for file in sorted((path / folder).iterdir())]
    manifest = replace_files(path, manifest, gone, new)
    write_manifest(path, replace(manifest, precisions={**manifest.precisions, precision: record}))
    remove_folders(path, old_folders)
