"""Exports of other sizes, static batches and half precisions; what a run asks of its presets and prompts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anomalysd_edge.bundle.manifest import BaseRecord, SourceRecord
from anomalysd_edge.bundle.reader import prompt_key
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.errors import ParityError, SettingsError
from anomalysd_edge.method.networks import NetworkSizes
from anomalysd_edge.method.settings import PAPER, InspectSettings
from anomalysd_edge.training.models.base import check_size, load_base
from anomalysd_edge.training.prompt_tuning import context_states, initial_contexts
from anomalysd_export.engines.lowering import LARGEST, lower
from anomalysd_export.engines.ranges import examples, prove_half, wide_tensors
from anomalysd_export.export_source import ExportSource
from anomalysd_export.exporting import ExportSettings, export_trained
from anomalysd_export.graphs import graph_specs
from anomalysd_export.onnx_export import export_graph
from anomalysd_export.static_graphs import EXTERNAL_BYTES
from anomalysd_runtime.onnx.sessions import open_session
from tests.support.tiny_models import TINY_PX, tiny_base

PRESETS = {"edge": InspectSettings(scales=(2,), passes=1), "paper": dataclasses.replace(PAPER, scales=(1,))}
FEW = CalibrationSettings(bank_size=16, negatives=1)


class SmallDistance(nn.Module):
    """In LPIPS's place: the same interface, exported in a second."""

    def forward(self, references: Tensor, repaints: Tensor, reference_of: Tensor) -> Tensor:
        return (repaints - references[reference_of]).square().mean(1)


class SmallFeatures(nn.Module):
    """In EfficientNet's place: unit vectors of 8 x 8 blocks."""

    side = 256

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 12, 8, stride=8)

    def forward(self, image: Tensor) -> Tensor:
        return functional.normalize(self.mix(image), dim=1)


@pytest.fixture
def trained(tmp_path: Path) -> ExportSource:
    base = load_base(tiny_base(tmp_path / "base", vae="kl"))
    torch.manual_seed(0)
    return ExportSource(
        base=base,
        origin=BaseRecord("tiny", base.sha256),
        size_px=TINY_PX,
        perceptual=SmallDistance(),
        features=SmallFeatures(),
        perceptual_source=SourceRecord("small", ""),
        features_source=SourceRecord("small", ""),
        shots={"nut": []},
        specs={"nut": ClassSpec("nut", "nut", parts=("thread",))},
    )


@pytest.mark.slow
def test_size_static_batches_and_halves_in_one_export(tmp_path: Path, trained: ExportSource) -> None:
    context = initial_contexts(trained.base, trained.specs, 2)["context/nut"].detach() + 0.3
    expected = context_states(trained.base, ["A perfect nut."], context[None])[0]
    told = dataclasses.replace(trained, contexts={"nut": context}, round_trip=True, few_steps=(0.4, 2))
    graphs = ExportSettings(size_px=48, batches=(1, 4), precisions=("fp32", "fp16"))
    bundle = export_trained(
        told, tmp_path / "bundle", presets=PRESETS, calibration=FEW, threads=1, graphs=graphs, consume=True
    )
    manifest = bundle.manifest
    assert manifest.sizes == NetworkSizes(48, 4, 4, 256)
    assert trained.base.unet is None, "networks go as they are exported"
    for name, record in manifest.networks.items():
        assert set(record.static) == {"1", "4"}
        for file in record.static.values():
            model = onnx.load(str(bundle.path / file), load_external_data=False)
            graph = model.graph
            axes = [axis for value in (*graph.input, *graph.output) for axis in value.type.tensor_type.shape.dim]
            assert not any(axis.dim_param for axis in axes)
            inline = [len(entry.raw_data) for entry in graph.initializer]
            assert max(inline, default=0) < EXTERNAL_BYTES, f"the sizes of {name} share their weights' file"
        files = {"any": record.file, **record.static, "half": manifest.precisions["fp16"].networks[name].file}
        for size, file in files.items():
            model = onnx.load(str(bundle.path / file), load_external_data=False)
            said = {entry.key: entry.value for entry in model.metadata_props}
            assert model.producer_name == said["product"] == "anomalysd-edge"
            assert said["precision"] == ("fp16" if size == "half" else "fp32")
            assert said["batch"] == (size if size in record.static else "any")
            assert (said["network"], said["size_px"], said["base"]) == (name, "48", "tiny")
            assert said["role"] in model.doc_string
            assert "2408.01960" in said["method"]
            assert all(value.doc_string.endswith(said[f"input.{value.name}"]) for value in model.graph.input)
            licensed = "tiny, see its own license" if name in ("unet", "vae_encoder", "vae_decoder") else None
            assert said.get("license") == licensed, "a distance of the test's own names none"
    # The static UNet says what the graph of any batch says.
    spec = graph_specs(manifest.sizes, 32)["unet"]
    inputs = spec.example(3, first=4)
    any_batch = open_session(bundle.network_file("unet"), "cpu", 1, "unet").run(None, inputs)[0]
    static = open_session(bundle.path / manifest.networks["unet"].static["4"], "cpu", 1, "unet").run(None, inputs)[0]
    np.testing.assert_allclose(static, any_batch, atol=1e-6)
    variants = manifest.precisions["fp16"].networks
    assert all(variant.max_abs is not None and variant.max_abs < 0.05 for variant in variants.values())
    np.testing.assert_allclose(bundle.constants[prompt_key("nut", "whole")], expected.numpy(), atol=1e-6)
    assert {settings["reference"] for settings in manifest.presets.values()} == {"round_trip"}
    assert (manifest.presets["paper"]["passes"], manifest.presets["paper"]["grid_steps"]) == (2, 0)
    assert manifest.presets["paper"]["strength"] == 0.4
    assert manifest.presets["edge"]["strength"] == PRESETS["edge"].strength, "one pass is not made two"


