"""The line's stream of one class, out of the record: photos whose scores can be compared, and what people said of them.

A verdict's correction is an answer. Scores of a bundle and of the one that replaced it can be compared as long as the
class's bank stayed the same: where another class was taught, or thresholds alone were changed. Where an acceptance gave
the class a new bank, its photos were judged again (table line_scores).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from anomalysd_runtime.server.records.teachings import Teaching, teachings
from anomalysd_runtime.server.records.verdict_store import VerdictStore

MOST_STREAM = 200
"""Photos of the stream without an answer, at most: the newest."""
MOST_ROWS = 2000
"""Verdicts that are looked through for them."""
Label = Literal["good", "bad", "known-bad"]
"""What a person said of a photo: a known bad one is from elsewhere, and says nothing of how many the stream holds."""


@dataclass(frozen=True)
class ClassHistory:
    """How a class of a bundle became what it is, by the record."""

    comparable: tuple[str, ...]
    """Ids of bundles that give the class the same scores, the present one's among them."""
    photos: tuple[str, ...] = ()
    """sha256 of the photos that its bank was made of; empty where the record does not know."""
    made_here: bool = False
    """Whether it was taught at this box."""
    trusted: bool = False
    """Whether it was accepted when its interval was as narrow as wanted."""
    accepted_at: float | None = None
    """UTC seconds of the last acceptance; None where there was none."""
    repaint: float | None = None
    """What the repaint adds to its log scores, as the last acceptance recorded it."""


@dataclass(frozen=True)
class LinePhoto:
    """A photo of the stream."""

    uid: str
    """Of its verdict."""
    at: float
    """UTC seconds."""
    name: str
    """The client's name for it."""
    sha256: str
    """Of its bytes."""
    aspect: float
    """Width / height."""
    score: float
    """Image score under the class's present bank."""
    label: Label | None
    """What a person said."""
    skipped: bool
    """Whether a person did not want to say."""
    settled: bool
    """Whether its score may be a lower bound, its verdict having been clear early."""
    stored: bool
    """Whether the record keeps its bytes."""
    brightness: float | None
    """As in Verdict."""
    sharpness: float | None
    """As in Verdict."""


def class_history(store: VerdictStore, bundle: str, class_name: str, bundle_id: str) -> ClassHistory:
    """Of a class of the bundle that has the id now. Raises StoreError."""
    rows = [row for row in teachings(store, bundle) if row.action != "restore"]
    made = {row.after_id: row for row in reversed(rows)}
    own: list[Teaching] = []
    here, seen = bundle_id, set[str]()
    while here in made and here not in seen:
        seen.add(here)
        row = made[here]
        own += [row] if row.class_name == class_name else []
        if own and own[-1] is row and row.photos:
            break
        here = row.before_id
    accepted = next((row for row in own if row.action == "accept"), None)
    last = own[-1] if own and own[-1].photos else None
    return ClassHistory(
        comparable=_connected(bundle_id, rows, class_name),
        photos=() if last is None else tuple(last.photos),
        made_here=last is not None,
        trusted=accepted is not None and own[0] is accepted and bool(accepted.details.get("trusted")),
        accepted_at=None if accepted is None else accepted.at,
        repaint=None if accepted is None else accepted.details.get("repaint"),
    )


def line_photos(
    store: VerdictStore, bundle: str, class_name: str, preset: str, history: ClassHistory
) -> list[LinePhoto]:
    """The stream, the newest first: every photo once, those that show the class. Of those that its bank was made of
    only the ones that joined from the stream, which a bank without them judged.

    Photos without an answer are MOST_STREAM at most, and of a trusted class from before it was accepted: later ones
    settle early again, and those that do not are no sample. Raises StoreError.
    """
    until = history.accepted_at if history.trusted and history.accepted_at is not None else math.inf
    marks = ", ".join("?" * len(history.comparable))
    rows = store.rows(
        f"""SELECT uid, at, photo, photo_sha256, mode, evidence, correction, brightness, sharpness, verdict,
            CAST(width_px AS REAL) / height_px AS aspect,
            coalesce(l.pred_score, v.pred_score) AS score, s.verdict_id IS NOT NULL AS skipped,
            l.verdict_id IS NOT NULL AS again,
            EXISTS (SELECT 1 FROM stored p WHERE p.verdict_id = v.id AND p.kind = 'photo') AS kept
        FROM verdicts v LEFT JOIN skipped s ON s.verdict_id = v.id
            LEFT JOIN line_scores l ON l.verdict_id = v.id AND l.bundle_id IN ({marks})
        WHERE v.class_name = ? AND v.bundle = ? AND v.preset = ?
            AND (v.bundle_id IN ({marks}) OR l.verdict_id IS NOT NULL)
            AND (v.correction IS NOT NULL OR v.id IN (
                SELECT id FROM verdicts WHERE class_name = ? AND at <= ? ORDER BY id DESC LIMIT ?))
        ORDER BY v.id DESC""",
        *history.comparable, class_name, bundle, preset, *history.comparable, class_name, until, MOST_ROWS,
    )  # fmt: skip
    found: list[LinePhoto] = []
    known, bank, open_ones = set[str](), set(history.photos), 0
    for row in rows:
        modes = row["mode"].split()
        foreign = json.loads(row["evidence"]).get("kind") == "photo"
        in_bank = row["photo_sha256"] in bank and not row["again"]
        if in_bank or row["photo_sha256"] in known or foreign or "cut" in modes or row["score"] <= 0:
            continue
        known.add(row["photo_sha256"])
        bad: Label = "known-bad" if row["skipped"] else "bad"
        label: Label | None = "good" if row["correction"] == "ok" else bad if row["correction"] == "ng" else None
        open_ones += label is None
        if label is None and open_ones > MOST_STREAM:
            continue
        settled = not row["again"] and "settle" in modes and row["verdict"] == "good"
        found.append(
            LinePhoto(
                row["uid"], row["at"], row["photo"], row["photo_sha256"], row["aspect"], row["score"], label,
                bool(row["skipped"]), settled, bool(row["kept"]), row["brightness"], row["sharpness"],
            )
        )  # fmt: skip
    return found


def set_skipped(store: VerdictStore, uid: str, skipped: bool) -> None:
    """Remember, or forget, that a photo is no sample of the line, or that a person did not want to say what it shows.

    Raises StoreError.
    """
    chosen = "SELECT id FROM verdicts WHERE uid = ?"
    sql = f"INSERT OR IGNORE INTO skipped {chosen}" if skipped else f"DELETE FROM skipped WHERE verdict_id = ({chosen})"
    store.write(sql, uid).result()


def _connected(bundle_id: str, rows: Sequence[Teaching], class_name: str) -> tuple[str, ...]:
    """Ids that are reached from `bundle_id` over changes that left the class's bank as it was."""
    links = [(row.before_id, row.after_id) for row in rows if not (row.class_name == class_name and row.photos)]
    found, new = [bundle_id], [bundle_id]
    while new:
        here = new.pop()
        for pair in links:
            if here in pair:
                (other,) = set(pair) - {here} or {here}
                if other not in found:
                    found.append(other)
                    new.append(other)
    return tuple(found)
