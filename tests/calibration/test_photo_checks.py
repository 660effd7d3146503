"""Photos that a class is to be taught with: what is wrong with any is named, and only what is wrong."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageFilter

from anomalysd_edge.calibration.photo_checks import GoodPhoto, PhotoFinding, blur, check_photos, foreign_photos
from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.demo.dataset import render_part


def parts(count: int = 5, name: str = "demo_washer") -> list[GoodPhoto]:
    return [GoodPhoto(f"{i}.png", str(i), render_part(name, (3, i), 128).photo()) for i in range(count)]


def kinds(found: Sequence[PhotoFinding]) -> list[tuple[str, str, bool]]:
    return [(finding.photo, finding.kind, finding.left_out) for finding in found]


def altered(photo: U8, how: str) -> U8:
    image = Image.fromarray(photo)
    if how == "near-duplicate":
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
        return np.asarray(Image.open(file))
    if how == "blurred":
        return np.asarray(image.filter(ImageFilter.GaussianBlur(2.5)))
    return np.asarray(photo // 8) if how == "dark" else np.full_like(photo, 120)


def test_good_photos_are_found_no_fault_with() -> None:
    for name in ("demo_washer", "demo_weave", "demo_board"):
        photos = parts(6, name)
        assert check_photos(photos) == (photos, []), name


@pytest.mark.parametrize("how", ["near-duplicate", "blurred", "dark"])
def test_what_is_wrong_is_named_and_the_photo_used_all_the_same(how: str) -> None:
    photos = parts()
    base = photos[0] if how == "near-duplicate" else parts(6)[5]
    odd = GoodPhoto("odd.png", "odd", altered(base.pixels, how))
    kept, found = check_photos([*photos, odd])
    assert kept == [*photos, odd]
    assert ("odd.png", how, False) in kinds(found)
    assert {finding.photo for finding in found} == {"odd.png"}
    assert all(finding.sentence.startswith("odd.png ") for finding in found)
    if how == "near-duplicate":
        assert "nearly the same photo as 0.png" in found[0].sentence


def test_copies_to_the_pixel_and_blank_photos_are_left_out() -> None:
    photos = parts(3)
    copy = GoodPhoto("0.png", "again", photos[0].pixels.copy())  # of the same name, too
    blank = GoodPhoto("blank.png", "blank", altered(photos[0].pixels, "blank"))
    kept, found = check_photos([*photos, copy, blank])
    assert kept == photos
    assert kinds(found) == [("0.png", "duplicate", True), ("blank.png", "blank", True)]
    assert check_photos([blank])[0] == []


def test_a_lone_photo_is_judged_by_itself() -> None:
    (photo,) = parts(1)
    assert check_photos([photo]) == ([photo], [])
    dark = GoodPhoto("dark", "", altered(photo.pixels, "dark"))
    assert "dark" in [finding.kind for finding in check_photos([dark])[1]]


def test_blur_grows_with_the_lens_blur_and_is_that_of_the_formula() -> None:
    image = Image.fromarray(parts(1)[0].pixels)
    values = [blur(np.asarray(image.filter(ImageFilter.GaussianBlur(sigma)))) for sigma in (0, 1, 2, 4)]
    assert values == sorted(values)
    # One step of 100 between two rows: the mean over nine rows makes nine steps of 100 / 9 of it. What is lost is
    # 100 - 100 / 9 at the step itself and nothing elsewhere, of a total of 100: 1/9 survives.
    step = np.zeros((64, 64, 3), np.uint8)
    step[32:] = 100
    assert blur(step) == pytest.approx(1 / 9, abs=1e-3)
    assert blur(np.zeros((8, 8, 3), np.uint8)) == 0


def features(direction: int, seed: int) -> F32:
    """(8,4,4) of patches that all point about one way."""
    rng = np.random.default_rng(seed)
    found = rng.normal(0, 0.02, (8, 4, 4)).astype(np.float32)
    found[direction] += 1
    return found


def test_a_photo_unlike_the_rest_is_foreign() -> None:
    photos = parts(4)
    alike = [features(0, seed) for seed in range(4)]
    assert foreign_photos(photos, alike) == []
    found = foreign_photos(photos, [*alike[:3], features(1, 9)])
    assert kinds(found) == [("3.png", "foreign", False)]
    assert foreign_photos(photos[:2], [alike[0], features(1, 9)]) == [], "of two nobody knows which"
    spread = [features(direction, direction) for direction in range(4)]
    assert foreign_photos(photos, spread) == [], "of four that all differ none is the odd one"
