"""What the line said of a class, put into its bundle: new thresholds and, where the photos are there, a new bank.

Photos that a person called good join the class's own (calibration keeps the bank within its budget, by k-centre) and
are judged by a bank without them; the others of the stream are judged anew, since another bank gives other scores.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from anomalysd_edge.bundle.detector_factory import class_models, class_record, preset_settings
from anomalysd_edge.bundle.reader import NEGATIVE_PROMPT, Bundle
from anomalysd_edge.bundle.teaching import NEGATIVES, calibrated_class, write_class
from anomalysd_edge.bundle.versions import bundle_id
from anomalysd_edge.calibration.calibrate import from_both_sides, left_out_numbers
from anomalysd_edge.calibration.commissioning import (
    LEAST_STREAM,
    Commissioned,
    CommissioningSettings,
    belief_of,
    commission,
    evidence_of_shots,
    repaint_of,
)
from anomalysd_edge.calibration.photo_checks import GoodPhoto
from anomalysd_edge.calibration.score_posterior import LineScores
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.calibration.threshold_model import ThresholdPrior, shipped_prior
from anomalysd_edge.core.files import sha256_bytes
from anomalysd_edge.core.types import Progress
from anomalysd_edge.errors import SDEdgeError, SettingsError
from anomalysd_edge.method.class_model import Calibration, ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.vision.images import decode_rgb

_LABELS = (None, "good", "bad", "known-bad")
"""Of StreamPhoto, in the order of LineScores."""


class NothingProposed(SDEdgeError):
    """The line's photos make no proposal; the sentence says why."""


@dataclass(frozen=True)
class StreamPhoto:
    """A photo of the stream that is judged again under a new bank."""

    key: str
    """The caller's name for it."""
    data: bytes
    """An image file."""
    label: Literal["good", "bad", "known-bad"] | None
    """What a person said of it, a known bad one being from elsewhere; good ones join the bank."""


@dataclass(frozen=True, kw_only=True)
class LineLesson:
    """What the line says of a class."""

    name: str
    """The class, as the bundle spells it."""
    preset: str
    """Whose thresholds are meant."""
    scores: LineScores
    """Of the stream, under the bundle as it is."""
    repaint: float | None = None
    """commissioning.repaint_of the class before it was first commissioned; what the bundle says if None."""
    own: Sequence[bytes] = ()
    """Image files of the photos that the class's bank is made of; () leaves the bank as it is."""
    stream: Sequence[StreamPhoto] = ()
    """Beside `own`: the photos of the stream, those that join the bank among them."""
    settings: CommissioningSettings = field(default_factory=CommissioningSettings)
    """When it is trusted."""
    key: Path | None = None
    """Private key that signs the new bundle."""


@dataclass(frozen=True)
class AcceptedClass:
    """What became of it."""

    name: str
    """The class."""
    before: Calibration
    """Under the lesson's preset."""
    after: Calibration
    """The same, now."""
    found: Commissioned
    """What is believed now, of the scores under the new bank."""
    photos: tuple[str, ...]
    """sha256 of the photos that the new bank was made of; empty where it was left as it was."""
    scores: dict[str, float]
    """Image scores of the stream's photos under the new bank, by StreamPhoto.key."""
    repaint: float
    """As in LineLesson, for the next time."""
    before_id: str
    """Id of the bundle before."""
    after_id: str
    """Id of the new one."""
    seconds: float
    """From the photos to the new bundle in its place."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "class": self.name,
            "trusted": self.found.trusted,
            "reason": self.found.reason,
            "thresholds": {"before": self.before.threshold, "after": self.after.threshold},
            "joined": len(self.photos),
            "before_id": self.before_id,
            "after_id": self.after_id,
            "seconds": round(self.seconds, 1),
        }


def prior_of(features_kind: str | None) -> ThresholdPrior | None:
    """The threshold prior of a bundle's features; None for a bundle without."""
    return None if features_kind is None else shipped_prior(features_kind)


def what_line_says(
    calibration: Calibration,
    prior: ThresholdPrior | None,
    repaint: float | None,
    seen: LineScores,
    settings: CommissioningSettings,
    questions: int = 0,
) -> tuple[Commissioned, Calibration | None]:
    """What is believed of a class, and the calibration that follows; None where nothing is proposed.

    Raises SettingsError for a class without a score model, and for fewer photos than commission() takes.
    """
    belief = None if prior is None else belief_of(calibration, prior, repaint)
    if belief is None or calibration.score_model is None:
        raise SettingsError(
            "its threshold rests on good photos alone (no synthetic anomaly shows on them, or the bundle has no "
            "features), and the line's photos cannot move it"
        )
    costs = calibration.costs or settings.costs
    found = commission(
        belief, seen, replace(settings, costs=costs), calibration.score_model.cap, questions, calibration.threshold
    )
    if found.model is None:
        return found, None
    return found, from_both_sides(calibration, found.model, CalibrationSettings(costs=costs))


