"""What only a GPU can show: `pytest -m gpu` on a box that has one. Here each is skipped, with its reason."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from anomalysd_edge.profiling.hardware import EnergyMeter
from anomalysd_edge.workflows import doctor
from anomalysd_runtime.onnx.networks import OnnxNetworks
from anomalysd_runtime.onnx.sessions import open_session, trouble
from tests.support.gpu import need_cuda, need_cuda_bindings, open_breaking
from tests.support.serving import NAN, png, running_box, small_settings
from tests.support.small_graphs import SIZES, random_job, small_bundle, write_graphs

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_graphs(tmp_path_factory.mktemp("graphs"))


@pytest.fixture
def right(files: dict[str, Path]) -> Iterator[OnnxNetworks]:
    with OnnxNetworks(files, SIZES, threads=1) as opened:
        yield opened


def test_doctor_says_yes_where_cuda_runs() -> None:
    need_cuda()
    (found,) = (finding for finding in doctor.examine() if finding.what == "inspect on CUDA")
    assert found.able, found.because


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_cuda_agrees_with_the_cpu(files: dict[str, Path], right: OnnxNetworks, guidance: float) -> None:
    """Rows of timesteps and coefficients are bound by address there; TF32 would be a thousandth off."""
    need_cuda()
    with OnnxNetworks(files, SIZES, "cuda", max_batch=4) as opened:
        job = random_job(7, guidance)
        np.testing.assert_allclose(opened.inpaint(job), right.inpaint(job), atol=1e-4)
        photos = np.random.default_rng(0).uniform(-1, 1, (5, 3, 16, 16)).astype(np.float32)
        np.testing.assert_allclose(opened.encode(photos), right.encode(photos), atol=1e-5)
        assert opened.backend == "onnxruntime CUDAExecutionProvider"
        opened.probe()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_fused_attention_on_cuda_is_the_plain_one(tmp_path: Path, precision: str) -> None:
    need_cuda()
    from anomalysd_edge.method.networks import NetworkSizes
    from anomalysd_edge.training.models.base import load_base
    from anomalysd_export.engines.lowering import lower
    from anomalysd_export.engines.ranges import examples
    from anomalysd_export.graphs import graph_specs
    from anomalysd_export.onnx_export import export_graph
    from tests.support.tiny_models import tiny_base

    base = load_base(str(tiny_base(tmp_path / "base")))
    spec = graph_specs(NetworkSizes(base.size_px, 4, base.latent_factor, 0), 32)["unet"]
    file = tmp_path / "unet.onnx"
    export_graph(spec, base.unet, file)
    inputs = examples(onnx.load(str(file)))
    expected = open_session(file, "cpu", 1, "unet").run(None, inputs)[0]
    if precision == "fp16":
        onnx.save(lower(onnx.load(str(file)), "unet", "fp16").model, str(file))
    for fuse in (True, False):
        found = open_session(file, "cuda", 1, "unet", fuse=fuse).run(None, inputs)[0]
        np.testing.assert_allclose(found, expected, atol=1e-4 if precision == "fp32" else 2e-2)


def test_tensorrts_provider_keeps_its_engines_and_float32(tmp_path: Path, right: OnnxNetworks) -> None:
    why = trouble("ort-tensorrt")
    if why is not None:
        pytest.skip(f"no TensorRT provider here, so this was not run: {why}")
    bundle = small_bundle(tmp_path / "bundle")
    times = []
    for _ in range(2):
        began = time.perf_counter()
        with OnnxNetworks.of_bundle(bundle, "ort-tensorrt", max_batch=8) as opened:
            job = random_job(5)
            np.testing.assert_allclose(opened.inpaint(job), right.inpaint(job), atol=1e-4)
        times.append(time.perf_counter() - began)
    assert list((bundle.path / "engines/onnxruntime").glob("*.engine")), "nothing was kept for the next start"
    assert times[1] < times[0]


@pytest.mark.net
def test_an_illegal_access_costs_one_photo(tmp_path: Path) -> None:
    need_cuda()
    need_cuda_bindings()
    settings = small_settings(small_bundle(tmp_path / "bundle").path)
    settings = replace(settings, engine=replace(settings.engine, backend="cuda", group=1))
    with running_box(settings, open_breaking) as box:
        assert box.inspect(png(1)).status == 200
        assert box.inspect(png(2, NAN)).status == 500
        assert [box.inspect(png(seed)).status for seed in (3, 4)] == [200, 200]
        assert box.get("/health").json["worker_restarts"] == 1


def test_work_on_the_default_stream_does_not_void_a_capture() -> None:
    """As ONNX Runtime's, in another thread, while a loop is captured."""
    need_cuda_bindings()
    from cuda.bindings import runtime

    from anomalysd_runtime.tensorrt.cuda_device import CudaDevice

    stop = threading.Event()
    failed: list[Any] = []

    def disturb(address: int) -> None:
        runtime.cudaSetDevice(0)
        while not stop.is_set():
            (code,) = runtime.cudaMemset(address, 1, 1 << 16)
            if int(code) != 0:
                failed.append(code)

    with CudaDevice() as device:
        other, source, target = (device.allocate(1 << 16) for _ in range(3))
        thread = threading.Thread(target=disturb, args=(other,))
        thread.start()
        try:
            values = np.arange(1 << 14, dtype=np.float32)
            kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            for _ in range(50):
                device.upload(source, values)
                replay = device.capture(
                    lambda: runtime.cudaMemcpyAsync(target, source, values.nbytes, kind, device.stream)
                )
                replay()
                np.testing.assert_array_equal(device.download(target, values.shape, np.float32), values)
        finally:
            stop.set()
            thread.join()
    assert failed == []


def test_the_gpus_energy_is_counted() -> None:
    need_cuda()
    with EnergyMeter() as meter:
        time.sleep(1.0)
    assert 1 < meter.joules.get("gpu", meter.joules.get("board", 0.0)) < 1500
