"""The few-shot protocol: train, export and measure for every number of shots and every seed; mean and spread of it all.

OUT/protocol.json                 what was asked for; another asking needs another folder
OUT/K-shot/seed-S/run, bundle     as sd-edge train and export write them
OUT/K-shot/seed-S/classes/*.json  the figures of one class, with every photo's scores
OUT/results.json, report.html, plots/class-NAME.svg

What is there and fits is kept: a stopped protocol goes on where it was, to the training's last checkpoint.
"""

from __future__ import annotations

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
from anomalysd_edge.data.datasets import Dataset, open_dataset
from anomalysd_edge.errors import ClassError, DatasetError, RunError, SettingsError
from anomalysd_edge.evaluation import aggregate
from anomalysd_edge.evaluation.evaluate import METRIC_PX, ClassResult, evaluate, result_of
from anomalysd_edge.reports.protocol import ProtocolReport
from anomalysd_edge.workflows.export import export_to
from anomalysd_edge.workflows.open_options import Opening
from anomalysd_edge.workflows.train import choose_shots, train_on

FIRST = "first"
"""As a seed: the first K of the sorted good photos, trained with seed 0."""
PROTOCOL = "protocol.json"


@dataclass(frozen=True)
class ProtocolRequest:
    """What `sd-edge protocol` was asked for."""

    data: Path
    """The data set."""
    out: Path
    """Folder for everything."""
    dataset: str | None = None
    """mvtec-ad or visa: the published protocol; None takes the folder as it is."""
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
    """Of the training."""
    calibrate: bool = False
    """Let each class choose its own settings on synthetic anomalies, as sd-edge calibrate does."""
    opening: Opening = field(default_factory=Opening)
    """Preset, backend and threads of the inspection."""

    def __post_init__(self) -> None:
        if not self.shots or min(self.shots) < 0 or len(set(self.shots)) != len(self.shots):
            raise SettingsError(f"shots are {self.shots}; expected different numbers of at least 0, as 0,1,2,4")
        wrong = [s for s in self.seeds if s != FIRST and not s.isdecimal()]
        if not self.seeds or wrong or len(set(self.seeds)) != len(self.seeds):
            raise SettingsError(f"seeds are {', '.join(self.seeds)}; expected different whole numbers, or {FIRST!r}")

    @property
    def base_name(self) -> str:
        """The base without where its folder lies on this machine."""
        return Path(self.base).name if Path(self.base).is_dir() else self.base

    def identity(self, names: Sequence[str]) -> dict[str, Any]:
        """What results in one folder must share; shots and seeds may be added later."""
        return {
            "dataset": self.dataset,
            "classes": list(names),
            "base": self.base_name,
            "steps": self.steps,
            "class_file": sha256_file(self.class_file) if self.class_file else None,
            "calibrate": self.calibrate,
            "preset": self.opening.preset,
            "backend": self.opening.backend,
            "metric_px": METRIC_PX,
        }


@dataclass(frozen=True)
class Cell:
    """One number of shots under one seed."""

    shots: int
    seed: str
    folder: Path

    @property
    def shot_seed(self) -> int | None:
        """For datasets.few_shot."""
        return None if self.seed == FIRST else int(self.seed)

    @property
    def label(self) -> str:
        """For progress and tables."""
        return f"K{self.shots} s{self.seed}"


@dataclass(frozen=True)
class ProtocolResult:
    """The whole protocol's result."""

    request: ProtocolRequest
    data: Dataset
    notes: list[str]
    """Ways in which the photos are not the published ones; empty also where nothing was to be compared."""
    cells: dict[Cell, list[ClassResult]]
    """Results of each cell, class by class."""
    shot_names: dict[Cell, dict[str, list[str]]]
    """Which photos were the shots, by class."""

    def by_shots(self) -> dict[int, list[list[ClassResult]]]:
        """Results of all seeds by number of shots, ascending."""
        numbers = sorted({cell.shots for cell in self.cells})
        return {n: [found for cell, found in self.cells.items() if cell.shots == n] for n in numbers}

    def report(self) -> ProtocolReport:
        """What is shown of it."""
        asked, known = self.request, PUBLISHED.get(self.request.dataset or "")
        title = known.title if known else self.data.root.resolve().name
        facts = {
            "preset": asked.opening.preset,
            "backend": asked.opening.backend,
            "base": asked.base_name,
            "seeds": ", ".join(asked.seeds),
            "spread": "sample standard deviation over seeds, of which each chooses the shots and seeds the training",
        }
        published = known.title if known else None
        return ProtocolReport(
            f"Few-shot protocol: {title}", facts, list(self.data.classes), self.by_shots(), published, self.notes
        )

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
                {
                    "shots": c.shots,
                    "seed": c.seed,
                    "shot_photos": self.shot_names[c],
                    "classes": {r.class_name: r for r in found},
                }
                for c, found in self.cells.items()
            ],
        }


def run_protocol(asked: ProtocolRequest, progress: Progress) -> ProtocolResult:
    """Train, export and measure what is missing, then collect. Raises SettingsError where `out` holds other settings.

    Also what training, export and inspection raise; DatasetError where a class has no labelled test photos.
    """
    data, notes = _open(asked)
    names = list(data.classes)
    _same_protocol(asked, names)
    cells = [Cell(k, s, asked.out / f"{k}-shot" / f"seed-{s}") for k in asked.shots for s in _seeds(asked, k)]
    measured, shot_names = {}, {}
    for cell in cells:
        shots = choose_shots(data, cell.shots, cell.shot_seed)
        shot_names[cell] = {n: [p.relative_to(data.root).as_posix() for p in paths] for n, paths in shots.items()}
        measured[cell] = _measure(asked, data, cell, shots, progress)
    return ProtocolResult(asked, data, notes, measured, shot_names)


