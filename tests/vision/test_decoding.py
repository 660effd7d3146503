"""Pixels as the camera meant them: bit depths, planes and tiles, alpha, damaged metadata; and what is said of it."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, PngImagePlugin

from anomalysd_edge.core.types import U8
from anomalysd_edge.errors import ImageError
from anomalysd_edge.vision.decoding import ALPHA_IGNORED, METADATA_IGNORED
from anomalysd_edge.vision.deep_pixels import BITS_VARIABLE
from anomalysd_edge.vision.images import PhotoWarning, decode_rgb, encode_png, load_rgb, photo_faults, read_rgb

Deep = npt.NDArray[np.uint16]

ASSUMED = pytest.mark.filterwarnings("ignore::anomalysd_edge.vision.images.PhotoWarning")
"""What was assumed of these photos is not what the test is about."""


@pytest.fixture
def photo() -> U8:
    return np.random.default_rng(1).integers(0, 256, (21, 37, 3), dtype=np.uint8)


def tiff(values: Deep, planar: bool, tile: int = 0, rows: int = 0, packed: bool = False, order: str = "<",
         **tags: int) -> bytes:  # fmt: skip
    """A 16-bit TIFF of (H,W,channels): in strips of `rows`, or in tiles; deflated where `packed`."""
    height, width, channels = values.shape
    planes = [values[..., c : c + 1] for c in range(channels)] if planar else [values]
    across, down = (tile, tile) if tile else (width, rows or height)
    blocks = []
    for plane in planes:
        for y, x in itertools.product(range(0, height, down), range(0, width, across)):
            block = plane[y : y + down, x : x + across]
            if tile:
                block = np.pad(block, ((0, tile - block.shape[0]), (0, tile - block.shape[1]), (0, 0)))
            data = block.astype(f"{order}u2").tobytes()
            blocks.append(zlib.compress(data) if packed else data)
    offsets = list(itertools.accumulate((len(block) for block in blocks), initial=8))
    entries = {
        256: [width], 257: [height], 258: [16] * channels, 259: [8 if packed else 1],
        262: [2 if channels > 1 else 1], 277: [channels], 284: [2 if planar else 1], 339: [1] * channels,
    }  # fmt: skip
    places = {322: [tile], 323: [tile], 324: offsets[:-1], 325: [len(block) for block in blocks]}
    strips = {273: offsets[:-1], 278: [down], 279: [len(block) for block in blocks]}
    entries |= (places if tile else strips) | {int(name[1:]): [value] for name, value in tags.items()}
    start = offsets[-1] + offsets[-1] % 2
    extra_at, table, extra = start + 2 + 12 * len(entries) + 4, b"", b""
    for tag, numbers in sorted(entries.items()):
        data = struct.pack(f"{order}{len(numbers)}I", *numbers)
        table += struct.pack(f"{order}HHI", tag, 4, len(numbers))
        if len(data) == 4:
            table += data
        else:
            table, extra = table + struct.pack(f"{order}I", extra_at + len(extra)), extra + data
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    body = b"".join(blocks) + b"\0" * (start - offsets[-1])
    return head + body + struct.pack(f"{order}H", len(entries)) + table + b"\0" * 4 + extra


def png16(values: Deep) -> bytes:
    """A 16-bit PNG of (H,W,1 to 4): every row with the Sub filter, whose bytes reach back one pixel."""
    kinds = {1: 0, 2: 4, 3: 2, 4: 6}
    rows = values.astype(">u2").view(np.uint8).reshape(values.shape[0], -1)
    filtered = rows.copy()
    filtered[:, 2 * values.shape[2] :] -= rows[:, : -2 * values.shape[2]]
    raw = b"".join(b"\1" + row.tobytes() for row in filtered)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kinds[values.shape[2]], 0, 0, 0)
    return png_of(chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b""))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def deep(photo: U8, bits: int) -> Deep:
    """(H,W,channels) of a camera with so many bits, aligned to the lower end, noise in the lowest."""
    white = (1 << bits) - 1
    noise = np.random.default_rng(2).integers(-(1 << bits - 10), 1 + (1 << bits - 10), photo.shape) // 2
    return np.asarray(np.clip(np.rint(photo * (white / 255)) + noise, 0, white), dtype=np.uint16)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("aligned", ["lower", "upper"])
def test_bit_depths_of_gray_cameras(tmp_path: Path, photo: U8, bits: int, aligned: str) -> None:
    values = deep(photo[..., 0], bits) << (16 - bits if aligned == "upper" else 0)
    for suffix in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
        seen, notes = read_rgb(tmp_path / f"a.{suffix}")
        np.testing.assert_array_equal(decode_rgb((tmp_path / f"a.{suffix}").read_bytes()), seen)
        assert np.abs(seen[..., 1] - photo[..., 0].astype(int)).max() <= 1
        assert (seen[..., 0] == seen[..., 2]).all()
        assumed = [f"use {bits} bits are read with {(1 << bits) - 1} as white" in note for note in notes]
        assert assumed == ([True] if aligned == "lower" and bits < 16 else [])


@ASSUMED
def test_8_bit_data_moved_into_a_deeper_range(tmp_path: Path, photo: U8) -> None:
    for shift in (2, 4, 6, 8):
        path = tmp_path / f"{shift}/a.png"
        path.parent.mkdir()
        Image.fromarray(photo[..., 0].astype(np.uint16) << shift).save(path)
        assert np.abs(load_rgb(path)[..., 0] - photo[..., 0].astype(int)).max() <= 1


def test_a_dark_photo_aligned_to_the_upper_end_stays_dark(tmp_path: Path, photo: U8) -> None:
    dark = photo[..., 0] // 8
    Image.fromarray(deep(dark, 12) << 4).save(tmp_path / "a.png")
    assert np.abs(load_rgb(tmp_path / "a.png")[..., 0] - dark.astype(int)).max() <= 1


@ASSUMED
def test_photos_of_a_folder_share_their_depth(tmp_path: Path, photo: U8) -> None:
    gray = photo[..., 0]
    for name, picture in {"bright": gray, "dark": gray // 8, "black": gray // 64}.items():
        Image.fromarray(deep(picture, 12)).save(tmp_path / f"{name}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "dark.png").read_bytes()[:90])
    for name, picture in {"bright": gray, "dark": gray // 8, "black": gray // 64}.items():
        assert np.abs(load_rgb(tmp_path / f"{name}.png")[..., 0] - picture.astype(int)).max() <= 1
    colour = tmp_path / "colour"
    colour.mkdir()
    (colour / "bright.png").write_bytes(png16(deep(photo, 16)))
    np.testing.assert_allclose(
        load_rgb(written(colour / "dark.png", png16(deep(photo // 64, 16)))), photo // 64, atol=1
    )
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(deep(gray, 16)).save(other / "bright.png")
    Image.fromarray(deep(gray // 64, 16)).save(other / "dark.png")
    assert np.abs(load_rgb(other / "dark.png")[..., 0] - (gray // 64).astype(int)).max() <= 1


@ASSUMED
def test_the_depth_can_be_stated(tmp_path: Path, photo: U8, monkeypatch: pytest.MonkeyPatch) -> None:
    dark = photo[..., 0] // 8
    Image.fromarray(deep(dark, 12)).save(tmp_path / "a.png")
    monkeypatch.setenv(BITS_VARIABLE, "12")
    assert np.abs(load_rgb(tmp_path / "a.png")[..., 0] - dark.astype(int)).max() <= 1
    monkeypatch.setenv(BITS_VARIABLE, "11")
    with pytest.raises(ImageError, match="expected one of 10, 12, 14, 16"):
        load_rgb(tmp_path / "a.png")
    monkeypatch.delenv(BITS_VARIABLE)
    data = tiff(deep(dark, 12)[..., None], planar=False, t281=4095)
    seen, notes = read_rgb(written(tmp_path / "a.tif", data))
    assert np.abs(seen[..., 0] - dark.astype(int)).max() <= 1
    assert notes == ()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_packed_12_bits_and_white_as_0(tmp_path: Path, photo: U8) -> None:
    gray = photo[:20, :36, 0] // 8
    values = deep(gray, 12)
    pairs = values.reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1)
    data = bytearray(tiff(values[..., None], planar=False, t258=12, t279=packed.size))
    data[8 : 8 + packed.size] = packed.astype(np.uint8).tobytes()
    seen, notes = read_rgb(written(tmp_path / "packed.tif", bytes(data)))
    assert np.abs(seen[..., 0] - gray.astype(int)).max() <= 1
    assert notes == ()
    full = deep(photo[..., 0], 16)
    seen = load_rgb(written(tmp_path / "white0.tif", tiff(65535 - full[..., None], planar=False, t262=0)))
    assert np.abs(seen[..., 0] - photo[..., 0].astype(int)).max() <= 1


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_bit_depths_of_colour_cameras(tmp_path: Path, photo: U8, bits: int) -> None:
    values = deep(photo, bits)
    files = {
        "a.png": png16(values),
        "le.tif": tiff(values, planar=False),
        "be.tif": tiff(values, planar=False, order=">"),
        "packed.tif": tiff(values, planar=False, packed=True),
        "planes.tif": tiff(values, planar=True),
    }
    for name, data in files.items():
        seen, notes = read_rgb(written(tmp_path / name, data))
        assert np.abs(seen - photo.astype(int)).max() <= 1, name
        assert len(notes) == (bits < 16), name
        np.testing.assert_array_equal(decode_rgb(data), seen)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("tile", [0, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_planes_strips_and_tiles(
    tmp_path: Path, photo: U8, channels: int, tile: int, planar: bool, packed: bool, order: str
) -> None:
    values = photo[..., :channels].astype(np.uint16) * 257
    data = tiff(values, planar, tile, rows=8, packed=packed, order=order)
    np.testing.assert_array_equal(
        load_rgb(written(tmp_path / "a.tif", data)), np.broadcast_to(photo[..., :channels], photo.shape)
    )


def test_planes_are_turned_upright(tmp_path: Path, photo: U8) -> None:
    data = tiff(photo.astype(np.uint16) * 257, planar=True, t274=6)
    np.testing.assert_array_equal(load_rgb(written(tmp_path / "a.tif", data)), np.rot90(photo, 3))


def test_deep_colour_that_cannot_be_read_exactly_is_refused(tmp_path: Path, photo: U8) -> None:
    values = deep(photo, 12)
    opaque = np.concatenate([values, np.full_like(values[..., :1], 65535)], axis=2)
    np.testing.assert_allclose(decode_rgb(png16(opaque)), photo, atol=1)
    for data in (tiff(values, planar=True, packed=True), png16(opaque[..., 2:])):
        with pytest.raises(ImageError, match="save it as gray or RGB"):
            load_rgb(written(tmp_path / "a", data))


def test_alpha_that_hides_everything_is_ignored(tmp_path: Path, photo: U8) -> None:
    hidden = np.concatenate([photo, np.zeros_like(photo[..., :1])], axis=2)
    for name in ("a.png", "a.tif", "a.webp"):
        Image.fromarray(hidden).save(tmp_path / name, lossless=True, exact=True)  # the last two are WebP's
        seen, notes = read_rgb(tmp_path / name)
        np.testing.assert_array_equal(seen, photo)
        assert notes == (ALPHA_IGNORED,)
    hidden[0, 0, 3] = 255
    seen, notes = read_rgb(written(tmp_path / "b.png", png(hidden)))
    assert (seen[1:] == 255).all()
    assert notes == ()


def png(pixels: U8) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@ASSUMED
def test_metadata_never_costs_the_picture(tmp_path: Path, photo: U8) -> None:
    whole = encode_png(photo)
    text = PngImagePlugin.PngInfo()
    text.add_text("recipe", "x " * 700_000, zip=True)
    Image.fromarray(photo).save(tmp_path / "text.png", pnginfo=text)
    Image.fromarray(photo).save(tmp_path / "icc.png", icc_profile=b"\0" * 1_500_000)
    exif = chunk(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03xxxx")
    files = {
        "exif.png": whole[:33] + exif + whole[33:],
        "crc.png": whole[:33] + chunk(b"tEXt", b"Comment\0good")[:-4] + b"\0\0\0\0" + whole[33:],
        "phys.png": whole[:33] + chunk(b"pHYs", b"\0") + whole[33:],
    }
    for name, data in files.items():
        written(tmp_path / name, data)
    for path in sorted(tmp_path.glob("*.png")):
        seen, notes = read_rgb(path)
        np.testing.assert_array_equal(seen, photo, err_msg=path.name)
        assert notes == (METADATA_IGNORED,), path.name
    Image.fromarray(photo).save(tmp_path / "plain.jpg", quality=95)
    jpeg = (tmp_path / "plain.jpg").read_bytes()
    segment = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01garbage"
    broken = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    np.testing.assert_array_equal(load_rgb(written(tmp_path / "exif.jpg", broken)), load_rgb(tmp_path / "plain.jpg"))


def test_damaged_pixels_are_still_refused(tmp_path: Path, photo: U8) -> None:
    whole = bytearray(encode_png(photo))
    whole[60] ^= 255  # within the pixels
    with pytest.raises(ImageError, match="damaged"):
        load_rgb(written(tmp_path / "a.png", bytes(whole)))


def test_what_was_assumed_is_warned_of_and_names_the_folder(tmp_path: Path, photo: U8) -> None:
    for name in ("x/0.png", "y/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo[..., 0].astype(np.uint16) << 4).save(tmp_path / name)
        with pytest.warns(PhotoWarning, match="12 bits") as said:
            load_rgb(tmp_path / name)
        assert str(said[0].message).startswith(str((tmp_path / name).parent))


def test_portable_graymaps_say_their_white(tmp_path: Path) -> None:
    values = np.array([[0, 100, 200, 4095]], dtype=">u2")
    path = written(tmp_path / "a.pgm", b"P5 4 1 4095\n" + values.tobytes())
    seen, notes = read_rgb(path)
    assert seen[0, :, 0].tolist() == [0, 6, 12, 255]
    assert notes == ()


def test_shots_that_show_nothing_are_named(photo: U8) -> None:
    assert photo_faults(photo) == []
    (fault,) = photo_faults(np.full((300, 400, 3), (3, 5, 7), np.uint8))
    assert fault == "it is of one colour, (3, 5, 7)"
    black = np.random.default_rng(0).integers(0, 20, (300, 400, 3), dtype=np.uint8)
    for row, column in ((0, 0), (30, 16), (298, 398)):
        black[row, column] = 255  # hot pixels
    assert "0 to 19 of 0 to 255" in photo_faults(black)[0]
    assert photo_faults(np.stack([np.full((9, 9), v, np.uint8) for v in (10, 90, 200)], axis=2))
