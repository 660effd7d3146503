"""The reliability diagram of a made-up threshold prior, and priors that hold none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from anomalysd_edge.calibration import threshold_model
from anomalysd_edge.errors import InputError
from anomalysd_edge.reports import reliability
from anomalysd_edge.reports.reliability import (
    ReliabilityBin,
    calibration_error,
    read_reliability,
    reliability_section,
    shipped_reliability,
)
from anomalysd_edge.reports.svg import reliability_diagram
from tests.support.markup import SVG

BINS = (ReliabilityBin(0.1, 0.2, 30), ReliabilityBin(0.5, 0.5, 60), ReliabilityBin(0.9, 0.7, 10))


def prior(path: Path, value: Any) -> Path:
    path.write_text(json.dumps({"regressions": {}, "reliability": value}))
    return path


def test_the_bins_are_read_and_a_prior_without_them_has_none(tmp_path: Path) -> None:
    plain = [{"stated": b.stated, "observed": b.observed, "count": b.count} for b in BINS]
    assert read_reliability(prior(tmp_path / "a.json", plain)) == BINS
    (tmp_path / "b.json").write_text('{"regressions": {}}')
    assert read_reliability(tmp_path / "b.json") == ()


def test_the_prior_in_use_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, others = (
        prior(tmp_path / f"{name}.json", [{"stated": 0.5, "observed": 0.5, "count": count}])
        for name, count in (("own", 1), ("others", 2))
    )
    monkeypatch.setattr(reliability, "SHIPPED", {"known": own})
    monkeypatch.setattr(reliability, "ANY_FEATURES", others)
    assert [shipped_reliability(kind)[0].count for kind in ("known", "dinov2")] == [1, 2]


@pytest.mark.parametrize(
    "wrong",
    [
        [{"stated": 0.1, "observed": 1.2, "count": 3}],
        [{"stated": 0.1, "observed": float("nan"), "count": 3}],
        [{"stated": 0.1, "observed": 0.2, "count": 0}],
        [{"stated": 0.1}],
        5,
    ],
)
def test_bins_that_cannot_be_are_refused(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reliability"):
        read_reliability(prior(tmp_path / "a.json", wrong))


def test_what_is_shipped_can_be_read() -> None:
    for kind in (*threshold_model.SHIPPED, "any other"):
        assert all(isinstance(each, ReliabilityBin) for each in shipped_reliability(kind))


def test_the_sentence_and_the_diagram() -> None:
    # 30 photos are 0.1 off, 60 are right, 10 are 0.2 off: (3 + 0 + 2) / 100.
    assert calibration_error(BINS) == pytest.approx(0.05)
    section = reliability_section(BINS)
    assert "On 100 photos" in section
    assert "5.0 points apart" in section
    drawn = ElementTree.fromstring(section[section.index("<svg") : section.index("</svg>") + 6])
    dots = list(drawn.iter(f"{SVG}circle"))
    x, y = ([float(dot.attrib[axis]) for dot in dots] for axis in ("cx", "cy"))
    assert x == sorted(x)
    assert y == sorted(y, reverse=True), "a higher share is drawn higher"
    # The middle one holds what it says, so it lies on the diagonal's middle.
    (diagonal,) = [line for line in drawn.iter(f"{SVG}line") if line.attrib.get("stroke-dasharray")]
    middle = [(float(diagonal.attrib[f"{axis}1"]) + float(diagonal.attrib[f"{axis}2"])) / 2 for axis in "xy"]
    assert [x[1], y[1]] == pytest.approx(middle, abs=0.1)
    radii = [float(dot.attrib["r"]) for dot in dots]
    assert radii[1] == max(radii)
    assert "stated 0.90, observed 0.70, 10 photos" in "".join(drawn.itertext())
    with pytest.raises(InputError, match="nothing to draw"):
        reliability_diagram("empty", [])
