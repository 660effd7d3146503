"""The repository against Triton's own schema, and the Python model behind a stand-in for Triton's interface.

The stand-in runs the repository's graphs in ONNX Runtime and holds every call against config.pbtxt, as a server would.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from anomalysd_edge.bundle.backend_spec import BackendChoice
from anomalysd_edge.bundle.manifest import NetworkRecord, TensorRecord
from anomalysd_edge.bundle.open_options import OpenOptions
from anomalysd_edge.bundle.reader import Bundle, read_bundle
from anomalysd_edge.bundle.update import write_manifest
from anomalysd_edge.errors import BundleError, SettingsError
from anomalysd_edge.method.networks import InpaintJob
from anomalysd_edge.vision.images import decode_rgb
from anomalysd_export.triton.repository import TritonSettings, network_config, write_repository
from anomalysd_runtime.loading import open_detector
from anomalysd_runtime.onnx.networks import OnnxNetworks
from tests.support.command import sd_edge
from tests.support.serving import png
from tests.support.small_graphs import THREE_WAY, small_bundle

google_text = pytest.importorskip("google.protobuf.text_format")


def tritons_schema() -> Any:
    """tritonclient's model_config_pb2, by its file: importing its package would need grpc, which only calls need."""
    (folder,) = pytest.importorskip("tritonclient").__path__
    spec = importlib.util.spec_from_file_location("model_config_pb2", f"{folder}/grpc/model_config_pb2.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


model_config = tritons_schema()
NUMPY = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64}


