"""What a stream without labels and ten answers make of a threshold, on classes that nobody described.

    python -m benchmarks.commissioning --bundle BUNDLE --data DIR --shots 1,4 --seeds first,0,1 --tests 40 --out FILE

Each class of DIR is calibrated on some good photos (seeds as in benchmarks.verdicts), by prototypes alone. Its stream
is 20 good and 2 bad photos, from those of train/good that are no shots and, where these are too few, from the test
photos; never judged. Balanced error on other test photos: at the threshold of the shots, of the stream, of the stream
and ten truthful answers to what is asked, the same with the photos called good in the class's banks (--join), and the
least of any threshold. And the same for a stream that is half bad. A class with fewer than eight photos to spare has no
stream; it is listed by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.bundle.detector_factory import calibration_task, preset_settings
from anomalysd_edge.bundle.reader import NEGATIVE_PROMPT, Bundle, read_bundle
from anomalysd_edge.calibration.calibrate import calibrate, left_out_numbers
from anomalysd_edge.calibration.commissioning import (
    LEAST_STREAM,
    Commissioned,
    belief_of,
    commission,
    evidence_of_shots,
    repaint_of,
)
from anomalysd_edge.calibration.score_posterior import LineScores
from anomalysd_edge.calibration.threshold_model import ScoreBelief, shipped_prior
from anomalysd_edge.core.files import write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.class_inference import guess
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.data.datasets import ClassData, few_shot, open_dataset
from anomalysd_edge.evaluation.metrics import best_balanced_error
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.score_model import ScoreModel
from anomalysd_edge.reports.console import progress_bars, show_table
from anomalysd_edge.vision.images import load_rgb
from benchmarks import harness
from benchmarks.verdicts import RememberedFeatures

GOOD, BAD, HALF = 20, 2, 11
"""Photos of the stream, and bad ones of the stream that is half bad."""
ANSWERS = 10
STAGES = ("before", "stream", "answers", "joined", "half bad", "half bad, answers")
LEAST_JUDGED = 2
"""Good and bad test photos that are kept to be judged, at least."""


@dataclass(frozen=True)
class Parts:
    """The photos of one class and seed, none in two parts."""

    shots: list[Path]
    good: list[Path]
    """Of the stream."""
    bad: list[Path]
    """Of the half-bad stream; its first BAD are those of the other."""
    judged: list[tuple[Path, int]]
    """Test photos and their labels."""


def split(part: ClassData, shots: int, seed: int | None, tests: int) -> Parts:
    """By a seeded permutation; half of the judged photos are good where there are so many."""
    rng = np.random.default_rng(0 if seed is None else seed + 1)
    chosen = list(few_shot(part.train, shots, seed, part.name))
    spare = [file for file in part.train if file not in chosen]
    good, bad = ([s.path for s in part.test if s.label == label] for label in (0, 1))
    spare, good, bad = ([files[i] for i in rng.permutation(len(files))] for files in (spare, good, bad))
    borrowed = max(0, min(GOOD - len(spare), len(good) - LEAST_JUDGED))
    stream, left = [*spare[:GOOD], *good[:borrowed]], good[borrowed:]
    kept = [(file, label) for label, files in ((0, left), (1, bad[HALF:])) for file in files[: tests // 2]]
    return Parts(chosen, stream, bad[:HALF], kept)


class Judge:
    """A calibrated class and the image scores of photos under it, each judged once."""

    def __init__(self, bundle: Bundle, networks: Networks, name: str, shots: Sequence[Path]) -> None:
        photos = [load_rgb(file) for file in shots]
        settings = replace(preset_settings(bundle, "edge"), cells="none")
        spec = guess(ClassSpec(name, name.replace("_", " ")), photos[:4])
        task = calibration_task(bundle, networks, {name: photos}, settings)
        prompts = bundle.prompts(next(iter(bundle.manifest.classes)))
        known = calibrate(replace(task, specs={name: spec}, prompts={name: prompts})).classes[name]
        self.name, self.photos, self.calibration = name, photos, known.calibration
        assert bundle.manifest.features is not None
        self.prior = shipped_prior(bundle.manifest.features.kind)
        self.repaint = repaint_of(self.calibration, self.prior)
        self.detector = Detector(
            networks, bundle.schedule(), {name: known}, settings, bundle.constants[NEGATIVE_PROMPT]
        )
        self.found: dict[Path, float] = {}

    def scores(self, files: Sequence[Path]) -> list[float]:
        """Image scores."""
        for file in files:
            if file not in self.found:
                self.found[file] = self.detector.inspect([load_rgb(file)], self.name)[0].pred_score
        return [self.found[file] for file in files]

    def belief(self) -> tuple[ScoreBelief, float | None]:
        """Of the class, and the cap of its threshold."""
        belief, model = belief_of(self.calibration, self.prior, self.repaint), self.calibration.score_model
        if belief is None or model is None:
            raise SystemExit(f"{self.name}: no synthetic anomaly shows on its shots, so nothing is believed of it")
        return belief, model.cap

    def apart(self, shots: int) -> tuple[float, ...]:
        """Leave `shots` photos as the class's own, and give the left-out scores of those that joined them."""
        if self.calibration.evidence is None:
            return ()
        evidence, joined = evidence_of_shots(self.calibration.evidence, left_out_numbers(self.photos), shots)
        self.calibration = replace(self.calibration, evidence=evidence)
        return tuple(joined.values())


