"""The robustness benchmark: what its disturbances do to pixels, and what it says of a detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from anomalysd_edge.data.datasets import few_tests, open_dataset
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.vision import images
from benchmarks.robustness import COLUMNS, DISTURBANCES, _moved_mask, measure, rows
from tests.evaluation.test_evaluate import data_set, ready


def spot() -> npt.NDArray[np.uint8]:
    photo = np.full((60, 80, 3), 100, np.uint8)
    photo[20:30, 50:60] = 200
    return photo


def under(name: str) -> npt.NDArray[np.uint8]:
    return DISTURBANCES[name](spot(), np.random.default_rng(0))


def test_every_disturbance_keeps_size_and_type_and_changes_the_photo() -> None:
    for name in DISTURBANCES:
        found = under(name)
        assert found.shape == (60, 80, 3), name
        assert found.dtype == np.uint8, name
        assert (found != spot()).any(), name


def test_strong_ones_change_more_than_weak_ones() -> None:
    def change(name: str) -> float:
        return float(np.abs(under(name).astype(float) - spot()).mean())

    names = list(DISTURBANCES)
    for weak, strong in zip(names[::2], names[1::2], strict=True):
        assert change(strong) > change(weak), (weak, strong)


def test_they_do_what_their_names_say() -> None:
    assert under("light -10 %")[25, 55, 0] == 180
    assert under("light +25 %")[0, 0, 0] == 125
    moved = under("shift 6 %")  # of 80 px: 5 px to the right and down
    assert np.array_equal(moved[25:35, 55:65], spot()[20:30, 50:60])
    assert under("noise 12").astype(float).std() > under("noise 4").astype(float).std() > spot().std()
    assert under("blur 1 %")[25, 50, 0] not in (100, 200), "an edge is no longer sharp"


@pytest.mark.parametrize("way", ["rotation 6°", "shift 6 %", "JPEG 40"])
def test_the_mask_goes_with_its_defect(way: str) -> None:
    mask = spot()[..., 0] == 200
    found = _moved_mask(mask, way, DISTURBANCES[way])
    bright = under(way)[..., 0] > 150
    assert (found & bright).sum() > 0.9 * (found | bright).sum()


def test_effects_on_a_detector(tmp_path: Path) -> None:
    data = few_tests(open_dataset(data_set(tmp_path)), 6)
    assert [s.label for s in data.classes["part"].test] == [0, 0, 0, 1, 1, 1]
    effects = measure(ready(), "part", data.classes["part"].test, lambda *_: None)
    plain, *others = effects
    assert (plain.disturbance, plain.moved, plain.false_alarms, plain.image_auroc) == ("none", 0.0, 0, 1.0)
    assert [e.disturbance for e in others] == list(DISTURBANCES)
    bright = next(e for e in others if e.disturbance == "light +25 %")
    assert bright.moved > 0.01, "another light is unlike the prototypes"
    table = rows(effects)
    assert len(table) == 1 + len(DISTURBANCES)
    assert all(len(row) == len(COLUMNS) for row in table)


def test_few_tests_are_seeded_balanced_and_nested(tmp_path: Path) -> None:
    for number in range(9):
        images.save_png(tmp_path / "a/test/good" / f"{number}.png", spot())
    for number in range(2):
        images.save_png(tmp_path / "a/test/spot" / f"{number}.png", spot())
    data = open_dataset(tmp_path)
    small, large = (set(few_tests(data, n).classes["a"].test) for n in (4, 8))
    assert small < large
    assert sum(s.label for s in small) == 2
    assert sum(s.label for s in large) == 2, "bad ones that are lacking are made up by good ones"
    assert len(large) == 8
    assert few_tests(data, 4, seed=1).classes["a"].test != few_tests(data, 4).classes["a"].test
    with pytest.raises(SettingsError):
        few_tests(data, 1)
