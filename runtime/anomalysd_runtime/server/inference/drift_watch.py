"""Watches the line of every class for drift (calibration/drift.py), verdict by verdict; a restart reads the record.

The reference is the stream that a class was accepted on; of a class that was not, or whose bank is new, the first
photos. Scores are those of the prototypes alone: a photo has them whether its verdict was settled early or not.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from anomalysd_edge.calibration.drift import (
    BLOCK,
    LEAST_REFERENCE,
    MOST_REFERENCE,
    QUANTITIES,
    DriftFinding,
    Quantity,
    compare,
)
from anomalysd_edge.errors import SDEdgeError
from anomalysd_runtime.server.records.line import ClassHistory, class_history
from anomalysd_runtime.server.records.verdict_store import VerdictStore
from anomalysd_runtime.server.verdicts import Verdict

log = logging.getLogger("sd-edge.drift")
Figures = Mapping[Quantity, float]
"""Of one photo."""


@dataclass
class ClassWatch:
    """One class of a bundle as it is now."""

    bundle_id: str
    """Of the bundle that its scores are of."""
    reference: list[Figures] = field(default_factory=list)
    """What later photos are held against."""
    block: list[Figures] = field(default_factory=list)
    """Photos of the block that is not full yet."""
    findings: tuple[DriftFinding, ...] = ()
    """Of the last full block."""

    def add(self, figures: Figures) -> bool:
        """Take the next photo; whether a block was compared."""
        if len(self.reference) < LEAST_REFERENCE:
            self.reference.append(figures)
            return False
        self.block.append(figures)
        if len(self.block) < BLOCK:
            return False
        block, self.block = self.block, []
        self.findings = tuple(
            compare(quantity, [one[quantity] for one in self.reference], [one[quantity] for one in block])
            for quantity in QUANTITIES
        )
        return True


class DriftWatch:
    """All classes of a box. Methods may be called from any thread."""

    def __init__(self, store: VerdictStore | None) -> None:
        self._store = store
        self._classes: dict[tuple[str, str], ClassWatch] = {}
        self._lock = threading.Lock()

    def on_verdict(self, verdict: Verdict) -> None:
        """Take a verdict that was recorded."""
        if verdict.brightness is None or verdict.sharpness is None:
            return
        key = (verdict.bundle, verdict.class_name)
        with self._lock:
            known = self._classes.get(key)
            if known is None or known.bundle_id != verdict.bundle_id:
                self._classes[key] = self._begin(verdict)
                return
            if known.add(_figures(verdict.brightness, verdict.sharpness, verdict.scores, verdict.pred_score)):
                for finding in known.findings:
                    if finding.drifted:
                        log.warning("class %s of %s: %s", verdict.class_name, verdict.bundle, finding.sentence())

    def findings(self) -> dict[tuple[str, str], tuple[DriftFinding, ...]]:
        """By bundle and class, of the last full block."""
        with self._lock:
            return {key: watch.findings for key, watch in self._classes.items()}

    def sentences(self, bundle: str | None = None, class_name: str | None = None) -> list[str]:
        """What a person should look at, of all classes or of one."""
        return [
            finding.sentence() if class_name else f"class {key[1]}: {finding.sentence()}"
            for key, found in self.findings().items()
            for finding in found
            if finding.drifted and bundle in (None, key[0]) and class_name in (None, key[1])
        ]

    def _begin(self, verdict: Verdict) -> ClassWatch:
        """With what the record has of the class, this verdict included."""
        assert verdict.brightness is not None
        assert verdict.sharpness is not None
        watch = ClassWatch(verdict.bundle_id)
        if self._store is None:
            watch.add(_figures(verdict.brightness, verdict.sharpness, verdict.scores, verdict.pred_score))
            return watch
        try:
            history = class_history(self._store, verdict.bundle, verdict.class_name, verdict.bundle_id)
            _catch_up(watch, self._store, verdict, history)
        except SDEdgeError as error:
            log.error("the drift of class %s begins anew: %s", verdict.class_name, error)
        return watch


def _catch_up(watch: ClassWatch, store: VerdictStore, verdict: Verdict, history: ClassHistory) -> None:
    """Bring a new watch to where it would be, had it seen every verdict of the record."""
    marks = ", ".join("?" * len(history.comparable))
    where = f"class_name = ? AND bundle = ? AND brightness IS NOT NULL AND bundle_id IN ({marks})"
    values = (verdict.class_name, verdict.bundle, *history.comparable)

    def rows(more: str, order: str, count: int, *further: float) -> list[tuple[int, Figures]]:
        sql = f"SELECT id, brightness, sharpness, scores, pred_score FROM verdicts WHERE {where} AND {more}"
        found = store.rows(f"{sql} ORDER BY id {order} LIMIT ?", *values, *further, count)
        numbered = [
            (r["id"], _figures(r["brightness"], r["sharpness"], json.loads(r["scores"]), r["pred_score"]))
            for r in found
        ]
        return sorted(numbered, key=lambda row: row[0])

    until = 0.0 if history.accepted_at is None else history.accepted_at
    reference = rows("at <= ?", "DESC", MOST_REFERENCE, until)
    last = reference[-1][0] if reference else 0
    reference += rows("id > ?", "ASC", max(0, LEAST_REFERENCE - len(reference)), last)
    watch.reference = [figures for _, figures in reference]
    last = reference[-1][0] if reference else 0
    (counted,) = store.rows(f"SELECT count(*) AS n FROM verdicts WHERE {where} AND id > ?", *values, last)
    # Blocks begin where they would have without a restart; the last full one is compared again.
    beyond = counted["n"] % BLOCK + (BLOCK if counted["n"] >= BLOCK else 0)
    for _, figures in rows("id > ?", "DESC", beyond, last):
        watch.add(figures)


def _figures(brightness: float, sharpness: float, scores: Mapping[str, float], pred_score: float) -> Figures:
    return {"brightness": brightness, "sharpness": sharpness, "score": scores.get("prototypes", pred_score)}
