"""Precision graphs in a bundle: named, checked, replaced as a whole, and served only as the gate allows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

from anomalysd_edge.bundle.backend_spec import backend_choice, check_served
from anomalysd_edge.bundle.engine_records import GateRecord, PrecisionRecord
from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.bundle.update import read_manifest, write_manifest, writing
from anomalysd_edge.errors import BackendError, BundleError, SettingsError
from anomalysd_edge.workflows.build import BuildRequest, build
from anomalysd_export.engines import precisions
from anomalysd_export.engines.precisions import PrecisionSettings, graph_digest, make_precision
from anomalysd_runtime.loading import open_detector
from anomalysd_runtime.onnx.sessions import open_session

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)
GATE = GateRecord("a", "b", 3, 0, 0.0, None, 0, 0.002, True)


def made(bundle: Bundle, precision: str = "fp16", quantised: tuple[str, ...] = ("unet",)) -> Bundle:
    with writing(bundle.path):
        return make_precision(bundle, PrecisionSettings(precision, quantised), [("bottle", PHOTO)], 1)


def test_it_is_listed_checked_and_inspected(bundle: Bundle) -> None:
    found = made(bundle)
    record = found.manifest.precisions["fp16"]
    listed = {entry.path for entry in found.manifest.files}
    for name, variant in record.networks.items():
        assert variant.file in listed
        assert found.graph_sha256(name, "fp16") == variant.sha256 == graph_digest(found.path / variant.file)
    right, half = (open_detector(found.path, backend=text, threads=1) for text in ("cpu", "cpu:fp16"))
    with right, half:
        scores = [d.inspect([PHOTO], "bottle")[0] for d in (right, half)]
    assert scores[1].pred_score == pytest.approx(scores[0].pred_score, rel=1e-2)
    assert scores[1].pred_score != scores[0].pred_score, "the float32 graphs ran"
    assert scores[1].backend == "onnxruntime CPUExecutionProvider fp16"
    (found.path / record.networks["unet"].file).write_bytes(b"cut")
    with pytest.raises(BundleError, match=r"precisions/fp16-.*unet\.onnx has 3 bytes"):
        read_bundle(found.path)


def test_a_new_one_replaces_the_old_and_drops_its_verdict(bundle: Bundle) -> None:
    first = made(bundle)
    manifest = first.manifest
    marked = replace(manifest.precisions["fp16"], gates={"cpu": replace(GATE, passed=False)})
    write_manifest(first.path, replace(manifest, precisions={"fp16": marked}))
    with pytest.raises(BackendError, match="the gate refused fp16"):
        open_detector(first.path, backend="cpu:fp16", threads=1)
    open_detector(first.path, backend="cpu:fp16", threads=1, force=True).networks.close()
    second = made(read_bundle(first.path))
    assert second.manifest.precisions["fp16"].gates == {}
    assert [entry.name[:5] for entry in (second.path / "precisions").iterdir()] == ["fp16-"]
    read_bundle(second.path)


def test_int8_is_calibrated_on_what_the_networks_see(bundle: Bundle) -> None:
    record = made(bundle, "int8", ("vae_encoder", "features")).manifest.precisions["int8"]
    with open_detector(bundle.path, threads=1) as detector:
        assert record.calibration["timesteps"] == list(detector.steps.timesteps)
    assert record.calibration["classes"] == ["bottle"]
    assert record.calibration["samples"]["unet"] > 2
    assert {name: variant.quantised_nodes for name, variant in record.networks.items()} == {
        "unet": 0, "vae_encoder": 1, "vae_decoder": 0, "perceptual": 0, "features": 1,
    }  # fmt: skip
    with pytest.raises(BackendError, match=r"int8 in .* has not passed the gate yet"):
        open_detector(bundle.path, backend="cpu:int8", threads=1)


def test_a_failure_leaves_the_bundle_as_it_was(bundle: Bundle) -> None:
    before = (bundle.path / "manifest.json").read_bytes()
    with pytest.raises(SettingsError, match="no network 'decoder'"):
        made(bundle, "int8", ("decoder",))
    with pytest.raises(SettingsError, match="'edge' never runs the network 'perceptual'"):
        made(bundle, "int8", ("unet", "perceptual"))
    assert (bundle.path / "manifest.json").read_bytes() == before
    assert not list((bundle.path / "precisions").iterdir())


def test_a_precision_that_is_not_there_names_the_command(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no fp16 graph of 'unet', it has fp32: make it with 'sd-edge build .*fp16'"):
        open_detector(bundle.path, backend="cpu:fp16", threads=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [("abacus", "'abacus' is unknown"), ("cpu:fp12", "precision 'fp12' is unknown"), (":fp16", "'' is unknown")],
)
def test_unknown_backends(text: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        backend_choice(text)


def test_a_verdict_speaks_for_its_own_backend(bundle: Bundle) -> None:
    record = made(bundle).manifest.precisions["fp16"]
    refused, passed = replace(GATE, passed=False), GATE
    here, there = backend_choice("cpu:fp16"), backend_choice("cuda:fp16")
    check_served(here, record, "b")
    with pytest.raises(BackendError, match="refused"):
        check_served(there, replace(record, gates={"cpu": refused}), "b")
    check_served(there, replace(record, gates={"cpu": refused, "cuda": passed}), "b")
    check_served(backend_choice("cpu:int8"), replace(record, gates={"cpu": passed}), "b")


def test_a_gate_without_graphs_is_of_a_backend_that_rounds_by_itself(bundle: Bundle) -> None:
    """OpenVINO makes bfloat16 of the exported graphs: its verdict is on record, and graphs are made when asked for."""
    refused = PrecisionRecord({}, gates={"openvino": replace(GATE, passed=False)})
    write_manifest(bundle.path, replace(bundle.manifest, precisions={"bf16": refused}))
    found = read_bundle(bundle.path)
    with pytest.raises(BackendError, match="the gate refused bf16"):
        check_served(backend_choice("openvino:bf16"), found.manifest.precisions["bf16"], "b")
    with pytest.raises(BundleError, match="no bf16 graph of 'unet', it has fp32: make it"):
        found.network_file("unet", "bf16")
    assert build(BuildRequest(bundle=bundle.path, engine="onnx", precision="bf16"), lambda *_: None).made_graphs
    assert read_bundle(bundle.path).network_file("unet", "bf16").is_file()


def test_manifests_of_before_are_read(bundle: Bundle) -> None:
    file = bundle.path / "manifest.json"
    value = json.loads(file.read_text())
    del value["precisions"], value["engines"]
    file.write_text(json.dumps(value))
    assert read_bundle(bundle.path).manifest.precisions == {}


def test_two_writers_at_once(bundle: Bundle) -> None:
    with writing(bundle.path):
        with (
            pytest.raises(BundleError, match=r"being written by another process \(process \d+\)"),
            writing(bundle.path),
        ):
            pass
        assert read_manifest(bundle.path).precisions == {}
    with writing(bundle.path):
        pass


def test_large_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Stable Diffusion's UNet needs: readable, covered by the digest, the same numbers."""
    monkeypatch.setattr(precisions, "INLINE_BYTES", 100)
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[batch,64] x) => (float[batch,64] y) { y = MatMul(x, w) }'
    )
    weights = rng.normal(size=(64, 64)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    file = tmp_path / "g.onnx"
    precisions.save_graph(model, file)
    data = tmp_path / "g.onnx.data"
    assert data.stat().st_size >= weights.nbytes
    assert data.stat().st_mode & 0o777 == file.stat().st_mode & 0o777
    x = rng.normal(size=(3, 64)).astype(np.float32)
    found = open_session(file, "cpu", 1, "g").run(None, {"x": x})[0]
    np.testing.assert_allclose(found, x @ weights, atol=1e-5)
    before = graph_digest(file)
    data.write_bytes(data.read_bytes()[:-1] + b"!")
    assert graph_digest(file) != before
