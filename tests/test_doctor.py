"""Doctor: what is found is what is installed, and every "no" says how to mend it."""

from __future__ import annotations

import importlib.metadata

import pytest

from anomalysd_edge import doctor


def test_every_no_says_why() -> None:
    findings = doctor.examine()
    assert {f.what for f in findings} >= {
        "machine",
        "train",
        "inspect on the CPU",
        "inspect on CUDA",
        "run TensorRT RTX",
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