def accept(bundle: Bundle, networks: Networks, lesson: LineLesson, progress: Progress | None = None) -> AcceptedClass:
    """Fit and write the bundle. Hold versions.changing from reading `bundle` on.

    Raises NothingProposed, SettingsError, ImageError, BundleError; the bundle is then what it was.
    """
    began, before_id = time.monotonic(), bundle_id(bundle.path)
    features = bundle.manifest.features
    prior, record = prior_of(None if features is None else features.kind), bundle.manifest.classes[lesson.name]
    model = class_models(bundle, lesson.preset)[lesson.name]
    before, seen, repaint, photos = model.calibration, lesson.scores, lesson.repaint, list[GoodPhoto]()
    models, again = {lesson.preset: model}, dict[str, float]()
    if lesson.own:
        joining = [photo for photo in lesson.stream if photo.label == "good"]
        photos = [_good(data) for data in (*lesson.own, *(photo.data for photo in joining))]
        spec, prompts = bundle.specs()[lesson.name], bundle.prompts(lesson.name)
        costs = CalibrationSettings(negatives=NEGATIVES, costs=before.costs or lesson.settings.costs)
        models, _ = calibrated_class(bundle, networks, spec, prompts, photos, costs, progress)
        model = models[lesson.preset]
        again = _judged(bundle, networks, lesson, model)
        repaint = None if prior is None else repaint_of(model.calibration, prior)
        if model.calibration.evidence is not None and repaint is not None:
            numbers = left_out_numbers([photo.pixels for photo in photos])
            evidence, joined = evidence_of_shots(model.calibration.evidence, numbers, len(lesson.own))
            model = model.calibrated(evidence=evidence)
            again |= {joining[n - len(lesson.own)].key: score * math.exp(repaint) for n, score in joined.items()}
        labels = {photo.key: photo.label for photo in lesson.stream}
        seen = LineScores(
            *(tuple(score for key, score in again.items() if labels[key] == said) for said in _LABELS),
        )
        record = replace(class_record(spec, len(photos), models), prompts=record.prompts)
    found, after = what_line_says(model.calibration, prior, repaint, seen, lesson.settings)
    if after is None:
        raise NothingProposed(found.reason)
    assert prior is not None
    repaint = repaint_of(model.calibration, prior) if repaint is None else repaint
    assert repaint is not None
    record = replace(record, calibration={**record.calibration, lesson.preset: after})
    said = f"{len(lesson.scores.good)} good and {len(lesson.scores.defective)} defective by answer"
    count = len(lesson.scores.unlabelled) + len(lesson.scores.good) + len(lesson.scores.defective)
    change = f"class {lesson.name!r} accepted on {count} photos of the line, {said}"
    write_class(bundle, lesson.name, record, model, change, bundle.path, lesson.key)
    return AcceptedClass(
        name=lesson.name,
        before=before,
        after=after,
        found=found,
        photos=tuple(photo.sha256 for photo in photos),
        scores=again,
        repaint=repaint,
        before_id=before_id,
        after_id=bundle_id(bundle.path),
        seconds=time.monotonic() - began,
    )


def _good(data: bytes) -> GoodPhoto:
    digest = sha256_bytes(data)
    return GoodPhoto(digest[:8], digest, decode_rgb(data))


def _judged(bundle: Bundle, networks: Networks, lesson: LineLesson, model: ClassModel) -> dict[str, float]:
    """Image scores of the stream's photos that show the class."""
    settings, negative = preset_settings(bundle, lesson.preset), bundle.constants[NEGATIVE_PROMPT]
    detector = Detector(networks, bundle.schedule(), {lesson.name: model}, settings, negative)
    found = {}
    for photo in (photo for photo in lesson.stream if photo.label != "good"):
        (answer,) = detector.inspect([decode_rgb(photo.data)], lesson.name)
        if answer.evidence.kind != "photo":
            found[photo.key] = answer.pred_score
    of_line = [photo.key for photo in lesson.stream if photo.key in found and photo.label != "known-bad"]
    if len(of_line) < LEAST_STREAM:
        raise NothingProposed(
            f"{len(of_line)} photos of the stream show the class beside those that join its bank, and {LEAST_STREAM} "
            "are needed: let more parts go by"
        )
    return found
