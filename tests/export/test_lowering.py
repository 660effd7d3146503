"""Half precision: valid graphs, float32 at the border, islands where the numbers would be lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from anomalysd_edge.errors import SettingsError
from anomalysd_export.engines.lowering import Lowered, lower
from anomalysd_runtime.onnx.sessions import open_session
from tests.support.small_graphs import write_graph

NAMES = ("unet", "vae_encoder", "vae_decoder", "perceptual", "features")


def feeds_of(model: onnx.ModelProto, batch: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for entry in model.graph.input:
        shape = [axis.dim_value or batch for axis in entry.type.tensor_type.shape.dim]
        if entry.type.tensor_type.elem_type == TensorProto.INT64:
            found[entry.name] = rng.integers(0, batch, shape)
        else:
            found[entry.name] = rng.uniform(-1, 1, shape).astype(np.float32)
    return found


def parsed(text: str, **constants: Any) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return onnx.shape_inference.infer_shapes(model)


def typed(lowered: Lowered) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(lowered.model)
    return {entry.name: entry.type.tensor_type.elem_type for entry in inferred.graph.value_info}


@pytest.mark.parametrize("name", NAMES)
def test_fp16_agrees_and_keeps_its_interface(tmp_path: Path, name: str) -> None:
    model = onnx.load(str(write_graph(name, tmp_path / "a.onnx")))
    feeds = feeds_of(model)
    expected = ReferenceEvaluator(model).run(None, feeds)[0]
    lowered = lower(model, name, "fp16").model
    onnx.checker.check_model(lowered, full_check=True)
    border = [entry.type.tensor_type.elem_type for entry in (*lowered.graph.input, *lowered.graph.output)]
    assert TensorProto.FLOAT16 not in border
    (tmp_path / "b.onnx").write_bytes(lowered.SerializeToString())
    found = open_session(tmp_path / "b.onnx", "cpu", 1, name).run(None, feeds)[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=4e-3)
    floats = [entry for entry in lowered.graph.initializer if entry.name.endswith("weight_half")]
    assert all(entry.data_type == TensorProto.FLOAT16 for entry in floats)


def test_bf16_has_the_same_shape_of_graph(tmp_path: Path) -> None:
    file = write_graph("unet", tmp_path / "a.onnx")
    half, brain = (lower(onnx.load(str(file)), "unet", kind).model for kind in ("fp16", "bf16"))
    assert [node.op_type for node in half.graph.node] == [node.op_type for node in brain.graph.node]
    kinds = Counter(entry.data_type for entry in brain.graph.initializer)
    assert kinds[TensorProto.BFLOAT16] > 0
    assert kinds[TensorProto.FLOAT16] == 0


def test_timesteps_are_told_apart() -> None:
    """998 * frequency needs more than float16's eleven bits; the whole path to Sin stays float32."""
    text = """g (int64[n] t) => (float[n] out) {
        f = Cast<to = 1>(t)
        scaled = Mul(f, frequency)
        s = Sin(scaled)
        out = Mul(s, two) }"""
    model = parsed(text, frequency=np.float32(0.987), two=np.float32(2))
    t = np.array([997, 998])
    expected = 2 * np.sin(t * 0.987)
    lowered = lower(model, "unet", "fp16")
    kinds = typed(lowered)
    assert kinds["scaled"] == kinds["f"] == TensorProto.FLOAT
    found = open_session_of(lowered).run(None, {"t": t})[0]
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_tiny_epsilon_is_not_rounded_to_zero() -> None:
    """x / max(|x|, 1e-8): in float16 the epsilon is 0 and 0/0 is NaN."""
    text = """g (float[n,4] x) => (float[n,4] out) {
        norm = ReduceL2(x, axes)
        safe = Clip(norm, epsilon)
        out = Div(x, safe) }"""
    model = parsed(text, axes=np.array([1]), epsilon=np.float32(1e-8))
    lowered = lower(model, "vae_encoder", "fp16")
    assert len(lowered.islands) == 3
    found = open_session_of(lowered).run(None, {"x": np.zeros((2, 4), np.float32)})[0]
    np.testing.assert_array_equal(found, np.zeros((2, 4)))


def test_the_end_of_the_perceptual_network_is_float32() -> None:
    text = """g (float[n,3,4,4] a, float[n,3,4,4] b) => (float[n,1,4,4] out) {
        fa = Conv(a, weight)
        fb = Conv(b, weight)
        apart = Sub(fa, fb)
        square = Pow(apart, two)
        out = Conv(square, head) }"""
    rng = np.random.default_rng(0)
    constants = {
        "weight": rng.normal(size=(3, 3, 1, 1)).astype(np.float32),
        "two": np.float32(2),
        "head": np.full((1, 3, 1, 1), 0.1, np.float32),
    }
    a = rng.uniform(-1, 1, (1, 3, 4, 4)).astype(np.float32)
    whole = lower(parsed(text, **constants), "perceptual", "fp16")
    heads = {"square", "out"}
    assert heads <= set(whole.islands)
    found = open_session_of(whole).run(None, {"a": a, "b": a + np.float32(1e-2)})[0]
    assert (found > 0).all()
    assert "out" not in lower(parsed(text, **constants), "vae_encoder", "fp16").islands


def test_other_words_are_refused() -> None:
    with pytest.raises(SettingsError, match="'fp12' is no half precision"):
        lower(parsed("g (float[1] x) => (float[1] y) { y = Relu(x) }"), "unet", "fp12")


def open_session_of(lowered: Lowered) -> Any:
    return open_session(lowered.model.SerializeToString(), "cpu", 1, "test")
