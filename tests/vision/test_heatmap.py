"""Colour map, overlays, contours and the HTML report."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalysd_edge.errors import InputError, NumericError, ShapeError
from anomalysd_edge.method.score_model import Limits
from anomalysd_edge.reports.gallery import ReportRow, TableData, severity, write_report
from anomalysd_edge.vision.heatmap import ALARM, COLOURS, contour, heat_map, overlay, spotlight

GREY = np.full((8, 8, 3), 100, np.uint8)


def ramp(steps: int) -> np.ndarray:
    return np.linspace(0, 1, steps, dtype=np.float32)[None]


def row(**changes: object) -> ReportRow:
    base = ReportRow("a.png", "nut", "good", 0.5, 1.0, 0, GREY, GREY, GREY, GREY)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_heat_map_meets_its_control_points_and_rises_in_lightness() -> None:
    colours = heat_map(ramp(257), 0.0, 1.0)[0]
    assert np.array_equal(colours[::32], COLOURS.astype(np.uint8))
    assert colours[16].tolist() == [16, 6, 38]  # halfway between (0,0,4) and (31,12,72), half rounded up
    lightness = colours @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness[::4]) > 0).all()


def test_heat_map_clips_at_its_ends() -> None:
    colours = heat_map(np.array([[-5.0, 2.0, 4.0, 99.0]], np.float32), 2.0, 4.0)[0]
    assert np.array_equal(colours[0], colours[1])
    assert np.array_equal(colours[2], colours[3])
    assert colours[3].tolist() == [252, 255, 164]


def test_heat_map_refuses_what_has_no_colour() -> None:
    with pytest.raises(NumericError, match="NaN or Inf"):
        heat_map(np.array([[np.nan]], np.float32), 0, 1)
    with pytest.raises(InputError, match="low end must lie below"):
        heat_map(ramp(3), 1, 1)
    with pytest.raises(ShapeError, match=r"\(H, W\)"):
        heat_map(np.zeros(3, np.float32), 0, 1)


def test_overlay_keeps_the_photo_where_the_map_is_low() -> None:
    values = np.zeros((8, 8), np.float32)
    values[2:6, 2:6] = 1.0
    shown = overlay(GREY, values, 0.0, 1.0, strength=1.0)
    assert (shown[values == 0] == 100).all()
    assert (shown[values == 1] == (252, 255, 164)).all()
    assert (overlay(GREY, values, 0.0, 1.0, threshold=0.5)[2, 2] == ALARM).all()
    with pytest.raises(ShapeError, match="same size"):
        overlay(GREY, ramp(8), 0.0, 1.0)


def test_contour_is_one_pixel_inside_the_mask() -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    before = GREY.copy()
    drawn = contour(GREY, mask, (255, 0, 0), width_px=1)
    red = (drawn == (255, 0, 0)).all(axis=2)
    ring = mask.copy()
    ring[3:5, 3:5] = False
    assert np.array_equal(red, ring)
    assert (drawn[3:5, 3:5] == 100).all()
    assert (drawn[1, 1:7] == 33).all()
    assert (drawn[0] == 100).all()
    assert np.array_equal(GREY, before)
    assert np.array_equal(contour(GREY, np.zeros((8, 8), bool)), GREY)
    with pytest.raises(ShapeError, match="bool"):
        contour(GREY, mask.astype(np.uint8))


def test_spotlight_dims_the_rest() -> None:
    mask = np.zeros((8, 8), bool)
    mask[2:7, 2:7] = True
    drawn = spotlight(GREY, mask)
    assert (drawn[4, 4] == 100).all()
    assert (drawn[0, 0] == 45).all()


@pytest.mark.parametrize(
    ("truth", "label", "outcome"),
    [
        ("good", 0, "passed"),
        ("good", 1, "false alarm"),
        ("scratch", 1, "alarm"),
        ("scratch", 0, "missed"),
        (None, 1, "alarm"),
        (None, 0, "passed"),
    ],
)
def test_outcome(truth: str | None, label: int, outcome: str) -> None:
    assert row(truth=truth, pred_label=label).outcome == outcome


class Page(HTMLParser):
    """Collects tags, the text of headings, and checks that non-void tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in {"img", "meta"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"h2", "h3"}:
            self.headings.append(data.strip())


