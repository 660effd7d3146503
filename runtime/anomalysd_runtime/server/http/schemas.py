"""The shapes of HTTP bodies, for validation and the OpenAPI document. The only module with pydantic models."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from anomalysd_runtime.server.verdicts import Correction, Verdict


class Strict(BaseModel):
    """Unknown keys are refused: a typo must not pass as a default."""

    model_config = ConfigDict(extra="forbid")


class ErrorAnswer(BaseModel):
    """Any error."""

    error: str = Field(description="One sentence: what was found, what was expected, what to do.")


class Region(BaseModel):
    """A connected part of the predicted mask, in the photo's pixels."""

    box_px: list[int] = Field(description="x0, y0, x1, y1; the last two lie just outside.", min_length=4, max_length=4)
    area_px: int
    peak: float = Field(description="Highest value of the score map inside.")


def _verdict_fields() -> Any:
    """Every field of a Verdict under its name in JSON; `schema` is a method of pydantic's, hence the other name."""
    hints = get_type_hints(Verdict)
    return {
        "verdict_schema" if entry.name == "schema" else entry.name: (
            hints[entry.name],
            Field(
                None if entry.default is None else ...,
                alias=entry.metadata["json_name"] or entry.name,
                description=entry.metadata["description"],
            ),
        )
        for entry in fields(Verdict)
    }


class LimitsAnswer(BaseModel):
    """Image scores between which the verdict is `uncertain`; equal where nobody is to be asked."""

    good: float = Field(description="Below it a photo is good.")
    anomalous: float = Field(description="At or above it a photo is anomalous.")


class VerdictAnswer(create_model("VerdictFields", **_verdict_fields())):  # type: ignore[misc]
    """One verdict. The names follow anomalib's where it has such a name."""

    regions: list[Region] = Field(description="Connected parts of the predicted mask, the largest first.")
    limits: LimitsAnswer | None = Field(description="Scores between which the verdict is uncertain; null without.")
    repeated: bool = Field(False, description="Verdict of an earlier request with the same key.")
    pictures: dict[str, str] = Field(default_factory=dict, description="The wanted outputs: base64 of PNG files.")
    map_range: list[float] | None = Field(
        None, description="Values of gray 0 and 65535 of the picture 'map'.", min_length=2, max_length=2
    )


class BatchItem(BaseModel):
    """A verdict, or why there is none."""

    photo: str
    verdict: VerdictAnswer | None = None
    error: str | None = None
    status: int = 200


class BatchAnswer(BaseModel):
    """In the order of the photos."""

    results: list[BatchItem]


class ClassAnswer(BaseModel):
    """A class of a bundle."""

    kind: str
    shots: int
    threshold: float | None
    limits: LimitsAnswer | None = None


class BundleAnswer(BaseModel):
    """A bundle that this box knows."""

    name: str
    loaded: bool
    bundle_id: str | None = None
    backend: str | None = None
    mode: str | None = None
    bytes: int | None = None
    photo_ms: float | None = None
    in_use: int = 0
    fell_back: str | None = None
    classes: dict[str, ClassAnswer] = Field(default_factory=dict)


class BundlesAnswer(BaseModel):
    """Every bundle."""

    bundles: list[BundleAnswer]


class HealthAnswer(BaseModel):
    """State of the box."""

    status: Literal["starting", "ok", "degraded", "stopping"]
    reasons: list[str]
    ready: bool
    waiting: int
    running: int
    worker_restarts: int


class VerdictsAnswer(BaseModel):
    """The newest first."""

    verdicts: list[VerdictAnswer]
    recorded: bool = Field(description="Whether they come from the record or only from memory.")


class CorrectionBody(Strict):
    """An operator's correction of a verdict."""

    correction: Correction | None


class TaughtPhoto(BaseModel):
    """A photo that a class was taught with."""

    photo: str
    sha256: str


class FindingAnswer(BaseModel):
    """What is wrong with a photo."""

    photo: str
    kind: str = Field(description="unreadable, duplicate, near-duplicate, blank, dark, blurred or foreign.")
    sentence: str
    left_out: bool = Field(description="Whether the photo was not used.")


class PreviewAnswer(BaseModel):
    """A good photo under the score map that the class's other photos give it."""

    photo: str
    score: float
    png: str = Field(description="Base64 of a PNG file.")


