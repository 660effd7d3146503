"""Image files to (H,W,3) uint8, with a note for everything that had to be assumed about their pixels.

Opaque 8-bit photos, nearly all there are, take Pillow's own way. The rest: more than 8 bits a channel
(deep_pixels.py), planes apart (tiff_planes.py), alpha, and metadata that is damaged beside a whole picture.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from anomalysd_edge.core.types import U8
from anomalysd_edge.errors import ImageError, SDEdgeError
from anomalysd_edge.vision import deep_pixels, tiff_planes

Source = Path | io.BytesIO
"""A file, or the bytes of one."""

MAX_PIXELS = 200_000_000
"""Larger photos are refused before they are decoded: 200 Mpx are 600 MB of memory."""

ALPHA_IGNORED = "alpha is 0 everywhere, which would hide the whole picture: alpha is ignored"
METADATA_IGNORED = "damaged or oversized metadata (EXIF, text, colour profile) is ignored, the picture is whole"

# Pillow's own guard against decompression bombs warns at 89 Mpx; line scan cameras reach that. Its limit is one per
# process, and setting it once is safe with threads, unlike silencing its warning around every read.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PICTURE = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
"""The chunks that make the picture."""
_JPEG_PICTURE = frozenset({0xE0, 0xEE})
"""Of the application segments those that say how colours are coded: JFIF and Adobe."""


@dataclass(frozen=True)
class Decoded:
    """An image file as pixels."""

    pixels: U8
    """(H,W,3), turned upright."""
    notes: tuple[str, ...]
    """What was assumed about the pixels, a sentence each."""
    bits: int
    """Bits a channel that were taken for the camera's; 8 where the file has 8 or less."""


def decode(source: Source, name: str, neighbours: Callable[[], int] | None = None) -> Decoded:
    """Read an image. Raises ImageError with `name`.

    `neighbours` gives the bits that other photos of the same camera use; it is asked only where a file does not tell.
    """
    notes: list[str] = []
    with opened(source, name, notes) as image:
        values, stated = _deep_values(source, image, name, notes)
        if values is None:
            return Decoded(np.array(_flattened(image, notes)), tuple(notes), stated or 8)
        bits = stated or deep_pixels.bits_of(values, neighbours, notes)
        eight = deep_pixels.to_8_bit(values, bits)
        pixels = np.repeat(eight, 3, axis=2) if eight.shape[2] == 1 else eight
        if tiff_planes.not_for_pillow(image):
            picture = Image.fromarray(pixels)
            picture.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
            turn_upright(picture, notes)
            pixels = np.array(picture)
        return Decoded(pixels, tuple(notes), bits)


def _deep_values(
    source: Source, image: Image.Image, name: str, notes: list[str]
) -> tuple[npt.NDArray[np.uint16] | None, int | None]:
    """((H,W,1 or 3), the bits that its file states) of an image with more than 8 bits a channel; turns it upright.

    None for values that Pillow's 8 bits show as well.
    """
    if tiff_planes.not_for_pillow(image):
        values = tiff_planes.read(image, _bytes_of(source))
        if values.shape[2] not in (1, 3):
            raise ImageError(f"{name} has {values.shape[2]} planes of 16 bits; save it as gray or RGB, without alpha")
        return values, None
    turn_upright(image, notes)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return deep_pixels.upright(np.asarray(image), image)[..., None], deep_pixels.stated_bits(image)
    if image.mode in ("I", "F"):
        raise ImageError(f"{name} has 32-bit pixels of unknown range; convert it to 8 or 16 bits a channel")
    if image.mode not in ("RGB", "RGBA") or image.format not in ("PNG", "TIFF"):
        return None, None
    if not deep_pixels.are_16_bit(source if isinstance(source, Path) else source.getbuffer(), image):
        return None, None
    if np.asarray(image)[..., :3].max(initial=0) >= deep_pixels.QUARTER >> 8:
        return None, 16
    high = np.asarray(image.convert("RGB"), dtype=np.uint16) << np.uint16(8)
    return np.asarray(high | _low_bytes(source, name), dtype=np.uint16), None


