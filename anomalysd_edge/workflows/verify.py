"""`sd-edge verify`: the same photos on two backends, or with torch and ONNX Runtime; tables and a report."""

from __future__ import annotations

from base64 import b64encode
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from html import escape
from pathlib import Path

import numpy as np

from anomalysd_edge.bundle.backend_spec import backend_choice
from anomalysd_edge.bundle.detector_factory import detector_of
from anomalysd_edge.bundle.engine_records import GateRecord, PrecisionRecord
from anomalysd_edge.bundle.open_options import OpenOptions
from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.bundle.update import read_manifest, write_manifest, writing
from anomalysd_edge.core.files import write_aside, write_json
from anomalysd_edge.core.types import U8, Progress
from anomalysd_edge.data.datasets import NamedFolders
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.evaluation.backend_parity import (
    FIGURES,
    GateSettings,
    ParityReport,
    compare_backends,
    spread_over_classes,
)
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.reports import html
from anomalysd_edge.reports.console import show_table
from anomalysd_edge.reports.inspection import heat_range
from anomalysd_edge.vision import heatmap, images
from anomalysd_edge.workflows.photo_sources import samples_of

EXPORT_GATE = GateSettings(score_difference=1e-4)
"""What torch and the exported graphs in float32 may differ by: rounding."""
UNLABELLED_LIMIT = 20
"""Photos compared where no labels are used: maps and verdicts show a fault after a few."""


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """What `sd-edge verify` shall compare."""

    bundle: Path
    """The bundle."""
    photos: Path
    """A data set or a folder of photos."""
    dataset: str | None = None
    """Name of the published data set that it is, if it is one."""
    named: NamedFolders | None = None
    """The folders of one class in `photos`, where they were named."""
    backends: tuple[str, ...] = ("torch", "cpu")
    """The reference, and the backend that is compared with it; 'torch' needs `run`."""
    run: Path | None = None
    """The run that the bundle was exported from."""
    labels: bool = False
    """Compare AUROC and AUPRO, on all test photos unless `limit` is given."""
    limit: int | None = None
    """At most so many photos; UNLABELLED_LIMIT, or with labels all, if None."""
    preset: str = "edge"
    """Inspection preset."""
    threads: int | None = None
    """CPU threads; all cores if None."""
    out: Path | None = None
    """Folder for verify.json and verify.html."""
    gate: GateSettings = field(default_factory=GateSettings)
    """Differences that are allowed."""
    features: str | None = None
    """The DINOv2 of a bundle with DINOv2 features, as it was exported with."""


def verify_backends(request: VerifyRequest, progress: Progress) -> ParityReport:
    """Compare, write the report, and record in the manifest whether a precision passed. Raises what opening raises."""
    names = request.backends
    if len(names) != 2:
        raise SettingsError(
            f"--backend is {','.join(names)!r}, expected two with a comma between, as in 'cpu,cpu:fp16'"
        )
    bundle = read_bundle(request.bundle)
    samples = samples_of(request.photos, bundle, request.dataset, request.named)
    limit = request.limit or (len(samples) if request.labels else UNLABELLED_LIMIT)
    chosen = spread_over_classes(samples, limit) if limit < len(samples) else samples
    with ExitStack() as stack:
        right, other = (_detector(name, bundle, request, stack) for name in names)
        found = compare_backends(right, other, chosen, request.gate, request.labels, progress)
    if request.out:
        write_report(request.out, found, request.bundle.resolve().name)
    if names[1] != "torch" and (choice := backend_choice(names[1])).precision != "fp32":
        _enter(request.bundle, choice.kind, choice.precision, found)
    return found


def _detector(name: str, bundle: Bundle, request: VerifyRequest, stack: ExitStack) -> Detector:
    from anomalysd_runtime.loading import open_with

    if name != "torch":
        # Forced: a precision that was refused once may be compared again.
        options = OpenOptions(preset=request.preset, backend=name, threads=request.threads, force=True)
        return stack.enter_context(open_with(bundle, options))
    if request.run is None:
        raise SettingsError("the backend torch needs the run that the bundle was exported from; give it with --run")
    from anomalysd_edge.training.run import networks_of_run, read_run

    torch_networks = networks_of_run(read_run(request.run), request.threads, features=request.features)
    networks = stack.enter_context(torch_networks)
    return detector_of(bundle, networks, request.preset)


