"""Photos in and out: reading anything a camera or an archive holds, the one resize kernel, [-1,1] arrays, PNG.

(H,W,3) uint8 <-> (1,3,H,W) float32 in [-1,1]. Training, export and every runtime resize through :func:`resize`, so a
score cannot change because somebody resized differently; bundles carry test vectors of it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from anomalysd_edge.core.files import write_aside
from anomalysd_edge.core.threads import spread
from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.errors import DatasetError, ImageError, SDEdgeError, ShapeError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""Lower-case suffixes of the files that folders are searched for."""

MAX_PIXELS = 200_000_000
"""Larger photos are refused before they are decoded: 200 Mpx are 600 MB of memory."""

_LARGE = 2**20
"""Pixels from which shrinking takes longer than starting a thread."""
_PLANES = 3
"""Of a batch of planes, those that one thread resizes together: the colours of a repaint."""

# Pillow's own guard against decompression bombs warns at 89 Mpx; line scan cameras reach that. Its limit is one per
# process, and setting it once is safe with threads, unlike silencing its warning around every read.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


def load_rgb(path: Path | str) -> U8:
    """Read a photo: (H,W,3) uint8, turned upright by its EXIF orientation.

    Gray, palette, CMYK and 1-bit images are converted; 16-bit gray is scaled by its full range (65535 -> 255);
    transparent pixels are laid over white. Of several frames the first is read; colour profiles are ignored.
    Raises ImageError, which names the file, if it is missing, empty, truncated, no image, larger than 200 Mpx or of
    a pixel format with no known range (32-bit and floating point).
    """
    path = Path(path)
    _check_file(path)
    return _read_rgb(path, str(path))


def decode_rgb(data: bytes, name: str = "the photo") -> U8:
    """As :func:`load_rgb`, from the bytes of an image file; `name` stands in error messages."""
    if not data:
        raise ImageError(f"{name} is empty (0 bytes), expected an image; take or copy the photo again")
    return _read_rgb(io.BytesIO(data), name)


def load_mask(path: Path, shape_hw: tuple[int, int]) -> Mask:
    """Read a defect mask: (H,W) bool, True where any colour channel is not 0 (in a JPEG: above 127).

    VisA's masks hold small numbers and MVTec's 255, hence "not 0"; JPEG blurs around edges, hence its threshold.
    Raises ImageError if the file cannot be read and DatasetError if its size is not `shape_hw`, the photo's.
    """
    _check_file(path)
    with _opened(path, str(path)) as image:
        lossy = image.format == "JPEG"
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
            values = np.asarray(image)
        else:
            rgba = np.asarray(image.convert("RGBA"))
            values = rgba[..., :3].max(axis=2) * (rgba[..., 3] > 0)
    if values.shape != tuple(shape_hw):
        found, expected = f"{values.shape[1]}x{values.shape[0]}", f"{shape_hw[1]}x{shape_hw[0]}"
        raise DatasetError(
            f"mask {path} is {found} px, but its photo is {expected} px; a mask must have its photo's size"
        )
    return np.asarray(values > (127 if lossy else 0))


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
    found = np.concatenate(spread(lambda part: rows @ part @ columns.T, parts))
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


def _read_rgb(source: Path | io.BytesIO, name: str) -> U8:
    with _opened(source, name) as image:
        png = image.format == "PNG"
        # In place, and no conversion without need: every copy of a 50 Mpx photo is 200 MB.
        ImageOps.exif_transpose(image, in_place=True)
        upright: Image.Image = image
        if upright.mode.startswith("I;16") or (upright.mode == "I" and png):
            return _from_16_bit(np.asarray(upright))
        if upright.mode in ("I", "F"):
            raise ImageError(f"{name} has 32-bit pixels of unknown range; convert it to 8 or 16 bits a channel")
        if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
            over = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
        return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _from_16_bit(gray: npt.NDArray[np.generic]) -> U8:
    """(H,W) integers in 0..65535 -> (H,W,3) uint8; 65535 = 255 * 257, so the full range maps onto the full range."""
    eight = ((np.clip(gray, 0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(eight[..., None], 3, axis=2)


@contextmanager
def _opened(source: Path | io.BytesIO, name: str) -> Iterator[Image.Image]:
    """Yield the decoded image; whatever goes wrong with it, in the block too, becomes an ImageError with its name."""
    try:
        with Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(name, f"{image.width}x{image.height} px")
            image.load()
            yield image
    except SDEdgeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, "too large") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that can be read; expected PNG, JPEG, BMP, TIFF or WebP") from error
    except MemoryError as error:
        raise ImageError(f"{name} does not fit into memory; scale it down before") from error
    except Exception as error:  # On a damaged file a decoder may raise anything: OSError, SyntaxError, struct.error ...
        raise ImageError(f"{name} is damaged or cut off ({error}); take or copy the photo again") from error


def _too_large(name: str, found: str) -> ImageError:
    return ImageError(f"{name} is {found}; expected at most {MAX_PIXELS // 10**6} megapixels: scale it down or tile it")
