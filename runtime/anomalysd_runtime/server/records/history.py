"""Queries of the record: verdicts, re-inspection of a stored photo, a threshold from operators' corrections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.versions import bundle_id, version_folder
from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_edge.vision.images import decode_rgb
from anomalysd_runtime.server.records.verdict_store import VerdictStore
from anomalysd_runtime.server.verdicts import Verdict

LEAST = 10
"""Corrected verdicts below which no threshold is proposed."""


@dataclass(frozen=True)
class VerdictFilter:
    """Which verdicts to select."""

    class_name: str | None = None
    """Of this class."""
    verdict: str | None = None
    """good, anomalous, uncertain or unknown."""
    corrected: bool = False
    """Only those that an operator corrected."""
    since: str | None = None
    """ISO 8601, UTC where no zone is given."""
    until: str | None = None
    """The same."""
    limit: int = -1
    """At most so many, the newest first; -1 = all."""


def find_verdicts(store: VerdictStore, wanted: VerdictFilter) -> list[Verdict]:
    """The verdicts, the newest first. Raises SettingsError for a time that is none."""
    where, values = ["1"], []
    for column, value in (("class_name", wanted.class_name), ("verdict", wanted.verdict)):
        if value is not None:
            where.append(f"{column} = ?")
            values.append(value)
    if wanted.corrected:
        where.append("correction IS NOT NULL")
    for sign, text in ((">=", wanted.since), ("<", wanted.until)):
        if text is not None:
            where.append(f"at {sign} ?")
            values.append(_seconds(text))  # type: ignore[arg-type]
    return store.select(" AND ".join(where), tuple(values), wanted.limit)


def export_lines(store: VerdictStore, wanted: VerdictFilter) -> Iterator[dict[str, Any]]:
    """Plain values, one verdict each, for JSON lines."""
    for verdict in find_verdicts(store, wanted):
        yield verdict.to_json()


@dataclass(frozen=True)
class Reinspection:
    """A stored photo, inspected again."""

    uid: str
    recorded: float
    """pred_score in the record."""
    found: float
    """pred_score now."""
    same: bool
    """Whether they are the same to the last bit."""


def reinspect(
    store: VerdictStore, uid: str, bundle: Path, backend: str = "cpu", threads: int | None = None
) -> Reinspection:
    """Judge a stored photo with the bundle that judged it: `bundle`, or the version of it that gave the verdict.

    Raises InputError where photo or bundle are not those.
    """
    from anomalysd_runtime.loading import open_detector

    verdict = store.by_uid(uid)
    if verdict is None:
        raise InputError(f"the record has no verdict {uid}; list them with 'sd-edge history list'")
    photo = store.stored_photo(uid)
    if photo is None:
        raise InputError(f"the photo of {uid} was not kept; serve with --keep photo to be able to inspect it again")
    if "cut" in verdict.mode.split():
        raise InputError(f"{uid} was cut at its deadline, by the time of that day: nothing can judge it again alike")
    gave = version_folder(bundle, verdict.bundle_id)
    if gave is None:
        raise InputError(
            f"{bundle} has the id {bundle_id(bundle)} and no version {verdict.bundle_id}, which gave the verdict: name "
            "that bundle"
        )
    with open_detector(gave, verdict.preset, backend, threads) as detector:
        # A photo whose verdict was settled early has the score that it had then.
        full = "settle" not in verdict.mode.split()
        (answer,) = detector.inspect([decode_rgb(photo)], verdict.class_name, full=full)
    return Reinspection(uid, verdict.pred_score, answer.pred_score, answer.pred_score == verdict.pred_score)


@dataclass(frozen=True)
class ThresholdProposal:
    """A threshold for one class, by what operators said of its verdicts."""

    class_name: str
    bundle_id: str
    preset: str
    current: float | None
    """The bundle's threshold."""
    proposed: float
    """A score at or above it is NG."""
    ok: int
    """Photos that count as OK."""
    ng: int
    """Photos that count as NG."""
    missed: tuple[int, int]
    """NG photos below the threshold: now, and with the proposal."""
    false_alarms: tuple[int, int]
    """OK photos at or above it: now, and with the proposal."""


