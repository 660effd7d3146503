"""The same network at fixed batch sizes: a small graph each, all with the weights of the graph of any batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from anomalysd_edge.errors import ParityError
from anomalysd_export.graph_metadata import set_properties
from anomalysd_export.graphs import GraphSpec
from anomalysd_runtime.onnx.sessions import open_session, run
from anomalysd_runtime.static_batches import references_of

TOLERANCE = 1e-5
"""Largest absolute difference from the graph of any batch, which holds the same weights and operators."""
EXTERNAL_BYTES = 1024
"""Larger weights go to the file that all sizes share."""


def write_static(spec: GraphSpec, file: Path, sizes: Sequence[int]) -> dict[int, Path]:
    """Write `file` (model.onnx) at every one of `sizes` as model.b4.onnx, ... and prove each against `file`.

    Weights that lie inside `file` move to `file`.data first, so that no size repeats them. Raises ParityError.
    """
    if not sizes:
        return {}
    data = file.with_name(f"{file.name}.data")
    if not data.exists():
        whole = onnx.load(str(file))
        onnx.save(whole, str(file), save_as_external_data=True, location=data.name, size_threshold=EXTERNAL_BYTES)
        if data.exists():  # not where a network has no weights to speak of
            data.chmod(file.stat().st_mode & 0o777)  # onnx writes it for its owner alone
    written = {}
    for size in sorted(sizes):
        model = onnx.load(str(file), load_external_data=False)
        lengths = dict.fromkeys(spec.axes, size)
        if "references" in lengths:
            lengths["references"] = references_of(size)
        fix_axes(model, spec, lengths)
        set_properties(model, batch=str(size))
        written[size] = file.with_name(f"{file.stem}.b{size}.onnx")
        onnx.save(model, str(written[size]))
        _prove(spec, file, written[size], lengths)
    return written


def fix_axes(model: onnx.ModelProto, spec: GraphSpec, lengths: dict[str, int]) -> None:
    """Give every varying axis of the inputs and outputs its length; what lies between is inferred anew by a reader."""
    graph = model.graph
    shapes = {entry.name: entry.shape for entry in (*spec.inputs, *spec.outputs)}
    for value in (*graph.input, *graph.output):
        for number, axis in enumerate(shapes[value.name]):
            if isinstance(axis, str):
                dimension = value.type.tensor_type.shape.dim[number]
                dimension.ClearField("dim_param")
                dimension.dim_value = lengths[axis]
    kept = [value for value in graph.value_info if not any(d.dim_param for d in value.type.tensor_type.shape.dim)]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def _prove(spec: GraphSpec, file: Path, static: Path, lengths: dict[str, int]) -> None:
    rng = np.random.default_rng(2)
    inputs = {entry.name: entry.example(rng, lengths) for entry in spec.inputs}
    found = run(open_session(static, "cpu", 1, spec.name), inputs, spec.name)
    expected = run(open_session(file, "cpu", 1, spec.name), inputs, spec.name)
    worst = float(np.abs(found.astype(np.float64) - expected).max())
    if found.shape != expected.shape or not worst <= TOLERANCE:
        raise ParityError(
            f"{spec.name!r} at the static batch {lengths['batch']} differs from the graph of any batch by {worst:.2e}, "
            f"expected at most {TOLERANCE:.0e}: use the pinned onnx and onnxruntime"
        )
