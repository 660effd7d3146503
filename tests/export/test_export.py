"""Export: every graph proves itself, the bundle's detector agrees with torch, nothing is said on the way."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline
from torch import Tensor, nn

from anomalysd_edge.bundle.detector_factory import detector_of
from anomalysd_edge.bundle.manifest import BaseRecord, SourceRecord
from anomalysd_edge.bundle.reader import Bundle, prompt_key
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.errors import BundleError, ParityError, RunError, SettingsError
from anomalysd_edge.method.networks import NetworkSizes
from anomalysd_edge.method.settings import InspectSettings
from anomalysd_edge.training.models.base import load_base
from anomalysd_edge.training.models.features import DenseFeatures
from anomalysd_edge.training.models.hub import quiet
from anomalysd_edge.training.models.perceptual import AlexPerceptual
from anomalysd_edge.training.models.torch_networks import TorchNetworks
from anomalysd_export import onnx_export
from anomalysd_export.export_source import ExportSource
from anomalysd_export.exporting import export_trained
from anomalysd_export.graphs import GraphSpec, TensorSpec, graph_specs, run_torch
from anomalysd_export.onnx_export import export_graph
from anomalysd_export.parity import prove
from anomalysd_runtime.onnx.networks import OnnxNetworks
from anomalysd_runtime.onnx.sessions import open_session
from tests.support.tiny_models import TINY_PX, tiny_base

pytestmark = pytest.mark.slow

PRESETS = {"edge": InspectSettings(scales=(2, 4), passes=2), "other": InspectSettings(scales=(2,), passes=1)}


class Half(nn.Module):
    """(N,C,4) and a gain -> (N,C,4): enough to be exported in a second."""

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def half_spec(x: str = "x", batch: int | str = "batch", tolerance: float = 1e-6) -> GraphSpec:
    return GraphSpec(
        "half", (TensorSpec(x, (batch, 3, 4)),), (TensorSpec("y", (batch, 3, 4)),), lambda m: m, tolerance=tolerance
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> ExportSource:
    base = load_base(tiny_base(tmp_path_factory.mktemp("base")))
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    shots = [np.clip(rng.normal(120, 30, (40, 40, 3)), 0, 255).astype(np.uint8) for _ in range(2)]
    return ExportSource(
        base=base,
        origin=BaseRecord("tiny", base.sha256),
        size_px=TINY_PX,
        perceptual=AlexPerceptual("lpips_alex"),
        features=DenseFeatures(),
        perceptual_source=SourceRecord("lpips_alex", "random"),
        features_source=SourceRecord("efficientnet_lite2", "random"),
        shots={"bottle": shots, "screw": []},
        specs={
            "bottle": ClassSpec("bottle", "bottle", parts=("neck", "rim")),
            "screw": ClassSpec("screw", "screw"),
        },
        training={"settings": {"steps": 0}},
    )


@pytest.fixture(scope="module")
def exported(trained: ExportSource, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    """The bundle of a whole export, and the phases that it reported."""
    told: list[str] = []
    bundle = export_trained(
        trained,
        tmp_path_factory.mktemp("out") / "bundle",
        presets=PRESETS,
        calibration=CalibrationSettings(bank_size=64, negatives=2),
        threads=1,
        progress=lambda phase, done, total, detail: told.append(f"{phase} {done}/{total} {detail}"),
    )
    return bundle, told


def test_the_manifest_tells_all(exported: tuple[Bundle, list[str]]) -> None:
    bundle, told = exported
    manifest = bundle.manifest
    assert set(manifest.networks) == {"unet", "vae_encoder", "vae_decoder", "perceptual", "features"}
    for record in manifest.networks.values():
        assert 0 <= record.parity["max_abs"] <= record.tolerance
        assert record.parity["batch"] == 3
    assert manifest.networks["unet"].inputs[0].shape == ("batch", 9, 8, 8)
    assert manifest.networks["features"].outputs[0].shape == ("batch", 192, 32, 32)
    bottle, screw = manifest.classes["bottle"], manifest.classes["screw"]
    assert (bottle.shots, screw.shots) == (2, 0)
    assert bottle.prompts.detail == "A bottle with intact neck and rim."
    assert set(bottle.calibration) == {"edge"}
    assert bottle.calibration["edge"].threshold is not None
    assert screw.calibration == {}
    assert bundle.prototypes("screw") == []
    assert any("EfficientNet" in line or "efficientnet" in line for line in manifest.licenses)
    assert told[0] == "export 0/5 unet"
    assert "calibrate 2/2 done" in told


def test_prompt_states_are_diffusers(exported: tuple[Bundle, list[str]], trained: ExportSource) -> None:
    with quiet():
        pipeline = StableDiffusionInpaintPipeline.from_pretrained(trained.base.folder, safety_checker=None)
        expected, negative = pipeline.encode_prompt(
            "A bottle with intact neck and rim.", "cpu", 1, do_classifier_free_guidance=True, negative_prompt=""
        )
    constants = exported[0].constants
    np.testing.assert_allclose(constants[prompt_key("bottle", "detail")], expected[0].detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(constants["prompts/negative"], negative[0].detach().numpy(), atol=1e-6)


def test_the_bundle_agrees_with_torch(exported: tuple[Bundle, list[str]], trained: ExportSource) -> None:
    """The same Detector over torch and over ONNX Runtime: scores, maps and verdicts, batch of one included."""
    bundle, base = exported[0], trained.base
    rng = np.random.default_rng(1)
    photos = [rng.integers(0, 256, (50, 37, 3), dtype=np.uint8) for _ in range(3)]
    torch_networks = TorchNetworks(base.unet, base.vae, trained.perceptual, trained.features, size_px=TINY_PX)
    with torch_networks, OnnxNetworks.of_bundle(bundle, threads=1, max_batch=5) as onnx_networks:
        left = detector_of(bundle, torch_networks).inspect(photos, "bottle")
        right = detector_of(bundle, onnx_networks).inspect(photos, "bottle")
        for a, b in zip(left, right, strict=True):
            assert a.pred_score == pytest.approx(b.pred_score, abs=1e-4)
            assert a.pred_label == b.pred_label
            np.testing.assert_allclose(a.anomaly_map, b.anomaly_map, atol=1e-3)
        other = dataclasses.replace(bundle.manifest, sizes=dataclasses.replace(bundle.manifest.sizes, size_px=64))
        with pytest.raises(BundleError, match=r"size_px=64.*but the networks are of"):
            detector_of(dataclasses.replace(bundle, manifest=other), onnx_networks)


def test_the_unet_takes_any_batch(exported: tuple[Bundle, list[str]], trained: ExportSource) -> None:
    """diffusers branches at a batch of 64, and a batch of 1 is what torch.export likes to freeze."""
    spec = graph_specs(exported[0].manifest.sizes, 32)["unet"]
    session = open_session(exported[0].network_file("unet"), "cpu", 1, "unet")
    for batch in (1, 65):
        inputs = spec.example(5, first=batch)
        expected = run_torch(spec.wrap(trained.base.unet), spec, inputs)["out_sample"]
        np.testing.assert_allclose(session.run(None, inputs)[0], expected, atol=1e-5)


def test_exporting_says_nothing(
    trained: ExportSource, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sizes = NetworkSizes(TINY_PX, 4, 4, 64)
    spec = graph_specs(sizes, 32)["vae_decoder"]
    module = export_graph(spec, trained.base.vae, tmp_path / "model.onnx")
    out, err = capfd.readouterr()
    assert (out, err, [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]) == ("", "", [])
    proof = prove(spec, module, tmp_path / "model.onnx")
    assert proof.max_abs <= 1e-5
    loud = run_torch(module, spec, {"latent_sample": np.full((2, 4, 8, 8), 1e3, np.float32)})["sample"]
    assert np.abs(loud).max() <= 1  # clipped inside the graph


def test_kl_encoder_gives_the_scaled_mode(tmp_path: Path) -> None:
    vae = load_base(tiny_base(tmp_path / "kl", vae="kl")).vae
    spec = graph_specs(NetworkSizes(TINY_PX, 4, 4, 64), 32)["vae_encoder"]
    module = export_graph(spec, vae, tmp_path / "model.onnx")
    assert prove(spec, module, tmp_path / "model.onnx").max_abs <= spec.tolerance
    inputs = spec.example(7, first=1)
    (found,) = open_session(tmp_path / "model.onnx", "cpu", 1, "vae_encoder").run(None, inputs)
    with torch.no_grad():
        mean = vae.encode(torch.from_numpy(inputs["sample"])).latent_dist.mean * 0.18215
    np.testing.assert_allclose(found, mean.numpy(), atol=1e-5)


def test_large_weights_lie_outside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "INLINE_BYTES", 8)
    # Small tensors stay inline whatever the option: only large ones are worth a file.
    spec = GraphSpec("lin", (TensorSpec("x", ("batch", 64)),), (TensorSpec("y", ("batch", 64)),), lambda m: m)
    module = export_graph(spec, nn.Linear(64, 64), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size >= 64 * 64 * 4
    assert prove(spec, module, tmp_path / "model.onnx").max_abs <= 1e-5
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_the_proof_finds_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    module = export_graph(half_spec(), Half(), file)
    assert prove(half_spec(), module, file).max_abs == 0
    with pytest.raises(
        ParityError, match=r"'half' differs between torch and ONNX Runtime by \d\.\d\de-0\d \(batch 3\)"
    ):
        prove(half_spec(), Half(0.51), file)
    with pytest.raises(ParityError, match="NaN or Inf in torch"):
        prove(half_spec(), Half(float("nan")), file)
    with pytest.raises(ParityError, match=r"has the inputs \['x'\], expected \['photo'\]"):
        prove(half_spec("photo"), module, file)
    with pytest.raises(ParityError, match=r"declares x as \['batch', 3, 4\], expected \[3, 3, 4\]"):
        prove(half_spec(batch=3), module, file)


def test_a_frozen_batch_is_found(tmp_path: Path) -> None:
    module = export_graph(half_spec(batch=2), Half(), tmp_path / "model.onnx")
    with pytest.raises(ParityError, match=r"declares x as \[2, 3, 4\], expected \['batch', 3, 4\]"):
        prove(half_spec(), module, tmp_path / "model.onnx")


def test_nothing_is_left_of_an_export_that_fails(trained: ExportSource, tmp_path: Path) -> None:
    unet = Half(float("nan"))
    unet.config = trained.base.unet.config
    broken = dataclasses.replace(trained, base=dataclasses.replace(trained.base, unet=unet))
    with pytest.raises(RunError, match=r"cannot export the run's network 'unet' \(.*return_dict"):
        export_trained(broken, tmp_path / "bundle", presets=PRESETS)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SettingsError, match="'turbo', expected one or more of edge, other"):
        export_trained(trained, tmp_path / "bundle", presets=PRESETS, calibrated=("turbo",))
