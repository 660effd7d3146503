"""Every pixel format a camera may bring, every way a file may be broken, and the resize kernel against its formula."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from anomalysd_edge.core.types import U8
from anomalysd_edge.errors import DatasetError, ImageError, ShapeError
from anomalysd_edge.vision.images import (
    decode_rgb,
    encode_png,
    list_images,
    load_mask,
    load_rgb,
    resize,
    resize_map,
    resize_maps,
    save_png,
    to_array,
    to_image,
)


@pytest.fixture
def photo() -> U8:
    return np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_png_round_trip_is_exact(tmp_path: Path, photo: U8) -> None:
    save_png(tmp_path / "a.png", photo)
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png"), photo)
    np.testing.assert_array_equal(decode_rgb(encode_png(photo)), photo)
    mask = photo[..., 0] > 100
    save_png(tmp_path / "m.png", mask)
    np.testing.assert_array_equal(load_mask(tmp_path / "m.png", (5, 7)), mask)
    with pytest.raises(ShapeError, match="float64"):
        encode_png(np.zeros((2, 2)))  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled_by_its_full_range(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / f"deep.{suffix}")
    read = load_rgb(tmp_path / f"deep.{suffix}")
    assert read.shape == (1, 6, 3)
    np.testing.assert_array_equal(read[0, :, 1], [0, 0, 1, 1, 128, 255])


def test_gray_palette_bilevel_and_cmyk_become_rgb(tmp_path: Path, photo: U8) -> None:
    gray = Image.fromarray(photo[..., 0])
    gray.save(tmp_path / "gray.png")
    np.testing.assert_array_equal(load_rgb(tmp_path / "gray.png"), np.repeat(photo[..., :1], 3, axis=2))
    palette = Image.fromarray((photo[..., 0] % 2).astype(np.uint8), mode="L").convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        np.unique(load_rgb(tmp_path / "palette.png").reshape(-1, 3), axis=0).max(0)[:1], [200]
    )
    gray.point(lambda v: 255 * (v > 127)).convert("1").save(tmp_path / "bits.png")
    np.testing.assert_array_equal(load_rgb(tmp_path / "bits.png")[..., 2], (photo[..., 0] > 127) * 255)
    Image.new("CMYK", (4, 4), (255, 0, 0, 0)).save(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(load_rgb(tmp_path / "cmyk.tif")[0, 0], [0, 255, 255])


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    expected = [[200, 0, 0], [255, 255, 255], [204, 204, 204]]
    np.testing.assert_array_equal(load_rgb(tmp_path / "rgba.png")[0], expected)
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 200, 100, 50])
    palette.save(tmp_path / "p.png", transparency=b"\x00\xff")
    np.testing.assert_array_equal(load_rgb(tmp_path / "p.png")[0], [[255, 255, 255], [200, 100, 50]])


@pytest.mark.parametrize(("orientation", "quarter_turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(tmp_path: Path, photo: U8, orientation: int, quarter_turns: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(load_rgb(tmp_path / "turned.png"), np.rot90(photo, quarter_turns))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_a_cut_off_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError, match=rf"cut\.{suffix}"):
            load_rgb(path)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("not an image")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tif")
    for name, reason in {
        "empty.png": "empty",
        "text.png": "not an image",
        "none.png": "not exist",
        "float.tif": "32-bit",
        "": "is a folder",
    }.items():
        with pytest.raises(ImageError, match=reason) as raised:
            load_rgb(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value)
    with pytest.raises(ImageError, match=r"upload.*0 bytes"):
        decode_rgb(b"", "upload")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [15_000, 40_000])
def test_over_200_megapixels_is_refused_before_decoding(side: int) -> None:
    with pytest.raises(ImageError, match="200 megapixels"):
        decode_rgb(png_header(side, side))


def test_50_megapixels_work(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    Image.new("L", (8192, 6144), 77).save(path, compress_level=1)
    small = resize(load_rgb(path), 16)
    assert small.shape == (16, 16, 3)
    assert (small == 77).all()


def test_masks_of_any_writing(tmp_path: Path) -> None:
    marked = np.array([[0, 1, 0], [0, 0, 3]], dtype=np.uint8)
    Image.fromarray(marked).save(tmp_path / "small_numbers.png")
    Image.fromarray((marked > 0) * np.uint8(255)).convert("1").save(tmp_path / "bits.png")
    Image.fromarray(np.stack([marked * 0, marked * 0, marked], axis=2)).save(tmp_path / "blue.png")
    Image.fromarray((marked > 0).astype(np.uint16) * 40_000).save(tmp_path / "deep.png")
    for path in list_images(tmp_path):
        np.testing.assert_array_equal(load_mask(path, (2, 3)), marked > 0, err_msg=path.name)
    square = np.zeros((32, 32), np.uint8)
    square[8:24, 8:24] = 255
    Image.fromarray(square).save(tmp_path / "lossy.jpg", quality=60)
    np.testing.assert_array_equal(load_mask(tmp_path / "lossy.jpg", (32, 32)), square > 0)


def test_a_mask_of_another_size_says_both(tmp_path: Path) -> None:
    save_png(tmp_path / "m.png", np.zeros((4, 6), bool))
    with pytest.raises(DatasetError, match=r"m\.png is 6x4 px, but its photo is 8x5 px"):
        load_mask(tmp_path / "m.png", (5, 8))


def bicubic_matrix(old: int, new: int) -> npt.NDArray[np.float64]:
    """(new, old) weights of the cubic convolution kernel (a = -0.5) that widens with the scale when it shrinks."""
    scale = old / new
    stretch = max(scale, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * scale - 0.5
    x = np.abs(np.arange(old)[None, :] - centres) / stretch
    weights = np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("size_px", [9, 24, 60])
def test_resize_is_the_antialiased_bicubic_kernel(size_px: int) -> None:
    image = np.random.default_rng(2).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    # Columns first, rounded to bytes in between, as Pillow does: a half that falls the other way moves a level.
    wide = np.rint(np.einsum("hwc,jw->hjc", image / 1.0, bicubic_matrix(24, size_px))).clip(0, 255)
    exact = np.einsum("ih,hjc->ijc", bicubic_matrix(40, size_px), wide).clip(0, 255)
    assert np.abs(resize(image, size_px) - exact).max() < 2
    np.testing.assert_array_equal(resize(image[:24], 24), image[:24])


def test_maps_are_resized_bilinearly() -> None:
    line = np.array([[0.0, 1.0]], dtype=np.float32)
    np.testing.assert_allclose(resize_map(line, (2, 4)), [[0, 0.25, 0.75, 1]] * 2, atol=1e-7)
    assert resize_map(line, (2, 4)).dtype == np.float32


def test_arrays_and_images_are_inverse() -> None:
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    array = to_array(every)
    assert array.shape == (1, 3, 16, 16)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    assert (array.min(), array.max()) == (-1, 1)
    np.testing.assert_array_equal(to_image(array[0]), every)
    np.testing.assert_array_equal(to_image(np.full((3, 1, 1), 1.7, np.float32)), [[[255] * 3]])


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), "u1")]
)
def test_other_shapes_and_types_are_refused(bad: U8) -> None:
    with pytest.raises(ShapeError, match="uint8"):
        to_array(bad)
    with pytest.raises(ShapeError, match="uint8"):
        resize(bad, 8)


def test_folders_list_images_only_sorted(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG"]
    assert list_images(tmp_path / "missing") == ()


@pytest.mark.parametrize(
    ("old", "new"), [((8, 8), (16, 16)), ((12, 9), (31, 20)), ((40, 30), (10, 12)), ((7, 7), (7, 7))]
)
def test_maps_at_once_are_those_one_by_one(old: tuple[int, int], new: tuple[int, int]) -> None:
    values = np.random.default_rng(0).standard_normal((2, 3, *old)).astype(np.float32)
    wanted = np.stack([[resize_map(plane, new) for plane in planes] for planes in values])
    found = resize_maps(values, new)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=2e-6)
