"""Providers by name: built in or as a package, the options that each gets, and no other one in silence."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from anomalysd_edge.bundle.backend_spec import KINDS
from anomalysd_edge.errors import BackendError, BundleError, MissingExtra
from anomalysd_runtime.onnx import providers
from anomalysd_runtime.onnx.networks import OnnxNetworks, _hints
from anomalysd_runtime.onnx.providers import EngineHints, add_provider, check_device
from anomalysd_runtime.onnx.sessions import open_session, trouble
from anomalysd_runtime.onnx.step_graph import step_graph
from tests.support.small_graphs import SIZES, random_job, small_bundle, write_graphs


class Options:
    """SessionOptions, as far as a provider of a package is added to it."""

    def __init__(self) -> None:
        self.added: list[tuple[list[Any], dict[str, str]]] = []

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.added.append((devices, options))


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An ONNX Runtime of CUDA, and a package of TensorRT for RTX; the libraries that were registered."""
    registered: list[str] = []

    def register(name: str, path: str) -> None:
        registered.append(path)
        devices.append(SimpleNamespace(ep_name=name))

    devices: list[Any] = [SimpleNamespace(ep_name="CPUExecutionProvider")]
    monkeypatch.setattr(ort, "get_available_providers", lambda: [
        "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"])  # fmt: skip
    monkeypatch.setattr(ort, "get_ep_devices", lambda: devices)
    monkeypatch.setattr(ort, "register_execution_provider_library", register)
    package = SimpleNamespace(get_ep_name=lambda: "NvTensorRTRTXExecutionProvider", get_library_path=lambda: "/rtx.so")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", package)
    monkeypatch.setattr(providers, "load_cuda_libraries", lambda tensorrt=False: "")
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    yield registered
    os.environ.pop("NVIDIA_TF32_OVERRIDE", None)


@pytest.mark.usefixtures("packages")
def test_tensorrt_keeps_what_it_built_and_computes_in_what_the_graph_says() -> None:
    hints = EngineHints(Path("/b/engines"), ("fp16",), {"sample": [(1, 16), (9, 9)], "timestep": [(1, 16)]})
    (name, own), (_, cuda), cpu = add_provider(Options(), "ort-tensorrt", "unet", hints)
    assert (name, cpu) == ("TensorrtExecutionProvider", "CPUExecutionProvider")
    assert own["trt_fp16_enable"] == own["trt_engine_cache_enable"] == own["trt_timing_cache_enable"] == "1"
    assert own["trt_engine_cache_path"] == "/b/engines"
    assert own["trt_profile_min_shapes"] == "sample:1x9,timestep:1"
    assert own["trt_profile_max_shapes"] == own["trt_profile_opt_shapes"] == "sample:16x9,timestep:16"
    assert cuda["use_tf32"] == "0"
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0", "TensorRT's provider has no option for it"
    plain = add_provider(Options(), "ort-tensorrt", "unet", EngineHints())[0][1]
    assert plain == {"device_id": "0"}, "float32 is built as float32"


def test_a_package_is_registered_once_and_asked_by_name(packages: list[str]) -> None:
    options = Options()
    assert add_provider(options, "ort-rtx", "unet", EngineHints(Path("/c"), (), {"x": [(1, 4)]})) == []
    ((devices, own),) = options.added
    assert [device.ep_name for device in devices] == ["NvTensorRTRTXExecutionProvider"]
    assert own["nv_runtime_cache_path"] == "/c"
    assert own["nv_profile_max_shapes"] == "x:4"
    check_device("ort-rtx")
    assert packages == ["/rtx.so"]


def test_a_package_without_a_device_or_a_library_is_an_error(
    packages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "register_execution_provider_library", lambda _name, _path: None)
    with pytest.raises(BackendError, match=r"NvTensorRTRTX.* finds no device here \(there are CPUExecutionProvider\)"):
        check_device("ort-rtx")

    def fails(_name: str, _path: str) -> None:
        raise RuntimeError("libcuda.so.1: cannot open shared object file\nmore")

    monkeypatch.setattr(ort, "register_execution_provider_library", fails)
    with pytest.raises(BackendError, match=r"cannot load its package .*libcuda\.so\.1.*; install the driver"):
        check_device("ort-rtx")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_webgpu", None)
    with pytest.raises(MissingExtra, match=r"onnxruntime-ep-webgpu.*anomalysd-edge\[webgpu\]"):
        check_device("webgpu")
    assert packages == []


