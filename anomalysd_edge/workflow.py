"""The bodies of the verbs: each opens the rooms that it needs, in the order in which a user meets them.

Like cli.py this module belongs to no room: it imports training, export and runtime inside its functions only, so that a
box without torch can still run `sd-edge inspect`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalysd_edge import agreement, evaluation, images, reporting, viewing
from anomalysd_edge.bundle import Bundle, read_bundle
from anomalysd_edge.bundle_detector import detector_of
from anomalysd_edge.classes import ClassSpec, class_spec, is_described, load_classes
from anomalysd_edge.console import Report
from anomalysd_edge.datasets import Dataset, few_shot, open_dataset
from anomalysd_edge.detector import Detector
from anomalysd_edge.errors import ClassError, DatasetError, InputError
from anomalysd_edge.files import write_json
from anomalysd_edge.guessing import guess
from anomalysd_edge.images import load_rgb
from anomalysd_edge.opening import Opening

if TYPE_CHECKING:
    from anomalysd_edge.training.run import Run
    from anomalysd_runtime.distributed.ray_inspect import RaySettings


def choose_shots(data: Dataset, shots: int, shot_seed: int | None) -> dict[str, list[Path]]:
    """K good photos of every class; an empty list each for K = 0."""
    return {name: list(few_shot(found.train, shots, shot_seed, name)) for name, found in data.classes.items()}


def specs_of(shots: Mapping[str, Sequence[Path]], class_file: Path | None, progress: Report) -> dict[str, ClassSpec]:
    """What is known of each class: the user's file first, then the shipped tables, then its name and its shots."""
    user = load_classes(class_file) if class_file else None
    specs = {name: class_spec(name, user) for name in shots}
    unknown = [name for name in shots if not is_described(name, user) and shots[name]]
    for number, name in enumerate(unknown):
        specs[name] = guess(specs[name], [load_rgb(file) for file in shots[name][:4]])
        found = ", ".join((specs[name].kind, *specs[name].symmetries))
        progress("classes", number + 1, len(unknown), f"{name}: {found} by its photos; --class-file says otherwise")
    return specs


def train_on(
    data: Path,
    out: Path,
    base: str,
    chosen: Mapping[str, Any],
    shot_seed: int | None,
    classes: list[str] | None,
    class_file: Path | None,
    resume: bool,
    progress: Report,
) -> Run:
    """`sd-edge train`. `chosen` overrides the base's default settings where its values are not None."""
    found = open_dataset(data, classes)
    shots = choose_shots(found, int(chosen["shots"]), shot_seed)
    specs = specs_of(shots, class_file, progress)
    from anomalysd_edge.training.settings import TrainSettings
    from anomalysd_edge.training.trainer import train

    overrides = {name: value for name, value in chosen.items() if value is not None}
    settings = TrainSettings.for_base(base, **overrides)
    return train(settings, shots, out, specs=specs, resume=resume, progress=progress)


def export_to(
    run: Path,
    out: Path,
    class_file: Path | None,
    threads: int | None,
    progress: Report,
    graphs: Mapping[str, Any] | None = None,
) -> Bundle:
    """`sd-edge export`; `graphs`: the fields of ExportSettings."""
    from anomalysd_edge.training.run import read_run
    from anomalysd_export.exporting import ExportSettings, export_run

    opened = read_run(run)
    # The file's classes alone: of the others the run knows what their photos said.
    specs = load_classes(class_file) if class_file else None
    settings = ExportSettings(**(graphs or {}))
    return export_run(opened, out, specs=specs, threads=threads, progress=progress, graphs=settings)


def verify_against(
    bundle_path: Path,
    run: Path,
    photos: Path,
    limit: int,
    preset: str,
    threads: int | None,
    progress: Report,
    features: Path | None = None,
) -> agreement.Agreement:
    """`sd-edge verify`: torch with the run's weights against ONNX Runtime with the bundle's graphs."""
    from anomalysd_edge.training.run import read_run
    from anomalysd_edge.training.torch_networks import networks_of_run
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
    from anomalysd_edge.datasets import GOOD, Sample

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


