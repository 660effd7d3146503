"""The HTTP routes of commissioning: what is known of a class, an answer, and acceptance."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from anomalysd_edge.method.class_model import Calibration
from anomalysd_edge.reports.inspection import limits_json
from anomalysd_runtime.server.http import teaching_schemas
from anomalysd_runtime.server.http.error_handlers import ERROR_RESPONSES
from anomalysd_runtime.server.inference.commissioning import CHANGES, QUESTIONS, ClassCommissioning, rates_json
from anomalysd_runtime.server.inference.service import Service
from anomalysd_runtime.server.records.line import LinePhoto

BundleName = Annotated[str | None, Query(max_length=200)]


def routes(service: Service) -> APIRouter:
    """GET /classes/NAME/commissioning; POST /classes/NAME/answers and /accept."""
    router = APIRouter(tags=["commissioning"], responses=ERROR_RESPONSES)
    commissioner = service.commissioner

    @router.get("/classes/{name}/commissioning", response_model=teaching_schemas.CommissioningAnswer)
    async def state(name: str, bundle: BundleName = None) -> Any:
        """What the line's stream and the answers say of a class, and which photos to ask about next."""
        return await asyncio.to_thread(lambda: _json(service, commissioner.look(bundle, name)))

    @router.post("/classes/{name}/answers", response_model=teaching_schemas.CommissioningAnswer)
    async def answer(name: str, said: teaching_schemas.AnswerBody, bundle: BundleName = None) -> Any:
        """Say of a photo that it is good, bad, or that you skip it; null takes it back. The new state."""
        return await asyncio.to_thread(
            lambda: _json(service, commissioner.answer(bundle, name, said.uid, said.answer, time.time()))
        )

    @router.post("/classes/{name}/accept", response_model=teaching_schemas.AcceptedAnswer)
    async def accept(request: Request, name: str, seen: teaching_schemas.AcceptBody, bundle: BundleName = None) -> Any:
        """Make what is proposed a new version of the bundle. The answer comes when it is live."""
        client = request.state.client
        return (await asyncio.to_thread(commissioner.accept, bundle, name, seen.bundle_id, client)).to_json()

    return router


def _json(service: Service, now: ClassCommissioning) -> dict[str, Any]:
    found, asked = now.found, [] if now.found is None else list(now.found.questions)
    ask = [
        {**_photo(now.open[one.number], now), "probability": one.probability, "why": one.why()}
        for one in asked
        if not now.open[one.number].skipped and _is_shown(service, now.open[one.number])
    ]
    labels = {label: len(now.labelled(label)) for label in ("good", "bad", "known-bad")}
    share = None if found is None else {"mean": found.share.mean, "low": found.share.low, "high": found.share.high}
    return {
        "bundle": now.loaded.name,
        "class": now.name,
        "bundle_id": now.loaded.bundle_id,
        "state": now.state,
        "reason": now.reason,
        "seen": len(now.photos),
        "answers": {**labels, "skipped": sum(photo.skipped for photo in now.open)},
        "share": share,
        "now": {**_thresholds(now.calibration), "expected": rates_json(found, "now")},
        "proposed": None if now.proposed is None else {**_thresholds(now.proposed), "expected": rates_json(found)},
        "width": None if found is None else found.after.balanced.width,
        "wanted_width": service.settings.trusted_width,
        "bank_stays": service.commissioner.joins(now),
        "joining": len(service.commissioner.joining(now)),
        "drift": service.drift.sentences(now.loaded.name, now.name),
        "ask": ask[:QUESTIONS],
        "changes": [] if now.proposed is None else _changes(now, now.proposed),
    }


def _thresholds(calibration: Calibration) -> dict[str, Any]:
    return {"threshold": calibration.threshold, "limits": limits_json(calibration.decision)}


def _changes(now: ClassCommissioning, proposed: Calibration) -> list[dict[str, Any]]:
    """Photos of the stream whose verdict would be another one, the newest first."""
    found = []
    for photo in now.photos:
        before, after = now.calibration.verdict(photo.score), proposed.verdict(photo.score)
        if before != after:
            found.append({**_photo(photo, now), "now": before, "proposed": after})
    return found[:CHANGES]


def _photo(photo: LinePhoto, now: ClassCommissioning) -> dict[str, Any]:
    kinds = {"photo": "large" if photo.stored else "photo", "heat": "heat", "overlay": "overlay"}
    pictures = {name: f"/verdicts/{photo.uid}/pictures/{kind}" for name, kind in kinds.items()}
    said = {"uid": photo.uid, "photo": photo.name, "aspect": photo.aspect, "score": photo.score}
    said |= {"answer": photo.label, "pictures": pictures}
    return {**said, "verdict": now.calibration.verdict(photo.score) or "unknown"}


def _is_shown(service: Service, photo: LinePhoto) -> bool:
    """Whether a person can be shown it."""
    return photo.stored or service.cache.get(photo.uid) is not None
