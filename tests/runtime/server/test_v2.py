"""The Open Inference Protocol v2: the real tritonclient, and bodies that are wrong in every way."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anomalysd_edge.vision.images import decode_rgb
from anomalysd_runtime.server.errors import BadRequest
from anomalysd_runtime.server.http import tensors
from tests.support.serving import Answer, Box, png, running_box, small_settings
from tests.support.small_graphs import small_bundle

pytestmark = pytest.mark.net

tritonhttp = pytest.importorskip("tritonclient.http", reason="the package tritonclient[http] is not installed")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with running_box(small_settings(small_bundle(tmp_path_factory.mktemp("v2") / "line1").path)) as opened:
        yield opened


@pytest.fixture
def client(box: Box) -> Iterator[Any]:
    with tritonhttp.InferenceServerClient(f"127.0.0.1:{box.port}") as opened:
        yield opened


def photo_input(photos: list[bytes], binary: bool) -> Any:
    sent = tritonhttp.InferInput("photo", [len(photos)], "BYTES")
    data = photos if binary else [base64.b64encode(photo) for photo in photos]
    sent.set_data_from_numpy(np.array(data, dtype=np.object_), binary_data=binary)
    return sent


def test_tritonclient_sees_server_and_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("line1")
    assert client.get_server_metadata()["name"] == "anomalysd-edge"
    told = client.get_model_metadata("line1")
    assert [entry["name"] for entry in told["inputs"]] == ["photo", "class"]
    assert {entry["name"] for entry in told["outputs"]} >= {"pred_score", "anomaly_map"}
    (listed,) = client.get_model_repository_index()
    assert (listed["name"], listed["state"]) == ("line1", "READY")
    client.unload_model("line1")
    assert not client.is_model_ready("line1")
    client.load_model("line1")
    assert client.is_model_ready("line1")


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_the_same_scores_and_maps(client: Any, box: Box, binary: bool) -> None:
    photos = [png(seed) for seed in range(3)]
    expected = [box.inspect(photo, "?full=true").json["pred_score"] for photo in photos]
    wanted = [tritonhttp.InferRequestedOutput(name, binary_data=binary) for name in
              ("pred_score", "pred_label", "threshold", "verdict", "pred_probability", "limits", "anomaly_map",
               "pred_mask")]  # fmt: skip
    found = client.infer("line1", [photo_input(photos, binary)], outputs=wanted, request_id="belt-7")
    np.testing.assert_allclose(found.as_numpy("pred_score"), np.array(expected, np.float32))
    assert found.as_numpy("pred_label").tolist() == [int(score >= 0.75) for score in expected]
    assert found.as_numpy("threshold").tolist() == [0.75] * 3
    assert [name for name in ("limits", "pred_probability") if not np.isnan(found.as_numpy(name)).all()] == []
    maps = found.as_numpy("anomaly_map")
    assert maps.shape == (3, 16, 16)
    assert maps.dtype == np.float32
    assert ((maps >= 1.5) == found.as_numpy("pred_mask")).all()
    assert {bytes(v).decode() if isinstance(v, bytes) else v for v in found.as_numpy("verdict")} <= {
        "good",
        "anomalous",
    }
    assert found.get_response()["id"] == "belt-7"


def test_tritonclient_sends_pixels_and_classes(client: Any, box: Box) -> None:
    photo = png(5)
    pixels = np.stack([decode_rgb(photo)])
    sent = tritonhttp.InferInput("photo", list(pixels.shape), "UINT8")
    sent.set_data_from_numpy(pixels)
    names = tritonhttp.InferInput("class", [1], "BYTES")
    names.set_data_from_numpy(np.array(["bottle"], dtype=np.object_))
    found = client.infer("line1", [sent, names])
    assert found.as_numpy("pred_score")[0] == np.float32(box.inspect(photo).json["pred_score"])
    names.set_data_from_numpy(np.array(["screw"], dtype=np.object_))
    with pytest.raises(tritonhttp.InferenceServerException, match="bottle"):
        client.infer("line1", [sent, names])
    with pytest.raises(tritonhttp.InferenceServerException, match="line1"):
        client.infer("line9", [sent])


def post(box: Box, body: bytes, header: str | None = None) -> Answer:
    headers = {} if header is None else {"Inference-Header-Content-Length": header}
    return box.ask("POST", "/v2/models/line1/infer", body, headers)


def head(**changes: Any) -> bytes:
    entry = {"name": "photo", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(png(1)).decode()], **changes}
    return json.dumps({"inputs": [{key: value for key, value in entry.items() if value is not None}]}).encode()


def test_a_good_body_by_hand(box: Box) -> None:
    assert post(box, head()).status == 200
    packed = struct.pack("<I", len(png(1))) + png(1)
    text = head(data=None, parameters={"binary_data_size": len(packed)})
    assert post(box, text + packed, str(len(text))).status == 200


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (b"", None), (b"{", None), (b"[]", None), (b"null", None), (b'{"inputs": []}', None), (b"[" * 100_000, None),
        (b'{"inputs": [1]}', None), (head(name="image"), None), (head(name=None), None), (head(shape=[2]), None),
        (head(shape=[0]), None), (head(shape=[-1]), None), (head(shape="1"), None), (head(shape=[1.5]), None),
        (head(shape=[2**40]), None), (head(shape=[True]), None), (head(datatype="FP64"), None),
        (head(data=["?"]), None),
        (head(data=[1]), None), (head(data=[["\ud800"]]), None), (head(data=None), None), (head(parameters=[]), None),
        (head(datatype="UINT8", shape=[1, 1, 1, 3], data=[1, 2, 256]), None),
        (head(datatype="UINT8", shape=[1, 1, 1, 3], data=[1, 2, 0.5]), None),
        (head(datatype="UINT8", shape=[1, 1, 3], data=[1, 2, 3]), None),
        (head(datatype="FP32", shape=[1, 1, 1, 3], data=[1, 2, 3]), None),
        (head(), "9999999"), (head(), "-1"), (head(), "x"), (head(), "٣"),
        (head(parameters={"binary_data_size": 10}), None), (head(parameters={"binary_data_size": -1}), None),
        (head(parameters={"binary_data_size": "4"}), None), (head(parameters={"binary_data_size": True}), None),
        (head() + b"tail", str(len(head()))),
        (head(data=None, parameters={"binary_data_size": 3}) + b"abc",
         str(len(head(data=None, parameters={"binary_data_size": 3})))),
        (head(data=None, parameters={"binary_data_size": 8}) + b"\xff\xff\xff\xffabcd",
         str(len(head(data=None, parameters={"binary_data_size": 8})))),
    ],
)  # fmt: skip
def test_wrong_bodies_get_a_sentence(box: Box, body: bytes, header: str | None) -> None:
    try:
        found = post(box, body, header)
    except UnicodeEncodeError:  # http.client refuses to send it; the box would not see it either
        return
    assert 400 <= found.status < 500, (found.status, found.body)
    assert found.json["error"]


SOME = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["photo", "class"]) | SOME,
        "shape": st.lists(st.integers(-2, 5), max_size=5) | SOME,
        "datatype": st.sampled_from(["BYTES", "UINT8", "FP32", "BOOL", "INT32"]) | SOME,
        "data": SOME,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-2, 40) | SOME}) | SOME,
    },
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ENTRY, max_size=3) | SOME, st.binary(max_size=48), st.integers(-1, 3))
def test_the_parser_says_bad_request_or_gives_what_the_shapes_say(inputs: Any, tail: bytes, off: int) -> None:
    text = json.dumps({"inputs": inputs}).encode()
    try:
        _, found = tensors.read_request(text + tail, str(len(text) + off) if off >= 0 else None)
    except BadRequest:
        return
    for value in found.values():
        assert len(value) > 0
        assert isinstance(value, list) or value.dtype in tensors.DTYPES.values()


def test_null_parameters_are_none(box: Box) -> None:
    """Some clients write every optional field, as null."""
    asked = json.loads(head())
    asked["parameters"] = None
    asked["inputs"] = [{**entry, "parameters": None} for entry in asked["inputs"]]
    asked["outputs"] = [{"name": "pred_score", "parameters": None}]
    found = post(box, json.dumps(asked).encode())
    assert found.status == 200, found.body
    assert [entry["name"] for entry in found.json["outputs"]] == ["pred_score"]


def test_what_is_written_can_be_read_back() -> None:
    values: dict[str, Any] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": [b"one", b"", b"three"],
        "c": np.array([True]),
    }
    body, length = tensors.write_response({}, values, ["a", "b", "c"])
    text = json.loads(body[:length])
    swapped = json.dumps({"inputs": text["outputs"]}).encode()
    _, found = tensors.read_request(swapped + body[length:], str(len(swapped)))
    assert np.array_equal(found["a"], values["a"])
    assert found["b"] == values["b"]
    assert found["c"].tolist() == [True]  # type: ignore[union-attr]