def inspect_photos(
    bundle_path: Path,
    paths: Sequence[Path],
    class_name: str | None,
    out: Path | None,
    how: Opening | tuple[str, str, int | None, int],
    progress: Report,
) -> list[dict[str, Any]]:
    """`sd-edge inspect`: every photo is read before the first is judged, so bad input costs no half-done folder."""
    how = how if isinstance(how, Opening) else Opening(*how)
    files = list(_photo_files(paths))
    for file in files:
        images.load_rgb(file)
    with how.detector(bundle_path) as detector:
        name = class_name or _only_class(detector)
        if name not in detector.classes:
            raise ClassError(f"class {name!r} is not in this bundle; it holds: {', '.join(sorted(detector.classes))}")
        results = []
        for start in range(0, len(files), detector.group):
            part = files[start : start + detector.group]
            until = None if how.deadline_ms is None else time.monotonic() + how.deadline_ms / 1e3
            photos = [images.load_rgb(file) for file in part]
            for file, photo, answer in zip(part, photos, detector.inspect(photos, name, until), strict=True):
                told = reporting.inspection_json(answer, str(file))
                if detector.label:
                    told["mode"] = f"{detector.label} ({answer.mode})"
                results.append(told)
                if out:
                    reporting.save_inspection(out / _free_name(file, files), answer, photo, str(file))
            progress("inspect", len(results), len(files), name)
    return results


def _photo_files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = images.list_images(path)
            if not inside:
                raise InputError(
                    f"{path} holds no photos; known endings are {', '.join(sorted(images.IMAGE_SUFFIXES))}"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path} does not exist; give photos or folders of photos")
    return found


def _free_name(file: Path, files: Sequence[Path]) -> str:
    """The photo's stem; with its folder's name where another photo has the same stem."""
    same = [other for other in files if other.stem == file.stem]
    return file.stem if len(same) == 1 else f"{file.parent.name}_{file.stem}_{same.index(file)}"


def _only_class(detector: Detector) -> str:
    names = sorted(detector.classes)
    if len(names) != 1:
        raise ClassError(f"this bundle holds several classes, say which with --class: {', '.join(names)}")
    return names[0]


@dataclass(frozen=True)
class Measured:
    """What eval found."""

    results: list[evaluation.ClassResult]
    """Per class."""
    facts: dict[str, str]
    """Bundle, preset, backend, mode."""
    columns: tuple[str, ...] = evaluation.COLUMNS
    """Of `rows`."""

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The table."""
        return evaluation.table_rows(self.results)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.facts, **evaluation.to_json(self.results)}


def evaluate_bundle(
    bundle_path: Path,
    data: Path,
    classes: list[str] | None,
    out: Path | None,
    how: Opening | tuple[str, str, int | None],
    progress: Report,
    cluster: RaySettings | None = None,
) -> Measured:
    """`sd-edge eval`; with `out`, results.json and report.html; with `cluster` the photos are judged over Ray."""
    how = how if isinstance(how, Opening) else Opening(*how)
    found = open_dataset(data, classes)
    # On one machine the detector's opening checks the files.
    bundle = read_bundle(bundle_path, cluster is not None, how.public_key if cluster else None)
    known = bundle.manifest.classes
    unknown = [name for name in found.classes if name not in known]
    if unknown:
        raise ClassError(f"the bundle does not hold: {', '.join(unknown)}; it holds: {', '.join(sorted(known))}")
    if not any(part.test for part in found.classes.values()):
        raise DatasetError(
            f"{data} has no test photos; eval needs labelled ones (test/good and test/DEFECT, or good/ and bad/)"
        )
    rows: list[viewing.ReportRow] = []

    def keep(sample: Any, photo: Any, answer: Any) -> None:
        name = f"{sample.class_name}/{sample.defect}/{sample.path.name}"
        rows.append(reporting.report_row(answer, photo, name, sample.defect))

    watch = keep if out else None
    if cluster is None:
        with how.detector(bundle_path) as detector:
            results = evaluation.evaluate(detector, found, progress, watch)
            ran = {"backend": detector.networks.backend, "mode": detector.mode}
    else:
        from anomalysd_edge.cluster_workflow import ClusterJudge

        judge = ClusterJudge(bundle, how, cluster)
        results = evaluation.measure(judge.judge(found, progress), found, None, watch)
        ran = judge.facts
    facts = {"bundle": bundle_path.name, "preset": how.preset, **ran}
    measured = Measured(results, facts)
    if out:
        write_json(out / "results.json", measured.to_json())
        if (picture := reporting.examples_picture(rows)) is not None:
            images.save_png(out / "examples.png", picture)
        table = viewing.TableData(
            measured.columns, tuple(measured.rows), "Image/pixel AUROC per map, then the fused map, in percent"
        )
        viewing.write_report(
            out / "report.html", f"Inspection of {data.name}", rows, table, list(facts.items()), side_px=128
        )
    return measured
