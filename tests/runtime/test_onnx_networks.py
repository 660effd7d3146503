"""The ONNX Runtime backend against numpy: the loop, guidance, chunks, wrong inputs, missing devices."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from anomalysd_edge.core.threads import cores
from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import BackendError, BundleError, NumericError, SettingsError, ShapeError
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.networks import InpaintJob, Networks
from anomalysd_runtime.loading import open_detector
from anomalysd_runtime.onnx.networks import OnnxNetworks
from anomalysd_runtime.onnx.providers import check_device, check_one_onnxruntime
from anomalysd_runtime.onnx.sessions import open_session
from anomalysd_runtime.onnx.step_graph import step_graph
from tests.support.small_graphs import SIZES, random_job, small_bundle, weights, write_graph, write_graphs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_graphs(tmp_path_factory.mktemp("graphs"))


@pytest.fixture
def networks(files: dict[str, Path]) -> Iterator[OnnxNetworks]:
    with OnnxNetworks(files, SIZES, threads=1, max_batch=4) as opened:
        yield opened


def unet_by_hand(sample: F32, timestep: int, states: F32) -> F32:
    mixed = np.einsum("oc,nchw->nohw", weights().unet, sample) + 1e-3 * timestep
    return np.asarray(np.tanh(mixed + states.mean((1, 2))[:, None, None, None]), dtype=np.float32)


def inpaint_by_hand(job: InpaintJob) -> F32:
    """The method's loop with the published order of channels and diffusers' guidance, one slot at a time."""
    result = []
    for n in range(len(job.start_latents)):
        z = job.start_latents[n : n + 1]
        for timestep, (c0, c1) in zip(job.timesteps, job.coefficients, strict=True):
            sample = np.concatenate([z, job.masks[n : n + 1], job.masked_latents[n : n + 1]], axis=1)
            out = unet_by_hand(sample, timestep, job.prompt_states[job.prompt_of[n]][None])
            if job.negative_states is not None:
                negative = unet_by_hand(sample, timestep, job.negative_states[None])
                out = negative + job.guidance_scale * (out - negative)
            z = c0 * z + c1 * out
        result.append(z)
    return np.concatenate(result)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_inpaint_is_the_loop_worked_by_hand(networks: OnnxNetworks, guidance: float) -> None:
    job = random_job(7, guidance)
    before = job.start_latents.copy()
    np.testing.assert_allclose(networks.inpaint(job), inpaint_by_hand(job), atol=2e-5)
    np.testing.assert_array_equal(job.start_latents, before)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_results_do_not_depend_on_the_chunks(files: dict[str, Path], guidance: float) -> None:
    job = random_job(7, guidance)
    results = []
    for max_batch in (1, 3, 16):
        with OnnxNetworks(files, SIZES, threads=1, max_batch=max_batch) as opened:
            results.append(opened.inpaint(job))
    np.testing.assert_allclose(results[0], results[2], atol=1e-6)
    np.testing.assert_allclose(results[1], results[2], atol=1e-6)


def test_image_networks_by_hand(networks: OnnxNetworks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_pixels_a_call", 2 * SIZES.size_px**2)
    rng = np.random.default_rng(4)
    photos = rng.uniform(-1, 1, (5, 3, 16, 16)).astype(np.float32)
    pooled = photos.reshape(5, 3, 4, 4, 4, 4).mean((3, 5))
    latents = np.einsum("oc,nchw->nohw", weights().encoder, pooled)
    np.testing.assert_allclose(networks.encode(photos), latents, atol=1e-5)
    colours = np.einsum("oc,nchw->nohw", weights().decoder, latents).clip(-1, 1)
    expected = colours.repeat(4, axis=2).repeat(4, axis=3)
    np.testing.assert_allclose(networks.decode(latents), expected, atol=1e-5)
    reference_of = np.array([1, 0, 1, 2, 2])
    references = photos[[4, 3, 0]]
    distances = ((references[reference_of] - photos) ** 2).sum(1)
    np.testing.assert_allclose(networks.distance(references, photos, reference_of), distances, atol=1e-5)
    found = networks.features(rng.uniform(-1, 1, (3, 3, 32, 32)).astype(np.float32))
    assert found.shape == (3, 6, 4, 4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_it_is_the_door(networks: OnnxNetworks) -> None:
    door: Networks = networks
    assert door.backend == "onnxruntime CPUExecutionProvider"
    assert (door.sizes, door.max_batch) == (SIZES, 4)


def test_calls_from_several_threads_do_not_disturb_each_other(networks: OnnxNetworks) -> None:
    jobs = [random_job(count) for count in (1, 4, 7, 9)] * 3
    alone = [networks.inpaint(job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(networks.inpaint, jobs), alone, strict=True):
            np.testing.assert_array_equal(found, expected)


def halved(array: Any) -> Any:
    return array[: len(array) // 2]


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("start_latents", lambda a: a.astype(np.float64), "start_latents is float64"),
        ("start_latents", lambda a: a[:0], r"expected float32 \(N, 4, 4, 4\)"),
        ("masks", lambda a: a * 0.5, "other than 0 and 1"),
        ("masked_latents", halved, r"masked_latents is float32 \(3, 4, 4, 4\), expected float32 \(6"),
        ("prompt_states", lambda a: a[:, :76], r"expected float32 \(N, 77, 8\)"),
        ("prompt_of", lambda a: a + 1, "expected rows 0 to 1"),
        ("prompt_of", lambda a: a.astype(np.int32), "expected int64"),
        ("coefficients", halved, r"expected float32 \(3, 2\)"),
        ("guidance_scale", lambda _: 7.5, "without negative_states"),
    ],
)
def test_wrong_jobs_are_refused(networks: OnnxNetworks, field: str, change: Any, message: str) -> None:
    job = random_job(6)
    with pytest.raises(ShapeError, match=message):
        networks.inpaint(dataclasses.replace(job, **{field: change(getattr(job, field))}))


def test_wrong_arrays_are_refused(networks: OnnxNetworks) -> None:
    photo = np.zeros((1, 3, 16, 16), np.float32)
    with pytest.raises(ShapeError, match=r"images is float32 \(1, 3, 8, 16\), expected float32 \(N, 3, 16, 16\)"):
        networks.encode(photo[:, :, ::2])
    with pytest.raises(ShapeError, match="latents"):
        networks.decode(photo)
    with pytest.raises(ShapeError, match=r"\(N, 3, 32, 32\)"):
        networks.features(photo)
    with pytest.raises(ShapeError, match="runs from 1 to 1, expected rows 0 to 0"):
        networks.distance(photo, photo, np.array([1]))


def test_nan_never_leaves(networks: OnnxNetworks) -> None:
    photo = np.full((2, 3, 16, 16), np.nan, np.float32)
    with pytest.raises(NumericError, match=r"128 of 128 values from the network 'vae_encoder'.*NaN"):
        networks.encode(photo)
    job = random_job(2)
    job.start_latents[1, 0, 0, 0] = np.inf
    with pytest.raises(NumericError, match="'unet'"):
        networks.inpaint(job)


def test_closed_and_missing_networks(files: dict[str, Path]) -> None:
    few = {name: file for name, file in files.items() if name != "features"}
    opened = OnnxNetworks(few, dataclasses.replace(SIZES, features_px=0), threads=1)
    with opened, pytest.raises(BundleError, match="'features' is not among"):
        opened.features(np.zeros((1, 3, 32, 32), np.float32))
    with pytest.raises(BackendError, match=r"after close\(\)"):
        opened.inpaint(random_job(1))
    del few["unet"]
    with pytest.raises(BundleError, match="'unet' is not among"):
        OnnxNetworks(few, SIZES)


def test_files_that_are_no_graphs(files: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "unet.onnx"
    broken.write_bytes(files["unet"].read_bytes()[:100])
    with pytest.raises(BundleError, match=r"cannot open the network 'unet' \(.*unet\.onnx\)"):
        OnnxNetworks({**files, "unet": broken}, SIZES)
    with pytest.raises(BundleError, match=r"takes the inputs \('sample',\), expected \('latent_sample',\)"):
        OnnxNetworks({**files, "vae_decoder": files["vae_encoder"]}, SIZES)
    with pytest.raises(SettingsError, match="max_batch is 0"):
        OnnxNetworks(files, SIZES, max_batch=0)


@pytest.mark.parametrize("guided", [False, True])
def test_step_graph_is_valid_onnx_and_the_formula(guided: bool) -> None:
    model = onnx.load_from_string(step_graph(guided))
    onnx.checker.check_model(model, full_check=True)
    rng = np.random.default_rng(5)
    z, out, condition = (rng.normal(size=(n, c, 4, 4)).astype(np.float32) for n, c in ((3, 4), (6, 4), (3, 5)))
    feeds = {"latents": z, "out_sample": out if guided else out[:3], "condition": condition}
    feeds |= {"c0": np.array([1.1], np.float32), "c1": np.array([-0.3], np.float32)}
    prediction = out[:3]
    if guided:
        feeds["guidance"] = np.array([7.5], np.float32)
        prediction = out[:3] + np.float32(7.5) * (out[3:] - out[:3])
    expected = np.float32(1.1) * z + np.float32(-0.3) * prediction
    sample = np.concatenate([expected, condition], axis=1)
    session = open_session(step_graph(guided), "cpu", 1, "step")
    for latents, joined in (session.run(None, feeds), ReferenceEvaluator(model).run(None, feeds)):
        np.testing.assert_array_equal(latents, expected)
        np.testing.assert_array_equal(joined, np.concatenate([sample, sample]) if guided else sample)


@pytest.mark.parametrize("guided", [False, True])
def test_a_step_that_looks_back_is_the_formula(guided: bool) -> None:
    model = onnx.load_from_string(step_graph(guided, looks_back=True))
    onnx.checker.check_model(model, full_check=True)
    rng = np.random.default_rng(5)
    z, p, out = (rng.normal(size=(n, 4, 4, 4)).astype(np.float32) for n in (3, 3, 6))
    condition = rng.normal(size=(3, 5, 4, 4)).astype(np.float32)
    factors = {"c0": 1.1, "c1": -0.3, "h0": 0.2, "h1": 0.7, "h2": -0.6}
    feeds = {"latents": z, "previous": p, "out_sample": out if guided else out[:3], "condition": condition}
    feeds |= {name: np.array([value], np.float32) for name, value in factors.items()}
    prediction = out[:3]
    if guided:
        feeds["guidance"] = np.array([7.5], np.float32)
        prediction = out[:3] + np.float32(7.5) * (out[3:] - out[:3])
    session = open_session(step_graph(guided, looks_back=True), "cpu", 1, "step")
    following, sample, previous = session.run(None, feeds)
    np.testing.assert_allclose(following, 1.1 * z - 0.3 * prediction + 0.2 * p, atol=1e-5)
    np.testing.assert_allclose(previous, 0.7 * z - 0.6 * prediction, atol=1e-5)
    np.testing.assert_array_equal(sample[:3], np.concatenate([following, condition], axis=1))


def test_dpm_solver_over_onnx_runtime_is_the_loop_in_numpy(files: dict[str, Path]) -> None:
    table = NoiseSchedule.from_config({}).table("dpm2m", 0, 4, 0.5)
    job = replace(random_job(3, 1.0), timesteps=table.timesteps, coefficients=table.coefficients, history=table.history)
    assert table.history is not None
    one_pass = [
        replace(job, timesteps=t[None], coefficients=np.array([[0, 1]], np.float32), history=None)
        for t in table.timesteps
    ]
    z, before = job.start_latents, np.zeros_like(job.start_latents)
    with OnnxNetworks(files, SIZES, max_batch=2) as opened:
        for alone, (c0, c1), (h0, h1, h2) in zip(one_pass, table.coefficients, table.history, strict=True):
            out = opened.inpaint(replace(alone, start_latents=z))
            z, before = c0 * z + c1 * out + h0 * before, h1 * z + h2 * out
        np.testing.assert_allclose(opened.inpaint(job), z, atol=1e-5)


def test_nothing_but_the_networks_runs_between_two_passes(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies to the device are a job's and a chunk's, never a pass's; only the steps that are used have a session."""
    from anomalysd_runtime.onnx.sessions import to_device as real

    puts: list[tuple[int, ...]] = []

    def counted(device: str, array: Any) -> Any:
        puts.append(array.shape)
        return real(device, array)

    for place in ("networks", "sessions"):
        monkeypatch.setattr(f"anomalysd_runtime.onnx.{place}.to_device", counted)
    with OnnxNetworks(files, SIZES, threads=1) as opened:
        found = []
        for steps in (3, 12):
            job = random_job(4)
            job = replace(job, timesteps=np.arange(steps, 0, -1), coefficients=np.full((steps, 2), 0.5, np.float32))
            puts.clear()
            opened.inpaint(job)
            found.append(len(puts))
        assert found[0] == found[1], "more passes brought more copies"
        assert list(opened._steps) == [(False, False)]
        opened.inpaint(random_job(2, 7.5))
        assert list(opened._steps) == [(False, False), (True, False)]