def threshold_from_corrections(
    scores: Sequence[float], ng: Sequence[bool], missed_cost: float = 1.0, current: float | None = None
) -> float:
    """The threshold with the least cost: false alarms + missed_cost * missed defects, counted on (n,) judged scores.

    It lies in the middle between two neighbouring scores. Among equally good ones the widest gap wins, and `current`
    stays where it is as good as any. Raises InputError where one of the two kinds is missing.
    """
    if len(scores) != len(ng):
        raise InputError(f"{len(scores)} scores came with {len(ng)} judgements; expected one each")
    if all(ng) or not any(ng):
        kind = "NG" if not any(ng) else "OK"
        raise InputError(f"no photo was judged {kind}; a threshold needs photos of both kinds")
    ordered = sorted(set(scores))
    span = ordered[-1] - ordered[0] or max(abs(ordered[0]), 1.0)
    edges = [ordered[0] - 0.05 * span, *ordered, ordered[-1] + 0.05 * span]

    def cost(limit: float) -> float:
        missed = sum(bad and score < limit for score, bad in zip(scores, ng, strict=True))
        alarms = sum(not bad and score >= limit for score, bad in zip(scores, ng, strict=True))
        return alarms + missed_cost * missed

    median_distances = [((low + high) / 2, high - low) for low, high in pairwise(edges)]
    best = min(median_distances, key=lambda middle: (cost(middle[0]), -middle[1]))
    if current is not None and cost(current) <= cost(best[0]):
        return current
    return best[0]


def propose(
    store: VerdictStore,
    class_name: str,
    missed_cost: float = 1.0,
    rest_is_right: bool = False,
    bundle_id: str | None = None,
) -> ThresholdProposal:
    """A threshold from the corrections of a class, for the bundle and preset that judged it last, or for a bundle.

    Scores of different bundles are not comparable, so older bundles' verdicts stay out. With `rest_is_right` a verdict
    that nobody corrected counts as right: operators often correct only what is wrong. Nothing is changed.
    """
    if not missed_cost > 0:
        raise SettingsError(f"the cost of a missed defect is {missed_cost}; expected more than 0")
    found = [v for v in find_verdicts(store, VerdictFilter(class_name=class_name)) if bundle_id in (None, v.bundle_id)]
    if not found:
        by = "" if bundle_id is None else f" by the bundle {bundle_id}"
        raise InputError(f"the record has no verdict of the class {class_name!r}{by}")
    bundle_id, preset = found[0].bundle_id, found[0].preset
    judged: list[tuple[float, bool]] = []
    for verdict in found:
        if (verdict.bundle_id, verdict.preset) != (bundle_id, preset):
            continue
        if verdict.correction is not None:
            judged.append((verdict.pred_score, verdict.correction == "ng"))
        elif rest_is_right and verdict.pred_label is not None:
            judged.append((verdict.pred_score, verdict.pred_label == 1))
    if len(judged) < LEAST:
        raise InputError(
            f"{len(judged)} verdicts of {class_name!r} by the present bundle were judged by operators; "
            f"at least {LEAST} are needed: judge more on the page, or let the rest count as right"
        )
    scores, ng = [score for score, _ in judged], [bad for _, bad in judged]
    current = found[0].threshold
    proposed = threshold_from_corrections(scores, ng, missed_cost, current)

    def missed(limit: float | None) -> int:
        return sum(bad and (limit is None or score < limit) for score, bad in judged)

    def alarms(limit: float | None) -> int:
        return sum(not bad and limit is not None and score >= limit for score, bad in judged)

    return ThresholdProposal(
        class_name=class_name,
        bundle_id=bundle_id,
        preset=preset,
        current=current,
        proposed=proposed,
        ok=ng.count(False),
        ng=ng.count(True),
        missed=(missed(current), missed(proposed)),
        false_alarms=(alarms(current), alarms(proposed)),
    )


def _seconds(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise SettingsError(f"{text!r} is no time; write for instance 2026-01-31 or 2026-01-31T12:00:00") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