def test_report_is_sorted_escaped_and_self_contained(tmp_path: Path) -> None:
    big = np.random.default_rng(0).integers(0, 255, (40, 80, 3), dtype=np.uint8)
    rows = [
        row(name="fine", pred_score=0.2),
        row(name="low alarm", truth="dent", pred_score=1.1, pred_label=1),
        row(name="high alarm", truth="dent", pred_score=4.5, threshold=3.0, pred_label=1),
        row(name="<b>missed</b>", truth="bad_hole", pred_score=0.9, photo=big, note="5 < 6 & more"),
        row(name="false", pred_score=2.0, pred_label=1),
    ]
    table = TableData(("class", "AUROC", "photos"), (("nut", 0.98765, 12), ("mean", float("nan"), None)), "Per <class>")
    target = tmp_path / "new" / "report.html"
    write_report(target, "Nuts & bolts", rows, table, facts=[("bundle", "a<b")], side_px=20)
    text = target.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    order = [
        "Figures per class", "Missed defects", "<b>missed</b>", "False alarms", "false",
        "Alarms", "high alarm", "low alarm", "Passed", "fine",
    ]  # fmt: skip
    assert page.headings == order
    assert "Nuts &amp; bolts" in text
    assert "5 &lt; 6 &amp; more" in text
    assert "a&lt;b" in text
    assert "truth: bad hole" in text
    assert "<td>0.988</td><td>12</td>" in text
    assert "<td>–</td><td>–</td>" in text
    assert "score 4.5 ≥ threshold 3" in text
    assert "score 0.9 &lt; threshold 1" in text
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    assert len(page.images) == 4 * len(rows)
    source = page.images[0]["src"]
    assert source is not None
    with Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))) as photo:
        assert photo.size == (20, 10)
    assert (page.images[0]["width"], page.images[0]["height"]) == ("20", "10")


def test_an_uncertain_photo_is_marked_and_stays_where_its_threshold_puts_it(tmp_path: Path) -> None:
    limits = Limits(0.8, 1.25)
    between = {"limits": limits, "uncertain": True, "pred_probability": 0.456}
    rows = [
        row(name="below", truth="dent", pred_score=0.9, **between),
        row(name="above", pred_score=1.1, pred_label=1, **between),
        row(name="sure", pred_score=0.2, limits=limits, pred_probability=0.01),
    ]
    write_report(tmp_path / "a.html", "Inspection", rows)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert Page(text).headings == ["Missed defects", "below", "False alarms", "above", "Passed", "sure"]
    assert "<li><b>2</b> uncertain</li>" in text
    assert text.count("uncertain: a person should look") == text.count(" uncertain'>") == 2
    assert "&lt; threshold 1, uncertain from 0.8 to 1.25, defective with 46 %" in text
    write_report(tmp_path / "b.html", "Inspection", [row()])
    assert "uncertain from" not in (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "</b> uncertain" not in (tmp_path / "b.html").read_text(encoding="utf-8")


def test_report_without_truth_table_or_rows(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", "Inspection", [row(truth=None)])
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "truth:" not in text
    assert "missed" not in Page(text).headings
    assert "<table" not in text
    write_report(tmp_path / "b.html", "Inspection", [])
    assert "<b>0</b> photos" in (tmp_path / "b.html").read_text(encoding="utf-8")


def test_severity_compares_classes_by_their_thresholds() -> None:
    assert severity(row(pred_score=3.0, threshold=6.0)) == 0.5
    assert severity(row(pred_score=3.0, threshold=0.0)) == 3.0


def test_report_refuses_wrong_input_and_writes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    with pytest.raises(InputError, match="1 cells under 2 headings"):
        write_report(target, "t", [], TableData(("a", "b"), (("x",),)))
    with pytest.raises(ShapeError, match=r"'repaint' of a\.png"):
        write_report(target, "t", [row(repaint=np.zeros((8, 8), np.uint8))])
    with pytest.raises(NumericError, match=r"a\.png has score nan"):
        write_report(target, "t", [row(pred_score=float("nan"))])
    assert list(tmp_path.iterdir()) == []
