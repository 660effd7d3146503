"""The shapes of the HTTP edge, for validation and the OpenAPI document. The only module with pydantic models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Unknown keys are refused: a typo must not pass as a default."""

    model_config = ConfigDict(extra="forbid")


class ErrorAnswer(BaseModel):
    """Every refusal."""

    error: str = Field(description="One sentence: what was found, what was expected, what to do.")


class Region(BaseModel):
    """A connected part of the predicted mask, in the photo's pixels."""

    box_px: list[int] = Field(description="x0, y0, x1, y1; the last two lie just outside.", min_length=4, max_length=4)
    area_px: int
    peak: float = Field(description="Highest value of the score map inside.")


class VerdictAnswer(BaseModel):
    """One verdict. The names follow anomalib's where it has such a name."""

    model_config = ConfigDict(populate_by_name=True)

    uid: str
    at: float = Field(description="UTC, seconds since 1970.")
    source: str
    client: str
    photo: str
    photo_sha256: str
    width_px: int
    height_px: int
    bundle: str
    bundle_id: str
    preset: str
    settings: dict[str, Any]
    class_name: str = Field(alias="class")
    pred_score: float
    threshold: float | None
    pred_label: int | None = Field(description="1 anomalous, 0 good, null where the class has no threshold.")
    verdict: Literal["good", "anomalous", "unknown"]
    scores: dict[str, float]
    regions: list[Region]
    evidence: dict[str, Any]
    mode: str
    backend: str
    timings_ms: dict[str, float]
    group: int = Field(description="Photos that were judged together.")
    request_key: str | None = None
    correction: Literal["ok", "ng"] | None = None
    verdict_schema: str = Field(alias="schema")
    repeated: bool = Field(False, description="Judged before, under the same request key.")
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
    """How the box is."""

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


class Correction(Strict):
    """What an operator says of a verdict."""

    correction: Literal["ok", "ng"] | None


PHOTO_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "photo": {"type": "string", "format": "binary"},
                        "class": {"type": "string"},
                        "bundle": {"type": "string"},
                        "outputs": {"type": "string"},
                        "deadline_ms": {"type": "string"},
                        "request_key": {"type": "string"},
                    },
                    "required": ["photo"],
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
BATCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "photo": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1},
                        "class": {"type": "array", "items": {"type": "string"}},
                        "bundle": {"type": "string"},
                        "outputs": {"type": "string"},
                        "deadline_ms": {"type": "string"},
                    },
                    "required": ["photo"],
                }
            }
        },
    }
}
