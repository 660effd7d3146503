"""Operations and bytes of an ONNX graph: what its matrix nodes must compute and move, whatever runs them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
from onnx import helper

from anomalysd_export.engines.profiles import Graph


@dataclass(frozen=True)
class NodeCost:
    """One convolution or matrix product, for the whole batch."""

    kind: str
    """ONNX's name of it."""
    flops: int
    """Multiplications and additions, counted apart."""
    weight_bytes: int
    """Of its constant operand: read once a run, whatever the batch."""
    moved_bytes: int
    """Of what it reads beside that, and writes."""


@dataclass(frozen=True)
class GraphCost:
    """A graph at one batch size. What is not a matrix node is taken as fused into one, and free."""

    nodes: tuple[NodeCost, ...]
    batch: int

    @property
    def flops(self) -> int:
        """Of all nodes, for the batch."""
        return sum(node.flops for node in self.nodes)

    @property
    def bytes(self) -> int:
        """Weights once, activations in and out of each matrix node."""
        return sum(node.weight_bytes + node.moved_bytes for node in self.nodes)

    def floor_seconds(self, flops_a_second: float, bytes_a_second: float) -> float:
        """The roofline: each node takes as long as its operations or its bytes do, whichever is longer."""
        return sum(
            max(node.flops / flops_a_second, (node.weight_bytes + node.moved_bytes) / bytes_a_second)
            for node in self.nodes
        )


def graph_cost(file: Path, batch: int = 1) -> GraphCost:
    """Count Conv, ConvTranspose, MatMul and Gemm of the graph at `file`, its weights unread, at this batch size."""
    graph = Graph.read(file).inferred(batch)
    shapes: dict[str, tuple[int, ...]] = {}
    width: dict[str, int] = {}
    for entry in (*graph.value_info, *graph.input, *graph.output):
        shapes[entry.name] = tuple(axis.dim_value for axis in entry.type.tensor_type.shape.dim)
        width[entry.name] = _itemsize(entry.type.tensor_type.elem_type)
    weights = set()
    for entry in graph.initializer:
        shapes[entry.name], width[entry.name] = tuple(entry.dims), _itemsize(entry.data_type)
        weights.add(entry.name)

    def size(name: str) -> int:
        return prod(shapes.get(name, ())) * width.get(name, 4)

    found = []
    for node in graph.node:
        if (flops := _flops(node, shapes)) == 0:
            continue
        constant = sum(size(name) for name in node.input if name in weights)
        moved = sum(size(name) for name in (*node.input, *node.output) if name and name not in weights)
        found.append(NodeCost(node.op_type, flops, constant, moved))
    return GraphCost(tuple(found), batch)


def _flops(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    """2 * multiplications of a matrix node; 0 for any other."""
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
        return 0
    out, first, second = shapes[node.output[0]], shapes[node.input[0]], shapes[node.input[1]]
    if node.op_type == "Conv":
        return 2 * prod(out) * prod(second[1:])  # (out, in/groups, kernel...)
    if node.op_type == "ConvTranspose":
        return 2 * prod(first) * prod(second[1:])  # (in, out/groups, kernel...)
    if node.op_type == "MatMul":
        return 2 * prod(out) * first[-1]
    turned = next((attribute.i for attribute in node.attribute if attribute.name == "transA"), 0)
    return 2 * prod(out) * (first[0] if turned else first[1])


def _itemsize(kind: int) -> int:
    return int(helper.tensor_dtype_to_np_dtype(kind).itemsize) if kind else 4
