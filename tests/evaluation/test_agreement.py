"""Two detectors on the same photos: agreement is seen, and so is every kind of disagreement."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from anomalysd_edge.data.datasets import Sample
from anomalysd_edge.errors import InputError
from anomalysd_edge.evaluation.agreement import compare, spread_over_classes
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.vision import images
from tests.method.test_detector import SCHEDULE, SMALL, constants, photo
from tests.support.fake_networks import FakeNetworks


def pair(tmp_path: Path, threshold: float, smoothing: float) -> tuple[Detector, Detector, list[Sample]]:
    samples = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        images.save_png(path, photo(number, defect=number == 2))
        samples.append(Sample(path, "part", "good", None))
    networks = FakeNetworks()
    a = Detector(networks, SCHEDULE, {"part": constants(networks)}, SMALL)
    other = constants(networks).calibrated(threshold=threshold)
    return a, Detector(networks, SCHEDULE, {"part": other}, replace(SMALL, smoothing=smoothing)), samples


def test_the_same_detector_agrees_with_itself(tmp_path: Path) -> None:
    a, b, samples = pair(tmp_path, 3.0, SMALL.smoothing)
    found = compare(a, b, samples)
    assert found.passed
    assert (found.flips, found.worst.score_difference) == (0, 0.0)
    assert found.to_json()["passed"] is True


def test_a_flip_is_refused_even_where_scores_are_equal(tmp_path: Path) -> None:
    a, b, samples = pair(tmp_path, -1e9, SMALL.smoothing)
    found = compare(a, b, samples)
    assert found.worst.score_difference == 0
    assert found.flips == 2
    assert not found.passed
    assert "REFUSED" in found.sentence()


def test_other_scores_are_refused_and_the_worst_photo_named(tmp_path: Path) -> None:
    a, b, samples = pair(tmp_path, 3.0, 0.2)
    found = compare(a, b, samples)
    assert not found.passed
    assert found.worst.name == "part/good/2.png"


def test_no_photos_are_refused(tmp_path: Path) -> None:
    a, b, _ = pair(tmp_path, 3.0, 0.1)
    with pytest.raises(InputError):
        compare(a, b, [])


def test_the_choice_of_photos_goes_round_classes_and_defects() -> None:
    samples = [
        Sample(Path(f"{c}{d}{i}"), c, d, None) for c in ("a", "b") for d in ("good", "scratch") for i in range(5)
    ]
    chosen = spread_over_classes(samples, 6)
    assert len(chosen) == 6
    assert {(s.class_name, s.defect) for s in chosen} == {(c, d) for c in ("a", "b") for d in ("good", "scratch")}
    assert len(spread_over_classes(samples[:3], 10)) == 3