class TaughtAnswer(BaseModel):
    """A class that was taught and is live."""

    bundle: str
    class_name: str = Field(alias="class")
    anew: bool = Field(description="Whether the bundle knew the class before.")
    shots: int
    thresholds: dict[str, float | None] = Field(description="By preset.")
    limits: dict[str, LimitsAnswer | None] = Field(description="By preset.")
    expected: dict[str, dict[str, float] | None] = Field(description="By preset: false_alarms and missed, in [0,1].")
    photos: list[TaughtPhoto]
    findings: list[FindingAnswer]
    preview: list[PreviewAnswer]
    notes: list[str]
    before_id: str
    after_id: str
    seconds: float


class VersionAnswer(BaseModel):
    """A bundle as it is, or as it was."""

    bundle_id: str
    created: str = Field(description="UTC, ISO 8601.")
    change: str = Field(description="What it did to the one before; empty for an export.")
    signed: bool
    current: bool


class TeachingAnswer(BaseModel):
    """Who changed a bundle."""

    at: float = Field(description="UTC, seconds since 1970.")
    who: str
    action: Literal["teach", "accept", "restore"]
    class_name: str | None
    photos: list[str] = Field(description="sha256 of every photo that was used.")
    before_id: str
    after_id: str
    details: dict[str, Any] = Field(description="Of an acceptance: thresholds, rates and answers.")


class VersionsAnswer(BaseModel):
    """The newest first."""

    versions: list[VersionAnswer]
    teachings: list[TeachingAnswer] = Field(description="From the record; empty without one.")


class RestoreBody(Strict):
    """Which version to go back to."""

    bundle_id: str = Field(description="Its id, or the first digits of it.", min_length=1, max_length=64)


class EstimateAnswer(BaseModel):
    """A share in [0,1] and the interval that holds it with a probability of 90 %."""

    mean: float
    low: float
    high: float


class ThresholdsAnswer(BaseModel):
    """Thresholds of a class, and what to expect of them."""

    threshold: float | None
    limits: LimitsAnswer | None
    expected: dict[str, EstimateAnswer] | None = Field(description="false_alarms, missed and balanced (mean of both).")


class LinePhotoAnswer(BaseModel):
    """A photo of the line's stream."""

    uid: str
    photo: str
    aspect: float = Field(description="Width / height; heat and overlay are square.")
    score: float
    verdict: str = Field(description="By the thresholds in use.")
    answer: Literal["good", "bad"] | None
    pictures: dict[str, str] = Field(description="Where photo, heat (a layer) and overlay are to be had.")


class AskedPhoto(LinePhotoAnswer):
    """One whose label is worth asking for."""

    probability: float = Field(description="That it is defective.")
    why: str


class ChangedPhoto(LinePhotoAnswer):
    """One whose verdict would be another."""

    now: str | None
    proposed: str | None


class CommissioningAnswer(BaseModel):
    """What the line's stream and people's answers say of a class."""

    bundle: str
    class_name: str = Field(alias="class")
    bundle_id: str
    state: Literal["learning", "proposed", "trusted"]
    reason: str = Field(description="What is proposed, or why nothing is.")
    seen: int = Field(description="Photos of the stream.")
    answers: dict[str, int] = Field(description="good, bad, skipped.")
    share: EstimateAnswer | None = Field(description="Of defective photos in the stream.")
    now: ThresholdsAnswer
    proposed: ThresholdsAnswer | None
    width: float | None = Field(description="Of the interval of the balanced error, as proposed.")
    wanted_width: float = Field(description="At which the class is trusted.")
    bank_stays: str | None = Field(description="Why photos that are called good do not join the bank; null: they do.")
    drift: list[str] = Field(description="What changed since commissioning, in words.")
    ask: list[AskedPhoto] = Field(description="The most informative first.")
    changes: list[ChangedPhoto]


class AnswerBody(Strict):
    """What a person says of a photo."""

    uid: str = Field(min_length=1, max_length=64)
    answer: Literal["good", "bad", "skip"] | None


class AcceptBody(Strict):
    """Which bundle the proposal was made for."""

    bundle_id: str = Field(min_length=1, max_length=64)


class AcceptedAnswer(BaseModel):
    """A proposal that is live."""

    class_name: str = Field(alias="class")
    trusted: bool
    reason: str
    thresholds: dict[str, float | None] = Field(description="before, after.")
    joined: int = Field(description="Photos that the bank was made of; 0 where it stayed as it was.")
    before_id: str
    after_id: str
    seconds: float
