"""An Inspection as bytes, bit for bit, without pickle: what travels between machines and lies in a journal.

The form is a safetensors file: the arrays under their names, the rest as JSON in the byte tensor `plain`. JSON's
numbers are Python's shortest that read back as the same float, so scores survive to the last bit.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from anomalysd_edge.errors import InputError
from anomalysd_edge.method.result import Evidence, Inspection
from anomalysd_edge.method.score_model import Limits

PLAIN = "plain"
_ARRAYS = ("anomaly_map", "pred_mask", "repaint")
_SCALARS = tuple(
    entry.name
    for entry in fields(Inspection)
    if entry.name not in (*_ARRAYS, "maps", "scores", "evidence", "timings_ms", "limits")
)
"""Whatever else an inspection says is a plain value."""


def pack(answer: Inspection) -> bytes:
    """The bytes of one inspection."""
    plain = {
        **{name: getattr(answer, name) for name in _SCALARS},
        "scores": {name: float(value) for name, value in answer.scores.items()},
        "timings_ms": {name: float(value) for name, value in answer.timings_ms.items()},
        "maps": list(answer.maps),
        "limits": None if answer.limits is None else [answer.limits.good, answer.limits.anomalous],
        "evidence": [answer.evidence.kind, answer.evidence.scale, answer.evidence.x_px, answer.evidence.y_px],
    }
    arrays: dict[str, np.ndarray[Any, Any]] = {f"maps/{name}": value for name, value in answer.maps.items()}
    arrays |= {"anomaly_map": answer.anomaly_map, "repaint": answer.repaint, "evidence": answer.evidence.cell}
    if answer.pred_mask is not None:
        arrays["pred_mask"] = answer.pred_mask
    arrays[PLAIN] = np.frombuffer(json.dumps(plain, allow_nan=False).encode(), np.uint8)
    packed: bytes = save({name: np.ascontiguousarray(value) for name, value in arrays.items()})
    return packed


def unpack(data: bytes) -> Inspection:
    """The inspection in bytes that `pack` made. Raises InputError where they are something else."""
    try:
        arrays = load(data)
        plain = json.loads(arrays[PLAIN].tobytes())
        kind, scale, x_px, y_px = plain["evidence"]
        return Inspection(
            **{name: plain[name] for name in _SCALARS},
            anomaly_map=arrays["anomaly_map"],
            pred_mask=arrays.get("pred_mask"),
            maps={name: arrays[f"maps/{name}"] for name in plain["maps"]},
            scores=plain["scores"],
            repaint=arrays["repaint"],
            evidence=Evidence(kind, scale, arrays["evidence"], x_px, y_px),
            timings_ms=plain["timings_ms"],
            limits=None if plain["limits"] is None else Limits(*plain["limits"]),
        )
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{len(data)} bytes hold no inspection ({error}); they are damaged: run again") from error
