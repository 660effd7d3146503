"""What a calibration found for each class, and what good photos that were no shots scored under it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anomalysd_edge.calibration.commissioning import Commissioned
from anomalysd_edge.calibration.settings_search import Trial
from anomalysd_edge.core.files import json_ready
from anomalysd_edge.method.class_model import Calibration


@dataclass(frozen=True)
class LineFinding:
    """What the unlabelled photos of the line said of one class."""

    commissioned: Commissioned
    """Thresholds, expected rates and questions."""
    photos: tuple[str, ...]
    """Paths of the unlabelled photos, in the order of Question.number."""
    foreign: tuple[str, ...] = ()
    """Paths of those that do not show the class; they were set aside."""

    def questions(self) -> list[tuple[str, str]]:
        """What to ask next: the path of a photo, and in a sentence why."""
        return [(self.photos[one.number], one.why()) for one in self.commissioned.questions]


@dataclass(frozen=True)
class Calibrated:
    """What was found."""

    bundle: Path
    """Where the new bundle lies."""
    trials: dict[str, list[Trial]]
    """By class, in the order of trying; empty where settings were not to be chosen."""
    before: dict[str, float | None]
    """Thresholds by class."""
    after: dict[str, float | None]
    """The new ones."""
    choices: dict[str, dict[str, Any]]
    """Settings of each class that differ from the preset's."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each class took."""
    preset: str = "edge"
    """What was calibrated."""
    false_alarm_rate: float = 0.0
    """The wanted one."""
    shots: dict[str, list[str]] = field(default_factory=dict)
    """SHA-256 of each class's good photos that were used."""
    calibrations: dict[str, Calibration] = field(default_factory=dict)
    """By class: threshold, limits, score model, and what they rest on."""
    line: dict[str, LineFinding] = field(default_factory=dict)
    """By class; empty where no unlabelled photos were given."""
    features: str = ""
    """Kind of the bundle's feature network, which names the threshold prior."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found: dict[str, Any] = json_ready(asdict(self))
        return {**found, "bundle": self.bundle.name}


def words(changes: Any) -> str:
    """Settings as a person reads them: 'scales 2/4/8, draws 3'."""
    return ", ".join(
        f"{name} {'/'.join(map(str, value)) if isinstance(value, tuple | list) else value}"
        for name, value in changes.items()
    )


@dataclass(frozen=True)
class Seen:
    """What good photos that were no shots gave."""

    scores: tuple[float, ...]
    """Image score of each."""
    threshold: float | None
    """What they are held against."""

    @property
    def alarms(self) -> int | None:
        """How many reach the threshold; None where there is none."""
        return None if self.threshold is None else sum(score >= self.threshold for score in self.scores)

    @property
    def rate(self) -> float:
        """Their share; NaN without a threshold or a photo."""
        return math.nan if self.alarms is None or not self.scores else self.alarms / len(self.scores)
