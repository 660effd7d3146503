"""From bytes that anybody may have sent to a photo, or a sentence that says why not."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from anomalysd_edge.core.types import U8
from anomalysd_edge.errors import ImageError
from anomalysd_edge.vision.images import decode_rgb
from anomalysd_runtime.server.errors import BadRequest, TooLarge, WrongType

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
"""What a camera sends. Pillow's other decoders (EPS starts a program, for one) never see a client's bytes."""


def photo_size(data: bytes, max_pixels: int) -> tuple[int, int]:
    """(width, height) by the image's head, before anything is decoded. Raises WrongType, TooLarge or BadRequest."""
    if not data:
        raise BadRequest("the photo is empty (0 bytes); send the bytes of an image file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
    except UnidentifiedImageError as error:
        raise WrongType(f"the photo is no image that is taken here; send {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the photo has more than {max_pixels / 1e6:g} megapixels; scale it down or tile it") from error
    except Exception as error:  # on a damaged head a decoder may raise anything
        raise BadRequest(f"the photo's head is damaged ({type(error).__name__}); take or copy it again") from error
    if width * height > max_pixels:
        raise TooLarge(
            f"the photo is {width}x{height} px; at most {max_pixels / 1e6:g} megapixels are taken: scale it down"
        )
    if width < 1 or height < 1:
        raise BadRequest(f"the photo is {width}x{height} px; expected at least one pixel")
    return width, height


def decode(data: bytes) -> U8:
    """(H,W,3) uint8. Raises BadRequest with the image reader's own sentence."""
    try:
        return decode_rgb(data)
    except ImageError as error:
        raise BadRequest(str(error)) from error
