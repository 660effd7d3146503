"""Photos in and out: reading anything a camera or an archive holds, the one resize kernel, [-1,1] arrays, PNG.

(H,W,3) uint8 <-> (1,3,H,W) float32 in [-1,1]. Training, export and every runtime resize through :func:`resize`, so a
score cannot change because somebody resized differently; bundles carry test vectors of it.
"""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from anomalysd_edge.core.files import printable, write_aside
from anomalysd_edge.core.threads import map_threads
from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.errors import DatasetError, ImageError, ShapeError
from anomalysd_edge.vision import decoding, tiff_planes
from anomalysd_edge.vision.masks import marked

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pnm"}
)
"""Lower-case suffixes of the files that folders are searched for."""

_LARGE = 2**20
"""Pixels from which shrinking takes longer than starting a thread."""
_PLANES = 3
"""Of a batch of planes, those that one thread resizes together: the colours of a repaint."""
_SAMPLED_PIXELS = 2**14
"""Pixels of a photo that its faults are looked for in."""
_BESIDE = 16
"""Photos of a folder that are asked for their bit depth where one does not tell."""
_LEAST_RANGE = 25.5
"""Grey levels, a tenth of the range, below which a photo hardly shows anything."""

log = logging.getLogger("sd-edge.photos")


class PhotoWarning(UserWarning):
    """What was assumed about a photo's pixels; its text names the folder, so that Python shows it once a folder."""


def load_rgb(path: Path | str) -> U8:
    """Read a photo: (H,W,3) uint8, turned upright by its EXIF orientation.

    Gray, palette, CMYK and 1-bit images are converted; more than 8 bits are scaled by the range that the camera meant
    (deep_pixels.py); transparent pixels are laid over white, unless all are. Of several frames the first is read;
    colour profiles are ignored. What had to be assumed is warned of (PhotoWarning); read_rgb returns it.
    Raises ImageError, which names the file, if it is missing, empty, truncated, no image, larger than 200 Mpx or of
    a pixel format with no known range (32-bit and floating point).
    """
    photo, notes = read_rgb(path)
    for note in notes:
        warnings.warn(f"{printable(str(Path(path).parent))}: {note}", PhotoWarning, stacklevel=2)
    return photo


def read_rgb(path: Path | str) -> tuple[U8, tuple[str, ...]]:
    """As :func:`load_rgb`, with a sentence for everything that was assumed about the pixels, none of it logged."""
    path = Path(path)
    _check_file(path)
    found = decoding.decode(path, str(path), lambda: _bits_beside(path.parent))
    return found.pixels, found.notes


@lru_cache(maxsize=256)
def _bits_beside(folder: Path) -> int:
    """The most bits a channel that photos of `folder` use; the first of them are looked at, once."""
    bits = 8
    for path in list_images(folder)[:_BESIDE]:
        with suppress(ImageError):  # Damaged ones are named when it is their turn.
            bits = max(bits, decoding.decode(path, str(path)).bits)
    return bits


def decode_rgb(data: bytes, name: str = "the photo") -> U8:
    """As :func:`load_rgb`, from the bytes of an image file; `name` stands in error messages."""
    if not data:
        raise ImageError(f"{name} is empty (0 bytes), expected an image; take or copy the photo again")
    found = decoding.decode(io.BytesIO(data), name)
    for note in found.notes:
        log_once("photos sent", note)
    return found.pixels


@lru_cache(maxsize=1024)
def log_once(source: str, note: str) -> None:
    """Log `note` about the photos of `source`, a folder or a phrase, unless it was logged before."""
    log.warning("%s: %s", printable(source), note)


