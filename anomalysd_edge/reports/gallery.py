"""The HTML report of inspected photos: pictures, verdicts and figures in one file that needs nothing but itself."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anomalysd_edge.core.files import write_aside
from anomalysd_edge.core.types import U8
from anomalysd_edge.errors import NumericError
from anomalysd_edge.method.score_model import Limits
from anomalysd_edge.reports.html import facts as fact_list
from anomalysd_edge.reports.html import page
from anomalysd_edge.reports.html import table as html_table
from anomalysd_edge.vision.images import check_photo


@dataclass(frozen=True)
class ReportRow:
    """One inspected photo of the report."""

    name: str
    """What the reader knows the photo by, for instance its path in the data set."""
    class_name: str
    """Its class."""
    truth: str | None
    """"good", the kind of defect, or None where nobody knows."""
    pred_score: float
    """Image score."""
    threshold: float | None
    """The class's threshold: a score at or above it is an alarm; None where the class has none (0 shots)."""
    pred_label: int | None
    """1 = anomalous; None where there is no threshold."""
    photo: U8
    """(H,W,3) uint8."""
    heat: U8
    """(h,w,3) uint8: the score map, coloured or laid over the photo."""
    repaint: U8
    """(h,w,3) uint8: the photo as the model would have it."""
    evidence: U8
    """(h,w,3) uint8: the photo with the mask that raised the alarm."""
    note: str = ""
    """A line under the pictures, for instance which mask of which scale it was."""
    limits: Limits | None = None
    """Image scores between which the answer is uncertain; None where the threshold alone decides."""
    pred_probability: float | None = None
    """Probability of a defect in [0,1]; None where the class has no score model."""
    uncertain: bool = False
    """Whether the score lies between the limits. `outcome` stays what the threshold says, as in the figures."""

    @property
    def outcome(self) -> str:
        """ "missed", "false alarm", "alarm", "passed", or "not judged"."""
        if self.pred_label is None:
            return "not judged"
        wrong = self.truth is not None and (self.truth != "good") != bool(self.pred_label)
        if self.pred_label:
            return "false alarm" if wrong else "alarm"
        return "missed" if wrong else "passed"


@dataclass(frozen=True)
class TableData:
    """A table of the report, for instance the metrics per class."""

    columns: tuple[str, ...]
    """Headings."""
    rows: tuple[tuple[str | int | float | None, ...], ...]
    """Cells; floats are shown with three decimals, None and NaN as a dash. A row that starts with "mean" stands out."""
    caption: str = ""
    """What the figures are."""


SECTIONS = (
    ("missed", "Missed defects", "A defect is there, the score stayed below the threshold."),
    ("false alarm", "False alarms", "The part is good, the score reached the threshold."),
    ("alarm", "Alarms", "The score reached the threshold."),
    ("passed", "Passed", "The score stayed below the threshold."),
    ("not judged", "Not judged", "The class has no threshold: it was set up without good photos."),
)
"""Outcome, heading and meaning, in the order of the report: wrong verdicts come first."""


def severity(row: ReportRow) -> float:
    """Score in units of its threshold: what rows of different classes are sorted by. Without a threshold, the score."""
    return row.pred_score / row.threshold if row.threshold and row.threshold > 0 else row.pred_score