@dataclass
class Line:
    """A stream, and the operator who answers truthfully."""

    judge: Judge
    good: Sequence[Path]
    bad: Sequence[Path]
    joined: tuple[float, ...] = ()
    """Left-out scores of photos that joined the class's own."""

    def __post_init__(self) -> None:
        self.open = [*self.good, *self.bad]
        self.said_good: list[Path] = []
        self.said_bad: list[Path] = []

    def commission(self) -> Commissioned:
        """With what was answered so far."""
        belief, cap = self.judge.belief()
        opened, good, bad = (tuple(self.judge.scores(files)) for files in (self.open, self.said_good, self.said_bad))
        return commission(belief, LineScores(opened, (*good, *self.joined), bad), cap=cap, questions=1)

    def answer(self, found: Commissioned) -> None:
        """The first question."""
        if found.questions:
            file = self.open.pop(found.questions[0].number)
            (self.said_bad if file in self.bad else self.said_good).append(file)


def run_cell(
    bundle: Bundle, networks: Networks, part: ClassData, shots: int, seed: int | None, tests: int, join: bool
) -> dict[str, Any]:
    """One class, number of shots and seed."""
    parts = split(part, shots, seed, tests)
    judge = Judge(bundle, networks, part.name, parts.shots)
    cell: dict[str, Any] = {"good": len(parts.good), "judged": len(parts.judged)}
    cell["stages"] = {"before": stage(judge, parts, None, judge.calibration.score_model)}
    if len(parts.good) + BAD < LEAST_STREAM:
        return cell
    for name, good, bad in (
        ("stream", parts.good, parts.bad[:BAD]),
        ("half bad", parts.good[: len(parts.bad)], parts.bad),
    ):
        line = Line(judge, good, bad)
        found = line.commission()
        cell["stages"][name] = stage(judge, parts, found, found.model)
        for _ in range(ANSWERS):
            line.answer(found)
            found = line.commission()
        answered = "answers" if name == "stream" else "half bad, answers"
        cell["stages"][answered] = stage(judge, parts, found, found.model)
        if join and name == "stream":
            other = Judge(bundle, networks, part.name, [*parts.shots, *line.said_good])
            open_good, open_bad = ([f for f in line.open if f in of] for of in (parts.good, parts.bad))
            again = Line(other, open_good, open_bad, other.apart(len(parts.shots)))
            again.said_bad = line.said_bad
            found = again.commission()
            cell["stages"]["joined"] = stage(other, parts, found, found.model)
    cell["evidence"] = judge.calibration.evidence
    return cell


