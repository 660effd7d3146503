"""Five ONNX graphs small enough to be worked out in numpy, written without torch, and a bundle that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser

from anomalysd_edge.bundle.detector_factory import class_record, constant_tensors
from anomalysd_edge.bundle.manifest import BaseRecord, Manifest, NetworkRecord, Preprocessing, SourceRecord
from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.bundle.writer import write_bundle
from anomalysd_edge.core.types import F32
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.method.anomaly_map import MapScale
from anomalysd_edge.method.class_model import Calibration, ClassModel
from anomalysd_edge.method.networks import InpaintJob, NetworkSizes
from anomalysd_edge.method.patches.memory_bank import MemoryBank
from anomalysd_edge.method.score_model import Costs, ErrorRates, Limits, ScoreEvidence, ScoreModel
from anomalysd_edge.method.settings import InspectSettings

SIZES = NetworkSizes(size_px=16, latent_channels=4, latent_factor=4, features_px=32)
WIDTH = 8
"""D of the prompt states."""

_GRAPHS = {
    "unet": """unet (float[batch,9,4,4] sample, int64[batch] timestep, float[batch,77,8] encoder_hidden_states)
        => (float[batch,4,4,4] out_sample) {
        mixed = Conv(sample, unet_weight)
        time = Cast<to = 1>(timestep)
        part = Mul(time, thousandth)
        column = Reshape(part, column_shape)
        told = ReduceMean(encoder_hidden_states, token_axes)
        word = Unsqueeze(told, last_axis)
        timed = Add(mixed, column)
        worded = Add(timed, word)
        out_sample = Tanh(worded) }""",
    "vae_encoder": """vae_encoder (float[batch,3,16,16] sample) => (float[batch,4,4,4] latent_sample) {
        pooled = AveragePool<kernel_shape = [4,4], strides = [4,4]>(sample)
        latent_sample = Conv(pooled, encoder_weight) }""",
    "vae_decoder": """vae_decoder (float[batch,4,4,4] latent_sample) => (float[batch,3,16,16] sample) {
        colours = Conv(latent_sample, decoder_weight)
        large = Resize<mode = "nearest">(colours, , fourfold)
        sample = Clip(large, minus_one, one) }""",
    "perceptual": """perceptual (float[references,3,16,16] references, float[batch,3,16,16] repaints,
        int64[batch] reference_of) => (float[batch,16,16] distance) {
        chosen = Gather<axis = 0>(references, reference_of)
        apart = Sub(chosen, repaints)
        square = Mul(apart, apart)
        distance = ReduceSum<keepdims = 0>(square, channel_axis) }""",
    "features": """features (float[batch,3,32,32] image) => (float[batch,6,4,4] features) {
        pooled = AveragePool<kernel_shape = [8,8], strides = [8,8]>(image)
        raw = Conv(pooled, features_weight)
        features = LpNormalization<axis = 1, p = 2>(raw) }""",
}


@dataclass(frozen=True)
class Weights:
    """The three matrices and what else the graphs hold."""

    unet: F32
    encoder: F32
    decoder: F32
    features: F32


def weights() -> Weights:
    """(out,in) matrices of the 1x1 convolutions; always the same."""
    rng = np.random.default_rng(0)
    return Weights(*(rng.normal(0, 0.4, shape).astype(np.float32) for shape in ((4, 9), (4, 3), (3, 4), (6, 3))))


def write_graph(name: str, file: Path) -> Path:
    """Write one of the graphs to `file`."""
    w = weights()
    values: dict[str, Any] = {
        **{f"{key}_weight": getattr(w, key)[:, :, None, None] for key in ("unet", "encoder", "decoder", "features")},
        "thousandth": np.float32(1e-3),
        "column_shape": np.array([-1, 1, 1, 1]),
        "token_axes": np.array([1, 2]),
        "last_axis": np.array([-1]),
        "fourfold": np.array([1, 1, 4, 4], np.float32),
        "minus_one": np.float32(-1),
        "one": np.float32(1),
        "channel_axis": np.array([1]),
    }
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {_GRAPHS[name]}')
    used = {key for node in model.graph.node for key in node.input}
    for key in sorted(used & values.keys()):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values[key]), key))
    onnx.checker.check_model(model, full_check=True)
    file.write_bytes(model.SerializeToString())
    return file


def write_graphs(folder: Path) -> dict[str, Path]:
    """All five in `folder`, by network name."""
    return {name: write_graph(name, folder / f"{name}.onnx") for name in _GRAPHS}


def small_settings() -> InspectSettings:
    """Settings that fit a latent of 4 x 4 cells."""
    return InspectSettings(scales=(2, 4), passes=2)


THREE_WAY: dict[str, Any] = {
    "score_model": ScoreModel(-0.5, 0.4, 0.6, 0.5),
    "decision": Limits(1e-3, 1e3),
    "costs": Costs(),
    "expected": ErrorRates(0.125, 0.25),
    "evidence": ScoreEvidence((0.4, 0.5, 0.6, 0.7), (), (1.0, 2.0, 3.0)),
}
"""Fields of a calibration under which every photo of a few pixels is uncertain."""


def small_bundle(path: Path, **calibration: Any) -> Bundle:
    """A bundle of the five graphs that knows one class, 'bottle', with prototypes and a threshold; as 0.1.0 wrote it,
    but for `calibration`, further fields of the class's Calibration."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(9, 6)).astype(np.float32)
    states = rng.normal(size=(3, 77, WIDTH)).astype(np.float32)
    spec = ClassSpec("bottle", "bottle", parts=("neck",))
    scale = MapScale(0.1, 0.5)
    constants = ClassModel(
        prompts={"whole": states[0], "detail": states[1]},
        banks=(MemoryBank(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)),),
        guided=dict.fromkeys(("distance", "own", "reading"), 0.05),
        calibration=Calibration(0.75, 1.5, dict.fromkeys(("prototypes", "multiscale", "guided"), scale)),
    )
    constants = constants.calibrated(**calibration)
    with write_bundle(path) as writer:
        for name in _GRAPHS:
            write_graph(name, writer.network_file(name))
        manifest = Manifest(
            base=BaseRecord("small", "0" * 64),
            sizes=SIZES,
            prediction_type="epsilon",
            scheduler={"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012},
            classes={"bottle": class_record(spec, 4, {"edge": constants})},
            presets={"edge": small_settings().to_json(), "paper": small_settings().to_json()},
            preprocessing=Preprocessing(),
            networks={
                name: NetworkRecord(f"{name}/model.onnx", "float32", 18, (), (), 1e-4, {"max_abs": 0.0})
                for name in _GRAPHS
            },
            perceptual=SourceRecord("squared difference"),
            features=SourceRecord("means"),
        )
        writer.finish(manifest, constant_tensors({"bottle": constants}, states[2]))
    return read_bundle(path)


def random_job(count: int, guidance: float = 1.0) -> InpaintJob:
    """`count` slots of two prompts in three passes, for networks of SIZES; always the same."""
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> F32:
        return rng.normal(size=shape).astype(np.float32)

    return InpaintJob(
        start_latents=normal(count, 4, 4, 4),
        masks=(rng.random((count, 1, 4, 4)) < 0.5).astype(np.float32),
        masked_latents=normal(count, 4, 4, 4),
        prompt_states=normal(2, 77, WIDTH),
        prompt_of=rng.integers(0, 2, count),
        timesteps=np.array([399, 201, 7]),
        coefficients=np.array([[1.1, -0.3], [1.05, -0.2], [1.01, -0.1]], np.float32),
        guidance_scale=guidance,
        negative_states=normal(77, WIDTH) if guidance > 1 else None,
    )