def write_report(
    path: Path,
    title: str,
    rows: Sequence[ReportRow],
    table: TableData | None = None,
    facts: Sequence[tuple[str, str]] = (),
    side_px: int = 256,
) -> None:
    """Write one HTML file of `table`, `facts` (name, value) and every row: wrong verdicts first, then high scores.

    Pictures are embedded, shrunk to at most `side_px`. The page loads nothing from anywhere and runs no script.
    Raises InputError for a table whose rows do not fit its columns, ShapeError for a picture that is not (H,W,3) uint8,
    NumericError for a score that is not finite.
    """
    counts = {outcome: sum(row.outcome == outcome for row in rows) for outcome, _, _ in SECTIONS}
    tiles = [("photos", len(rows)), ("alarms", counts["alarm"] + counts["false alarm"])]
    if any(row.truth is not None for row in rows):
        tiles += [("missed", counts["missed"]), ("false alarms", counts["false alarm"])]
    if any(row.limits is not None for row in rows):
        tiles.append(("uncertain", sum(row.uncertain for row in rows)))
    header = "".join(f"<li><b>{count}</b> {name}</li>" for name, count in tiles)
    header = f"<ul class=tiles>{header}</ul>" + (fact_list(facts) if facts else "")
    parts = [_table(table)] if table else []
    for outcome, heading, meaning in SECTIONS:
        chosen = sorted((row for row in rows if row.outcome == outcome), key=severity, reverse=True)
        if chosen:
            parts.append(f"<section><h2>{heading} <small>{len(chosen)}</small></h2><p class=meaning>{meaning}</p>")
            parts += [_card(row, side_px) for row in chosen]
            parts.append("</section>")
    text = page(title, parts, header)
    with write_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _figure(image: U8, caption: str, row: ReportRow, side_px: int) -> str:
    check_photo(image, f"{caption!r} of {row.name}")
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((side_px, side_px), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=88, subsampling=0)
    source = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
    size = f"width={picture.width} height={picture.height}"
    alt = html.escape(f"{caption} of {row.name}")
    return f'<figure><img {size} alt="{alt}" src="{source}"><figcaption>{caption}</figcaption></figure>'


def _card(row: ReportRow, side_px: int) -> str:
    limit = row.threshold
    if not (math.isfinite(row.pred_score) and (limit is None or math.isfinite(limit))):
        raise NumericError(f"{row.name} has score {row.pred_score} and threshold {row.threshold}; expected finite ones")
    outcome = row.outcome
    wrong = " wrong" if outcome in {"missed", "false alarm"} else ""
    truth = "" if row.truth is None else f"<span class=truth>truth: {html.escape(row.truth.replace('_', ' '))}</span>"
    against, meter = "", ""
    if limit is not None:
        against = f" {'≥' if row.pred_score >= limit else '&lt;'} threshold {limit:.4g}"
        fill = min(max(severity(row) * 50, 0), 100)
        meter = f"<span class=meter aria-hidden=true><i style='width:{fill:.1f}%'></i></span>" if limit > 0 else ""
    if row.limits is not None:
        against += f", uncertain from {row.limits.good:.4g} to {row.limits.anomalous:.4g}"
    if row.pred_probability is not None:
        against += f", defective with {100 * row.pred_probability:.0f} %"
    unsure = "<span class=unsure>uncertain: a person should look</span>" if row.uncertain else ""
    captions = ("photo", "score map", "repaint", "mask behind the score")
    pictures = zip((row.photo, row.heat, row.repaint, row.evidence), captions, strict=True)
    figures = "".join(_figure(image, caption, row, side_px) for image, caption in pictures)
    note = f"<p class=note>{html.escape(row.note)}</p>" if row.note else ""
    kind = outcome.replace(" ", "-")
    wrong += " uncertain" if row.uncertain else ""
    return (
        f"<article class='{kind}{wrong}'><h3>{html.escape(row.name)}</h3>"
        f"<p class=line><span class=verdict>{outcome}</span>{unsure}<span>{html.escape(row.class_name)}</span>{truth}"
        f"<span class=score>score {row.pred_score:.4g}{against}</span>{meter}</p>"
        f"<div class=pictures>{figures}</div>{note}</article>"
    )


def _table(data: TableData) -> str:
    # The caption stands beside the table, not in it: it would scroll away sideways with a wide table on a phone.
    caption = f"<p class=meaning id=caption>{html.escape(data.caption)}</p>" if data.caption else ""
    inner = html_table(data.columns, data.rows, "caption" if data.caption else "")
    return f"<section><h2>Figures per class</h2>{caption}{inner}</section>"
