"""What `sd-edge calibrate` chose for each class, and why: a table, JSON, and a page with a plot a class.

What is expected follows from a class's score model. The false-alarm rate that is seen comes from good photos that were
no shots. It is a figure for people; nothing is chosen by it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomalysd_edge.calibration.outcome import Calibrated, Seen, words
from anomalysd_edge.core.files import folder_aside, json_ready, printable, write_json
from anomalysd_edge.method.class_model import Calibration
from anomalysd_edge.reports.console import say, show_table
from anomalysd_edge.reports.html import page, table
from anomalysd_edge.reports.reliability import ReliabilityBin, reliability_section
from anomalysd_edge.reports.svg import bar_plot, dot_plot

MARKER = "calibration.json"
COLUMNS = ("class", "threshold before", "now", "settings", "expected", "seen", "good photos", "s")
THRESHOLDS = ("class", "threshold", "good below", "anomalous from", "false alarms", "missed", "rests on")
"""Columns of `threshold_rows`; false alarms and missed as expected at the threshold."""

LINE = ("class", "photos", "defective", "", "threshold", "good below", "anomalous from", "false alarms", "missed")
"""Columns of `Report.line_rows`, two rows a class; shares with the interval that holds them with a probability of
90 %."""
ANSWERS = ("class", "photo", "why")
"""Columns of `Report.question_rows`."""


def report_folder(bundle: Path) -> Path:
    """Beside the bundle: inside it every file is signed for."""
    return bundle.with_name(f"{bundle.name}-calibration")


def threshold_rows(classes: Mapping[str, Calibration | None]) -> list[tuple[str, ...]]:
    """Under THRESHOLDS, a row a class; None stands for a class that was not calibrated."""
    return [(name, *_thresholds(found or Calibration())) for name, found in classes.items()]


def _thresholds(found: Calibration) -> tuple[str, ...]:
    good, anomalous = (None, None) if found.decision is None else (found.decision.good, found.decision.anomalous)
    errors = ("-", "-") if found.expected is None else (found.expected.false_alarms, found.expected.missed)
    rests_on = "no good photos" if found.threshold is None else "good photos alone"
    if (evidence := found.evidence) is not None:
        rests_on = f"{evidence.shots} shot{'s' * (evidence.shots > 1)}, {len(evidence.synthetic)} synthetic anomalies"
    return (
        _number(found.threshold),
        *("-" if limit is None else _number(limit) for limit in (good, anomalous)),
        *(each if isinstance(each, str) else f"{100 * each:.1f} %" for each in errors),
        rests_on,
    )


def show_thresholds(classes: Mapping[str, Calibration | None]) -> None:
    """Thresholds, limits and expected errors of classes, as a table on stdout."""
    show_table("Thresholds, limits, errors expected at the threshold", THRESHOLDS, threshold_rows(classes))


@dataclass(frozen=True)
class Report:
    """A calibration and what was seen of it."""

    found: Calibrated
    seen: dict[str, Seen] = field(default_factory=dict)
    """By class; empty where nothing was checked."""
    reliability: tuple[ReliabilityBin, ...] = ()
    """How often classes that the threshold prior had not seen were as defective as stated; empty where not known."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        checked = {
            name: {"rate": s.rate, "alarms": s.alarms, "photos": len(s.scores), "scores": list(s.scores)}
            for name, s in self.seen.items()
        }
        plain: dict[str, Any] = json_ready(
            {"checked": checked, "reasons": {n: self.reason(n) for n in self.found.after}}
        )
        return {**self.found.to_json(), **plain}

    def reason(self, name: str) -> str:
        """One sentence: why these settings."""
        trials = self.found.trials.get(name, [])
        tried = [t for t in trials if t.changes]
        if self.found.after.get(name) is None:
            return "no good photos: nothing could be calibrated"
        if not tried:
            return "the preset's settings: none were to be chosen"
        taken = [t for t in tried if t.taken]
        if taken:
            steps = (f"{words(t.changes)} led by {100 * t.lead:.1f} ± {100 * t.noise:.1f} points" for t in taken)
            return f"on synthetic anomalies {', then '.join(steps)}: more than chance"
        best = max(tried, key=lambda t: t.lead)
        return (
            f"the preset's settings: of {len(tried)} others the best ({words(best.changes)}) led by "
            f"{100 * best.lead:+.1f} ± {100 * best.noise:.1f} points on synthetic anomalies, which may be chance"
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Under COLUMNS, a row a class."""
        found = self.found
        rows: list[tuple[str, ...]] = []
        for name, after in found.after.items():
            seen, expected = self.seen.get(name), found.calibrations.get(name, Calibration()).expected
            alarms = found.false_alarm_rate if expected is None else expected.false_alarms
            rows.append(
                (
                    name,
                    _number(found.before.get(name)),
                    _number(after),
                    words(found.choices.get(name, {})) or "the preset's",
                    "-" if after is None else f"{100 * alarms:.2g} %",
                    "-" if seen is None or math.isnan(seen.rate) else f"{100 * seen.rate:.0f} %",
                    "-" if seen is None else str(len(seen.scores)),
                    f"{found.seconds[name]:.0f}" if name in found.seconds else "-",
                )
            )
        return rows

    def line_rows(self) -> list[tuple[str, ...]]:
        """Under LINE: what was expected without the line's photos, and what is with them."""
        rows: list[tuple[str, ...]] = []
        for name, finding in self.found.line.items():
            found, now = finding.commissioned, _thresholds(self.found.calibrations[name])
            old = (_number(found.before.threshold), "", "")
            for label, limits, rates in (("before", old, found.before), ("now", now[:3], found.after)):
                first = (name, str(len(finding.photos)), str(found.share)) if label == "before" else ("", "", "")
                rows.append((*first, label, *limits, str(rates.false_alarms), str(rates.missed)))
        return rows

    def question_rows(self) -> list[tuple[str, ...]]:
        """Under ANSWERS: the photos whose label is worth most."""
        return [
            (name, printable(photo), why)
            for name, finding in self.found.line.items()
            for photo, why in finding.questions()
        ]

    def line_sentences(self) -> list[str]:
        """What became of each class, and which photos do not show it."""
        told = []
        for name, finding in self.found.line.items():
            told.append(f"{name}: {finding.commissioned.reason}")
            told += [f"{name}: {photo} does not show it and was set aside" for photo in finding.foreign]
        return [printable(line) for line in told]

    def show(self) -> None:
        """What was tried for each class, the classes side by side, and why."""
        for name, trials in self.found.trials.items():
            rows = [
                (
                    words(t.changes) or "the preset",
                    f"{100 * t.image_auroc:.1f}/{100 * t.pixel_auroc:.1f}",
                    f"{100 * t.lead:+.1f} ± {100 * t.noise:.1f}",
                    "taken" if t.taken else "",
                )
                for t in trials
            ]
            show_table(f"{name}: AUROC on synthetic anomalies", ("settings", "image/pixel", "lead", ""), rows)
        show_table("Calibration: thresholds, settings, false alarms expected and seen", COLUMNS, self.rows())
        show_thresholds(self.found.calibrations)
        if self.found.line:
            show_table("The line's photos: thresholds and errors to expect", LINE, self.line_rows())
            show_table("Worth an answer, the most valuable first", ANSWERS, self.question_rows())
        for name in self.found.after:
            say(f"{name}: {self.reason(name)}")
        for line in self.line_sentences():
            say(line)

    def write(self, folder: Path) -> None:
        """calibration.json, report.html and a plot a class, aside and renamed."""
        with folder_aside(folder, marker=MARKER) as aside:
            write_json(aside / MARKER, self.to_json())
            (aside / "report.html").write_text(self._page(), encoding="utf-8")

    def _page(self) -> str:
        title = f"Calibration of {self.found.bundle.resolve().name}, preset {self.found.preset}"
        parts = ["<section><h2>Classes</h2>", table(COLUMNS, self.rows())]
        if not self.seen:
            parts.append("<p class=meaning>No other good photos were given (--check), so none were seen.</p>")
        parts += ["<h3>Thresholds, limits, errors expected at the threshold</h3>"] * bool(self.found.calibrations)
        parts += [table(THRESHOLDS, threshold_rows(self.found.calibrations))] * bool(self.found.calibrations)
        parts.append("</section>")
        if self.found.line:
            parts += ["<section><h2>The line's photos</h2>", table(LINE, self.line_rows())]
            parts += [f"<p>{html.escape(line)}</p>" for line in self.line_sentences()]
            parts += ["<h3>Worth an answer</h3>", table(ANSWERS, self.question_rows()), "</section>"]
        if self.reliability and any(found.score_model for found in self.found.calibrations.values()):
            parts.append(reliability_section(self.reliability))
        for name in self.found.after:
            parts.append(f"<section><h2>{html.escape(name)}</h2><p>{html.escape(self.reason(name))}</p>")
            parts += [f"<div class=wide>{drawn}</div>" for drawn in self.plots(name)]
            parts.append("</section>")
        return page(title, parts)

    def plots(self, name: str) -> list[str]:
        """SVGs: how far each candidate led, and where other good photos lie."""
        drawn = []
        tried = [t for t in self.found.trials.get(name, []) if t.changes]
        if tried:
            bars = [(words(t.changes), 100 * t.lead, 100 * t.noise, t.taken) for t in tried]
            drawn.append(bar_plot("Lead on synthetic anomalies, points of AUROC, with its standard error", bars))
        seen = self.seen.get(name)
        if seen is not None and seen.scores and seen.threshold:
            scores = {"good photos": [score / seen.threshold for score in seen.scores]}
            drawn.append(dot_plot("Good photos that were no shots", scores, 1.0, "score / threshold"))
        return drawn


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
