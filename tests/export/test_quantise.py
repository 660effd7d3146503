"""QDQ graphs: what TensorRT takes (symmetric, per channel, no quantised biases), near the float32 result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper

from anomalysd_edge.errors import BundleError, SettingsError
from anomalysd_export.engines.quantise import quantisable, quantise
from anomalysd_runtime.onnx.sessions import open_session

TEXT = """<ir_version: 9, opset_import: ["" : 18]> g (float[batch,3,8,8] x) => (float[batch,4,8,8] y) {
    a = Conv<pads = [1,1,1,1]>(x, w0, b0)
    ra = Relu(a)
    b = Conv<pads = [1,1,1,1]>(ra, w1, b1)
    rb = Relu(b)
    c = Conv<pads = [1,1,1,1]>(rb, w2, b2)
    rc = Relu(c)
    y = Conv(rc, w3) }"""


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four convolutions, the inner two with channels of very different ranges."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(TEXT)
    shapes = {"w0": (8, 3, 3, 3), "w1": (8, 8, 3, 3), "w2": (8, 8, 3, 3), "w3": (4, 8, 1, 1)}
    for name, shape in shapes.items():
        values = (
            rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape) * (10.0 ** -np.arange(shape[0]))[:, None, None, None]
        )
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    for name in ("b0", "b1", "b2"):
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 0.1, 8).astype(np.float32), name))
    file = tmp_path_factory.mktemp("graph") / "g.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model), str(file))
    return file


def feeds(count: int = 3) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.uniform(-1, 1, (2, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize(("precision", "allowed"), [("int8", 0.02), ("fp8", 0.06)])
def test_it_is_near_float32(graph: Path, precision: str, allowed: float) -> None:
    made = quantise(graph, "vae_encoder", precision, feeds())
    onnx.checker.check_model(made.model, full_check=True)
    given = feeds(1)[0]
    right = open_session(graph, "cpu", 1, "g").run(None, given)[0]
    found = open_session(made.model.SerializeToString(), "cpu", 1, "g").run(None, given)[0]
    apart = np.sqrt(np.mean((found - right) ** 2) / np.mean(right**2))
    assert 1e-5 < apart < allowed


@pytest.mark.parametrize(("precision", "kind"), [("int8", TensorProto.INT8), ("fp8", TensorProto.FLOAT8E4M3FN)])
def test_it_is_what_tensorrt_takes(graph: Path, precision: str, kind: int) -> None:
    model = quantise(graph, "vae_encoder", precision, feeds()).model
    constants = {entry.name: entry for entry in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert sum(node.op_type == "QuantizeLinear" for node in pairs) == 2, "one an inner convolution's input"
    for node in pairs:
        zero = constants[node.input[2]]
        assert zero.data_type == kind
        assert not np.asarray(numpy_helper.to_array(zero), np.float32).any(), "not symmetric"
        scales = numpy_helper.to_array(constants[node.input[1]])
        assert scales.dtype == np.float16
        assert (scales > 0).all()
        if node.input[0] in constants:
            assert constants[node.input[0]].data_type == kind
            assert scales.size == 8, "weights have a scale a channel"
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    assert [made_by.get(node.input[0]) for node in convolutions[1:3]] == ["DequantizeLinear"] * 2
    assert all(len(n.input) < 3 or constants[n.input[2]].data_type == TensorProto.FLOAT16 for n in convolutions)


def test_the_ends_and_attention_stay(graph: Path) -> None:
    model = onnx.load(str(graph))
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    assert quantisable(model) == ["n2", "n4"]


def test_it_needs_photos_and_something_to_quantise(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--photos"):
        quantise(graph, "vae_encoder", "int8", [])
    with pytest.raises(SettingsError, match="expected int8 or fp8"):
        quantise(graph, "vae_encoder", "int4", feeds())
    plain = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    )
    onnx.save(plain, str(tmp_path / "plain.onnx"))
    with pytest.raises(BundleError, match="no convolution or matrix product"):
        quantise(tmp_path / "plain.onnx", "vae_encoder", "int8", feeds())
