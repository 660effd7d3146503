"""The engines' loop, buffers and padding on a host device, held against ONNX Runtime; the GPU where there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.bundle.backend_spec import BackendChoice
from anomalysd_edge.bundle.detector_factory import detector_of
from anomalysd_edge.errors import BackendError, BundleError, NumericError, SettingsError, ShapeError
from anomalysd_edge.method.networks import Networks
from anomalysd_runtime.loading import open_detector
from anomalysd_runtime.onnx.networks import OnnxNetworks
from anomalysd_runtime.tensorrt.cuda_device import gpu
from anomalysd_runtime.tensorrt.networks import TensorrtNetworks
from tests.support.host_engines import host_networks, written
from tests.support.small_graphs import SIZES, random_job, small_bundle


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return written(tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def right(files: dict[str, Path]) -> Iterator[OnnxNetworks]:
    with OnnxNetworks(files, SIZES, threads=1) as opened:
        yield opened


def device_of(networks: TensorrtNetworks) -> Any:
    return networks._device


@pytest.mark.parametrize("guidance", [1.0, 7.5])
@pytest.mark.parametrize("count", [1, 3, 9])
def test_the_loop_is_onnx_runtimes(files: dict[str, Path], right: OnnxNetworks, count: int, guidance: float) -> None:
    job = random_job(count, guidance)
    expected = right.inpaint(job)
    with host_networks(files) as networks:
        first = networks.inpaint(job)
        np.testing.assert_allclose(first, expected, atol=1e-6)
        np.testing.assert_array_equal(networks.inpaint(job), first)
        assert device_of(networks).replays > 0, "the second loop was not replayed"


def test_a_chunk_comes_down_once_and_nothing_crosses_between_steps(files: dict[str, Path]) -> None:
    with host_networks(files, sizes=(4,)) as networks:
        networks.inpaint(random_job(4))
        device = device_of(networks)
        uploads, downloads = device.uploads, device.downloads
        networks.inpaint(random_job(4))
        assert device.downloads == downloads + 1
        few = device.uploads - uploads
        job = random_job(4)
        longer = dataclasses.replace(
            job, timesteps=np.arange(12, 0, -1), coefficients=np.repeat(job.coefficients, 4, axis=0)
        )
        networks.inpaint(longer)
        before = device.uploads
        networks.inpaint(longer)
        assert device.uploads - before == few, "more steps brought more copies"


def test_another_job_through_the_same_graph(files: dict[str, Path], right: OnnxNetworks) -> None:
    """A captured loop holds addresses, not values: other latents, prompts, timesteps and coefficients get their own."""
    with host_networks(files) as networks:
        job = random_job(4)
        networks.inpaint(job)
        other = dataclasses.replace(
            job, start_latents=job.start_latents * 0.5, timesteps=job.timesteps - 3, coefficients=job.coefficients * 0.9
        )
        np.testing.assert_allclose(networks.inpaint(other), right.inpaint(other), atol=1e-6)
        assert device_of(networks).replays == 1


@pytest.mark.parametrize("refused", ["by an engine", "while it is captured"])
def test_a_refused_capture_costs_no_photo_and_is_in_every_result(
    files: dict[str, Path], right: OnnxNetworks, refused: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = random_job(4)
    with host_networks(files, sizes=(4,)) as networks:
        if refused == "by an engine":
            unet: Any = networks._engines["unet"]
            unet.refuses_capture = True
        else:
            device_of(networks).capture_fails = "CUDA failed to end a capture: cudaErrorStreamCaptureInvalidated"
        for _ in range(3):
            np.testing.assert_allclose(networks.inpaint(job), right.inpaint(job), atol=1e-6)
        assert device_of(networks).replays == 0
        assert networks.backend == "host (1 loops not captured)"
        assert caplog.text.count("runs without a CUDA graph") == 1, "said once, not a photo"
        assert ("unet" if refused == "by an engine" else "Invalidated") in caplog.text


def test_a_loop_longer_than_the_table(files: dict[str, Path], right: OnnxNetworks) -> None:
    job = random_job(5)
    steps = 40
    longer = dataclasses.replace(
        job, timesteps=np.arange(steps, 0, -1), coefficients=np.tile(np.array([[0.99, -0.01]], np.float32), (steps, 1))
    )
    with host_networks(files) as networks:
        networks.inpaint(job)
        np.testing.assert_allclose(networks.inpaint(longer), right.inpaint(longer), atol=1e-5)
        np.testing.assert_allclose(networks.inpaint(job), right.inpaint(job), atol=1e-6)


def test_pictures_are_padded_and_cut_back(files: dict[str, Path], right: OnnxNetworks) -> None:
    rng = np.random.default_rng(4)
    with host_networks(files) as networks:
        for count in (1, 2, 6):
            photos = rng.uniform(-1, 1, (count, 3, 16, 16)).astype(np.float32)
            latents = networks.encode(photos)
            np.testing.assert_allclose(latents, right.encode(photos), atol=1e-6)
            np.testing.assert_allclose(networks.decode(latents), right.decode(latents), atol=1e-6)
            large = rng.uniform(-1, 1, (count, 3, 32, 32)).astype(np.float32)
            np.testing.assert_allclose(networks.features(large), right.features(large), atol=1e-6)


@pytest.mark.parametrize("reference_of", [[0], [0, 0, 0, 0, 0, 0], [2, 1, 0, 1, 2, 0, 0], [1, 1, 1, 0, 0, 2, 2, 2]])
def test_distance_with_few_static_references(
    files: dict[str, Path], right: OnnxNetworks, reference_of: list[int]
) -> None:
    rng = np.random.default_rng(5)
    references = rng.uniform(-1, 1, (3, 3, 16, 16)).astype(np.float32)
    repaints = rng.uniform(-1, 1, (len(reference_of), 3, 16, 16)).astype(np.float32)
    index = np.array(reference_of)
    with host_networks(files, sizes=(1, 4, 8)) as networks:
        found = networks.distance(references, repaints, index)
    np.testing.assert_allclose(found, right.distance(references, repaints, index), atol=1e-6)


def test_measured_times_choose_the_sizes(files: dict[str, Path]) -> None:
    with host_networks(files) as networks:
        networks.warm_up()
        assert set(networks.warm_up_ms) == {"unet", "vae_encoder", "vae_decoder", "perceptual", "features"}
        assert all(set(times) == {1, 4} and min(times.values()) > 0 for times in networks.warm_up_ms.values())


def test_two_workers_in_two_threads_answer_as_one(tmp_path: Path, files: dict[str, Path]) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    rng = np.random.default_rng(6)
    photos = [rng.integers(0, 256, (30, 30, 3), dtype=np.uint8) for _ in range(6)]
    with host_networks(files) as one, host_networks(files) as two, OnnxNetworks(files, SIZES, threads=1) as onnx:
        expected = [answer.pred_score for answer in detector_of(bundle, onnx).inspect(photos, "bottle")]
        detectors = [detector_of(bundle, networks) for networks in (one, two)]
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda d: [a.pred_score for a in d.inspect(photos, "bottle")], detectors * 3))
    for scores in answers:
        assert scores == answers[0]
        np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_wrong_input_and_nan_are_refused(files: dict[str, Path]) -> None:
    with host_networks(files, sizes=(1,), guided=False) as networks:
        door: Networks = networks
        with pytest.raises(ShapeError, match="images"):
            door.encode(np.zeros((1, 3, 8, 16), np.float32))
        with pytest.raises(NumericError, match="'vae_encoder' on host"):
            door.encode(np.full((1, 3, 16, 16), np.nan, np.float32))
        with pytest.raises(SettingsError, match="even batch size, the engines have the batches 1"):
            door.inpaint(random_job(2, 7.5))
    with pytest.raises(BackendError, match=r"after close\(\)"):
        networks.encode(np.zeros((1, 3, 16, 16), np.float32))
    with pytest.raises(BundleError, match="no engine of 'unet'"):
        TensorrtNetworks({}, SIZES, device_of(networks), "host")


def has_gpu() -> bool:
    try:
        gpu()
    except BackendError:
        return False
    return True


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_without_a_gpu_the_cause_is_said(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed: the extra rtx brings it")
    with pytest.raises(BackendError, match=r"no (usable )?NVIDIA driver"):
        TensorrtNetworks.of_bundle(small_bundle(tmp_path / "bundle"), BackendChoice("rtx"))


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_onnx_runtime_steps_in_only_where_it_was_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed: the extra rtx brings it")
    bundle = small_bundle(tmp_path / "bundle")
    photo = np.zeros((20, 20, 3), np.uint8)
    for quiet in ("error", "rebuild"):
        with pytest.raises(BackendError, match="NVIDIA driver"):
            open_detector(bundle.path, backend="rtx", on_mismatch=quiet)
    with open_detector(bundle.path, backend="rtx", threads=1, on_mismatch="onnxruntime") as detector:
        assert detector.inspect([photo], "bottle")[0].backend == "onnxruntime CPUExecutionProvider"
    assert "ONNX Runtime (cpu) serves in its place, as was asked for" in caplog.text
    with pytest.raises(SettingsError, match="on_mismatch is 'quietly'"):
        open_detector(bundle.path, backend="rtx", on_mismatch="quietly")


@pytest.mark.gpu
def test_engines_on_the_gpu_agree_with_onnx_runtime(tmp_path: Path, right: OnnxNetworks) -> None:
    if not has_gpu():
        pytest.skip("no NVIDIA GPU here: the engines were built but not run")
    from anomalysd_edge.workflows.build import BuildRequest, build

    bundle = small_bundle(tmp_path / "bundle")
    build(BuildRequest(bundle=bundle.path, engine="rtx", precision="fp32", batches=(1, 4)), lambda *_: None)
    from anomalysd_edge.bundle.reader import read_bundle

    for _ in range(2):
        with TensorrtNetworks.of_bundle(read_bundle(bundle.path), BackendChoice("rtx")) as networks:
            for _ in range(2):
                job = random_job(7)
                np.testing.assert_allclose(networks.inpaint(job), right.inpaint(job), atol=1e-4)  # no TF32
            assert networks._loop._graphs, "nothing was captured"
            assert networks._loop.uncaptured == {}
            assert "not captured" not in networks.backend
        (kernels,) = (bundle.path / "engines").glob("kernels-*.cache")
        assert kernels.stat().st_size > 0, "the next start compiles every kernel again"
