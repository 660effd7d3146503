"""What photos say of a class that nobody described."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalysd_edge.data.class_inference import PART_FROM, guess, middle_apart, symmetries_of
from anomalysd_edge.data.classes import ClassSpec, class_spec, is_described
from anomalysd_edge.demo.dataset import render_demo
from anomalysd_edge.vision.images import load_rgb
from anomalysd_edge.workflows.train import specs_of


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 190, (128, 128, 1)).repeat(3, axis=2).astype(np.uint8)


def disc() -> np.ndarray:
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    image = np.full((128, 128, 3), 200, np.uint8)
    image[x**2 + y**2 < 0.4] = (40, 60, 50)
    return image


def stripes(angle_deg: float) -> np.ndarray:
    y, x = np.mgrid[0:128, 0:128]
    wave = np.sin((x * np.cos(np.radians(angle_deg)) + y * np.sin(np.radians(angle_deg))) / 2)
    return np.asarray(128 + 60 * wave, np.uint8)[..., None].repeat(3, axis=2)


def test_a_disc_before_a_background_is_a_part_and_noise_a_surface() -> None:
    spec = ClassSpec("thing", "thing")
    assert guess(spec, [disc()]).kind == "object"
    assert guess(spec, [disc()]).symmetries == ()
    found = guess(spec, [noise()])
    assert (found.kind, found.symmetries, found.noun) == ("texture", ("rotate90", "flip_x"), "thing")
    assert guess(spec, []) is spec


@pytest.mark.parametrize(
    ("angle", "wanted"),
    [(0, ("rotate180", "flip_x")), (90, ("rotate180", "flip_x")), (45, ("rotate180",)), (20, ("rotate180",))],
)
def test_stripes_keep_what_their_direction_allows(angle: float, wanted: tuple[str, ...]) -> None:
    assert symmetries_of([stripes(angle)]) == wanted


def test_the_light_of_a_lamp_makes_no_part() -> None:
    lamp = np.linspace(0.6, 1.3, 128)[None, :, None]
    lit = np.clip(noise() * lamp, 0, 255).astype(np.uint8)
    assert middle_apart(lit) < PART_FROM


def test_the_rendered_demo_is_told_right(tmp_path: Path) -> None:
    render_demo(tmp_path, 0, train_good=2, test_good=1, test_bad=1)
    for name in ("demo_metal", "demo_weave", "demo_washer", "demo_capsule"):
        photos = [load_rgb(file) for file in sorted((tmp_path / name / "train" / "good").iterdir())]
        assert guess(ClassSpec("unknown", "thing"), photos).kind == class_spec(name).kind, name


def test_only_what_nobody_described_is_guessed(tmp_path: Path) -> None:
    for name in ("bottle", "plate", "sheet"):
        Image.fromarray(noise()).save(tmp_path / f"{name}.png")
    table = tmp_path / "classes.toml"
    table.write_text('[plate]\nkind = "object"\n')
    told: list[str] = []
    shots = {name: [tmp_path / f"{name}.png"] for name in ("bottle", "plate", "sheet")}
    specs = specs_of({**shots, "unseen": []}, table, lambda *words: told.append(str(words[3])))
    assert {name: spec.kind for name, spec in specs.items()} == {
        "bottle": "object", "plate": "object", "sheet": "texture", "unseen": "object",
    }  # fmt: skip
    assert len(told) == 1
    assert "sheet: texture, rotate90, flip_x" in told[0]
    assert is_described("bottle")
    assert not is_described("sheet")
