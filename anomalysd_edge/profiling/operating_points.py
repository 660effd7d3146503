"""Modes of inspection and what they cost on this box: the table that a deadline picks from.

`sd-edge bench BUNDLE --pareto` measures it and puts it beside the bundle, as BUNDLE.pareto.json: it speaks of one
machine, so it is no part of what the bundle's manifest vouches for. Every mode has thresholds of its own, from the same
good photos: other settings give other scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.bundle.manifest import calibration_from_json
from anomalysd_edge.bundle.reader import MANIFEST
from anomalysd_edge.core.files import read_json, sha256_file, write_json
from anomalysd_edge.errors import BundleError, InputError, SettingsError
from anomalysd_edge.method.class_model import Calibration
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.settings import InspectSettings


@dataclass(frozen=True)
class OperatingPoint:
    """One way to inspect, measured."""

    name: str
    changes: Mapping[str, Any]
    """Inspection settings over the preset's."""
    p50_ms: float
    """From file to verdict, one photo at a time."""
    p95_ms: float
    image_auroc: float
    """Mean over the classes, in [0,1]."""
    pixel_auroc: float
    """The same of pixels; 0 where no photo has a mask."""
    missed: int
    """Defective photos that it called good, of `bad`."""
    bad: int
    false_alarms: int
    """Good photos that it called anomalous, of `good`."""
    good: int
    unet_samples: float
    """A photo, on the mean."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """How the inspections ended: whole, clear, settled."""
    calibration: Mapping[str, Calibration] = field(default_factory=dict)
    """By class."""
    front: bool = False
    """Whether no other mode is both faster and better."""


@dataclass(frozen=True)
class OperatingPointTable:
    """The modes of one bundle, preset and backend on one machine."""

    bundle_sha256: str
    """Of the manifest."""
    preset: str
    backend: str
    machine: str
    """Processor and cores."""
    threads: int | None
    judged_on: str
    """'labelled photos' or 'synthetic anomalies'."""
    modes: tuple[OperatingPoint, ...]
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    """Peak memory of an inspecting process by its largest UNet batch, a group of photos in flight."""


def table_file(bundle: Path) -> Path:
    """Where the table of `bundle` lies: beside it."""
    whole = bundle.resolve()
    return whole.with_name(whole.name + ".pareto.json")


def mark_pareto_front(modes: Sequence[OperatingPoint]) -> tuple[OperatingPoint, ...]:
    """The modes from fast to slow, those on the front marked: none is as fast and better, or faster and as good."""

    def beaten(mode: OperatingPoint) -> bool:
        mine = (mode.image_auroc, mode.pixel_auroc, -mode.p95_ms)
        others = ((m.image_auroc, m.pixel_auroc, -m.p95_ms) for m in modes)
        return any(o != mine and all(a >= b for a, b in zip(o, mine, strict=True)) for o in others)

    marked = [replace(mode, front=not beaten(mode)) for mode in modes]
    return tuple(sorted(marked, key=lambda mode: mode.p95_ms))


def pick(modes: Sequence[OperatingPoint], deadline_ms: float) -> OperatingPoint:
    """The best mode (image AUROC, then pixel AUROC) whose 95th percentile keeps the deadline; else the fastest."""
    if not modes:
        raise SettingsError("the table of modes is empty: measure it again with sd-edge bench --pareto")
    within = [mode for mode in modes if mode.p95_ms <= deadline_ms]
    if not within:
        return min(modes, key=lambda mode: mode.p95_ms)
    return max(within, key=lambda mode: (mode.image_auroc, mode.pixel_auroc, -mode.p95_ms))


def batch_within(peak_bytes: Mapping[str, int], budget_bytes: int) -> int:
    """The largest UNet batch whose foretold peak fits the budget: measured peaks, straight lines between them.

    Raises SettingsError where not even the smallest measured batch fits, or nothing was measured.
    """
    known = sorted((int(batch), peak) for batch, peak in peak_bytes.items())
    if not known:
        raise SettingsError("no memory was measured on this machine: run sd-edge bench --pareto first")
    sizes, peaks = [batch for batch, _ in known], [peak for _, peak in known]
    fitting = [n for n in range(sizes[0], sizes[-1] + 1) if np.interp(n, sizes, peaks) <= budget_bytes]
    if not fitting:
        raise SettingsError(
            f"the memory budget is {budget_bytes / 2**20:.0f} MiB and a UNet batch of {sizes[0]} needs "
            f"{peaks[0] / 2**20:.0f} MiB here: give more, or build the bundle in a lower precision"
        )
    return max(fitting)


def at_operating_point(detector: Detector, mode: OperatingPoint, settings: InspectSettings) -> Detector:
    """`detector` under `mode`; `settings` are the preset's. A class that the mode was not calibrated for keeps none."""
    classes = {}
    for name, known in detector.classes.items():
        record = mode.calibration.get(name, Calibration())
        # Limits of the whole photo do not depend on the settings: the bundle's own hold.
        classes[name] = replace(known, calibration=record).calibrated(choices={}, limits=known.calibration.limits)
    changed = InspectSettings.from_json({**settings.to_json(), **mode.changes})
    return detector.under(changed, classes)


def write_table(bundle: Path, table: OperatingPointTable) -> Path:
    """Put `table` beside the bundle, in the place of the one for the same preset and backend."""
    file = table_file(bundle)
    others = []
    if file.is_file():
        others = [t for t in _tables(file) if (t["preset"], t["backend"]) != (table.preset, table.backend)]
        others = [t for t in others if t["bundle_sha256"] == table.bundle_sha256]
    write_json(file, {"tables": [*others, table]})
    return file


def read_table(bundle: Path, preset: str, backend: str, machine: str) -> OperatingPointTable | None:
    """The table for this preset and backend; None where none was measured.

    Raises BundleError where it was measured for another state of the bundle or on another machine, or is damaged.
    """
    file = table_file(bundle)
    if not file.is_file():
        return None
    found = [t for t in _tables(file) if (t["preset"], t["backend"]) == (preset, backend)]
    if not found:
        return None
    again = f"measure it again with 'sd-edge bench {bundle} --pareto --photos DIR', or remove it"
    try:
        table = _table(found[0])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{file} cannot be used ({type(error).__name__}: {error}): {again}") from error
    if table.bundle_sha256 != sha256_file(bundle / MANIFEST):
        raise BundleError(f"{file} was measured for another state of {bundle}: {again}")
    if table.machine != machine:
        raise BundleError(f"{file} was measured on {table.machine!r}, this is {machine!r}: {again}")
    return table


def _tables(file: Path) -> list[dict[str, Any]]:
    try:
        tables = read_json(file)["tables"]
        return [t for t in tables if {"preset", "backend", "bundle_sha256"} <= t.keys()]
    except (InputError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{file} is no table of modes ({error}): remove it and measure it again") from error


def _table(value: Mapping[str, Any]) -> OperatingPointTable:
    modes = []
    for entry in value["modes"]:
        calibration = {
            name: calibration_from_json(record, f"calibration of {name}")
            for name, record in entry["calibration"].items()
        }
        modes.append(OperatingPoint(**{**entry, "calibration": calibration}))
    return OperatingPointTable(**{**value, "modes": tuple(modes)})
