"""A float32 graph to float16 or bfloat16, with float32 islands where half precision would lose the result.

The graph says the type of every tensor, so strongly typed builders (TensorRT 10, 11 and RTX) take it as it is: there is
no precision flag anywhere. Inputs and outputs stay float32, so every precision of a network has the same interface.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from anomalysd_edge.core.types import Array
from anomalysd_edge.errors import BundleError, SettingsError

HALVES: dict[str, tuple[int, Any]] = {
    "fp16": (TensorProto.FLOAT16, np.float16),
    "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
}

ISLANDS = frozenset(
    [
        "InstanceNormalization",
        "GroupNormalization",
        "LayerNormalization",
        "Pow",
        "Sqrt",
        "Reciprocal",
        "Exp",
        "Log",
        "Sin",
        "Cos",
        "ReduceL2",
        "ReduceSum",
        "ReduceSumSquare",
        "ReduceMean",
    ]
)
"""Sums over many values, and functions that leave half precision's range: the causes of black images and NaN."""
TAILS = {"perceptual": ("Pow",), "features": ("ReduceL2",)}
"""Networks whose whole end is an island: there unit vectors are compared, and their squared differences are tiny."""
FLOAT_INPUTS = {"Resize": (1, 2)}
"""Inputs that the ONNX specification wants in float32 whatever the data's type (region of interest, scales)."""
SMALLEST, LARGEST = 2.0**-14, 65504.0
"""float16's normal range: a constant outside it makes its node an island."""


@dataclass
class Lowered:
    """What became of a graph."""

    model: onnx.ModelProto
    """The graph in half precision."""
    islands: list[str] = field(default_factory=list)
    """Nodes that compute in float32."""


def lower(model: onnx.ModelProto, network: str, precision: str, wide: Collection[str] = frozenset()) -> Lowered:
    """`model` (float32, weights loaded; changed in place) in fp16 or bf16.

    `wide`: tensors beyond float16's range (ranges.py); what makes them and what takes them stays in float32.
    Raises SettingsError for another precision and BundleError for a graph whose tensor types are not declared.
    """
    if precision not in HALVES:
        raise SettingsError(f"{precision!r} is no half precision; expected one of {', '.join(HALVES)}")
    return _Lowering(model, network, precision, frozenset(wide if precision == "fp16" else ())).run()