def test_cuda_libraries_of_pip_are_loaded_before_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def preload() -> None:
        order.append("preload")
        sys.stdout.write("Failed to load libcublasLt.so.13: no such file\n")

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", preload, raising=False)

    def start(*_: Any, **__: Any) -> Any:
        order.append("session")
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", start)
    providers.load_cuda_libraries.cache_clear()
    try:
        with pytest.raises(
            BackendError, match=r"started CPUExecutionProvider instead.*libcublasLt\.so\.13.*edge\[gpu\]"
        ):
            open_session(step_graph(False), "cuda", 1, "step")
    finally:
        providers.load_cuda_libraries.cache_clear()
    assert order == ["preload", "session"]


def test_trouble_is_found_by_running_something(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trouble("cpu") is None
    missing = trouble("cuda")
    assert missing is None or "CUDAExecutionProvider" in missing
    monkeypatch.setattr("anomalysd_runtime.onnx.sessions.run_bound", lambda *_: None)
    zeros = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, 1, 1), np.float32))
    monkeypatch.setattr("anomalysd_runtime.onnx.sessions.empty_on", lambda _device, _shape: zeros)
    assert "wrong" in str(trouble("cpu"))


def test_hints_come_from_the_manifest(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    hints = _hints(bundle, 16, "int8")
    assert hints["unet"].types == ("fp16", "int8")
    assert hints["unet"].cache == bundle.path / "engines/onnxruntime"
    (bundle.path / "engines/onnxruntime").rmdir()
    (bundle.path / "engines").rmdir()
    (bundle.path / "engines").write_text("no folder")
    assert _hints(bundle, 16, "fp32")["unet"].cache is None


def test_openvino_agrees_with_onnx_runtimes_own_cpu(tmp_path: Path) -> None:
    """A provider of a package that needs no GPU: the whole way, with nothing stood in for."""
    pytest.importorskip(
        "onnxruntime_ep_openvino", reason="onnxruntime-ep-openvino is not installed: the extra openvino"
    )
    assert "openvino" in KINDS
    files = write_graphs(tmp_path)
    with OnnxNetworks(files, SIZES, threads=1) as right, OnnxNetworks(files, SIZES, "openvino", threads=1) as found:
        assert found.backend == "onnxruntime OpenVINOExecutionProvider"
        job = random_job(5, 7.5)
        np.testing.assert_allclose(found.inpaint(job), right.inpaint(job), atol=1e-5)
        photos = np.random.default_rng(1).uniform(-1, 1, (3, 3, 16, 16)).astype(np.float32)
        np.testing.assert_allclose(found.encode(photos), right.encode(photos), atol=1e-5)


def test_openvino_rounds_to_bfloat16_where_it_is_asked_to(tmp_path: Path) -> None:
    """It takes the exported graphs: a bundle needs no others. A processor without bfloat16 computes in float32."""
    pytest.importorskip(
        "onnxruntime_ep_openvino", reason="onnxruntime-ep-openvino is not installed: the extra openvino"
    )
    bundle = small_bundle(tmp_path / "bundle")
    with (
        OnnxNetworks.of_bundle(bundle, "cpu", 1) as right,
        OnnxNetworks.of_bundle(bundle, "openvino", 1, precision="bf16") as found,
    ):
        assert found.backend == "onnxruntime OpenVINOExecutionProvider bf16"
        job = random_job(5, 7.5)
        np.testing.assert_allclose(found.inpaint(job), right.inpaint(job), atol=0.05)


def test_who_rounds_by_itself_gets_the_exported_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    opened: list[tuple[Path, EngineHints]] = []
    monkeypatch.setattr("anomalysd_runtime.onnx.networks.check_device", lambda _device: None)

    def session(file: Path, _device: str, _threads: int, name: str, hints: EngineHints) -> object:
        opened.append((file, hints))
        return open_session(file, "cpu", 1, name)

    monkeypatch.setattr("anomalysd_runtime.onnx.networks.open_session", session)
    OnnxNetworks.of_bundle(bundle, "openvino", 1, precision="bf16").close()
    assert {file for file, _ in opened} == {bundle.network_file(name) for name in bundle.manifest.networks}
    assert {hints.types for _, hints in opened} == {("bf16",)}
    with pytest.raises(BundleError, match="has no bf16 graph"):
        OnnxNetworks.of_bundle(bundle, "cpu", 1, precision="bf16")
    options = {kind: providers._options("openvino", "unet", EngineHints(types=kind)) for kind in ((), ("bf16",))}
    assert "f32" in options[()]["load_config"]
    assert "bf16" in options["bf16",]["load_config"]
