"""The shapes of HTTP bodies, for validation and the OpenAPI document. Those of teaching are in teaching_schemas.py."""

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