def described(bundle: Bundle) -> Bundle:
    """The small bundle with its graphs' inputs and outputs in the manifest, as an export writes them."""

    def tensors(entries: Sequence[Any]) -> tuple[TensorRecord, ...]:
        kinds = {"tensor(float)": "float32", "tensor(int64)": "int64"}
        return tuple(TensorRecord(e.name, kinds[e.type], tuple(e.shape)) for e in entries)

    networks: dict[str, NetworkRecord] = {}
    for name, record in bundle.manifest.networks.items():
        session = onnxruntime.InferenceSession(bundle.network_file(name), providers=["CPUExecutionProvider"])
        networks[name] = replace(record, inputs=tensors(session.get_inputs()), outputs=tensors(session.get_outputs()))
    write_manifest(bundle.path, replace(bundle.manifest, networks=networks))
    return read_bundle(bundle.path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return described(small_bundle(tmp_path_factory.mktemp("triton") / "line"))


def configs(repository: Path) -> dict[str, Any]:
    """Every config.pbtxt, parsed by Triton's schema."""
    found = {}
    for file in sorted(repository.glob("*/config.pbtxt")):
        found[file.parent.name] = google_text.Parse(file.read_text(), model_config.ModelConfig())
    return found


@pytest.mark.parametrize("backend", ["cpu", "cuda", "ort-tensorrt"])
def test_the_repository_fits_tritons_schema(bundle: Bundle, tmp_path: Path, backend: str) -> None:
    names = write_repository(
        bundle, tmp_path / "models", TritonSettings(name="line", options=OpenOptions(backend=backend), instances=3)
    )
    found = configs(tmp_path / "models")
    assert set(found) == set(names)
    for name, config in found.items():
        assert config.name == name
        folder = tmp_path / "models" / name
        file = config.default_model_filename or "model.py"
        assert (folder / "1" / file).is_file()
        assert len(config.instance_group) == 1
    unet = found["line_unet"]
    assert unet.backend == "onnxruntime"
    assert unet.max_batch_size == (3 if backend == "cpu" else 16)
    assert unet.dynamic_batching.max_queue_delay_microseconds > 0
    shapes = {entry.name: list(entry.dims) for entry in unet.input}
    assert shapes == {"sample": [9, 4, 4], "timestep": [1], "encoder_hidden_states": [77, 8]}
    (times,) = [entry for entry in unet.input if entry.name == "timestep"]
    assert times.HasField("reshape")
    assert list(times.reshape.shape) == []
    kinds = model_config.ModelInstanceGroup.Kind
    assert kinds.Name(unet.instance_group[0].kind) == ("KIND_CPU" if backend == "cpu" else "KIND_GPU")
    accelerators = unet.optimization.execution_accelerators.gpu_execution_accelerator
    named = {entry.name: dict(entry.parameters) for entry in accelerators}
    assert list(named) == {"cpu": [], "cuda": ["cuda"], "ort-tensorrt": ["tensorrt", "cuda"]}[backend]
    if backend != "cpu":
        assert named["cuda"]["use_tf32"] == "0", "Triton's default rounds float32 to TF32"
        assert named["cuda"]["cudnn_conv_algo_search"] == "HEURISTIC", "and times every algorithm for every shape"
    if backend == "ort-tensorrt":
        assert named["tensorrt"]["precision_mode"] == "FP32"
        assert named["tensorrt"]["trt_engine_cache_path"].endswith("/line_unet")
    perceptual = found["line_perceptual"]
    assert perceptual.max_batch_size == 0, "references and repaints differ in number"
    assert not perceptual.HasField("dynamic_batching")
    assert [list(entry.dims) for entry in perceptual.input] == [[-1, 3, 16, 16], [-1, 3, 16, 16], [-1]]
    inspection = found["line"]
    assert (inspection.backend, inspection.max_batch_size, inspection.instance_group[0].count) == ("python", 4, 3)
    assert [entry.name for entry in inspection.input if entry.optional] == ["class"]
    # Again over it: replaced model by model, and other models are left alone.
    (tmp_path / "models/another/1").mkdir(parents=True)
    write_repository(bundle, tmp_path / "models", TritonSettings(name="line", options=OpenOptions(backend=backend)))
    assert configs(tmp_path / "models")["line"].instance_group[0].count == 2
    assert (tmp_path / "models/another/1").is_dir()


def test_pictures_come_in_batches_that_the_memory_holds() -> None:
    def record(side: int) -> NetworkRecord:
        picture = TensorRecord("sample", "float32", ("batch", 3, side, side))
        latents = TensorRecord("latent_sample", "float32", ("batch", 4, side // 8, side // 8))
        return NetworkRecord("vae_decoder/model.onnx", "float32", 18, (latents,), (picture,), 1e-4, {})

    settings = TritonSettings(name="line")
    for side, most in ((512, 4), (768, 1), (256, 16), (2048, 1)):
        config = network_config("n", "vae_decoder", record(side), "model.onnx", BackendChoice("cuda"), settings)
        assert config["max_batch_size"] == most, side


def test_what_cannot_be_a_repository_is_told(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="openvino is a package"):
        TritonSettings(name="line", options=OpenOptions(backend="openvino"))
    with pytest.raises(SettingsError, match="ort-tensorrt"):
        TritonSettings(name="line", options=OpenOptions(backend="tensorrt"))
    bare = small_bundle(tmp_path / "bare")
    with pytest.raises(BundleError, match="does not say what unet takes"):
        write_repository(bare, tmp_path / "models", TritonSettings(name="bare"))
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_the_command_writes_one_from_a_bundle(bundle: Bundle, tmp_path: Path) -> None:
    done = sd_edge("export", bundle.path, "--triton", tmp_path / "models", "--backend", "cpu", cwd=tmp_path)
    assert "tritonserver --model-repository" in done.stderr
    assert set(configs(tmp_path / "models")) == {"line", *(f"line_{name}" for name in bundle.manifest.networks)}
    refused = sd_edge("export", bundle.path, cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert "--triton DIR" in refused.stderr


@dataclass
class Tensor:
    """pb_utils.Tensor, as far as the model uses it."""

    name: str
    value: Any

    def as_numpy(self) -> Any:
        return self.value


class Interface(types.ModuleType):
    """A stand-in for triton_python_backend_utils over a repository."""

    def __init__(self, repository: Path) -> None:
        super().__init__("triton_python_backend_utils")
        self.repository, self.configs = repository, configs(repository)
        self.calls: list[tuple[str, int]] = []
        self.failing: str | None = None
        self.Tensor = Tensor
        self.TRITONSERVER_MEMORY_CPU = 0
        self.PreferredMemory = lambda kind, device: (kind, device)
        self.TritonError = lambda sentence: sentence
        self.InferenceRequest = self.request
        self.InferenceResponse = lambda output_tensors, error=None: types.SimpleNamespace(
            tensors={tensor.name: tensor.value for tensor in output_tensors}, error=error
        )

    def get_input_tensor_by_name(self, request: dict[str, Any], name: str) -> Tensor | None:
        return Tensor(name, request[name]) if name in request else None

    def get_output_tensor_by_name(self, response: Any, name: str) -> Tensor:
        return Tensor(name, response.found[name])

    def request(
        self, model_name: str, requested_output_names: list[str], inputs: list[Tensor], preferred_memory: Any
    ) -> Any:
        def run() -> Any:
            if self.failing == model_name:
                return types.SimpleNamespace(
                    has_error=lambda: True, error=lambda: types.SimpleNamespace(message=lambda: "out of memory")
                )
            feeds = self.feeds(model_name, inputs)
            config = self.configs[model_name]
            file = self.repository / model_name / "1" / config.default_model_filename
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            found = session.run(requested_output_names, feeds)
            return types.SimpleNamespace(
                has_error=lambda: False, found=dict(zip(requested_output_names, found, strict=True))
            )

        return types.SimpleNamespace(exec=run)

    def feeds(self, model_name: str, inputs: list[Tensor]) -> dict[str, Any]:
        """The inputs, held against the configuration; what it reshapes is reshaped."""
        config = self.configs[model_name]
        batch = config.max_batch_size
        lengths = set()
        feeds = {}
        known = {entry.name: entry for entry in config.input}
        assert {tensor.name for tensor in inputs} == set(known)
        for tensor in inputs:
            entry, value = known[tensor.name], tensor.value
            assert value.dtype == NUMPY[model_config.DataType.Name(entry.data_type)]
            assert value.flags.c_contiguous
            shape = value.shape[1:] if batch else value.shape
            assert len(shape) == len(entry.dims)
            assert all(dim in (-1, n) for dim, n in zip(entry.dims, shape, strict=True)), (model_name, shape)
            if batch:
                assert len(value) <= batch
                lengths.add(len(value))
            if entry.HasField("reshape"):
                value = value.reshape(len(value), *entry.reshape.shape)
            feeds[tensor.name] = value
        assert len(lengths) <= 1
        self.calls.append((model_name, len(inputs[0].value)))
        return feeds


@contextmanager
def loaded_model(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Interface, Any]]:
    """The stand-in and the model, loaded from the repository's own model.py as Triton does."""
    write_repository(bundle, tmp_path / "models", TritonSettings(name="line", options=OpenOptions(backend="cpu")))
    interface = Interface(tmp_path / "models")
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", interface)
    spec = importlib.util.spec_from_file_location("model", tmp_path / "models/line/1/model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    from google.protobuf import json_format

    text = json_format.MessageToJson(interface.configs["line"], preserving_proto_field_name=True)
    # Triton gives parameters as a map by key, which is what the schema says they are.
    model.initialize({"model_config": text, "model_repository": str(tmp_path / "models/line")})
    yield interface, model
    model.finalize()


@pytest.fixture
def server(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Interface, Any]]:
    """Of the two-way bundle."""
    with loaded_model(bundle, tmp_path, monkeypatch) as opened:
        yield opened


def request(*photos: bytes, name: bytes | None = b"bottle") -> dict[str, Any]:
    made: dict[str, Any] = {"photo": np.array([[photo] for photo in photos], object)}
    if name is not None:
        made["class"] = np.array([[name]] * len(photos), object)
    return made


def test_the_model_gives_the_scores_of_the_detector(bundle: Bundle, server: tuple[Interface, Any]) -> None:
    interface, model = server
    photos = [png(seed) for seed in range(4)]
    with open_detector(bundle.path, threads=1) as detector:
        expected = detector.inspect([decode_rgb(photo) for photo in photos], "bottle")
    answers = model.execute([request(photos[0], photos[1]), request(photos[2], name=None), request(photos[3])])
    assert [answer.error for answer in answers] == [None] * 3
    scores = np.concatenate([answer.tensors["pred_score"] for answer in answers])
    assert scores.shape == (4, 1)
    assert scores[:, 0].tolist() == [np.float32(each.pred_score) for each in expected]
    maps = np.concatenate([answer.tensors["anomaly_map"] for answer in answers])
    assert np.array_equal(maps, np.stack([each.anomaly_map for each in expected]))
    assert answers[0].tensors["verdict"].dtype == object
    asked = {name for name, _ in interface.calls}
    assert asked == {f"line_{network}" for network in ("unet", "vae_encoder", "vae_decoder", "features")}
    outputs = {entry.name: list(entry.dims) for entry in interface.configs["line"].output}
    assert set(answers[0].tensors) == set(outputs)
    for name, dims in outputs.items():
        shape = answers[0].tensors[name].shape[1:]
        assert all(dim in (-1, n) for dim, n in zip(dims, shape, strict=True)), name
    assert np.isnan(answers[0].tensors["limits"]).all(), "a bundle of 0.1.0 has none"
    assert np.isnan(answers[0].tensors["pred_probability"]).all()


def test_the_model_says_uncertain_and_between_which_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = described(small_bundle(tmp_path / "line", **THREE_WAY))
    with loaded_model(bundle, tmp_path, monkeypatch) as (_, model):
        (answer,) = model.execute([request(png(1), png(2))])
    with open_detector(bundle.path, threads=1) as detector:
        expected = detector.inspect([decode_rgb(png(seed)) for seed in (1, 2)], "bottle")
    assert answer.tensors["verdict"].tolist() == [[b"uncertain"]] * 2
    assert answer.tensors["limits"].tolist() == [[np.float32(1e-3), 1e3]] * 2
    assert answer.tensors["pred_probability"][:, 0].tolist() == [np.float32(a.pred_probability) for a in expected]
    assert answer.tensors["pred_label"][:, 0].tolist() == [int(a.pred_score >= 0.75) for a in expected]


def test_guidance_and_distance_are_those_of_onnx_runtime(bundle: Bundle, server: tuple[Interface, Any]) -> None:
    """What the preset does not use: the perceptual model, and a second pass with the negative prompt."""
    _, model = server
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    job = InpaintJob(
        start_latents=normal(19, 4, 4, 4),
        masks=(normal(19, 1, 4, 4) > 0).astype(np.float32),
        masked_latents=normal(19, 4, 4, 4),
        prompt_states=normal(2, 77, 8),
        prompt_of=np.arange(19) % 2,
        timesteps=np.array([200, 100]),
        coefficients=np.array([[0.9, -0.1], [0.8, -0.2]], np.float32),
        guidance_scale=3.0,
        negative_states=normal(77, 8),
    )
    references, repaints = (np.clip(normal(n, 3, 16, 16), -1, 1) for n in (2, 5))
    of = np.array([1, 0, 1, 1, 0])
    with OnnxNetworks.of_bundle(bundle, threads=1) as plain:
        served = model._detector.networks
        assert np.array_equal(served.inpaint(job), plain.inpaint(job))
        back = replace(job, history=normal(2, 3))
        assert np.array_equal(served.inpaint(back), plain.inpaint(back))
        assert np.array_equal(served.distance(references, repaints, of), plain.distance(references, repaints, of))


def test_a_bad_request_costs_itself_alone(server: tuple[Interface, Any]) -> None:
    interface, model = server
    fine, broken, unknown, count = model.execute(
        [
            request(png(0)),
            request(b"no photo"),
            request(png(1), name=b"cup"),
            {"photo": np.array([[png(0)]] * 3, object), "class": np.array([[b"bottle"]] * 2, object)},
        ]
    )
    assert fine.error is None
    assert "not an image" in broken.error
    assert "'cup' is not in this bundle" in unknown.error
    assert "3 photos came with 2 classes" in count.error
    interface.failing = "line_vae_decoder"
    (failed,) = model.execute([request(png(0))])
    assert "line_vae_decoder failed: out of memory" in failed.error


def test_damaged_constants_are_not_served(server: tuple[Interface, Any]) -> None:
    interface, model = server
    file = interface.repository / "line/bundle/constants.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    config = json.dumps({"parameters": {"networks": {"string_value": "line"}}, "max_batch_size": 4})
    with pytest.raises(BundleError, match="is not what its manifest says"):
        model.initialize({"model_config": config, "model_repository": str(interface.repository / "line")})