def test_a_device_that_is_not_there_is_an_error() -> None:
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider was asked for.*has only CPUExecutionProvider"):
        check_device("cuda", ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match="'tpu' is unknown"):
        check_device("tpu")


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA")
def test_a_quiet_fallback_is_an_error(files: dict[str, Path]) -> None:
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider was asked for .* has only .*anomalysd-edge\[gpu\]"):
        open_session(files["unet"], "cuda", 1, "unet")


def test_two_onnxruntimes_are_an_error() -> None:
    check_one_onnxruntime(["numpy", "onnxruntime"])
    check_one_onnxruntime(["onnxruntime_gpu"])
    with pytest.raises(BackendError, match=r"onnxruntime and onnxruntime-gpu .*pip uninstall -y onnxruntime onnx"):
        check_one_onnxruntime(["onnxruntime", "numpy", "onnxruntime_gpu"])


def test_threads_are_those_of_this_process(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert cores() == 3
    session = open_session(files["unet"], "cpu", 2, "unet")
    assert session.get_session_options().intra_op_num_threads == 2


def test_open_detector_judges_a_photo(tmp_path: Path) -> None:
    small_bundle(tmp_path / "bundle")
    photo = np.random.default_rng(6).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    detector = open_detector(tmp_path / "bundle", threads=1)
    first, second = detector.inspect([photo, photo], "bottle")
    assert first.pred_score == second.pred_score
    assert first.pred_label == int(first.pred_score >= 0.75)
    assert first.anomaly_map.shape == (16, 16)
    assert set(first.maps) >= {"prototypes", "multiscale", "fused"}
    (other,) = open_detector(tmp_path / "bundle", threads=1, max_batch=3).inspect([photo], "bottle")
    assert other.pred_score == pytest.approx(first.pred_score, abs=1e-6)
    (unjudged,) = open_detector(tmp_path / "bundle", "paper", threads=1).inspect([photo], "bottle")
    assert unjudged.pred_label is None
    with pytest.raises(SettingsError, match=r"no preset 'fast', it has edge, paper"):
        open_detector(tmp_path / "bundle", "fast")
    with pytest.raises(BackendError, match="'abacus' is unknown"):
        open_detector(tmp_path / "bundle", backend="abacus")
    write_graph("vae_encoder", tmp_path / "bundle" / "unet" / "model.onnx")
    with pytest.raises(BundleError, match=r"unet/model\.onnx"):
        open_detector(tmp_path / "bundle")