@pytest.mark.slow
def test_wrong_words_are_refused(tmp_path: Path, trained: ExportSource) -> None:
    with pytest.raises(SettingsError, match="the size is 50 px, expected a multiple of 8"):
        export_trained(trained, tmp_path / "bundle", presets=PRESETS, graphs=ExportSettings(size_px=50))
    for wrong in ({"batches": (0,)}, {"batches": (2, 2)}, {"precisions": ("fp32", "int8")}):
        with pytest.raises(SettingsError):
            ExportSettings(**wrong)
    assert not (tmp_path / "bundle").exists()
    eightfold = dataclasses.replace(trained.base, vae=_Eightfold())
    for side in range(256, 769, 64):
        check_size(eightfold, side)
    for side in (192, 300, 832):
        with pytest.raises(SettingsError, match="expected 256 to 768 in steps of"):
            check_size(eightfold, side)


class _Eightfold:
    class config:
        block_out_channels = (1, 1, 1, 1)


def decoder_graph(folder: Path, scale: float) -> Path:
    """A KL decoder whose first convolution is `scale` times as large: norms take it out again, float16 does not."""
    vae: Any = load_base(tiny_base(folder / "base", vae="kl")).vae
    with torch.no_grad():
        vae.decoder.conv_in.weight.mul_(scale)
    spec = graph_specs(NetworkSizes(TINY_PX, 4, 4, 64), 32)["vae_decoder"]
    export_graph(spec, vae, folder / "exact.onnx")
    return folder / "exact.onnx"


def lowered_graph(file: Path, wide: set[str]) -> tuple[Path, int]:
    made = lower(onnx.load(str(file)), "vae_decoder", "fp16", wide)
    target = file.with_name(f"half-{len(wide)}.onnx")
    onnx.save(made.model, str(target))
    return target, len(made.islands)


@pytest.mark.slow
def test_a_vae_that_overflows_gets_islands(tmp_path: Path) -> None:
    file = decoder_graph(tmp_path, 1e6)
    inputs = examples(onnx.load(str(file)))
    plain, few = lowered_graph(file, set())
    with pytest.raises(ParityError, match="gives NaN or Inf"):
        prove_half(file, plain, "vae_decoder", inputs)
    wide = wide_tensors(onnx.load(str(file)), "vae_decoder", inputs)
    assert wide
    mended, more = lowered_graph(file, wide)
    assert more > few
    proof = prove_half(file, mended, "vae_decoder", inputs)
    assert proof.max_abs < 0.02 * proof.largest
    nodes = len(onnx.load(str(file)).graph.node)
    assert more < nodes / 2, "islands, not the whole graph"


@pytest.mark.slow
def test_an_ordinary_vae_keeps_half_precision(tmp_path: Path) -> None:
    file = decoder_graph(tmp_path, 1.0)
    inputs = examples(onnx.load(str(file)))
    assert not wide_tensors(onnx.load(str(file)), "vae_decoder", inputs)
    assert prove_half(file, lowered_graph(file, set())[0], "vae_decoder", inputs).max_abs < 0.02
    everything = wide_tensors(onnx.load(str(file)), "vae_decoder", inputs, limit=0.0)
    assert len(everything) > 50, "every float tensor is measured"


@pytest.mark.slow
def test_weights_beyond_float16_are_not_clipped(tmp_path: Path) -> None:
    file = decoder_graph(tmp_path, 1e6)
    model = onnx.load(str(file))
    largest = max(
        float(np.abs(onnx.numpy_helper.to_array(entry)).max())
        for entry in model.graph.initializer
        if entry.data_type == onnx.TensorProto.FLOAT
    )
    assert largest > LARGEST
    made = lower(model, "vae_decoder", "fp16")
    kept = [entry for entry in made.model.graph.initializer if entry.data_type == onnx.TensorProto.FLOAT]
    assert max(float(np.abs(onnx.numpy_helper.to_array(entry)).max()) for entry in kept) == largest
