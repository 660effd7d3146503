"""Pictures of a verdict that is no longer in memory, drawn from what the record kept of it."""

from __future__ import annotations

import io

from PIL import Image

from anomalysd_edge.vision.images import decode_rgb
from anomalysd_runtime.server.errors import NotFound
from anomalysd_runtime.server.records.verdict_store import VerdictStore
from anomalysd_runtime.server.verdicts import VerdictPictures, pictures_of_record

LARGE_PX = 1280
"""Longer side of a photo that a person shall judge by."""


def large_photo(store: VerdictStore | None, uid: str) -> bytes:
    """JPEG of the photo in its own shape, LARGE_PX at most. Raises NotFound where no record keeps it."""
    photo = None if store is None else store.stored_photo(uid)
    if photo is None:
        raise NotFound("the photo of this verdict is not in a record: serve with --keep photo")
    image, out = Image.fromarray(decode_rgb(photo)), io.BytesIO()
    image.thumbnail((LARGE_PX, LARGE_PX))
    image.save(out, format="JPEG", quality=90)
    return out.getvalue()


def recorded_pictures(store: VerdictStore | None, uid: str) -> VerdictPictures:
    """Raises NotFound where neither memory nor record has them, StoreError."""
    verdict = None if store is None else store.by_uid(uid)
    photo = None if store is None or verdict is None else store.stored_photo(uid)
    if store is None or verdict is None or photo is None:
        raise NotFound("the pictures of this verdict are no longer in memory; 'sd-edge history' can make them again")
    return pictures_of_record(decode_rgb(photo), store.stored_map(uid), verdict.threshold)
