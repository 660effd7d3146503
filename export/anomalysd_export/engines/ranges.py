"""How large a network's values become: which tensors leave float16's range, and what half precision costs it.

The float32 graph runs on example inputs with one more output per tensor, its largest magnitude. Tensors near float16's
end name the nodes that stay in float32 (lowering.py); the lowered graph then runs on the same inputs, and must be
finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from anomalysd_edge.core.threads import cores
from anomalysd_edge.core.types import Array
from anomalysd_edge.errors import ParityError
from anomalysd_export.engines.lowering import LARGEST, float_names
from anomalysd_runtime.onnx.sessions import open_session, run

MARGIN = 8.0
"""A tensor counts as too large from an eighth of float16's range on: other photos reach further than the examples."""
MEASURED = ("vae_encoder", "vae_decoder")
"""Networks known to overflow: a VAE's residual stream has no normalisation that would hold it."""
_BATCH = 2


@dataclass(frozen=True)
class HalfProof:
    """What half precision changed."""

    max_abs: float
    """Largest difference of an output value from the float32 graph."""
    largest: float
    """Largest output value of the float32 graph."""


def examples(model: onnx.ModelProto, seed: int = 3) -> dict[str, Array]:
    """Inputs as an inspection brings them: photos in [-1,1], latents of unit spread, numbers in their range."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for entry in model.graph.input:
        kind = entry.type.tensor_type
        shape = tuple(axis.dim_value or _BATCH for axis in kind.shape.dim)
        if kind.elem_type == TensorProto.INT64:
            found[entry.name] = rng.integers(0, _BATCH if entry.name == "reference_of" else 1000, shape)
        elif len(shape) == 4 and shape[1] == 3:
            found[entry.name] = rng.uniform(-1, 1, shape).astype(np.float32)
        else:
            found[entry.name] = rng.standard_normal(shape).astype(np.float32)
    return found


def wide_tensors(model: onnx.ModelProto, name: str, inputs: Mapping[str, Array], limit: float = LARGEST) -> set[str]:
    """Names of the float tensors of `model` (float32, weights inline) that exceed `limit` / MARGIN on `inputs`."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    floats = float_names(model)
    watched = [value for node in graph.node for value in node.output if value in floats]
    for number, value in enumerate(watched):
        graph.node.append(helper.make_node("Abs", [value], [f"probe_abs_{number}"]))
        graph.node.append(helper.make_node("ReduceMax", [f"probe_abs_{number}"], [f"probe_{number}"], keepdims=0))
        graph.output.append(helper.make_tensor_value_info(f"probe_{number}", TensorProto.FLOAT, ()))
    session = open_session(probe.SerializeToString(), "cpu", cores(), name)
    values = session.run([f"probe_{number}" for number in range(len(watched))], dict(inputs))
    return {value for value, largest in zip(watched, values, strict=True) if not float(largest) < limit / MARGIN}


def prove_half(exact: Path, lowered: Path, name: str, inputs: Mapping[str, Array]) -> HalfProof:
    """Run both graphs on `inputs`, one after the other. Raises ParityError where the lowered one is not finite."""
    threads = cores()
    expected = run(open_session(exact, "cpu", threads, name), inputs, name)
    found = run(open_session(lowered, "cpu", threads, name), inputs, name)
    if not np.isfinite(found).all():
        raise ParityError(
            f"the float16 graph of {name!r} gives NaN or Inf for inputs of ordinary size: serve this bundle in "
            "float32, or build it in bf16"
        )
    return HalfProof(float(np.abs(found.astype(np.float64) - expected).max()), float(np.abs(expected).max()))
