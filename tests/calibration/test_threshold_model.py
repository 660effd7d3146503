"""From evidence to a score model, and the prior that knows how they relate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anomalysd_edge.calibration.threshold_fit import KnownClass, fit, leave_one_class_out, reliability
from anomalysd_edge.calibration.threshold_model import ThresholdPrior, load_prior, relative_to, shipped_prior
from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_edge.method.score_model import ScoreEvidence


def drawn(number: int, shots: int, gap: float = 0.6, further: int = 20) -> KnownClass:
    """A class whose log scores are normal: defects `gap` above good photos, the class's level drawn at random."""
    rng = np.random.default_rng((number, 7))
    level, spread = rng.normal(-2, 0.3), rng.uniform(0.08, 0.2)

    def scores(mean: float, sd: float, count: int) -> tuple[float, ...]:
        return tuple(np.exp(rng.normal(mean, sd, count)).tolist())

    evidence = ScoreEvidence(
        left_out=() if shots == 1 else scores(level + 0.1, spread, shots),
        copies=scores(level - 0.3, 0.1, 4),
        synthetic=scores(level + gap + 0.1, 0.3, 8),
        self_similarity=float(np.exp(level)),
    )
    good, bad = scores(level, spread, further), scores(level + gap, 0.3, further)
    return KnownClass(f"class {number}", evidence, good, bad)


@pytest.fixture(scope="module")
def prior() -> ThresholdPrior:
    return fit([drawn(n, shots) for n in range(40) for shots in (1, 2, 4)])


def test_evidence_without_a_side_is_refused() -> None:
    with pytest.raises(SettingsError, match="lacks"):
        ScoreEvidence(left_out=(0.1, 0.2))
    with pytest.raises(SettingsError, match="lacks"):
        ScoreEvidence(synthetic=(0.1, 0.2))
    with pytest.raises(SettingsError, match="single shot"):
        ScoreEvidence(left_out=(0.1,), synthetic=(0.3,))


@pytest.mark.parametrize("shots", [1, 2, 4, 16])
def test_threshold_lies_near_the_best_on_new_classes(prior: ThresholdPrior, shots: int) -> None:
    found, best = [], []
    for number in range(100, 140):
        known = drawn(number, shots, further=200)
        threshold = prior.score_model(known.evidence).threshold()
        good, bad = np.array(known.good), np.array(known.defective)
        errors = [((good >= t).mean() + (bad < t).mean()) / 2 for t in (threshold, *good, *bad)]
        found.append(errors[0])
        best.append(min(errors[1:]))
    assert np.mean(found) < np.mean(best) + (0.08 if shots == 1 else 0.05)


def test_doubt_falls_with_shots(prior: ThresholdPrior) -> None:
    spreads = [prior.score_model(drawn(100, shots).evidence).good_sd for shots in (1, 4, 64)]
    assert spreads[0] > spreads[1]
    known = prior.score_model(drawn(100, 64).evidence)
    assert known.good_mean == pytest.approx(float(np.log(drawn(100, 64).evidence.left_out).mean()), abs=0.03)


def test_class_that_scores_twice_as_high_gets_twice_the_threshold(prior: ThresholdPrior) -> None:
    evidence = drawn(100, 4).evidence
    left_out, copies, synthetic = (
        tuple(2 * s for s in part) for part in (evidence.left_out, evidence.copies, evidence.synthetic)
    )
    doubled = ScoreEvidence(left_out, copies, synthetic)
    ratio = prior.score_model(doubled).threshold() / prior.score_model(evidence).threshold()
    assert 1.7 < ratio < 2.3


def test_threshold_never_goes_beyond_the_synthetic_anomalies(prior: ThresholdPrior) -> None:
    evidence = ScoreEvidence(left_out=(0.1, 0.2, 0.4, 0.3), synthetic=(0.11, 0.12, 0.13))
    assert prior.score_model(evidence).threshold() <= 0.13


def test_prior_survives_its_file(prior: ThresholdPrior, tmp_path: Path) -> None:
    file = tmp_path / "prior.json"
    file.write_text(json.dumps(prior.to_json()))
    for shots in (1, 3, 9):
        evidence = drawn(101, shots).evidence
        assert load_prior(file).score_model(evidence) == prior.score_model(evidence)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"regressions": {"1": {}}}', '{"regressions": {"1": {"centre": [1]}}}', '{"regressions": {"one": {}}}'],
)
def test_broken_prior_files_are_named(text: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text)
    with pytest.raises(InputError):
        load_prior(file)