def turn_upright(image: Image.Image, notes: list[str]) -> None:
    """Apply the EXIF orientation, in place; EXIF that cannot be read turns nothing and is noted."""
    try:
        # In place, and no conversion without need: every copy of a 50 Mpx photo is 200 MB.
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # Of damaged EXIF Pillow raises anything: struct.error, SyntaxError, ValueError ...
        notes.append(METADATA_IGNORED)


def _flattened(image: Image.Image, notes: list[str]) -> Image.Image:
    """Mode RGB; transparent pixels over white, unless that would hide everything."""
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")
    over = image if image.mode == "RGBA" else image.convert("RGBA")
    lowest, highest = over.getchannel("A").getextrema()
    if highest == 0:
        notes.append(ALPHA_IGNORED)
    elif lowest != 255:
        over = Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
    return over.convert("RGB")


def _low_bytes(source: Source, name: str) -> U8:
    """(H,W,3): the lower bytes of 16-bit colours, of which Pillow gives the upper ones.

    With 10, 12 or 14 bits at the lower end those hold 4, 16 or 64 grey levels. A second decoding that takes the
    file's bytes in the other order brings the rest.
    """
    if isinstance(source, io.BytesIO):
        source.seek(0)
    with Image.open(source) as again:
        if not deep_pixels.swap_bytes(again):
            raise ImageError(
                f"{name} uses less than 15 of its 16 bits a channel, with alpha or in planes apart; save it as gray or "
                "RGB, without alpha, channels interleaved"
            )
        again.load()
        turn_upright(again, [])
        return np.asarray(again)[..., :3]


@contextmanager
def opened(source: Source, name: str, notes: list[str]) -> Iterator[Image.Image]:
    """Yield the decoded image; whatever goes wrong with it, in the block too, becomes an ImageError with its name."""
    try:
        with ExitStack() as stack:
            yield _loaded(source, name, notes, stack)
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


def _loaded(source: Source, name: str, notes: list[str], stack: ExitStack) -> Image.Image:
    try:
        return _load(source, name, stack)
    except (SDEdgeError, Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        raise
    except Exception:
        bare = without_metadata(_bytes_of(source))
        if bare is None:
            raise
        image = _load(io.BytesIO(bare), name, stack)
        notes.append(METADATA_IGNORED)
        return image


def _load(source: Source, name: str, stack: ExitStack) -> Image.Image:
    image = stack.enter_context(Image.open(source))
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(name, f"{image.width}x{image.height} px")
    if not tiff_planes.not_for_pillow(image):
        image.load()
    return image


def _bytes_of(source: Source) -> bytes:
    return source.getvalue() if isinstance(source, io.BytesIO) else source.read_bytes()


def _too_large(name: str, found: str) -> ImageError:
    return ImageError(f"{name} is {found}; expected at most {MAX_PIXELS // 10**6} megapixels: scale it down or tile it")


def without_metadata(data: bytes) -> bytes | None:
    """A PNG or JPEG without text, EXIF and profiles; None for other files and where its structure is broken."""
    try:
        if data.startswith(_PNG):
            return _bare_png(data)
        return _bare_jpeg(data) if data.startswith(b"\xff\xd8") else None
    except (struct.error, IndexError):
        return None


def _bare_png(data: bytes) -> bytes | None:
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        end = at + 12 + length
        if kind in _PNG_PICTURE:
            kept.append(data[at:end])
        if kind == b"IEND":
            return b"".join(kept)
        at = end
    return None


def _bare_jpeg(data: bytes) -> bytes | None:
    kept, at = [data[:2]], 2
    while data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:  # The scan: pixels from here on.
            return b"".join([*kept, data[at:]])
        end = at + 2 + int(struct.unpack(">H", data[at + 2 : at + 4])[0])
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker in _JPEG_PICTURE:
            kept.append(data[at:end])
        at = end
    return None
