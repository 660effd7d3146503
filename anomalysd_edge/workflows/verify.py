"""The bodies of `sd-edge verify --backend A,B` and `sd-edge sign`. Opens training and the runtime inside functions."""

from __future__ import annotations

import html
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.bundle.backend_spec import backend_choice
from anomalysd_edge.bundle.detector_factory import detector_of
from anomalysd_edge.bundle.engine_records import GateRecord
from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.bundle.update import read_manifest, write_manifest, writing
from anomalysd_edge.core.files import write_aside, write_json
from anomalysd_edge.core.types import U8, Progress
from anomalysd_edge.data.datasets import open_dataset
from anomalysd_edge.errors import DatasetError, SettingsError
from anomalysd_edge.evaluation import agreement
from anomalysd_edge.evaluation.backend_parity import FIGURES, GateSettings, Judgement, judge
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.reports.console import show_table
from anomalysd_edge.reports.html import HEAD, STYLE
from anomalysd_edge.reports.inspection import heat_range
from anomalysd_edge.vision import heatmap, images

UNLABELLED_LIMIT = 20
"""Photos judged where no labels are asked for: maps and verdicts show a fault after a few."""


@dataclass(frozen=True)
class VerifyRequest:
    """What `sd-edge verify --backend A,B` was asked."""

    bundle: Path
    """The bundle."""
    backends: str
    """'A,B': the reference and what is judged; 'torch' needs `run`."""
    photos: Path
    """A data set or a folder of photos."""
    run: Path | None = None
    """The run that the bundle was exported from."""
    labels: bool = False
    """Compare AUROC and AUPRO, on all test photos unless `limit` is given."""
    limit: int | None = None
    """At most so many photos."""
    preset: str = "edge"
    """Inspection preset."""
    threads: int | None = None
    """CPU threads."""
    out: Path | None = None
    """Folder for verify.json and verify.html."""
    gate: GateSettings = field(default_factory=GateSettings)
    """What is allowed."""
    features: Path | None = None
    """Folder of DINOv2, where the bundle's features are its."""


def verify_backends(request: VerifyRequest, progress: Progress) -> Judgement:
    """Judge, write the report, and enter the verdict on a precision in the manifest. Raises what opening raises."""
    names = [name.strip() for name in request.backends.split(",")]
    if len(names) != 2:
        raise SettingsError(
            f"--backend is {request.backends!r}, expected two with a comma between, as in 'cpu,cpu:fp16'"
        )
    bundle = read_bundle(request.bundle)
    samples = [s for s in samples_of(request.photos, bundle) if s.class_name in bundle.manifest.classes]
    limit = request.limit or (len(samples) if request.labels else UNLABELLED_LIMIT)
    chosen = agreement.spread_over_classes(samples, limit) if limit < len(samples) else samples
    with ExitStack() as stack:
        right, other = (_detector(name, bundle, request, stack) for name in names)
        found = judge(right, other, chosen, request.gate, request.labels, progress)
    if request.out:
        write_report(request.out, found, _sample_name(request.bundle))
    if names[1] != "torch" and (choice := backend_choice(names[1])).precision != "fp32":
        _enter(request.bundle, choice.kind, choice.precision, found)
    return found


def _detector(name: str, bundle: Bundle, request: VerifyRequest, stack: ExitStack) -> Detector:
    from anomalysd_runtime.loading import open_detector

    if name != "torch":
        # Forced: what the gate refused yesterday may be judged anew today.
        opened = open_detector(request.bundle, request.preset, name, request.threads, verify=False, force=True)
        return stack.enter_context(opened)
    if request.run is None:
        raise SettingsError("the backend torch needs the run that the bundle was exported from; give it with --run")
    from anomalysd_edge.training.run import networks_of_run, read_run

    torch_networks = networks_of_run(read_run(request.run), request.threads, features_folder=request.features)
    networks = stack.enter_context(torch_networks)
    return detector_of(bundle, networks, request.preset)


def _enter(path: Path, kind: str, precision: str, found: Judgement) -> None:
    with writing(path):
        manifest = read_manifest(path)
        record = manifest.precisions[precision]
        marked = replace(record, gates={**record.gates, kind: gate_record(found)})
        write_manifest(path, replace(manifest, precisions={**manifest.precisions, precision: marked}))


def gate_record(found: Judgement) -> GateRecord:
    """What the manifest keeps of a judged precision."""
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


def _sample_name(path: Path) -> str:
    return path.resolve().name


def rows(found: Judgement, most: int = 20) -> list[tuple[str, ...]]:
    """The photos that differ most, worst first, for a table: name, two scores, differences, FLIP."""
    ordered = sorted(found.photos, key=lambda p: (p.flip, p.score_difference), reverse=True)
    return [
        (
            photo.name,
            f"{photo.score_a:.5f}",
            f"{photo.score_b:.5f}",
            f"{photo.score_difference:.1e}",
            f"{photo.map_error:.1e}",
            "FLIP" if photo.flip else "",
        )
        for photo in ordered[:most]
    ]


