"""Attention as one operator: as much of it as there is, the same numbers, and nothing else touched."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from anomalysd_edge.core.types import Array
from anomalysd_runtime.onnx.fused_attention import fuse_attention
from anomalysd_runtime.onnx.sessions import open_session

HEADS, WIDTH, QUERIES, KEYS = 4, 6, 9, 7


def attention(steps: bool = True, masked: bool = False, heads: int = HEADS) -> onnx.ModelProto:
    """softmax(q k^T / sqrt(D)) v of (B,S,H*D) inputs: K turned in torch's three steps, or at once."""
    hidden, key_heads = heads * WIDTH, [0, -1, heads, WIDTH]
    scale = np.float32(WIDTH ** (-0.25 if steps else -0.5))
    arrays = {
        "heads": np.array([0, -1, heads, WIDTH]), "joined": np.array([0, -1, hidden]), "scale": scale,
        "flat": np.array([-1, KEYS, WIDTH]), "back": np.array([-1, heads, WIDTH, KEYS]), "split": np.array(key_heads),
        "mask": np.zeros((1, 1, QUERIES, KEYS), np.float32),
    }  # fmt: skip
    node = helper.make_node
    nodes = [node("Reshape", [n, "heads"], [f"{n}4"]) for n in ("q", "k", "v")]
    nodes += [node("Transpose", [f"{n}4"], [f"{n}h"], perm=[0, 2, 1, 3]) for n in ("q", "v")]
    nodes.append(node("Mul", ["qh", "scale"], ["qs"]))
    if steps:
        nodes += [
            node("Transpose", ["k4"], ["kh"], perm=[0, 2, 1, 3]),
            node("Reshape", ["kh", "flat"], ["kf"]),
            node("Transpose", ["kf"], ["kft"], perm=[0, 2, 1]),
            node("Reshape", ["kft", "back"], ["kb"]),
            node("Mul", ["scale", "kb"], ["kt"]),
        ]
    else:
        nodes.append(node("Transpose", ["k4"], ["kt"], perm=[0, 2, 3, 1]))
    nodes.append(node("MatMul", ["qs", "kt"], ["products"]))
    if masked:
        nodes.append(node("Add", ["products", "mask"], ["scores"]))
    nodes += [
        node("Softmax", ["scores" if masked else "products"], ["weights"], axis=-1),
        node("MatMul", ["weights", "vh"], ["o"]),
        node("Transpose", ["o"], ["o4"], perm=[0, 2, 1, 3]),
        node("Reshape", ["o4", "joined"], ["y"]),
    ]
    float32 = TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info(name, float32, ["batch", length, hidden])
        for name, length in (("q", QUERIES), ("k", KEYS), ("v", KEYS))
    ]
    graph = helper.make_graph(
        nodes, "attention", inputs, [helper.make_tensor_value_info("y", float32, ["batch", QUERIES, hidden])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def by_hand(feeds: dict[str, Array], heads: int = HEADS) -> Array:
    """The formula, in float64."""
    q, k, v = (feeds[n].astype(np.float64).reshape(len(feeds[n]), -1, heads, WIDTH) for n in ("q", "k", "v"))
    scores = np.einsum("bshd,blhd->bhsl", q, k) / np.sqrt(WIDTH)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.asarray(np.einsum("bhsl,blhd->bshd", weights, v).reshape(len(q), -1, heads * WIDTH))


@pytest.mark.parametrize("steps", [True, False], ids=["torch's steps", "one transpose"])
def test_it_computes_the_formula(steps: bool) -> None:
    data, count = fuse_attention(attention(steps).SerializeToString())
    assert count == 1
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model)
    (only,) = model.graph.node
    assert (only.op_type, only.domain) == ("MultiHeadAttention", "com.microsoft")
    assert list(only.input) == ["q", "k", "v"]
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {
        name: 3 * rng.standard_normal((2, length, HEADS * WIDTH)).astype(np.float32)
        for name, length in (("q", QUERIES), ("k", KEYS), ("v", KEYS))
    }
    (found,) = open_session(data, "cpu", 1, "attention").run(None, feeds)
    np.testing.assert_allclose(found, by_hand(feeds), atol=1e-5)


def test_what_is_no_plain_attention_stays_byte_for_byte() -> None:
    for model in (attention(masked=True), helper.make_model(helper.make_graph([], "empty", [], []))):
        data = model.SerializeToString()
        assert fuse_attention(data) == (data, 0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_unet_of_a_run_gives_the_same(tmp_path: Path, precision: str) -> None:
    """Exported by torch from a tiny UNet, its weights in a file beside it, as Stable Diffusion's are."""
    from anomalysd_edge.method.networks import NetworkSizes
    from anomalysd_edge.training.models.base import load_base
    from anomalysd_export.engines.lowering import lower
    from anomalysd_export.engines.ranges import examples
    from anomalysd_export.graphs import graph_specs
    from anomalysd_export.onnx_export import export_graph
    from tests.support.tiny_models import tiny_base

    base = load_base(str(tiny_base(tmp_path / "base")))
    spec = graph_specs(NetworkSizes(base.size_px, 4, base.latent_factor, 0), 32)["unet"]
    export_graph(spec, base.unet, tmp_path / "whole.onnx")
    model = onnx.load(str(tmp_path / "whole.onnx"))
    if precision == "fp16":
        model = lower(model, "unet", "fp16").model
    file = tmp_path / "unet.onnx"
    onnx.save(model, str(file), save_as_external_data=True, location="unet.onnx.data", size_threshold=1024)
    data, count = fuse_attention(file.read_bytes())
    before = Counter(entry.op_type for entry in onnx.load(str(file), load_external_data=False).graph.node)
    after = Counter(entry.op_type for entry in onnx.load_from_string(data).graph.node)
    assert count == before["Softmax"] == after["MultiHeadAttention"] > 0
    assert after["Softmax"] == 0
    if precision == "fp16":
        return  # ONNX Runtime's CPU has the operator in float32 alone: the numbers are a GPU's to prove
    inputs = examples(onnx.load(str(file)))
    plain, fused = (open_session(file, "cpu", 1, "unet", fuse=fuse).run(None, inputs)[0] for fuse in (False, True))
    np.testing.assert_allclose(fused, plain, atol=1e-5)
    assert float(np.abs(plain).max()) > 0.1