def test_prior_of_one_number_of_shots_is_refused() -> None:
    with pytest.raises(SettingsError, match="expected 1 and a larger one"):
        fit([drawn(n, 4) for n in range(12)])


def test_shots_of_one_batch_say_less(prior: ThresholdPrior) -> None:
    batch = replace(prior, batch=(0.1, 0.12))
    several, single = drawn(100, 4).evidence, drawn(100, 1).evidence
    before, after = prior.score_model(several), batch.score_model(several)
    assert after.good_mean == pytest.approx(before.good_mean + 0.1)
    assert after.good_sd == pytest.approx(np.hypot(before.good_sd, 0.12))
    assert batch.score_model(single) == prior.score_model(single)
    assert ThresholdPrior.of_json(batch.to_json()).score_model(several) == after
    with pytest.raises(InputError, match="two numbers"):
        ThresholdPrior.of_json({**batch.to_json(), "batch": [0.1]})


def test_a_relative_prior_serves_scores_of_any_unit() -> None:
    prior = fit([drawn(n, shots) for n in range(40) for shots in (1, 4)], relative=True)
    for shots in (1, 4, 16):
        known = drawn(100, shots)
        tenfold = relative_to(known.evidence, -np.log(10))
        thresholds = [prior.score_model(evidence).threshold() for evidence in (known.evidence, tenfold)]
        assert thresholds[1] == pytest.approx(10 * thresholds[0], rel=1e-6)
        assert np.median(known.good) < thresholds[0] < np.median(known.defective)


def test_classes_without_defective_photos_tell_of_good_ones_alone() -> None:
    classes = [drawn(n, shots) for n in range(40) for shots in (1, 4)]
    more = [drawn(n, shots) for n in range(40, 120) for shots in (1, 4)]
    bare = [KnownClass(one.name, one.evidence, one.good, ()) for one in more]
    both, few = fit([*classes, *bare]), fit(classes)
    assert both.regressions[4].weights[:, 0].tolist() != few.regressions[4].weights[:, 0].tolist()
    assert {one.name for one in leave_one_class_out([*classes, *bare])} == {one.name for one in classes}
    with pytest.raises(SettingsError, match="needs 8"):
        fit([KnownClass(one.name, one.evidence, one.good, ()) for one in classes])


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(SettingsError, match="needs 8"):
        fit([drawn(n, 1) for n in range(5)])


def test_probabilities_are_calibrated_on_classes_left_out() -> None:
    judged = leave_one_class_out([drawn(n, shots) for n in range(40) for shots in (1, 4)])
    bins = reliability(judged, 5)
    assert len(bins) == 5
    for one in bins:
        assert one.observed == pytest.approx(one.stated, abs=0.12)
    assert all(one.best_error <= one.balanced_error for one in judged)


def test_a_left_out_class_is_left_out_with_all_its_numbers_of_shots() -> None:
    classes = [drawn(n, shots) for n in range(10) for shots in (1, 4)]
    odd = drawn(50, 4)
    strange = KnownClass("strange", odd.evidence, tuple(9.0 for _ in odd.good), tuple(9.5 for _ in odd.defective))
    alone = [j.threshold for j in leave_one_class_out([*classes, strange]) if j.name == "strange"]
    assert alone == [fit(classes).score_model(strange.evidence).threshold()]


def test_shipped_prior_gives_thresholds_between_good_photos_and_defects() -> None:
    prior = shipped_prior("efficientnet_lite2")
    assert prior is not None
    assert not prior.relative
    assert shipped_prior("dinov2").relative, "features that nobody measured"
    several = ScoreEvidence(left_out=(0.16, 0.18, 0.17, 0.2), synthetic=(0.25, 0.3, 0.4, 0.35))
    single = ScoreEvidence(copies=(0.13, 0.14), synthetic=(0.25, 0.3, 0.4, 0.35), self_similarity=0.25)
    for evidence in (several, single):
        model = prior.score_model(evidence)
        assert 0.15 < model.threshold() < 0.4
        assert model.errors(model.threshold()).balanced < 0.5
    assert prior.score_model(several).good_sd < prior.score_model(single).good_sd


def test_copies_among_the_shots_do_not_break_the_threshold() -> None:
    copies = ScoreEvidence(left_out=(1e-9, 1e-9, 0.3, 0.2), synthetic=(0.25, 0.3, 1e-9, 0.35), self_similarity=0.2)
    for kind in ("efficientnet_lite2", "dinov2"):
        model = shipped_prior(kind).score_model(copies)
        assert 0 < model.threshold() < np.inf