NETWORK_COLUMNS = ("network", "largest difference", "largest value", "samples")
FIGURE_COLUMNS = ("backend", "image AUROC", "pixel AUROC", "AUPRO")
PHOTO_COLUMNS = ("photo", "score A", "score B", "score diff", "map error", "")


def figure_rows(found: Judgement) -> list[tuple[str, ...]]:
    """Image AUROC, pixel AUROC and AUPRO of both backends; nothing without labels."""
    both = zip(found.backends, found.figures or (), strict=False)
    return [(backend, *(f"{figure[name]:.4f}" for name in FIGURES)) for backend, figure in both]


def network_rows(found: Judgement) -> list[tuple[str, ...]]:
    """Per network: largest difference, the largest value it is seen against, samples."""
    return [
        (name, f"{d.max_abs:.1e}", f"{d.largest:.1e}", str(d.samples)) for name, d in sorted(found.networks.items())
    ]


def show(found: Judgement) -> None:
    """Tables on stdout: networks, figures, the photos that differ most."""
    show_table("Networks on the same inputs", NETWORK_COLUMNS, network_rows(found))
    if found.figures is not None:
        show_table("Mean over the classes, fused map", FIGURE_COLUMNS, figure_rows(found))
    show_table(f"{found.backends[0]} (A) against {found.backends[1]} (B)", PHOTO_COLUMNS, rows(found))


def write_report(folder: Path, found: Judgement, title: str) -> None:
    """verify.json, worst.png (photo, both maps, their difference) and verify.html, which shows it. Written aside."""
    write_json(folder / "verify.json", found.to_json())
    images.save_png(folder / "worst.png", worst_picture(found))
    name = html.escape(title)
    figures = _table(FIGURE_COLUMNS, figure_rows(found)) if found.figures else ""
    networks = _table(NETWORK_COLUMNS, network_rows(found))
    photos = _table(PHOTO_COLUMNS, rows(found))
    page = (
        f"{HEAD.format(title=f'Verify {name}', style=STYLE)}<header><h1>Verify {name}</h1></header><main>"
        f"<p class=note>{html.escape(found.sentence())}</p>"
        f"<section><h2>Worst photo: {html.escape(found.worst_photo.name)}</h2>"
        f"<p class=meaning>photo, map of {html.escape(found.backends[0])}, map of {html.escape(found.backends[1])}, "
        "their absolute difference (colours to its own maximum)</p>"
        '<figure><img src="worst.png" alt="photo, both maps and their difference"></figure></section>'
        f"<section><h2>Figures</h2>{figures}{networks}</section><section><h2>Photos, worst first</h2>{photos}</section>"
        "</main></body></html>"
    )
    with write_aside(folder / "verify.html") as aside:
        aside.write_text(page, encoding="utf-8")


def worst_picture(found: Judgement) -> U8:
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


def _table(columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in line) + "</tr>" for line in lines)
    return f"<div class=wide tabindex=0><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def verify_against(
    bundle_path: Path,
    run: Path,
    photos: Path,
    limit: int,
    preset: str,
    threads: int | None,
    progress: Progress,
    features: Path | None = None,
) -> agreement.Agreement:
    """`sd-edge verify`: torch with the run's weights against ONNX Runtime with the bundle's graphs."""
    from anomalysd_edge.training.run import networks_of_run, read_run
    from anomalysd_runtime.loading import open_detector

    bundle = read_bundle(bundle_path)
    samples = [s for s in samples_of(photos, bundle) if s.class_name in bundle.manifest.classes]
    chosen = agreement.spread_over_classes(samples, limit)
    right = open_detector(bundle_path, preset, threads=threads, verify=False)
    with networks_of_run(read_run(run), threads, features_folder=features) as torch_networks, right:
        left = detector_of(bundle, torch_networks, preset)
        return agreement.compare(left, right, chosen, progress=progress)


def samples_of(photos: Path, bundle: Bundle) -> list[Any]:
    """Test photos of a data set; where it has none, its good ones. A lone folder is the bundle's only class."""
    from anomalysd_edge.data.datasets import GOOD, Sample

    data = open_dataset(photos)
    names = list(bundle.manifest.classes)
    found = []
    for name, part in data.classes.items():
        known = name if name in names else (names[0] if len(names) == 1 else name)
        pool = part.test or tuple(Sample(path, known, GOOD, None) for path in part.train)
        found += [Sample(s.path, known, s.defect, s.mask_path) for s in pool]
    if not any(s.class_name in names for s in found):
        raise DatasetError(
            f"{photos} holds photos of {', '.join(data.classes)}; the bundle's classes are {', '.join(names)}"
        )
    return found
