"""`sd-edge protocol`: train, export and measure for every number of shots and every seed; mean and spread over seeds.

OUT/protocol.json                 the settings; other settings need another folder
OUT/K-shot/seed-S/run, bundle     as sd-edge train and export write them
OUT/K-shot/seed-S/classes/*.json  the figures of one class, with every photo's scores
OUT/results.json, report.html, plots/class-NAME.svg

What exists and fits is kept: a stopped protocol resumes, within a training at its last checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anomalysd_edge.bundle.reader import MANIFEST, read_bundle
from anomalysd_edge.core.files import json_ready, read_json, sha256_bytes, sha256_file, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.benchmark_splits import PUBLISHED, counts, open_published
from anomalysd_edge.data.datasets import Dataset
from anomalysd_edge.errors import ClassError, DatasetError, RunError, SettingsError
from anomalysd_edge.evaluation import aggregate
from anomalysd_edge.evaluation.evaluate import METRIC_PX, ClassResult, evaluate, result_of
from anomalysd_edge.reports.protocol import ProtocolReport
from anomalysd_edge.workflows.datasets import open_described, tell
from anomalysd_edge.workflows.export import export_to
from anomalysd_edge.workflows.open_options import InspectOptions
from anomalysd_edge.workflows.train import choose_shots, train_on

FIRST = "first"
"""A seed that takes the first K of the sorted good photos and trains with seed 0."""
PROTOCOL = "protocol.json"


@dataclass(frozen=True, kw_only=True)
class ProtocolRequest:
    """What `sd-edge protocol` shall measure."""

    data: Path
    """The data set."""
    out: Path
    """Folder for everything."""
    dataset: str | None = None
    """Name of a published data set, for its protocol; None takes the folder as it is."""
    classes: tuple[str, ...] | None = None
    """Some of its classes; all if None."""
    shots: tuple[int, ...] = (0, 1, 2, 4)
    """Numbers of good photos a class, in the order of running."""
    seeds: tuple[str, ...] = ("0", "1", "2")
    """Each chooses the shots and seeds the training; "first" takes the first K photos."""
    class_file: Path | None = None
    """Nouns, parts, kinds and symmetries of the user's classes."""
    base: str = "nano"
    """Model to fine-tune."""
    steps: int | None = None
    """UNet steps; the base's default if None."""
    device: str = "cpu"
    """Device of the training: cpu or cuda."""
    calibrate: bool = False
    """Choose settings for each class on synthetic anomalies, as sd-edge calibrate does."""
    options: InspectOptions = field(default_factory=InspectOptions)
    """Preset, backend and threads of the inspection."""

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) != len(self.shots):
            raise SettingsError(f"shots are {self.shots}; expected different numbers of at least 0, as 0,1,2,4")
        wrong = [s for s in self.seeds if s != FIRST and not s.isdecimal()]
        if not self.seeds or wrong or len(set(self.seeds)) != len(self.seeds):
            raise SettingsError(f"seeds are {', '.join(self.seeds)}; expected different whole numbers, or {FIRST!r}")

    @property
    def base_name(self) -> str:
        """The base's name; of a folder its last part, since its place differs between machines."""
        return Path(self.base).name if Path(self.base).is_dir() else self.base

    def identity(self, names: Sequence[str]) -> dict[str, Any]:
        """Settings that all results in one folder share; shots and seeds may be added later."""
        return {
            "dataset": self.dataset, "classes": list(names), "base": self.base_name, "steps": self.steps,
            "class_file": sha256_file(self.class_file) if self.class_file else None, "calibrate": self.calibrate,
            "preset": self.options.preset, "backend": self.options.backend, "metric_px": METRIC_PX,
        }  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One number of shots under one seed."""

    shots: int
    seed: str
    folder: Path

    @property
    def shot_seed(self) -> int | None:
        """Seed of datasets.few_shot; None takes the first photos."""
        return None if self.seed == FIRST else int(self.seed)

    @property
    def label(self) -> str:
        """Name in progress lines and tables."""
        return f"K{self.shots} s{self.seed}"


@dataclass(frozen=True)
class ProtocolResult:
    """Results of every number of shots and every seed."""

    request: ProtocolRequest
    data: Dataset
    notes: list[str]
    """Ways in which the photos differ from the published ones; empty also without a published split."""
    cells: dict[Cell, list[ClassResult]]
    """Results of each cell, class by class."""
    shot_names: dict[Cell, dict[str, list[str]]]
    """Which photos were the shots, by class."""

    def by_shots(self) -> dict[int, list[list[ClassResult]]]:
        """Results of all seeds by number of shots, ascending."""
        numbers = sorted({cell.shots for cell in self.cells})
        return {n: [found for cell, found in self.cells.items() if cell.shots == n] for n in numbers}

    def report(self) -> ProtocolReport:
        """Title, facts and results for tables and the report."""
        request, known = self.request, PUBLISHED.get(self.request.dataset or "")
        published = known.title if known else None
        facts = {
            "preset": request.options.preset,
            "backend": request.options.backend,
            "base": request.base_name,
            "seeds": ", ".join(request.seeds),
            "spread": "sample standard deviation over seeds, of which each chooses the shots and seeds the training",
        }
        title = f"Few-shot protocol: {published or self.data.root.resolve().name}"
        return ProtocolReport(title, facts, list(self.data.classes), self.by_shots(), published, self.notes)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        known = PUBLISHED.get(self.request.dataset or "")
        return {
            "protocol": {**self.request.identity(list(self.data.classes)), "seeds": list(self.request.seeds)},
            "published_split": None if known is None else not self.notes,
            "notes": self.notes,
            "photos": {
                name: dict(zip(("train_good", "test_good", "test_bad"), counts(part), strict=True))
                for name, part in self.data.classes.items()
            },
            "summary": aggregate.to_json(self.by_shots()),
            "cells": [
                {"shots": c.shots, "seed": c.seed, "shot_photos": self.shot_names[c],
                 "classes": {r.class_name: r for r in found}}
                for c, found in self.cells.items()
            ],
        }  # fmt: skip


def run_protocol(request: ProtocolRequest, progress: Progress) -> ProtocolResult:
    """Train, export and measure what is missing, then collect. Raises SettingsError where `out` holds other settings.

    Also what training, export and inspection raise; DatasetError where a class has no labelled test photos.
    """
    data, notes = _open(request)
    names = list(data.classes)
    _same_protocol(request, names)
    cells = [Cell(k, s, request.out / f"{k}-shot" / f"seed-{s}") for k in request.shots for s in _seeds(request, k)]
    measured, shot_names = {}, {}
    for cell in cells:
        shots = choose_shots(data, cell.shots, cell.shot_seed)
        shot_names[cell] = {n: [os.path.relpath(p, data.root) for p in paths] for n, paths in shots.items()}
        measured[cell] = _measure(request, data, cell, shots, progress)
    return ProtocolResult(request, data, notes, measured, shot_names)


def _open(request: ProtocolRequest) -> tuple[Dataset, list[str]]:
    classes = list(request.classes) if request.classes is not None else None
    if request.dataset is not None:
        data, notes = open_published(request.data, request.dataset, classes)
        tell(tuple(data.described()))
    else:
        data, notes = open_described(request.data, classes), []
    without = [name for name, part in data.classes.items() if not part.test]
    if without:
        raise DatasetError(
            f"{request.data} has no test photos of {', '.join(without)}; a protocol needs labelled ones for every class"
        )
    most = max(request.shots)
    few = [name for name, part in data.classes.items() if len(part.train) < most]
    if few:
        have = len(data.classes[few[0]].train)
        raise DatasetError(f"{few[0]} has {have} good photos to train with, {most} shots were asked for: ask for fewer")
    return data, notes


def _seeds(request: ProtocolRequest, shots: int) -> tuple[str, ...]:
    """The seeds of a number of shots: without shots nothing is drawn, and one seed is enough."""
    return request.seeds if shots else request.seeds[:1]


def _same_protocol(request: ProtocolRequest, names: Sequence[str]) -> None:
    identity, file = request.identity(names), request.out / PROTOCOL
    if not file.is_file():
        write_json(file, identity)
        return
    found = read_json(file)
    for key, value in json_ready(identity).items():
        if not isinstance(found, dict) or found.get(key) != value:
            was = found.get(key) if isinstance(found, dict) else found
            raise SettingsError(
                f"{request.out} holds a protocol with {key} = {was!r}, this one has {value!r}; name another --out"
            )


def _measure(
    request: ProtocolRequest, data: Dataset, cell: Cell, shots: dict[str, list[Path]], progress: Progress
) -> list[ClassResult]:
    def report(phase: str, done: int, total: int, detail: str) -> None:
        progress(f"{cell.label} {phase}", done, total, detail)

    bundle = _bundle(request, cell, shots, report)
    state = sha256_file(bundle / MANIFEST)
    found: dict[str, ClassResult] = {}
    for name in data.classes:
        kept = read_result(cell.folder, name)
        if kept is not None and kept["key"] == _key(state, data, name):
            found[name] = result_of(kept["result"])
    missing = [name for name in data.classes if name not in found]
    if missing:
        with request.options.detector(bundle) as detector:
            unknown = [name for name in missing if name not in detector.classes]
            if unknown:
                raise ClassError(f"{bundle} does not hold the class {unknown[0]!r}; remove {cell.folder}")
            for name in missing:
                part = data.classes[name]
                photos: list[dict[str, Any]] = []

                def watch(sample: Any, _photo: Any, answer: Any, photos: list[dict[str, Any]] = photos) -> None:
                    named = sample.path.relative_to(data.root).as_posix()
                    photos.append(
                        {"photo": named, "label": sample.label, "scores": answer.scores, "threshold": answer.threshold}
                    )

                one = Dataset(data.root, data.layout, {name: part})
                (found[name],) = evaluate(detector, one, report, watch)
                key = _key(state, data, name)
                value = {"key": key, "mode": detector.mode, "result": found[name], "photos": photos}
                write_json(result_file(cell.folder, name), value)
    return [found[name] for name in data.classes]


def _bundle(request: ProtocolRequest, cell: Cell, shots: dict[str, list[Path]], progress: Progress) -> Path:
    """The cell's bundle; trained, exported and calibrated unless it exists."""
    out = cell.folder / "bundle"
    seed = 0 if cell.shot_seed is None else cell.shot_seed
    chosen = {"shots": cell.shots, "seed": seed, "steps": request.steps, "device": request.device}
    run = train_on(
        request.data, cell.folder / "run", request.base, chosen, cell.shot_seed, list(request.classes or ()) or None,
        request.class_file, True, progress, request.dataset,
    )  # fmt: skip
    for name, entry in run.record["classes"].items():
        trained = [shot["sha256"] for shot in entry["shots"]]
        if name not in shots or trained != [sha256_file(path) for path in shots[name]]:
            raise RunError(f"{run.path} was trained on other photos of {name} than {request.data} has now; remove it")
    if (out / MANIFEST).is_file() and read_bundle(out, verify=False).manifest.training.get("run_sha256") == run.sha256:
        return out
    if not request.calibrate or not cell.shots:
        export_to(run.path, out, request.class_file, request.options.threads, progress)
        return out
    from anomalysd_edge.calibration.settings import CalibrationSettings
    from anomalysd_edge.workflows.calibrate import CalibrateRequest, recalibrate

    exported = cell.folder / "exported"
    export_to(run.path, exported, request.class_file, request.options.threads, progress)
    settings = CalibrationSettings(synthetic=24, negatives=12)
    recalibrate(CalibrateRequest(
        bundle=exported, photos=run.path, out=out, shots=cell.shots, preset=request.options.preset, settings=settings,
        threads=request.options.threads,
    ), progress)  # fmt: skip
    shutil.rmtree(exported)
    return out


def _key(state: str, data: Dataset, name: str) -> str:
    """Digest of the bundle's state and the list of test photos, from which a kept result was made."""
    tested = [(s.path.relative_to(data.root).as_posix(), s.mask_path is None) for s in data.classes[name].test]
    return sha256_bytes(repr((state, tested)).encode())


def result_file(folder: Path, name: str) -> Path:
    """The file of a class's figures in a cell's folder."""
    return folder / "classes" / f"{quote(name, safe=' ', errors='surrogateescape')}.json"


def read_result(folder: Path, name: str) -> dict[str, Any] | None:
    """The kept figures of a class; None where there are none."""
    file = result_file(folder, name)
    return read_json(file) if file.is_file() else None
