"""The proof that a graph says what its torch module says: names, shapes, numbers, at a second batch size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from anomalysd_edge.errors import ParityError
from anomalysd_export.graphs import GraphSpec, TensorSpec, proved_outputs, run_torch
from anomalysd_runtime.onnx.sessions import open_session, run

PROOF_BATCH = 3
"""The graph was traced with 2: a batch size that got frozen shows here."""
PROOF_SEED = 1
"""Other inputs than those of the trace."""


@dataclass(frozen=True)
class Proof:
    """What the comparison of one graph found."""

    max_abs: float
    """Largest absolute difference from torch."""
    batch: int
    """Batch size of the comparison."""
    outputs: tuple[TensorSpec, ...]
    """The graph's outputs, every fixed axis a number."""


def prove(spec: GraphSpec, module: nn.Module, file: Path, threads: int = 1) -> Proof:
    """Compare `file` in ONNX Runtime on the CPU with the wrapped `module`. Raises ParityError with the figures."""
    session = open_session(file, "cpu", threads, spec.name)
    for what, specs, found in (
        ("inputs", spec.inputs, session.get_inputs()),
        ("outputs", spec.outputs, session.get_outputs()),
    ):
        names, wanted = [entry.name for entry in found], [entry.name for entry in specs]
        if names != wanted:
            raise ParityError(f"the graph {spec.name!r} has the {what} {names}, expected {wanted}")
        for entry, tensor in zip(found, specs, strict=True):
            _check_declared(spec.name, tensor, entry.shape)
    inputs = spec.example(PROOF_SEED, PROOF_BATCH)
    expected = run_torch(module, spec, inputs)
    found_arrays = dict(zip(expected, [run(session, inputs, spec.name)], strict=True))
    worst = 0.0
    for name, right in expected.items():
        array = found_arrays[name]
        if array.shape != right.shape or array.dtype != right.dtype:
            raise ParityError(
                f"{spec.name!r} gives {name} as {array.dtype} {array.shape} in ONNX Runtime "
                f"and {right.dtype} {right.shape} in torch"
            )
        for where, values in (("ONNX Runtime", array), ("torch", right)):
            if not np.isfinite(values).all():
                raise ParityError(f"{spec.name!r} gives NaN or Inf in {where} for inputs of ordinary size")
        worst = max(worst, float(np.abs(array.astype(np.float64) - right).max()))
    if worst > spec.tolerance:
        raise ParityError(
            f"{spec.name!r} differs between torch and ONNX Runtime by {worst:.2e} (batch {PROOF_BATCH}), "
            f"expected at most {spec.tolerance:.0e}: no bundle is written; use the pinned torch and onnxruntime"
        )
    return Proof(worst, PROOF_BATCH, proved_outputs(spec, expected))


def _check_declared(graph: str, tensor: TensorSpec, shape: list[Any]) -> None:
    """A fixed axis must be that number in the file, a varying one must not be a number."""
    same = len(shape) == len(tensor.shape) and all(
        not isinstance(found, int) if isinstance(wanted, str) else wanted in (0, found)
        for wanted, found in zip(tensor.shape, shape, strict=True)
    )
    if not same:
        raise ParityError(f"{graph!r} declares {tensor.name} as {shape}, expected {list(tensor.shape)}")
