"""MatMul, Softmax, MatMul as one MultiHeadAttention, when a session is opened.

Unfused, every head's scores of every query against every key lie in memory: 4.3 GB for 16 samples of 512 px in
float16. ONNX Runtime's CUDA provider has kernels that never write them, behind its operator
com.microsoft.MultiHeadAttention; by itself it finds BERT's attention and not this one. The change is made here and not
in the bundle, since TensorRT does not know that operator and fuses the plain pattern: one graph, one digest and one
signature serve both, and bundles that were exported before gain as well.
"""

from __future__ import annotations

from collections.abc import Mapping

from anomalysd_edge.core.types import Array
from anomalysd_runtime.onnx.graph_bytes import Node, fields, joined, node, opset, read_constant, read_node

DOMAIN = "com.microsoft"
_GRAPH, _OPSETS = 7, 8
"""Fields of ModelProto."""
_NODE, _INITIALIZER, _OUTPUT = 1, 5, 12
"""Fields of GraphProto."""
_SPLIT_HEADS, _KEY_TO_COLUMNS, _LAST_TWO = (0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1)
"""Transposes: (B,S,H,D) to (B,H,S,D); the same to (B,H,D,S) at once; of (B*H,S,D)."""


def fuse_attention(model: bytes) -> tuple[bytes, int]:
    """`model` (a serialised ModelProto) with every attention that is found as one operator, and how many were.

    What is no plain attention (a mask between the products, heads that the graph does not tell) stays as it is.
    """
    parts = list(fields(memoryview(model)))
    (graph,) = (value for number, value, _ in parts if number == _GRAPH and not isinstance(value, int))
    entries = list(fields(graph))
    nodes: list[Node] = []
    constants: dict[str, Array] = {}
    results: set[str] = set()
    for number, value, _ in entries:
        if isinstance(value, int):
            continue
        if number == _NODE:
            nodes.append(read_node(value))
        elif number == _INITIALIZER:
            name, constant = read_constant(value)
            if constant is not None:
                constants[name] = constant
        elif number == _OUTPUT:
            results.add(next(str(v, "utf-8") for n, v, _ in fields(value) if n == 1 and not isinstance(v, int)))
    search = _Search(nodes, constants)
    fused = {number: found for number, entry in enumerate(nodes) if (found := search.attention_into(entry)) is not None}
    if not fused:
        return model, 0
    kept = _alive([fused.get(number, entry) for number, entry in enumerate(nodes)], results)
    body = b"".join(joined(_NODE, entry.data) for entry in kept)
    body += b"".join(bytes(whole) for number, _, whole in entries if number != _NODE)
    rest = b"".join(bytes(whole) for number, _, whole in parts if number != _GRAPH)
    return rest + joined(_OPSETS, opset(DOMAIN, 1)) + joined(_GRAPH, body), len(fused)


class _Search:
    """Walks a graph from outputs to inputs."""

    def __init__(self, nodes: list[Node], constants: Mapping[str, Array]) -> None:
        self.maker = {name: entry for entry in nodes for name in entry.outputs}
        self.constants = constants

    def attention_into(self, last: Node) -> Node | None:
        """The operator in place of `last`, the reshape (B,S,H,D) -> (B,S,H*D) at the end of an attention."""
        turned = self._before(last, "Reshape")
        product = self._before(turned, "Transpose", _SPLIT_HEADS)
        if product is None or product.kind != "MatMul":
            return None
        weights = self.maker.get(product.inputs[0])
        scores = self._before(weights, "Softmax")
        if (
            scores is None
            or weights is None
            or scores.kind != "MatMul"
            or weights.integers.get("axis") not in ((-1,), (3,))
        ):
            return None
        query, query_scale = self._unscaled(scores.inputs[0])
        key, key_scale = self._unscaled(scores.inputs[1])
        sides = (self._heads(query), self._key_heads(key), self._heads(product.inputs[1]))
        if any(side is None for side in sides) or len({heads for _, heads, _ in filter(None, sides)}) != 1:
            return None
        inputs = [side[0] for side in sides if side is not None]
        (_, heads, _) = next(side for side in sides if side is not None)
        made = node(
            "MultiHeadAttention", inputs, last.outputs, domain=DOMAIN,
            num_heads=heads, scale=float(query_scale * key_scale),
        )  # fmt: skip
        return Node("MultiHeadAttention", tuple(inputs), last.outputs, {}, made)

    def _before(self, entry: Node | None, kind: str, turn: tuple[int, ...] | None = None) -> Node | None:
        """What makes the first input of `entry`, where `entry` is a `kind` (with that permutation)."""
        if entry is None or entry.kind != kind or (turn is not None and entry.integers.get("perm") != turn):
            return None
        return self.maker.get(entry.inputs[0])

    def _unscaled(self, name: str) -> tuple[str, float]:
        """The tensor before a product with one constant number, and that number; 1 where there is none."""
        entry = self.maker.get(name)
        if entry is not None and entry.kind == "Mul":
            for tensor, factor in (entry.inputs, entry.inputs[::-1]):
                constant = self.constants.get(factor)
                if constant is not None and constant.size == 1:
                    return tensor, float(constant.reshape(-1)[0])
        return name, 1.0

    def _heads(self, name: str, turn: tuple[int, ...] = _SPLIT_HEADS) -> tuple[str, int, int] | None:
        """((B,S,H*D) tensor, H, D) where `name` is (B,H,S,D) of it, or what else `turn` says."""
        split = self._before(self.maker.get(name), "Transpose", turn)
        if split is None or split.kind != "Reshape":
            return None
        shape = self.constants.get(split.inputs[1])
        if shape is None or shape.size != 4 or min(int(shape[2]), int(shape[3])) < 1:
            return None
        return split.inputs[0], int(shape[2]), int(shape[3])

    def _key_heads(self, name: str) -> tuple[str, int, int] | None:
        """The same for (B,H,D,S): one transpose, or torch's three steps over (B*H,S,D)."""
        found = self._heads(name, _KEY_TO_COLUMNS)
        if found is not None:
            return found
        flat = self._before(self.maker.get(name), "Reshape")
        merged = self._before(flat, "Transpose", _LAST_TWO)
        return self._heads(merged.inputs[0]) if merged is not None and merged.kind == "Reshape" else None


def _alive(nodes: list[Node], results: set[str]) -> list[Node]:
    """Those whose outputs lead to a result, in their order."""
    wanted = set(results)
    kept = []
    for entry in reversed(nodes):
        if not wanted.isdisjoint(entry.outputs):
            kept.append(entry)
            wanted.update(entry.inputs)
    return kept[::-1]
