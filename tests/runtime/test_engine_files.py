"""Fingerprints: every field that does not fit is named before the engine's file is touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anomalysd_edge.bundle.backend_spec import BackendChoice
from anomalysd_edge.bundle.engine_records import Fingerprint
from anomalysd_edge.bundle.reader import Bundle
from anomalysd_edge.errors import BundleError, EngineMismatch
from anomalysd_runtime.tensorrt.engine_files import engine_networks, find_engine, read_engine
from anomalysd_runtime.tensorrt.library import Library
from tests.support.engine_records import with_engine
from tests.support.small_graphs import small_bundle

LIBRARY = Library("rtx", SimpleNamespace(__version__="1.7.1"))
CHOICE = BackendChoice("rtx")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle that names an engine whose file is not there at all."""
    made = small_bundle(tmp_path / "bundle")
    return with_engine(made)


def test_a_fitting_engine_is_found(bundle: Bundle) -> None:
    assert find_engine(bundle, "unet", CHOICE, LIBRARY, (8, 6)).fingerprint.batches == (1, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"onnx_sha256": "0" * 64}, "onnx_sha256 is 000000000000, expected"),
        ({"library_version": "1.6.0"}, "library_version is 1.6.0, expected 1.7.1"),
        ({"recipe": 1}, "recipe is 1, expected 2"),
        ({"gpu": ("sm120", "sm89")}, r"gpu is sm120\+sm89, expected sm86"),
        ({"library": "tensorrt"}, "no tensorrt_rtx engine of 'unet' in fp32"),
        ({"precision": "fp16"}, "no tensorrt_rtx engine of 'unet' in fp32"),
    ],
)
def test_a_mismatch_names_its_field(bundle: Bundle, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(EngineMismatch, match=words):
        find_engine(with_engine(bundle, **changes), "unet", CHOICE, LIBRARY, (8, 6))


@pytest.mark.parametrize(
    ("gpu", "capability", "fits"),
    [
        (("sm86",), (8, 6), True),
        (("sm86", "sm89"), (8, 9), True),
        (("sm86",), (8, 7), False),
        (("portable",), (7, 5), False),
        (("portable",), (8, 0), False),
        (("portable",), (8, 6), True),
        (("portable",), (8, 7), False),
        (("portable",), (8, 9), True),
        (("portable",), (9, 0), False),
        (("portable",), (10, 0), False),
        (("portable",), (11, 0), False),
        (("portable",), (12, 0), True),
        (("portable",), (12, 1), True),
    ],
)
def test_which_gpus_an_engine_runs_on(gpu: tuple[str, ...], capability: tuple[int, int], fits: bool) -> None:
    assert LIBRARY.fits(gpu, capability) is fits


def test_the_digest_holds_every_field() -> None:
    mark = Fingerprint("unet", "a", "tensorrt", "10.3", ("sm87",), "fp16", (1, 4))
    others = [
        replace(mark, network="step"), replace(mark, onnx_sha256="b"), replace(mark, library="tensorrt_rtx"),
        replace(mark, library_version="10.4"), replace(mark, gpu=("sm86",)), replace(mark, precision="int8"),
        replace(mark, batches=(1,)), replace(mark, recipe=2),
    ]  # fmt: skip
    assert len({mark.digest, *(other.digest for other in others)}) == 9


def test_truncated_changed_and_missing_engines(bundle: Bundle) -> None:
    (record,) = bundle.manifest.engines
    with pytest.raises(BundleError, match=r"unet\.plan is missing although the manifest lists it: build it again"):
        read_engine(bundle, record)
    file = bundle.path / record.file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"pla")
    with pytest.raises(BundleError, match="has 3 bytes and the manifest says 4, it is truncated"):
        read_engine(bundle, record)
    file.write_bytes(b"plam")
    with pytest.raises(BundleError, match="was changed since it was built"):
        read_engine(bundle, record)
    file.write_bytes(b"plan")
    assert read_engine(bundle, record) == b"plan"


def test_a_preset_that_guides_needs_the_guided_step(bundle: Bundle) -> None:
    assert list(engine_networks(bundle))[-1] == "step"
    presets = {"edge": {**bundle.manifest.presets["edge"], "guidance_scale": 3.0}}
    guiding = replace(bundle, manifest=replace(bundle.manifest, presets=presets))
    assert list(engine_networks(guiding))[-1] == "step_guided"
