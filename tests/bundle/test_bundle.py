"""The bundle proves itself: round trip, every damage named, nothing half-written, nothing outside the folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalysd_edge.bundle import reader as bundles
from anomalysd_edge.bundle.manifest import (
    SCHEMA_VERSION,
    BaseRecord,
    ClassRecord,
    Manifest,
    NetworkRecord,
    Preprocessing,
    PromptPair,
    TensorRecord,
)
from anomalysd_edge.bundle.reader import Bundle, golden_image, inside, prompt_key, prototypes_key, read_bundle
from anomalysd_edge.bundle.writer import write_bundle
from anomalysd_edge.core.files import sha256_bytes
from anomalysd_edge.errors import BundleError, ClassError, InputError
from anomalysd_edge.method.anomaly_map import MapScale
from anomalysd_edge.method.class_model import Calibration
from anomalysd_edge.method.networks import NetworkSizes

ODD_NAME = "pipe fryum/größe 50%"


def network(name: str) -> NetworkRecord:
    tensor = TensorRecord("sample", "float32", ("batch", 3, 32, 32))
    return NetworkRecord(f"{name}/model.onnx", "float32", 18, (tensor,), (tensor,), 1e-4, {"max_abs": 2e-6, "batch": 3})


def manifest() -> Manifest:
    names = ("unet", "vae_encoder", "vae_decoder", "features")
    return Manifest(
        base=BaseRecord("nano", "ab" * 32),
        sizes=NetworkSizes(32, 4, 4, 64),
        prediction_type="epsilon",
        scheduler={"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "trained_betas": None},
        classes={
            "bottle": ClassRecord(
                "object",
                "bottle",
                PromptPair("A perfect bottle.", "A bottle with intact neck."),
                4,
                ("neck",),
                ("flip_x",),
                0.75,
                0.125,
                {"edge": Calibration(0.25, 1.5, {"multiscale": MapScale(0.5, 2.0)})},
                guided={"reading": 0.5, "distance": 0.25},
            ),
            ODD_NAME: ClassRecord("texture", "size", PromptPair("A perfect size."), 0),
        },
        presets={"edge": {"alpha": 0.5, "scales": [2, 4]}},
        preprocessing=Preprocessing(),
        networks={name: network(name) for name in names},
    )


def constants() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    states = {
        key: rng.normal(size=(77, 8)).astype(np.float32)
        for key in (
            "prompts/negative",
            prompt_key("bottle", "whole"),
            prompt_key("bottle", "detail"),
            prompt_key(ODD_NAME, "whole"),
        )
    }
    return {**states, prototypes_key("bottle"): rng.normal(size=(5, 6)).astype(np.float16)}


def written(path: Path) -> Bundle:
    with write_bundle(path) as writer:
        for name in manifest().networks:
            writer.network_file(name).write_bytes(f"graph {name}".encode())
        writer.finish(manifest(), constants())
    return read_bundle(path)


def edit(path: Path, change: Any) -> None:
    """Apply `change` to the decoded manifest in place."""
    value = json.loads((path / "manifest.json").read_text())
    change(value)
    (path / "manifest.json").write_text(json.dumps(value))


def test_round_trip(tmp_path: Path) -> None:
    bundle = written(tmp_path / "bundle")
    found = bundle.manifest
    assert dataclasses.replace(found, files=(), created="", preprocessing=Preprocessing()) == manifest()
    assert {file.path for file in found.files} == {
        "constants.safetensors",
        *(f"{name}/model.onnx" for name in manifest().networks),
    }
    assert len(found.preprocessing.golden) == 6
    for key, value in constants().items():
        np.testing.assert_array_equal(bundle.constants[key], value)
        assert bundle.constants[key].dtype == value.dtype
    assert bundle.prompt_states(ODD_NAME, "detail") is None
    assert bundle.prototypes(ODD_NAME) == []
    bank = bundle.prototypes("bottle")[-1]
    assert bank.dtype == np.float32
    assert bundle.network_file("unet").read_bytes() == b"graph unet"
    with pytest.raises(ClassError, match=r"'screw'.*bottle"):
        bundle.prompt_states("screw", "whole")
    with pytest.raises(BundleError, match="no network 'perceptual'"):
        bundle.network_file("perceptual")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_the_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = written(tmp_path / "one"), written(tmp_path / "two")
    assert one.manifest.files == two.manifest.files


@pytest.mark.parametrize("file", ["constants.safetensors", "unet/model.onnx", "features/model.onnx"])
def test_damage_names_the_file(tmp_path: Path, file: str) -> None:
    path = tmp_path / "bundle"
    written(path)
    whole = (path / file).read_bytes()
    (path / file).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{file}.*changed"):
        read_bundle(path)
    (path / file).write_bytes(whole[:-1])
    with pytest.raises(BundleError, match=f"{file}.*bytes"):
        read_bundle(path, verify=False)
    (path / file).unlink()
    with pytest.raises(BundleError, match=f"{file} is missing"):
        read_bundle(path, verify=False)


def test_newer_schema_is_refused_and_unknown_keys_are_not(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    written(path)
    edit(path, lambda value: value.update(later="addition"))
    read_bundle(path)
    edit(path, lambda value: value.update(schema_version=SCHEMA_VERSION + 1, networks="of a new kind"))
    with pytest.raises(BundleError, match=r"schema version 2.*reads up to 1.*update"):
        read_bundle(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.pop("sizes"), "sizes is missing"),
        (lambda value: value["sizes"].update(size_px="32"), "sizes: size_px is '32', expected int"),
        (
            lambda value: value["classes"]["bottle"]["calibration"]["edge"].update(threshold=True),
            "threshold is True, expected float",
        ),
        (lambda value: value["classes"]["bottle"].update(parts="neck"), "parts is 'neck', expected a list"),
        (lambda value: value["classes"].update(screw=value["classes"]["bottle"]), "no tensor 'prompts/screw/whole'"),
        (lambda value: value["networks"].pop("unet"), "lists no network unet"),
        (lambda value: value["files"].pop(0), "does not list constants.safetensors"),
        (lambda value: value.update(product="somebody"), "no bundle of ours"),
        (lambda value: value["preprocessing"].update(kernel="opencv-area"), "opencv-area"),
        (lambda value: value["preprocessing"]["golden"][0].update(sha256="00" * 32), "resizes a 97x131 image.*Pillow"),
        (lambda value: value["preprocessing"]["golden"][0].update(height=10**6), "impossible size"),
    ],
)
def test_a_wrong_manifest_says_where(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "bundle"
    written(path)
    edit(path, change)
    with pytest.raises(BundleError, match=message):
        read_bundle(path)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a folder"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        read_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text('{"schema_version": 1,')
    with pytest.raises(BundleError, match="JSON"):
        read_bundle(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(BundleError, match="not an object"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../../secret", "", "C:/secret", "a\\..\\b", "link/secret"]
)
def test_no_path_leaves_the_bundle(tmp_path: Path, name: str) -> None:
    root = tmp_path / "bundle"
    root.mkdir()
    (tmp_path / "secret").write_text("x")
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(BundleError, match="not lie inside"):
        inside(root, name)
    assert inside(root, "unet/model.onnx") == root / "unet" / "model.onnx"


def test_an_outside_path_in_a_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    written(path)
    edit(path, lambda value: value["files"][0].update(path="../outside"))
    with pytest.raises(BundleError, match=r"'\.\./outside'.*refused"):
        read_bundle(path)


def test_nothing_is_left_of_a_failed_export(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    before = written(path).manifest

    def interrupted() -> None:
        with write_bundle(path) as writer:
            writer.network_file("unet").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(BundleError, match="without a manifest"), write_bundle(path):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]
    assert read_bundle(path).manifest == before


def test_a_folder_that_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not replaced"), write_bundle(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (prototypes_key("bottle"), None, "no tensor 'prototypes/bottle'"),
        (prompt_key("bottle", "detail"), None, "no tensor 'prompts/bottle/detail'"),
        ("prompts/negative", np.full((77, 8), np.nan, np.float32), "NaN"),
        (prompt_key("bottle", "whole"), np.zeros((76, 8), np.float32), r"\(76, 8\), expected float32 \(77, 8\)"),
        (prototypes_key("bottle"), np.zeros((5, 6), np.float32), "expected float16"),
    ],
)
def test_wrong_constants_are_not_written(tmp_path: Path, key: str, value: Any, message: str) -> None:
    tensors = constants()
    if value is None:
        del tensors[key]
    else:
        tensors[key] = value
    with pytest.raises(BundleError, match=message), write_bundle(tmp_path / "bundle") as writer:
        writer.finish(manifest(), tensors)
    assert list(tmp_path.iterdir()) == []


def test_a_nan_in_the_manifest_is_not_written(tmp_path: Path) -> None:
    broken = dataclasses.replace(network("unet"), parity={"max_abs": float("nan")})
    with pytest.raises(BundleError, match="max_abs is None"), write_bundle(tmp_path / "bundle") as writer:
        writer.finish(dataclasses.replace(manifest(), networks={"unet": broken}), constants())


def test_golden_image_is_the_published_formula() -> None:
    def byte(i: int, seed: int) -> int:
        h = (i + seed * 0x9E3779B9) * 0x85EBCA6B % 2**32
        h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
        return (h ^ h >> 16) >> 24

    image = golden_image(7, 3, 5)
    assert image.ravel().tolist() == [byte(i, 7) for i in range(45)]
    assert np.abs(np.histogram(golden_image(1, 97, 131), 16)[0] / 2382 - 1).max() < 0.1


def test_golden_resize_is_pillows_and_another_kernel_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bundle"
    golden = written(path).manifest.preprocessing.golden[0]
    image = Image.fromarray(golden_image(golden.seed, golden.height, golden.width))
    expected = np.asarray(image.resize((golden.size_px,) * 2, Image.Resampling.BICUBIC))
    assert golden.sha256 == sha256_bytes(expected.tobytes())

    def other(photo: Any, size_px: int) -> Any:
        return np.asarray(Image.fromarray(photo).resize((size_px, size_px), Image.Resampling.BILINEAR))

    monkeypatch.setattr(bundles, "resize", other)
    with pytest.raises(BundleError, match="scores would differ"):
        read_bundle(path)
