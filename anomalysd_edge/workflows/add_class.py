"""`sd-edge add-class`: one more class in a bundle, without training: prompt states, prototypes, thresholds.

The text encoder never travels with a bundle, so this runs where it is: on the box that trained, or wherever the base
model lies. That it is the same one is checked on a prompt whose states the bundle holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.bundle.detector_factory import (
    calibration_task,
    class_record,
    constant_tensors,
    preset_settings,
)
from anomalysd_edge.bundle.reader import CONSTANTS, MANIFEST, NEGATIVE_PROMPT, Bundle, read_bundle
from anomalysd_edge.bundle.signing import SIGNATURE
from anomalysd_edge.bundle.update import LOCK
from anomalysd_edge.bundle.writer import write_bundle
from anomalysd_edge.calibration.calibrate import calibrate
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.core.types import F32, Progress
from anomalysd_edge.data.class_inference import guess
from anomalysd_edge.data.classes import ClassSpec, check_name, class_spec, is_described, load_classes
from anomalysd_edge.errors import ClassError, DatasetError, InputError
from anomalysd_edge.method.class_model import ClassConstants
from anomalysd_edge.vision.images import list_images, load_rgb
from anomalysd_edge.workflows.calibrate import ENGINES, link

SAME_STATES = 1e-3
"""Largest difference from the bundle's own prompt states that another machine's rounding may make."""


@dataclass(frozen=True)
class AddRequest:
    """What `sd-edge add-class` was asked."""

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
class Added:
    """What was added."""

    bundle: Path
    """Where the new bundle lies."""
    name: str
    """The class."""
    shots: int
    """Photos that it was fitted to."""
    thresholds: dict[str, float | None]
    """Image threshold by preset."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"bundle": self.bundle.name, "class": self.name, "shots": self.shots, "thresholds": self.thresholds}

    def sentence(self) -> str:
        """The result in one sentence."""
        found = ", ".join(f"{p} {'none' if t is None else format(t, '.4f')}" for p, t in self.thresholds.items())
        return f"class {self.name!r} added from {self.shots} photos: {self.bundle} (thresholds: {found})"


def add_class(asked: AddRequest, progress: Progress) -> Added:
    """Add the class and write. Raises ClassError (name taken), DatasetError (no photos), InputError (no encoder)."""
    bundle = read_bundle(asked.bundle)
    check_name(asked.name)
    if asked.name in bundle.manifest.classes:
        raise ClassError(f"{asked.bundle} has a class {asked.name!r} already; calibrate it, or choose another name")
    files = list_images(asked.photos)[: asked.shots] if asked.photos.is_dir() else []
    if not files:
        raise DatasetError(f"{asked.photos} holds no photos; give the folder of the class's good ones")
    photos = [load_rgb(file) for file in files]
    user = load_classes(asked.class_file) if asked.class_file else None
    spec = class_spec(asked.name, user)
    if not is_described(asked.name, user):
        spec = guess(spec, photos[:4])
    prompts = _states(bundle, spec, asked.text_encoder)
    presets = sorted({p for record in bundle.manifest.classes.values() for p in record.calibration}) or ["edge"]
    from anomalysd_runtime.onnx.networks import OnnxNetworks

    found: dict[str, ClassConstants] = {}
    with OnnxNetworks.of_bundle(bundle, "cpu", asked.threads) as networks:
        for preset in presets:
            task = calibration_task(
                bundle, networks, {asked.name: photos}, preset_settings(bundle, preset), asked.settings
            )
            task = replace(task, specs={asked.name: spec}, prompts={asked.name: prompts})
            found[preset] = calibrate(task, progress).classes[asked.name]
    out = asked.out or asked.bundle
    _write(bundle, out, spec, len(photos), found)
    return Added(
        out, asked.name, len(photos), {preset: constants.calibration.threshold for preset, constants in found.items()}
    )


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


def _write(bundle: Bundle, out: Path, spec: ClassSpec, shots: int, found: dict[str, ClassConstants]) -> None:
    old = bundle.manifest
    manifest = replace(
        old,
        classes={**old.classes, spec.name: class_record(spec, shots, found)},
        # A gate compared the verdicts of the classes that there were: it has to be asked again.
        precisions={name: replace(record, gates={}) for name, record in old.precisions.items()},
    )
    first = next(iter(found.values()))
    added = constant_tensors({spec.name: first}, bundle.constants[NEGATIVE_PROMPT])
    with write_bundle(out) as writer:
        for part in sorted(bundle.path.iterdir()):
            if part.name not in (MANIFEST, CONSTANTS, LOCK, SIGNATURE, ENGINES):
                link(part, writer.folder / part.name)
        writer.finish(manifest, {**bundle.constants, **added})
        # After the digests were taken: engines have records of their own, and may be removed without harm.
        if (bundle.path / ENGINES).is_dir():
            link(bundle.path / ENGINES, writer.folder / ENGINES)
