"""How a class is calibrated."""

from __future__ import annotations

from dataclasses import dataclass, field

from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.score_model import Costs


@dataclass(frozen=True)
class CalibrationSettings:
    """How the constants of a class are fitted to its shots."""

    bank_size: int = 2048
    """Prototypes kept a class."""
    negatives: int = 8
    """Held-out normals a class: shots judged without themselves, and disturbed copies of them."""
    false_alarm_rate: float = 0.02
    """Where nothing is known of defects (`paper`'s fusion, 'scaled'): share of good photos that may be called
    anomalous; the threshold is the upper prediction bound at this rate."""
    costs: Costs = field(default_factory=Costs)
    """What wrong answers cost, for thresholds from both sides."""
    guided_quantile: float = 0.995
    """Quantile of the negatives' prototype distances above which a patch goes into the guided mask."""
    spread_quantile: float = 0.995
    """Quantile of a normal map's pixels that is brought to 1 before fusion."""
    synthetic: int = 0
    """Synthetic anomalies a class, on which settings are chosen; 0 = the preset's settings hold for every class."""
    seed: int = 0
    """Of the disturbances and the anomalies."""

    def __post_init__(self) -> None:
        if not 0 < self.false_alarm_rate < 0.5:
            raise SettingsError(f"false_alarm_rate is {self.false_alarm_rate}; it must lie between 0 and 0.5")
        if min(self.bank_size, self.negatives) < 1 or self.synthetic < 0:
            raise SettingsError("bank_size and negatives must be at least 1, synthetic at least 0")
