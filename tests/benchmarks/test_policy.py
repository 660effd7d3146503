"""The benchmark's learned mask policy: it learns which photos a repaint helps, and a price makes it spare samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import policy
from benchmarks.policy import ALONE, Outcome, Photo, arms_of, costs, decided, design, learned
from tests.benchmarks.test_ablations import run
from tests.support.small_graphs import small_bundle
from tests.workflows.test_protocol import data_set

ARMS = list(arms_of((4, 8, 16)))
SAMPLES = dict(zip(ARMS, (0, 8, 16, 26), strict=True))


def lesson(count: int) -> list[Photo]:
    """Prototypes are sure of every other photo; of the rest they know nothing, and the whole grid tells them apart."""
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        bad, sure = bool(number % 2), number % 4 < 2
        alone = (2.0 if bad else -1.0) if sure else 1.0 + 0.05 * rng.standard_normal()
        known = 2.0 if bad else 0.0
        scores = dict.fromkeys(ARMS, alone) | {"K = 4, 8, 16": alone if sure else known}
        arms = {arm: Outcome(score, np.full((4, 4), score, np.float32), SAMPLES[arm]) for arm, score in scores.items()}
        found.append(Photo("class", bad, None, True, arms))
    return found


def test_it_repaints_where_prototypes_are_unsure() -> None:
    photos = lesson(80)
    weights, price = learned(photos, ARMS), costs(photos, ARMS)
    assert price == SAMPLES
    taken = [decided(weights, photo.context, 0.003, price) for photo in photos]
    assert taken[2::4] == taken[3::4] == ["K = 4, 8, 16"] * 20
    assert set(taken[0::4] + taken[1::4]) == {ALONE}


def test_a_high_price_spares_every_sample() -> None:
    photos = lesson(80)
    weights = learned(photos, ARMS)
    assert {decided(weights, photo.context, 10.0, costs(photos, ARMS)) for photo in photos} == {ALONE}


def test_the_design_has_a_constant_and_squares() -> None:
    np.testing.assert_array_equal(design(np.array([2.0, -3.0])), [1, 2, -3, 4, 9])


def test_on_a_bundle_of_small_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_bundle(tmp_path / "B")
    data, out = data_set(tmp_path / "DATA", train=4), tmp_path / "policy.json"
    run(
        policy, tmp_path / "B", "--photos", data, "--data", data, "--tests", 4, "--anomalies", 8, "--out", out,
        monkeypatch=monkeypatch,
    )  # fmt: skip
    rows = json.loads(out.read_text())["rows"]
    assert rows[ALONE]["samples"] == 0
    *_, whole = (row for name, row in rows.items() if name.startswith("K ="))
    assert whole["samples"] > rows["settling"]["samples"] >= 0
    learned_rows = [row for name, row in rows.items() if name.startswith("learned")]
    assert all(sum(row["share"].values()) == pytest.approx(1) for row in learned_rows)