def photo_faults(photo: U8) -> list[str]:
    """What is wrong with (H,W,3) as a shot: all of one colour, or less than a tenth of the range in use.

    A sample of its pixels is looked at, without the outermost thousandth: a black photo with hot pixels is black.
    """
    check_photo(photo)
    step = max(1, math.isqrt(photo.shape[0] * photo.shape[1] // _SAMPLED_PIXELS))
    sample = photo[::step, ::step].reshape(-1, 3)
    # Percentiles by counting grey levels: a quarter of np.percentile's time, so that serving can afford it.
    ranks = np.round(np.array([0.001, 0.999]) * (len(sample) - 1))
    counted = [np.cumsum(np.bincount(channel, minlength=256)) for channel in sample.T]
    low, high = np.stack([np.searchsorted(counts, ranks, side="right") for counts in counted], axis=1)
    if (low == high).all():
        return [f"it is of one colour, {tuple(map(int, low))}"]
    if high.max() - low.min() < _LEAST_RANGE:
        used = f"{int(low.min())} to {int(high.max())}"
        return [f"it uses the grey levels {used} of 0 to 255, less than a tenth; check light, exposure and bit depth"]
    return []


def load_mask(path: Path, shape_hw: tuple[int, int]) -> Mask:
    """Read a defect mask: (H,W) bool, True where marked (masks.py); of a folder of masks, where any of them marks.

    Raises ImageError if a file cannot be read and DatasetError if its size is not `shape_hw`, the photo's.
    """
    if path.is_dir():
        parts = [load_mask(part, shape_hw) for part in list_images(path)]
        if not parts:
            raise DatasetError(f"{path} holds no masks that can be read; expected image files")
        return np.asarray(np.logical_or.reduce(parts))
    _check_file(path)
    notes: list[str] = []
    with decoding.opened(path, str(path), notes) as image:
        if tiff_planes.not_for_pillow(image):
            raise ImageError(f"mask {path} is a TIFF of 16-bit planes; save it as PNG")
        decoding.turn_upright(image, notes)
        found = marked(image)
    if found.shape != tuple(shape_hw):
        size, expected = f"{found.shape[1]}x{found.shape[0]}", f"{shape_hw[1]}x{shape_hw[0]}"
        raise DatasetError(
            f"mask {path} is {size} px, but its photo is {expected} px; a mask must have its photo's size"
        )
    return found


def list_images(folder: Path) -> tuple[Path, ...]:
    """The image files directly in `folder`, sorted by name; hidden files are left out. A missing folder has none."""
    if not folder.is_dir():
        return ()
    return tuple(
        sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
        )
    )


def resize(image: U8, size_px: int) -> U8:
    """(H,W,3) uint8 -> (size_px,size_px,3) uint8: Pillow's bicubic with its antialias, the aspect squashed.

    Squashing instead of cropping keeps every pixel of the photo under inspection, as anomalib does.
    """
    return resize_to(image, [(size_px, size_px)])[0]


def resize_to(image: U8, shapes_hw: Sequence[tuple[int, int]]) -> list[U8]:
    """The same to several (height, width) at once: a large photo is handed to Pillow once and shrunk in threads."""
    check_photo(image)
    for height, width in shapes_hw:
        if height < 1 or width < 1:
            raise ShapeError(f"cannot resize to {width} x {height} px; expected at least 1")
    source: Image.Image | None = None
    if any(image.shape[:2] != shape for shape in shapes_hw):
        source = Image.fromarray(image)

    def one(shape_hw: tuple[int, int]) -> U8:
        if source is None or image.shape[:2] == shape_hw:
            return image.copy()
        height, width = shape_hw
        return np.array(source.resize((width, height), Image.Resampling.BICUBIC))

    if image.shape[0] * image.shape[1] < _LARGE or len(shapes_hw) < 2:
        return [one(shape) for shape in shapes_hw]
    with ThreadPoolExecutor(len(shapes_hw)) as pool:  # Pillow holds no lock while it resizes
        return list(pool.map(one, shapes_hw))


def resize_map(values: F32, shape_hw: tuple[int, int]) -> F32:
    """(h,w) float32 -> (H,W) float32, bilinear with pixel centres aligned (antialiased where it shrinks)."""
    if values.ndim != 2:
        raise ShapeError(f"a map has the shape {values.shape}; expected (h, w)")
    height, width = shape_hw
    plane = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    resized = plane.resize((width, height), Image.Resampling.BILINEAR)
    # np.array(resized) takes twice as long as the resizing: Pillow's array interface goes by way of a list of blocks.
    return np.frombuffer(resized.tobytes(), np.float32).reshape(height, width).copy()


def resize_maps(values: F32, shape_hw: tuple[int, int]) -> F32:
    """(...,h,w) float32 -> (...,H,W) float32: :func:`resize_map` of each, to float rounding.

    Bilinear resizing is linear and separable: two matrix products take a fifth of Pillow's time for a batch of planes.
    """
    if values.shape[-2:] == shape_hw:
        return values
    rows, columns = (_weights(old, new) for old, new in zip(values.shape[-2:], shape_hw, strict=True))
    planes = values.reshape(-1, *values.shape[-2:])
    parts = [planes[start : start + _PLANES] for start in range(0, len(planes), _PLANES)]
    found = np.concatenate(map_threads(lambda part: rows @ part @ columns.T, parts))
    return np.asarray(found, dtype=np.float32).reshape(*values.shape[:-2], *shape_hw)


@lru_cache(maxsize=32)
def _weights(old: int, new: int) -> F32:
    """(new,old): what each of `new` rows takes of each of `old`; Pillow's own, by what it makes of unit vectors."""
    found = resize_map(np.eye(old, dtype=np.float32), (new, old))
    found.setflags(write=False)
    return found


def to_array(image: U8) -> F32:
    """(H,W,3) uint8 -> (1,3,H,W) float32 in [-1,1]: v / 127.5 - 1."""
    check_photo(image)
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], dtype=np.float32) / np.float32(127.5) - np.float32(1)


