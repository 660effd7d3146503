"""What the engine tells of itself, for health and metrics."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class EngineState:
    """What health and metrics read; every field is replaced whole, so reading needs no lock."""

    running: int = 0
    """Photos with a worker now."""
    restarts: int = 0
    """Worker processes that had to be started again."""
    groups: int = 0
    """Groups judged."""
    grouped: int = 0
    """Photos judged in them."""
    photo_ms: dict[str, float] = field(default_factory=dict)
    """By bundle key: running mean of a photo's share of its group."""
    fastest_ms: dict[str, float] = field(default_factory=dict)
    """By bundle key: about the least that a photo took; what a deadline is refused by on an idle box."""
    lost: str | None = None
    """Why there is no worker just now; None while there is one."""
    changed: dict[str, str] = field(default_factory=dict)
    """Bundle keys whose answers came from another backend than the one that was opened, and which."""
    unopened: dict[str, str] = field(default_factory=dict)
    """Bundle keys that a restarted worker could not open again, and why."""
