"""Doctor: what is found is what is installed, and every "no" says how to mend it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

from anomalysd_edge.workflows import doctor


def test_every_no_says_why() -> None:
    findings = doctor.examine()
    assert {f.what for f in findings} >= {
        "machine",
        "train",
        "inspect on the CPU",
        "inspect on CUDA",
        "NVIDIA GPU",
        "build for TensorRT RTX",
        "run TensorRT RTX",
        "build for TensorRT",
        "run TensorRT",
    }
    assert all(f.because for f in findings)


def test_versions_are_the_installed_ones() -> None:
    (found,) = (f for f in doctor.examine() if f.what == "inspect on the CPU")
    assert found.able
    assert importlib.metadata.version("onnxruntime") in found.because


def test_both_onnxruntimes_are_refused_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda _package: "1.0")
    found = [f for f in doctor.examine() if f.what.startswith("inspect")]
    assert not any(f.able for f in found)
    assert all("uninstall" in f.because for f in found)


def test_missing_packages_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda _package: None)
    missing = {f.what: f.because for f in doctor.examine() if not f.able}
    assert "anomalysd-edge[train]" in missing["train"]
    assert "anomalysd-edge[cpu]" in missing["inspect on the CPU"]


def test_cuda_that_is_listed_and_does_not_start_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel lists CUDA on a machine with a GPU, a driver and no CUDA libraries."""
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(doctor, "_gpu", lambda: ("RTX 4090", (8, 9), 13000))
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None, raising=False)
    found = doctor._cuda(providers, "onnxruntime-gpu 1.31.1")
    assert not found.able, "it is listed, but this ONNX Runtime has none"
    assert "CUDAExecutionProvider was asked for and onnxruntime started CPUExecutionProvider" in found.because
    monkeypatch.setattr(doctor, "_trouble", lambda _kind: None)
    assert doctor._cuda(providers, "onnxruntime-gpu 1.31.1").able


def test_which_engines_can_be_built_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {f.what: f for f in doctor.examine()}
    if importlib.util.find_spec("tensorrt_rtx") and importlib.util.find_spec("polygraphy"):
        assert found["build for TensorRT RTX"].able, "it needs no GPU"
        assert "sm86" in found["build for TensorRT RTX"].because
    if not found["NVIDIA GPU"].able:
        assert not found["run TensorRT RTX"].able
    monkeypatch.setattr(doctor, "_gpu", lambda: ("Old GPU", (6, 1), 12040))
    monkeypatch.setattr(doctor, "_there", lambda _module: True)
    monkeypatch.setattr(doctor, "_version", lambda _module: "10.3")
    old = {f.what: f for f in doctor.examine() if f.what in ("NVIDIA GPU", "run TensorRT RTX")}
    assert old["NVIDIA GPU"].because == "Old GPU, sm61, CUDA 12.4"
    assert not old["run TensorRT RTX"].able
    assert "Old GPU is sm61, and it has kernels for sm75, sm86" in old["run TensorRT RTX"].because
    for capability, able in (((7, 5), True), ((8, 0), False), ((8, 6), True), ((9, 0), False), ((10, 0), False),
                             ((12, 0), True), ((12, 1), True)):  # fmt: skip
        assert doctor._rtx_run(("GPU", capability, 13000)).able is able, capability
    monkeypatch.setattr(doctor, "_there", lambda module: module != "polygraphy")
    assert "not installed: polygraphy" in doctor._rtx_build().because


def test_a_jetson_is_sent_to_classic_tensorrt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "release").write_text("# R36 (release), REVISION: 4.3\n")
    monkeypatch.setattr(doctor, "TEGRA", tmp_path / "release")
    monkeypatch.setattr(doctor, "_gpu", lambda: ("Orin", (8, 7), 12060))
    monkeypatch.setattr(doctor, "_there", lambda _module: True)
    found = doctor._rtx_run(doctor._gpu())
    assert not found.able
    assert "classic TensorRT" in found.because
    assert "R36 (release), REVISION: 4.3" in doctor._gpu_finding(doctor._gpu()).because
