"""Mean and spread over seeds against values worked out by hand, and the plots of them."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from anomalysd_edge.errors import InputError
from anomalysd_edge.evaluation import aggregate
from anomalysd_edge.evaluation.evaluate import FIGURES, ClassResult
from anomalysd_edge.reports.svg import Panel, bar_plot, line_plot

SVG = "{http://www.w3.org/2000/svg}"


def result(name: str, auroc: float, alarms: int | None = 1, kinds: tuple[str, ...] = ("fused",)) -> ClassResult:
    figures = {kind: {**dict.fromkeys(FIGURES, 0.5), "image_auroc": auroc} for kind in kinds}
    return ClassResult(name, 4, 10, figures, alarms, None if alarms is None else 5, 1.0)


SEEDS = [
    [result("a", 0.90, 1), result("b", 0.70, 2)],
    [result("a", 0.80, 1), result("b", 0.50, 4)],
    [result("a", 0.70, 1), result("b", math.nan, None)],
]


def test_the_mean_over_classes_is_taken_within_each_seed() -> None:
    a = aggregate.figure(SEEDS, "a", "fused", "image_auroc")
    assert a.mean == pytest.approx(0.8)
    assert a.spread == pytest.approx(0.1)
    mean = aggregate.figure(SEEDS, "mean", "fused", "image_auroc")
    # Seeds: (0.90 + 0.70) / 2, (0.80 + 0.50) / 2, 0.70 alone where b is not defined.
    assert mean.values == pytest.approx((0.80, 0.65, 0.70))
    assert mean.spread == pytest.approx(math.sqrt((0.0833333**2 + 0.0666667**2 + 0.0166667**2) / 2), abs=1e-5)


def test_what_is_not_defined_is_no_number() -> None:
    alone = aggregate.Spread((0.5,))
    assert str(alone) == "50.0"
    assert math.isnan(alone.spread)
    assert str(aggregate.Spread((math.nan, math.nan))) == "-"
    assert aggregate.figure(SEEDS, "a", "guided", "aupro").values == pytest.approx((math.nan,) * 3, nan_ok=True)


def test_rates_of_verdicts() -> None:
    assert aggregate.verdict_rate(SEEDS, "b", "false_alarm_rate").mean == pytest.approx(0.75)
    assert aggregate.verdict_rate(SEEDS, "mean", "false_alarm_rate").values == pytest.approx((0.375, 0.625, 0.25))
    assert aggregate.verdict_rate(SEEDS, "mean", "miss_rate").mean == pytest.approx(0.5)


def test_rows_and_json_agree() -> None:
    rows = aggregate.rows(SEEDS)
    assert [row[0] for row in rows] == ["a", "b", "mean"]
    assert all(len(row) == len(aggregate.COLUMNS) for row in rows)
    assert rows[0][aggregate.COLUMNS.index("I-AUROC")] == "80.0 ± 10.0"
    found = aggregate.to_json({1: SEEDS})["1"]
    assert found["a"]["fused"]["image_auroc"]["values"] == pytest.approx([0.9, 0.8, 0.7])
    assert set(found["mean"]) == {"fused", "verdicts"}
    assert len(aggregate.map_rows(SEEDS)[0]) == len(aggregate.map_columns())


def test_a_plot_is_svg_with_a_marker_a_value_and_higher_values_above() -> None:
    points = ((80.0, 2.0), (90.0, math.nan), (math.nan, math.nan))
    drawn = line_plot("title <&>", [Panel("p", ("0", "1", "4"), {"fused": points}, high=100)], "shots")
    root = ElementTree.fromstring(drawn)
    assert root.attrib["aria-label"] == "title <&>"
    circles = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{SVG}circle")]
    assert len(circles) == 2 + 1, "two values and one in the legend"
    assert circles[0][0] < circles[1][0]
    assert circles[0][1] > circles[1][1]
    assert len(list(root.iter(f"{SVG}path"))) == 1, "one error bar"


def test_bars_stand_on_their_side_of_zero() -> None:
    bars = [("a", 4.0, 1.0, True), ("b", -2.0, math.nan, False)]
    rects = list(ElementTree.fromstring(bar_plot("t", bars)).iter(f"{SVG}rect"))[1:]
    (a, b) = [(float(r.attrib["x"]), float(r.attrib["width"])) for r in rects]
    assert a[0] == pytest.approx(b[0] + b[1])
    assert a[1] == pytest.approx(2 * b[1])
    with pytest.raises(InputError):
        bar_plot("t", [])
    with pytest.raises(InputError, match="places"):
        line_plot("t", [Panel("p", ("0", "1"), {"fused": ((1.0, 0.0),)})])
