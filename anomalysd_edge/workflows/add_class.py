"""`sd-edge add-class`: one more class in a bundle, without training: prompt states, prototypes, thresholds.

A bundle holds no text encoder, so this runs where one is installed: on the machine that trained, or where the base
model is. The encoder is checked against the bundle's own states of the empty prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.bundle.detector_factory import calibration_task, class_record, constant_tensors, preset_settings
from anomalysd_edge.bundle.reader import NEGATIVE_PROMPT, Bundle, read_bundle
from anomalysd_edge.bundle.writer import rewrite_bundle
from anomalysd_edge.calibration.calibrate import calibrate
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.core.types import F32, Progress
from anomalysd_edge.data.class_inference import guess
from anomalysd_edge.data.classes import ClassSpec, check_name, class_spec, find_class, is_described, load_classes
from anomalysd_edge.errors import ClassError, DatasetError, InputError
from anomalysd_edge.method.class_model import Calibration, ClassModel
from anomalysd_edge.reports.console import score_limits
from anomalysd_edge.reports.inspection import limits_json
from anomalysd_edge.vision.images import list_images, load_rgb

SAME_STATES = 1e-3
"""Largest difference from the bundle's own prompt states that another machine's rounding may make."""


@dataclass(frozen=True, kw_only=True)
class AddClassRequest:
    """What `sd-edge add-class` shall do."""

    bundle: Path
    """The bundle that gets the class."""
    name: str
    """The class's name."""
    photos: Path
    """Folder of its good photos."""
    text_encoder: Path | None = None
    """A run, or a model in diffusers' layout; the bundle's base, by its name, if None."""
    class_file: Path | None = None
    """TOML with the class's noun, parts, kind and symmetries."""
    shots: int | None = None
    """The first K photos; all if None."""
    out: Path | None = None
    """Where the new bundle goes; in the place of the old one if None."""
    settings: CalibrationSettings = field(default_factory=CalibrationSettings)
    """How thresholds are found."""
    threads: int | None = None
    """CPU threads; all cores if None."""


@dataclass(frozen=True)
class AddedClass:
    """The class that was added."""

    bundle: Path
    """Where the new bundle lies."""
    name: str
    """The class."""
    shots: int
    """Photos that it was fitted to."""
    calibrations: dict[str, Calibration]
    """By preset: threshold, limits, and what they rest on."""

    @property
    def thresholds(self) -> dict[str, float | None]:
        """Image threshold by preset."""
        return {preset: found.threshold for preset, found in self.calibrations.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        limits = {preset: limits_json(found.decision) for preset, found in self.calibrations.items()}
        found = {"class": self.name, "shots": self.shots, "thresholds": self.thresholds, "limits": limits}
        return {"bundle": self.bundle.name, **found}

    def sentence(self) -> str:
        """The result in one sentence."""
        each = self.calibrations.items()
        found = ", ".join(f"{p} {score_limits(c.threshold, limits_json(c.decision))}" for p, c in each)
        return f"class {self.name!r} added from {self.shots} photos: {self.bundle} (thresholds: {found})"


def add_class(request: AddClassRequest, progress: Progress) -> AddedClass:
    """Add the class and write. Raises ClassError (name taken), DatasetError (no photos), InputError (no encoder)."""
    bundle = read_bundle(request.bundle)
    check_name(request.name)
    if (twin := find_class(request.name, bundle.manifest.classes)) is not None:
        raise ClassError(f"{request.bundle} has a class {twin!r} already; calibrate it, or choose another name")
    files = list_images(request.photos)[: request.shots] if request.photos.is_dir() else []
    if not files:
        raise DatasetError(f"{request.photos} holds no photos; give the folder of the class's good ones")
    photos = [load_rgb(file) for file in files]
    user = load_classes(request.class_file) if request.class_file else None
    spec = class_spec(request.name, user)
    if not is_described(request.name, user):
        spec = guess(spec, photos[:4])
    prompts = _states(bundle, spec, request.text_encoder)
    presets = sorted({p for record in bundle.manifest.classes.values() for p in record.calibration}) or ["edge"]
    from anomalysd_runtime.onnx.networks import OnnxNetworks

    found: dict[str, ClassModel] = {}
    with OnnxNetworks.of_bundle(bundle, "cpu", request.threads) as networks:
        for preset in presets:
            inspect = preset_settings(bundle, preset)
            task = calibration_task(bundle, networks, {request.name: photos}, inspect, request.settings)
            task = replace(task, specs={request.name: spec}, prompts={request.name: prompts})
            found[preset] = calibrate(task, progress).classes[request.name]
    out = request.out or request.bundle
    added = constant_tensors({spec.name: next(iter(found.values()))}, bundle.constants[NEGATIVE_PROMPT])
    classes = {**bundle.manifest.classes, spec.name: class_record(spec, len(photos), found)}
    rewrite_bundle(bundle, out, classes, {**bundle.constants, **added})
    return AddedClass(out, request.name, len(photos), {preset: made.calibration for preset, made in found.items()})


def _states(bundle: Bundle, spec: ClassSpec, place: Path | None) -> dict[str, F32]:
    """(77,D) states of the class's prompts by level, from the text encoder that made the bundle's own."""
    try:
        from anomalysd_edge.training.models.text_encoding import open_text_encoder
    except ModuleNotFoundError as error:
        raise InputError(
            f"adding a class needs the text encoder, and this machine has no {error.name}: a bundle holds prompt "
            "states, never the encoder. Run add-class where the model was trained (pip install "
            "'anomalysd-edge[train]') and copy the bundle back"
        ) from error
    encode = open_text_encoder(place, bundle.manifest.base.name)
    known = bundle.constants[NEGATIVE_PROMPT]
    ours = encode("")
    if ours.shape != known.shape or float(np.abs(ours - known).max()) > SAME_STATES * max(
        1.0, float(np.abs(known).max())
    ):
        raise InputError(
            f"the text encoder of {place or bundle.manifest.base.name} is not the one that {bundle.path} was made with "
            "(the empty prompt has other states): name the run or model folder that it came from with --text-encoder"
        )
    prompts = spec.prompts()
    levels = {"whole": prompts.whole, "detail": prompts.detail}
    return {level: encode(text) for level, text in levels.items() if text is not None}