def _open(asked: ProtocolRequest) -> tuple[Dataset, list[str]]:
    classes = list(asked.classes) if asked.classes is not None else None
    if asked.dataset is not None:
        data, notes = open_published(asked.data, asked.dataset, classes)
    else:
        data, notes = open_dataset(asked.data, classes), []
    without = [name for name, part in data.classes.items() if not part.test]
    if without:
        raise DatasetError(
            f"{asked.data} has no test photos of {', '.join(without)}; a protocol needs labelled ones for every class"
        )
    most = max(asked.shots)
    few = [name for name, part in data.classes.items() if len(part.train) < most]
    if few:
        have = len(data.classes[few[0]].train)
        raise DatasetError(f"{few[0]} has {have} good photos to train with, {most} shots were asked for: ask for fewer")
    return data, notes


def _seeds(asked: ProtocolRequest, shots: int) -> tuple[str, ...]:
    """Without shots nothing is drawn: one seed says all."""
    return asked.seeds if shots else asked.seeds[:1]


def _same_protocol(asked: ProtocolRequest, names: Sequence[str]) -> None:
    identity, file = asked.identity(names), asked.out / PROTOCOL
    if not file.is_file():
        write_json(file, identity)
        return
    found = read_json(file)
    for key, value in json_ready(identity).items():
        if not isinstance(found, dict) or found.get(key) != value:
            was = found.get(key) if isinstance(found, dict) else found
            raise SettingsError(
                f"{asked.out} holds a protocol with {key} = {was!r}, this one has {value!r}; name another --out"
            )


def _measure(
    asked: ProtocolRequest, data: Dataset, cell: Cell, shots: dict[str, list[Path]], progress: Progress
) -> list[ClassResult]:
    def told(phase: str, done: int, total: int, detail: str) -> None:
        progress(f"{cell.label} {phase}", done, total, detail)

    bundle = _bundle(asked, cell, shots, told)
    state = sha256_file(bundle / MANIFEST)
    found: dict[str, ClassResult] = {}
    for name in data.classes:
        kept = read_result(cell.folder, name)
        if kept is not None and kept["key"] == _key(state, data, name):
            found[name] = result_of(kept["result"])
    missing = [name for name in data.classes if name not in found]
    if missing:
        with asked.opening.detector(bundle) as detector:
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
                (found[name],) = evaluate(detector, one, told, watch)
                key = _key(state, data, name)
                value = {"key": key, "mode": detector.mode, "result": found[name], "photos": photos}
                write_json(result_file(cell.folder, name), value)
    return [found[name] for name in data.classes]


def _bundle(asked: ProtocolRequest, cell: Cell, shots: dict[str, list[Path]], progress: Progress) -> Path:
    """The cell's bundle, trained and exported unless it is there."""
    out = cell.folder / "bundle"
    seed = 0 if cell.shot_seed is None else cell.shot_seed
    chosen = {"shots": cell.shots, "seed": seed, "steps": asked.steps, "device": asked.device}
    run = train_on(
        asked.data, cell.folder / "run", asked.base, chosen, cell.shot_seed, list(shots), asked.class_file, True,
        progress,
    )  # fmt: skip
    for name, entry in run.record["classes"].items():
        trained = [shot["sha256"] for shot in entry["shots"]]
        if name not in shots or trained != [sha256_file(path) for path in shots[name]]:
            raise RunError(f"{run.path} was trained on other photos of {name} than {asked.data} has now; remove it")
    if (out / MANIFEST).is_file() and read_bundle(out, verify=False).manifest.training.get("run_sha256") == run.sha256:
        return out
    if not asked.calibrate or not cell.shots:
        export_to(run.path, out, asked.class_file, asked.opening.threads, progress)
        return out
    from anomalysd_edge.calibration.settings import CalibrationSettings
    from anomalysd_edge.workflows.calibrate import CalibrateRequest, recalibrate

    exported = cell.folder / "exported"
    export_to(run.path, exported, asked.class_file, asked.opening.threads, progress)
    how = CalibrationSettings(synthetic=24, negatives=12)
    recalibrate(
        CalibrateRequest(exported, run.path, out, cell.shots, asked.opening.preset, how, asked.opening.threads),
        progress,
    )
    shutil.rmtree(exported)
    return out


def _key(state: str, data: Dataset, name: str) -> str:
    """Of the bundle and of the list of test photos: what a kept result was made from."""
    tested = [(s.path.relative_to(data.root).as_posix(), s.mask_path is None) for s in data.classes[name].test]
    return sha256_bytes(repr((state, tested)).encode())


def result_file(folder: Path, name: str) -> Path:
    """Where a cell keeps a class's figures."""
    return folder / "classes" / f"{quote(name, safe=' ')}.json"


def read_result(folder: Path, name: str) -> dict[str, Any] | None:
    """What a cell kept of a class; None where it has nothing."""
    file = result_file(folder, name)
    return read_json(file) if file.is_file() else None
