"""The shapes of HTTP bodies of teaching, versions and commissioning."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from anomalysd_runtime.server.http.schemas import LimitsAnswer, Strict


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
    """Of a class."""

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
    answer: str | None = Field(description="good, bad or known-bad.")
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
    answers: dict[str, int] = Field(description="good, bad, known-bad, skipped.")
    share: EstimateAnswer | None = Field(description="Of defective photos in the stream.")
    now: ThresholdsAnswer
    proposed: ThresholdsAnswer | None
    width: float | None = Field(description="Of the interval of the balanced error, as proposed.")
    wanted_width: float = Field(description="At which the class is trusted.")
    bank_stays: str | None = Field(description="Why photos that are called good do not join the bank; null: they do.")
    joining: int = Field(description="Photos that were called good and join the bank when this is accepted.")
    drift: list[str] = Field(description="What changed since commissioning, in words.")
    ask: list[AskedPhoto] = Field(description="The most informative first.")
    changes: list[ChangedPhoto]


class AnswerBody(Strict):
    """What a person says of a photo."""

    uid: str = Field(min_length=1, max_length=64)
    answer: Literal["good", "bad", "known-bad", "skip"] | None


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
