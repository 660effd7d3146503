"""Photos that may lie anywhere: local paths, or URLs of whatever fsspec reaches (s3://, gs://, http://...)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from anomalysd_edge.errors import ImageError, InputError
from anomalysd_edge.fleet.storage import import_fsspec
from anomalysd_edge.vision.images import IMAGE_SUFFIXES, decode_rgb, list_images, load_rgb


def is_url(place: str) -> bool:
    """Whether `place` is for fsspec and not a path of this machine."""
    return "://" in place


def list_photos(places: Sequence[str]) -> list[str]:
    """Photos, folders of photos and URLs of either -> photos, those of a folder sorted. Raises InputError."""
    found: list[str] = []
    for place in places:
        inside = _listing(place) if is_url(place) else _folder(Path(place))
        if not inside:
            raise InputError(f"{place} holds no photos; known endings are {', '.join(sorted(IMAGE_SUFFIXES))}")
        found += inside
    return found


def read_photo(place: str) -> npt.NDArray[np.uint8]:
    """(H,W,3) uint8. Raises ImageError, naming the place."""
    if not is_url(place):
        return load_rgb(Path(place))
    try:
        with import_fsspec().open(place, "rb") as file:
            data: bytes = file.read()
    except Exception as error:  # each of fsspec's file systems has errors of its own
        raise ImageError(
            f"{place} cannot be read ({type(error).__name__}: {error}); check address and rights"
        ) from error
    return decode_rgb(data, place)


def _folder(path: Path) -> list[str]:
    if path.is_dir():
        return [str(photo) for photo in list_images(path)]
    if not path.exists():
        raise InputError(f"{path} does not exist; give photos or folders of photos")
    return [str(path)]


def _listing(url: str) -> list[str]:
    fsspec = import_fsspec()
    try:
        system, path = fsspec.core.url_to_fs(url)
        if system.isfile(path):
            return [url]
        names = sorted(system.find(path))
    except Exception as error:  # as above
        raise InputError(f"{url} cannot be listed ({type(error).__name__}: {error}); check the address") from error
    return [system.unstrip_protocol(name) for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
