"""How far the stated probabilities of a defect held for classes that the threshold prior had not seen."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anomalysd_edge.calibration.threshold_model import ANY_FEATURES, SHIPPED
from anomalysd_edge.errors import InputError
from anomalysd_edge.reports.svg import reliability_diagram


@dataclass(frozen=True)
class ReliabilityBin:
    """Photos of left-out classes whose stated probability of a defect was about the same."""

    stated: float
    """Mean of the stated probabilities, in [0,1]."""
    observed: float
    """Share of the photos that were defective, in [0,1]."""
    count: int
    """How many photos; at least 1."""

    def __post_init__(self) -> None:
        shares = all(math.isfinite(share) and 0 <= share <= 1 for share in (self.stated, self.observed))
        if not shares or self.count < 1:
            raise InputError(f"{self} is no bin of a reliability diagram: shares lie in [0,1], counts are at least 1")


def read_reliability(file: Path) -> tuple[ReliabilityBin, ...]:
    """The bins under `reliability` in a threshold prior's JSON; empty without that key. Raises InputError."""
    try:
        bins = json.loads(file.read_text(encoding="utf-8")).get("reliability", ())
        return tuple(ReliabilityBin(float(b["stated"]), float(b["observed"]), int(b["count"])) for b in bins)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the reliability in {file} cannot be read ({error!r})") from error


def shipped_reliability(features_kind: str) -> tuple[ReliabilityBin, ...]:
    """That of the prior for a kind of feature network (threshold_model.shipped_prior); empty where not measured."""
    return read_reliability(SHIPPED.get(features_kind, ANY_FEATURES))


def calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    """Expected calibration error (Naeini et al. 2015): mean distance of stated and observed over the photos."""
    return sum(b.count * abs(b.stated - b.observed) for b in bins) / sum(b.count for b in bins)


def reliability_section(bins: Sequence[ReliabilityBin]) -> str:
    """A section of a report: one sentence and the diagram."""
    photos = sum(b.count for b in bins)
    sentence = (
        f"On {photos} photos of classes that were left out when the thresholds' prior was fitted, the stated "
        "probability of a defect and the share of defective photos lay "
        f"{100 * calibration_error(bins):.1f} points apart on average."
    )
    drawn = reliability_diagram("Probability of a defect", [(b.stated, b.observed, b.count) for b in bins])
    return f"<section><h2>Reliability</h2><p>{sentence}</p><div class=wide>{drawn}</div></section>"