def _enter(path: Path, kind: str, precision: str, found: ParityReport) -> None:
    with writing(path):
        manifest = read_manifest(path)
        # A backend that rounds the exported graphs by itself needs no graphs of this precision, and has a gate.
        record = manifest.precisions.get(precision, PrecisionRecord({}))
        marked = replace(record, gates={**record.gates, kind: gate_record(found)})
        write_manifest(path, replace(manifest, precisions={**manifest.precisions, precision: marked}))


def gate_record(found: ParityReport) -> GateRecord:
    """What the manifest records of a precision that was compared."""
    return GateRecord(
        reference=found.backends[0],
        backend=found.backends[1],
        photos=len(found.photos),
        flips=found.flips,
        score_difference=found.score_difference,
        auroc_drop=found.auroc_drop,
        allowed_flips=found.settings.flips,
        allowed_auroc_drop=found.settings.auroc_drop,
        passed=found.passed,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def rows(found: ParityReport, most: int = 20) -> list[tuple[str, ...]]:
    """The photos that differ most, worst first, for a table: name, two scores, differences, FLIP."""
    ordered = sorted(found.photos, key=lambda p: (p.flip, p.score_difference), reverse=True)
    return [
        (p.name, f"{p.score_a:.5f}", f"{p.score_b:.5f}", f"{p.score_difference:.1e}", f"{p.map_error:.1e}",
         "FLIP" if p.flip else "")
        for p in ordered[:most]
    ]  # fmt: skip


NETWORK_COLUMNS = ("network", "largest difference", "largest value", "samples")
FIGURE_COLUMNS = ("backend", "image AUROC", "pixel AUROC", "AUPRO")
PHOTO_COLUMNS = ("photo", "score A", "score B", "score diff", "map error", "")


def figure_rows(found: ParityReport) -> list[tuple[str, ...]]:
    """Image AUROC, pixel AUROC and AUPRO of both backends; nothing without labels."""
    both = zip(found.backends, found.figures or (), strict=False)
    return [(backend, *(f"{figure[name]:.4f}" for name in FIGURES)) for backend, figure in both]


def network_rows(found: ParityReport) -> list[tuple[str, ...]]:
    """Per network: largest difference, the largest value it is seen against, samples."""
    return [
        (name, f"{d.max_abs:.1e}", f"{d.largest:.1e}", str(d.samples)) for name, d in sorted(found.networks.items())
    ]


def show(found: ParityReport) -> None:
    """Tables on stdout: networks, figures, the photos that differ most."""
    show_table("Networks on the same inputs", NETWORK_COLUMNS, network_rows(found))
    if found.figures is not None:
        show_table("Mean over the classes, fused map", FIGURE_COLUMNS, figure_rows(found))
    show_table(f"{found.backends[0]} (A) against {found.backends[1]} (B)", PHOTO_COLUMNS, rows(found))


def write_report(folder: Path, found: ParityReport, title: str) -> None:
    """verify.json, worst.png (photo, both maps, their difference) and verify.html, which holds them all."""
    write_json(folder / "verify.json", found.to_json())
    picture = worst_picture(found)
    images.save_png(folder / "worst.png", picture)
    first, second = map(escape, found.backends)
    source = "data:image/png;base64," + b64encode(images.encode_png(picture)).decode()
    parts = (
        f"<p class=note>{escape(found.sentence())}</p>",
        f"<section><h2>Worst photo: {escape(found.worst_photo.name)}</h2>"
        f"<p class=meaning>photo, map of {first}, map of {second}, their absolute difference (colours to its own "
        f'maximum)</p><figure><img src="{source}" alt="photo, both maps and their difference"></figure></section>',
        "<section><h2>Figures</h2>",
        html.table(FIGURE_COLUMNS, figure_rows(found)) if found.figures else "",
        f"{html.table(NETWORK_COLUMNS, network_rows(found))}</section>",
        f"<section><h2>Photos, worst first</h2>{html.table(PHOTO_COLUMNS, rows(found))}</section>",
    )
    with write_aside(folder / "verify.html") as aside:
        aside.write_text(html.page(f"Verify {title}", parts), encoding="utf-8")


def worst_picture(found: ParityReport) -> U8:
    """(S,4S,3) uint8: the worst photo, both maps in one range of colours, their absolute difference."""
    first, second = found.worst
    low, high = heat_range(first)
    small = images.resize(images.load_rgb(found.worst_path), first.anomaly_map.shape[0])
    apart = np.abs(first.anomaly_map - second.anomaly_map)
    strip = [
        small,
        heatmap.heat_map(first.anomaly_map, low, high),
        heatmap.heat_map(second.anomaly_map, low, high),
        heatmap.heat_map(apart, 0.0, max(float(apart.max()), 1e-6)),
    ]
    return np.concatenate(strip, axis=1)