def stage(judge: Judge, parts: Parts, found: Commissioned | None, model: ScoreModel | None) -> dict[str, Any]:
    """Errors on the judged photos; where nothing is proposed the threshold stays."""
    threshold = judge.calibration.threshold if model is None else model.threshold()
    labels = np.array([label for _, label in parts.judged])
    scores = np.array(judge.scores([file for file, _ in parts.judged]))
    called = scores >= threshold
    alarms, missed = float(called[labels == 0].mean()), float((~called[labels == 1]).mean())
    told = {} if found is None else {"share": found.share, "after": found.after, "trusted": found.trusted}
    return {
        "threshold": threshold,
        "proposed": model is not None,
        "false_alarms": alarms,
        "missed": missed,
        "balanced_error": (alarms + missed) / 2,
        "best_balanced_error": best_balanced_error(labels, scores)[0],
        **told,
    }


def means(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By number of shots and stage: mean balanced error, the best one's, and how often something was proposed; over
    the cells that have the stage."""
    table: dict[str, dict[str, float]] = {}
    for shots in sorted({key.split("/")[1] for key in found}, key=int):
        streams = [c["stages"] for k, c in found.items() if k.split("/")[1] == shots and "stream" in c["stages"]]
        for name in STAGES:
            mine = [stages[name] for stages in streams if name in stages]
            if mine:
                figures = ("balanced_error", "best_balanced_error", "proposed", "false_alarms", "missed")
                table[f"{shots}/{name}"] = {f: float(np.mean([one[f] for one in mine])) for f in figures}
    return table


def main() -> None:
    """Measure, print, write."""
    from anomalysd_runtime.onnx.networks import OnnxNetworks

    parser = harness.parser_of(__doc__, "--bundle", "--data", "--classes", "--tests", "--threads", "--out")
    parser.add_argument("--shots", default="1,4")
    parser.add_argument("--seeds", default="first,0,1")
    parser.add_argument("--join", action="store_true", help="calibrate anew with the photos that were called good")
    asked = parser.parse_args()
    bundle = read_bundle(asked.bundle)
    data = open_dataset(asked.data, asked.classes.split(",") if asked.classes else None)
    cells = [
        (name, shots, seed)
        for name in data.classes
        for shots in harness.numbers(asked.shots)
        for seed in asked.seeds.split(",")
    ]
    found: dict[str, Any] = {}
    with progress_bars() as progress, OnnxNetworks.of_bundle(bundle, "cpu", asked.threads) as networks:
        measure(bundle, networks, data.classes, cells, asked, found, progress)
    rows = [(key, name, *percents(one)) for key, cell in found.items() for name, one in cell["stages"].items()]
    show_table("Balanced error, percent", ("cell", "stage", "at the threshold", "best"), rows)
    for name, values in means(found).items():
        print(f"{name}: " + ", ".join(f"{figure} {100 * value:.1f}" for figure, value in values.items()))


def measure(
    bundle: Bundle,
    networks: Networks,
    classes: Mapping[str, ClassData],
    cells: Sequence[tuple[str, int, str]],
    asked: Any,
    found: dict[str, Any],
    progress: Progress,
) -> None:
    """Every cell into `found`, and that into the results file after each."""
    remembered, last = RememberedFeatures(networks), ""
    for number, (name, shots, seed) in enumerate(cells):
        progress("commission", number, len(cells), name)
        if name != last:
            remembered, last = RememberedFeatures(networks), name
        one = None if seed == "first" else int(seed)
        found[f"{name}/{shots}/{seed}"] = run_cell(
            bundle, remembered, classes[name], shots, one, asked.tests, asked.join
        )
        write_json(asked.out, {**harness.facts(asked), "means": means(found), "cells": found})


def percents(one: Mapping[str, Any]) -> tuple[str, ...]:
    """Of one stage, for the table."""
    kept = "" if one["proposed"] else " (nothing proposed)"
    return f"{100 * one['balanced_error']:.1f}{kept}", f"{100 * one['best_balanced_error']:.1f}"


if __name__ == "__main__":
    main()
