"""`sd-edge teach`, formerly `add-class`: a class from a few good photos, without training.

A bundle holds no text encoder. Where one is installed (the machine that trained, or where the base model is), a new
class gets prompt states of its own, and the encoder is checked against the bundle's states of the empty prompt;
elsewhere it gets these.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anomalysd_edge.bundle.reader import NEGATIVE_PROMPT, Bundle, read_bundle
from anomalysd_edge.bundle.signing import check_key_pair
from anomalysd_edge.bundle.teaching import NEGATIVES, Encode, Lesson, TaughtClass, teach
from anomalysd_edge.bundle.versions import changing
from anomalysd_edge.calibration.photo_checks import GoodPhoto, PhotoFinding
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.core.threads import use_threads
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.classes import check_name, find_class, load_classes
from anomalysd_edge.errors import DatasetError, ImageError, InputError
from anomalysd_edge.vision.images import list_images, load_rgb

SAME_STATES = 1e-3
"""Largest difference from the bundle's own prompt states that another machine's rounding may make."""


@dataclass(frozen=True, kw_only=True)
class TeachRequest:
    """What `sd-edge teach` shall do."""

    bundle: Path
    """The bundle that is taught."""
    name: str
    """The class's name."""
    photos: Path
    """Folder of its good photos."""
    noun: str | None = None
    """What the prompts call the class."""
    text_encoder: Path | None = None
    """A run, or a model in diffusers' layout; the bundle's base, by its name, if None."""
    class_file: Path | None = None
    """TOML with the class's noun, parts, kind and symmetries."""
    shots: int | None = None
    """The first K photos; all if None."""
    out: Path | None = None
    """Where the new bundle goes; in the place of the old one if None."""
    key: Path | None = None
    """Private key that signs the new bundle."""
    settings: CalibrationSettings = field(default_factory=lambda: CalibrationSettings(negatives=NEGATIVES))
    """How thresholds are found."""
    threads: int | None = None
    """CPU threads; all cores if None."""


def teach_class(request: TeachRequest, progress: Progress) -> TaughtClass:
    """Teach and write. Raises DatasetError (no photo that can be used), ClassError, BundleError, InputError."""
    from anomalysd_runtime.onnx.networks import OnnxNetworks

    check_name(request.name)
    if request.key is not None:
        check_key_pair(request.key)
    with nullcontext() if request.out else changing(request.bundle):
        bundle = read_bundle(request.bundle)
        photos, unreadable = _read(request.photos, request.shots)
        lesson = Lesson(
            name=request.name,
            photos=photos,
            unreadable=unreadable,
            noun=request.noun,
            described=load_classes(request.class_file) if request.class_file else {},
            settings=request.settings,
            out=request.out,
            key=request.key,
        )
        known = find_class(request.name, bundle.manifest.classes) is not None
        as_before = known and request.noun is None and request.class_file is None
        encode = None if as_before else _encoder(bundle, request.text_encoder)
        use_threads(request.threads)
        with OnnxNetworks.of_bundle(bundle, "cpu", request.threads) as networks:
            return teach(bundle, networks, lesson, encode, progress)


def _read(folder: Path, shots: int | None) -> tuple[list[GoodPhoto], list[PhotoFinding]]:
    files = list_images(folder)[:shots] if folder.is_dir() else []
    if not files:
        raise DatasetError(f"{folder} holds no photos; give the folder of the class's good ones")
    photos, faults = [], []
    for file in files:
        try:
            photos.append(GoodPhoto(file.name, sha256_file(file), load_rgb(file)))
        except ImageError as error:
            faults.append(PhotoFinding(file.name, "unreadable", f"{error}: left out", True))
    return photos, faults


def _encoder(bundle: Bundle, place: Path | None) -> Encode | None:
    """The text encoder of `place`, else of the bundle's base, where this machine has it; else None.

    Raises InputError where `place` holds none, or where the encoder is not the one that the bundle was made with.
    """
    try:
        from anomalysd_edge.training.models.text_encoding import open_text_encoder
    except ModuleNotFoundError as error:
        if place is None:
            return None
        raise InputError(
            f"--text-encoder needs {error.name}: pip install 'anomalysd-edge[train]', or teach without it"
        ) from error
    try:
        encode = open_text_encoder(place, bundle.manifest.base.name)
    except InputError:
        if place is None:
            return None
        raise
    known, ours = bundle.constants[NEGATIVE_PROMPT], encode("")
    most = SAME_STATES * max(1.0, float(np.abs(known).max()))
    if ours.shape != known.shape or float(np.abs(ours - known).max()) > most:
        raise InputError(
            f"the text encoder of {place or bundle.manifest.base.name} is not the one that {bundle.path} was made with "
            "(the empty prompt has other states): name the run or model folder that it came from with --text-encoder"
        )
    return encode
