"""What an ONNX file says about itself, as viewers such as netron show it: producer, role, tensors, precision, licence.

Nothing here depends on the time or on the machine: the same network gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx

from anomalysd_edge import __version__
from anomalysd_edge.bundle.manifest import PRODUCT

if TYPE_CHECKING:
    from anomalysd_export.graphs import GraphSpec

METHOD = "AnomalySD: Few-Shot Multi-Class Anomaly Detection with Stable Diffusion Model, arXiv 2408.01960"
_MACHINE = "pkg.torch.onnx.stack_trace"
"""What torch writes into every node: lines of its sources and their paths on the exporting machine."""


def describe(model: Any, spec: GraphSpec, facts: Mapping[str, str]) -> None:
    """Fill in what `model` (onnx_ir.Model, just exported) says about itself. `facts`: further properties by key, for
    instance size_px and license."""
    properties = {
        "product": PRODUCT,
        "version": __version__,
        "network": spec.name,
        "role": spec.role,
        "precision": "fp32",
        "batch": "any",
        "method": METHOD,
        **facts,
    }
    for kind, tensors, values in (
        ("input", spec.inputs, model.graph.inputs),
        ("output", spec.outputs, model.graph.outputs),
    ):
        for tensor, value in zip(tensors, values, strict=True):
            # A fixed axis of 0 is one that the network itself sets: the graph tells it.
            axes = [axis if axis != 0 else value.shape[number] for number, axis in enumerate(tensor.shape)]
            value.doc_string = f"{tensor.dtype} ({', '.join(map(str, axes))}): {tensor.meaning}"
            properties[f"{kind}.{tensor.name}"] = value.doc_string
    for node in model.graph:
        node.metadata_props.pop(_MACHINE, None)
    model.producer_name, model.producer_version = PRODUCT, __version__
    model.doc_string = f"{PRODUCT} {__version__}, {spec.name}: {spec.role}"
    model.metadata_props.update(properties)


def set_properties(model: onnx.ModelProto, **facts: str) -> None:
    """Replace or add properties of `model`, for instance its precision."""
    known = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**known, **facts})


def carry_over(source: onnx.ModelProto, made: onnx.ModelProto, **facts: str) -> None:
    """What `source` says about itself into `made`, a graph made from it by tools that drop it; `facts` differ."""
    made.producer_name, made.producer_version = source.producer_name, source.producer_version
    made.doc_string = source.doc_string
    onnx.helper.set_model_props(made, {entry.key: entry.value for entry in source.metadata_props})
    set_properties(made, **facts)
    for ours, theirs in ((made.graph.input, source.graph.input), (made.graph.output, source.graph.output)):
        texts = {entry.name: entry.doc_string for entry in theirs}
        for value in ours:
            value.doc_string = texts.get(value.name, value.doc_string)
