"""What counts as marked in masks of any writing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from anomalysd_edge.core.types import U8
from anomalysd_edge.errors import DatasetError, ImageError
from anomalysd_edge.vision.images import load_mask, save_png

SIDE = 96


@pytest.fixture
def disc() -> U8:
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.where((y - 40) ** 2 + (x - 50) ** 2 < 15**2, 255, 0).astype(np.uint8)


def test_lossy_and_soft_masks_mark_what_was_drawn(tmp_path: Path, disc: U8) -> None:
    picture = Image.fromarray(disc)
    picture.convert("RGB").save(tmp_path / "lossy.webp", quality=80)
    picture.save(tmp_path / "lossy.jpg", quality=60)
    Image.open(tmp_path / "lossy.jpg").save(tmp_path / "by_way_of_jpeg.png")
    Image.open(tmp_path / "lossy.jpg").convert("P").save(tmp_path / "by_way_of_jpeg.gif")
    for quality in (30, 60, 95):
        picture.convert("RGB").save(tmp_path / "w.webp", quality=quality)
        Image.open(tmp_path / "w.webp").save(tmp_path / f"by_way_of_webp_{quality}.png")
        picture.save(tmp_path / "j.jpg", quality=quality)
        Image.open(tmp_path / "j.jpg").save(tmp_path / f"by_way_of_jpeg_{quality}.png")
    Image.fromarray(disc // 2).save(tmp_path / "half.jpg", quality=60)
    picture.filter(ImageFilter.GaussianBlur(2)).save(tmp_path / "blurred.png")
    picture.resize((SIDE * 2, SIDE * 2), Image.Resampling.BILINEAR).resize((SIDE, SIDE)).save(tmp_path / "resized.png")
    for path in sorted(tmp_path.iterdir()):
        found = load_mask(path, (SIDE, SIDE))
        assert (found != (disc > 0)).sum() < 0.06 * (disc > 0).sum(), path.name


def test_numbers_of_kinds_are_all_marked(tmp_path: Path, disc: U8) -> None:
    kinds = disc // 255
    kinds[5:20, 5:20] = 2
    kinds[80:82, 3:90] = 3
    marked = kinds > 0
    Image.fromarray(kinds).save(tmp_path / "small.png")
    Image.fromarray(np.choose(kinds, [0, 255, 60, 120]).astype(np.uint8)).save(tmp_path / "spread.png")
    Image.fromarray(np.choose(kinds, [0, 236, 250, 255]).astype(np.uint8)).save(tmp_path / "loco.png")
    Image.fromarray(np.choose(kinds, [0, 1, 2, 255]).astype(np.uint8)).save(tmp_path / "with_255.png")
    palette = Image.fromarray(kinds).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 64, 0, 0, 0, 128])
    palette.save(tmp_path / "palette.png")
    instances = np.arange(1, SIDE * SIDE + 1).reshape(SIDE, SIDE) // (SIDE * 3) + 1
    Image.fromarray((instances * marked).astype(np.uint8)).save(tmp_path / "instances.png")
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(load_mask(path, (SIDE, SIDE)), marked, err_msg=path.name)


def test_marks_in_alpha(tmp_path: Path, disc: U8) -> None:
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    Image.fromarray(np.dstack([black, disc])).save(tmp_path / "drawn_in_alpha.png")
    Image.fromarray(np.dstack([disc, disc, disc, black[..., 0]])).save(tmp_path / "alpha_0_everywhere.png")
    Image.fromarray(np.dstack([black + 255, disc])).save(tmp_path / "white_where_opaque.png")
    for path in sorted(tmp_path.iterdir()):
        np.testing.assert_array_equal(load_mask(path, (SIDE, SIDE)), disc > 0, err_msg=path.name)


def test_several_masks_of_one_photo_are_united(tmp_path: Path, disc: U8) -> None:
    folder = tmp_path / "000"
    folder.mkdir()
    save_png(folder / "000.png", disc)
    save_png(folder / "001.png", np.flipud(disc))
    np.testing.assert_array_equal(load_mask(folder, (SIDE, SIDE)), (disc > 0) | np.flipud(disc > 0))
    save_png(folder / "002.png", disc[:8])
    with pytest.raises(DatasetError, match=r"002\.png is 96x8 px"):
        load_mask(folder, (SIDE, SIDE))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no masks"):
        load_mask(tmp_path / "empty", (SIDE, SIDE))
    with pytest.raises(ImageError, match="does not exist"):
        load_mask(tmp_path / "none.png", (SIDE, SIDE))