def to_image(array: F32) -> U8:
    """(3,H,W) float32 in [-1,1] -> (H,W,3) uint8, rounded and clipped: the inverse of :func:`to_array`."""
    if array.ndim != 3 or array.shape[0] != 3:
        raise ShapeError(f"an image array has the shape {array.shape}; expected (3, H, W)")
    scaled = np.clip((array.transpose(1, 2, 0) + 1) * 127.5, 0, 255)
    return np.ascontiguousarray(np.rint(scaled).astype(np.uint8))


def encode_png(array: U8 | Mask) -> bytes:
    """The bytes of a PNG: (H,W,3) or (H,W) uint8, or (H,W) bool as 0 and 255."""
    pixels = array.astype(np.uint8) * np.uint8(255) if array.dtype == np.bool_ else array
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ShapeError(f"cannot write {array.dtype} {array.shape} as PNG; expected (H,W,3) or (H,W) uint8, or bool")
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, format="PNG")
    return out.getvalue()


def save_png(path: Path, array: U8 | Mask) -> None:
    """Write :func:`encode_png` to `path`, aside and renamed. Raises InputError where it cannot be written."""
    data = encode_png(array)
    with write_aside(path) as aside:
        aside.write_bytes(data)


def check_photo(image: U8, what: str = "a photo", shape_hw: tuple[int, ...] | None = None) -> None:
    """Raise ShapeError unless `image` is a non-empty (H,W,3) uint8 array, of (H,W) `shape_hw` where that is given."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ShapeError(f"{what} came as {image.dtype} {image.shape}; expected uint8 (H, W, 3)")
    if shape_hw is not None and image.shape[:2] != tuple(shape_hw):
        raise ShapeError(f"{what} is {image.shape[:2]} and its map or mask {tuple(shape_hw)}; expected the same size")


def _check_file(path: Path) -> None:
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ImageError(f"{path} {found}, expected an image file; check the path")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes), expected an image; take or copy the photo again")