class _Lowering:
    def __init__(self, model: onnx.ModelProto, network: str, precision: str, wide: frozenset[str]) -> None:
        self.model, self.graph = model, model.graph
        self.kind, self.numpy_type = HALVES[precision]
        self.constants = {entry.name: entry for entry in self.graph.initializer}
        self.floats = float_names(model)
        self.wide = wide | self._wide_constants()
        self.maker = {name: node for node in self.graph.node for name in node.output}
        self.islands = self._choose_islands(TAILS.get(network, ()))
        self.made: dict[tuple[str, int], str] = {}
        self.casts: list[onnx.NodeProto] = []

    def run(self) -> Lowered:
        inputs = {entry.name for entry in self.graph.input}
        native = dict.fromkeys(inputs & self.floats, TensorProto.FLOAT)
        nodes: list[onnx.NodeProto] = []
        names = []
        for node in self.graph.node:
            island = _key(node) in self.islands
            kind = TensorProto.FLOAT if island else self.kind
            always_float = FLOAT_INPUTS.get(node.op_type, ())
            for number, name in enumerate(node.input):
                if name in self.floats:
                    wanted = TensorProto.FLOAT if number in always_float else kind
                    node.input[number] = self._as_type(name, wanted, native)
            if not island:
                self._lower_attributes(node)
            elif any(name in self.floats for name in node.output):
                names.append(_key(node))
            for name in node.output:
                if name in self.floats:
                    native[name] = kind
            nodes += self.casts
            self.casts.clear()
            nodes.append(node)
        nodes = self._float_outputs(nodes, native)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        # Declared types inside the graph are those of before; a reader infers them anew.
        del self.graph.value_info[:]
        used = {name for node in nodes for name in node.input}
        kept = [entry for entry in self.graph.initializer if entry.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        return Lowered(self.model, names)

    def _float_outputs(self, nodes: list[onnx.NodeProto], native: dict[str, int]) -> list[onnx.NodeProto]:
        """Graph outputs keep their name and are float32."""
        for output in self.graph.output:
            if native.get(output.name, TensorProto.FLOAT) == TensorProto.FLOAT:
                continue
            inner = f"{output.name}_half"
            for node in nodes:
                for names in (node.input, node.output):
                    for number, name in enumerate(names):
                        if name == output.name:
                            names[number] = inner
            nodes.append(helper.make_node("Cast", [inner], [output.name], to=TensorProto.FLOAT))
        return nodes

    def _as_type(self, name: str, wanted: int, native: dict[str, int]) -> str:
        """The name under which `name` is there in the type `wanted`; a cast or a converted constant where it is not."""
        if name in self.constants:
            if wanted == TensorProto.FLOAT:
                return name
            if (name, wanted) not in self.made:
                lowered = numpy_helper.from_array(
                    self._half(numpy_helper.to_array(self.constants[name])), f"{name}_half"
                )
                self.graph.initializer.append(lowered)
                self.made[name, wanted] = lowered.name
            return self.made[name, wanted]
        if native[name] == wanted:
            return name
        if (name, wanted) not in self.made:
            cast = f"{name}_as_{'float' if wanted == TensorProto.FLOAT else 'half'}"
            self.casts.append(helper.make_node("Cast", [name], [cast], to=wanted))
            self.made[name, wanted] = cast
        return self.made[name, wanted]

    def _half(self, values: Array) -> Array:
        return np.asarray(np.clip(values, -LARGEST, LARGEST) if self.numpy_type is np.float16 else values).astype(
            self.numpy_type
        )

    def _lower_attributes(self, node: onnx.NodeProto) -> None:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = self.kind
            elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(self._half(numpy_helper.to_array(attribute.t))))

    def _choose_islands(self, tails: tuple[str, ...]) -> set[str]:
        chosen: set[str] = set()
        tail: set[str] = set()
        for node in self.graph.node:  # in topological order, as ONNX demands
            downstream = any(name in tail for name in node.input)
            if downstream or node.op_type in tails:
                tail.update(node.output)
                chosen.add(_key(node))
            elif (
                node.op_type in ISLANDS
                or not self.wide.isdisjoint((*node.input, *node.output))
                or self._has_small_constant(node)
                or self._divides_by_island(node, chosen)
            ):
                chosen.add(_key(node))
        for node in self.graph.node:
            if node.op_type in ("Sin", "Cos"):
                # At t = 999 half precision cannot tell two timesteps apart: the whole argument stays float32.
                self._add_ancestors(node, chosen)
        return chosen

    def _wide_constants(self) -> frozenset[str]:
        """Weights that float16 cannot hold: clipping them would change the network."""
        if self.numpy_type is not np.float16:
            return frozenset()
        arrays = ((name, numpy_helper.to_array(entry)) for name, entry in self.constants.items() if name in self.floats)
        return frozenset(name for name, array in arrays if array.size > 1 and float(np.abs(array).max()) > LARGEST)

    def _has_small_constant(self, node: onnx.NodeProto) -> bool:
        """Whether a scalar of `node` (an epsilon, say) would become 0 or Inf."""
        for name in node.input:
            constant = self.constants.get(name)
            if constant is not None and name in self.floats and int(np.prod(constant.dims)) == 1:
                value = abs(float(numpy_helper.to_array(constant).reshape(())))
                if value > LARGEST or 0 < value < SMALLEST:
                    return node.op_type not in ("QuantizeLinear", "DequantizeLinear")
        return False

    def _divides_by_island(self, node: onnx.NodeProto, chosen: set[str]) -> bool:
        """A divisor that had to be float32 because it may be tiny must not be rounded to 0 on its way."""
        maker = self.maker.get(node.input[1]) if node.op_type == "Div" else None
        while maker is not None and maker.op_type in ("Expand", "Unsqueeze", "Reshape"):
            maker = self.maker.get(maker.input[0])
        return maker is not None and _key(maker) in chosen

    def _add_ancestors(self, node: onnx.NodeProto, chosen: set[str]) -> None:
        waiting = [node]
        while waiting:
            for name in waiting.pop().input:
                maker = self.maker.get(name)
                if maker is not None and name in self.floats and _key(maker) not in chosen:
                    chosen.add(_key(maker))
                    waiting.append(maker)


def _key(node: onnx.NodeProto) -> str:
    return str(node.output[0])


def float_names(model: onnx.ModelProto) -> set[str]:
    """Names of all float32 tensors. The exporter declares every type; a graph of other origin has them inferred."""
    graph = model.graph
    kinds = {entry.name: entry.data_type for entry in graph.initializer}
    known = (*graph.input, *graph.output, *graph.value_info)
    kinds.update((entry.name, entry.type.tensor_type.elem_type) for entry in known)
    missing = [name for node in graph.node for name in node.output if name and not kinds.get(name)]
    if missing:
        kinds.update(_inferred(model))
        missing = [name for name in missing if not kinds.get(name)]
    if missing:
        raise BundleError(
            f"the graph {graph.name!r} does not tell the type of {missing[0]!r} and {len(missing) - 1} others: "
            "export it again"
        )
    return {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}


def _inferred(model: onnx.ModelProto) -> Iterable[tuple[str, int]]:
    inferred = onnx.shape_inference.infer_shapes(model)
    return [(entry.name, entry.type.tensor_type.elem_type) for entry in inferred.graph.value_info]
