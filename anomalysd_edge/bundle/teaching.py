"""A class taught to a bundle from a few good photos: nothing is trained, nothing of torch is needed.

Photos are checked first (photo_checks.py); of the rest come bank, thresholds and limits, as calibration finds them with
the fewest repaints that it can do with. A class that the bundle knows is taught anew, with these photos alone.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anomalysd_edge.bundle.detector_factory import calibration_task, class_record, constant_tensors, preset_settings
from anomalysd_edge.bundle.manifest import ClassRecord, PromptPair
from anomalysd_edge.bundle.reader import NEGATIVE_PROMPT, Bundle, patch_foreground_key, prompt_key, prototypes_key
from anomalysd_edge.bundle.signing import SIGNATURE
from anomalysd_edge.bundle.versions import bundle_id
from anomalysd_edge.bundle.writer import rewrite_bundle
from anomalysd_edge.calibration.calibrate import HeldOut, calibrate
from anomalysd_edge.calibration.class_features import ClassFeatures
from anomalysd_edge.calibration.photo_checks import GoodPhoto, PhotoFinding, check_photos, foreign_photos
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.core.types import F32, Progress
from anomalysd_edge.data.class_inference import guess
from anomalysd_edge.data.classes import ClassSpec, check_name, class_spec, find_class, is_described
from anomalysd_edge.errors import DatasetError
from anomalysd_edge.method.class_model import Calibration, ClassModel
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.vision.heatmap import heat_range, overlay
from anomalysd_edge.vision.images import encode_png, resize
from anomalysd_edge.vision.letterbox import common_aspect

MOST_PHOTOS = 20
"""Photos that a class is taught with at a box, at most."""
NEGATIVES = 4
"""Held-out normals that are repainted, at least: what the repaint adds to a good photo is all that they tell."""
Encode = Callable[[str], F32]
"""A prompt -> its (77,D) float32 states, by the text encoder that made the bundle's own."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What is to be taught."""

    name: str
    """The class."""
    photos: Sequence[GoodPhoto]
    """Its good photos, read."""
    unreadable: Sequence[PhotoFinding] = ()
    """What is wrong with those that could not be read."""
    noun: str | None = None
    """What the prompts call it; what the bundle or its name says if None."""
    described: dict[str, Any] = field(default_factory=dict)
    """Classes of a class file, as load_classes gives them."""
    settings: CalibrationSettings = field(default_factory=lambda: CalibrationSettings(negatives=NEGATIVES))
    """How thresholds are found."""
    out: Path | None = None
    """Where the new bundle goes; in the place of the old one if None."""
    key: Path | None = None
    """Private key that signs the new bundle; it is unsigned if None."""


@dataclass(frozen=True)
class PreviewPhoto:
    """A good photo under the score map that the class's other photos give it."""

    name: str
    """Of the photo."""
    score: float
    """Image score."""
    png: bytes
    """(S,S,3) photo and map in one picture."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, the picture in base64."""
        return {"photo": self.name, "score": self.score, "png": base64.b64encode(self.png).decode()}


@dataclass(frozen=True)
class TaughtClass:
    """What became of a lesson."""

    bundle: Path
    """Where the new bundle lies."""
    name: str
    """The class, as the bundle spells it."""
    anew: bool
    """Whether the bundle knew it before."""
    photos: tuple[tuple[str, str], ...]
    """(name, sha256 of the file) of every photo that was used."""
    findings: tuple[PhotoFinding, ...]
    """What is wrong with photos, used or not."""
    notes: tuple[str, ...]
    """What else there is to know, each a sentence."""
    calibrations: dict[str, Calibration]
    """By preset: threshold, limits, expected errors, and what they rest on."""
    preview: tuple[PreviewPhoto, ...]
    """The bank's photos, each judged by the others; of a single one disturbed copies of it, judged by it."""
    before_id: str
    """Id of the bundle that was taught; its version of that id is kept."""
    after_id: str
    """Id of the new one."""
    seconds: float
    """From the photos to the new bundle in its place."""

    @property
    def thresholds(self) -> dict[str, float | None]:
        """Image threshold by preset."""
        return {preset: found.threshold for preset, found in self.calibrations.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        each = self.calibrations.items()
        return {
            "bundle": self.bundle.name,
            "class": self.name,
            "anew": self.anew,
            "shots": len(self.photos),
            "thresholds": self.thresholds,
            "limits": {preset: found.decision and vars(found.decision) for preset, found in each},
            "expected": {preset: found.expected and vars(found.expected) for preset, found in each},
            "photos": [{"photo": name, "sha256": digest} for name, digest in self.photos],
            "findings": [vars(finding) for finding in self.findings],
            "preview": [each.to_json() for each in self.preview],
            "notes": list(self.notes),
            "before_id": self.before_id,
            "after_id": self.after_id,
            "seconds": round(self.seconds, 1),
        }

    def sentence(self) -> str:
        """The result in one sentence."""
        what = "taught anew" if self.anew else "added"
        count = f"{len(self.photos)} photo{'s' * (len(self.photos) > 1)}"
        return f"class {self.name!r} {what} from {count} in {self.seconds:.0f} s: {self.bundle}"


def teach(
    bundle: Bundle, networks: Networks, lesson: Lesson, encode: Encode | None, progress: Progress | None = None
) -> TaughtClass:
    """Teach and write the bundle. Hold versions.changing from reading `bundle` on. Without a text encoder, `encode` is
    None: a new class is then repainted by the empty prompt, and the notes say so.

    Raises DatasetError where no photo can be used, ClassError, BundleError, InputError.
    """
    began, before = time.monotonic(), bundle_id(bundle.path)
    check_name(lesson.name)
    photos, findings = check_photos(lesson.photos)
    findings = [*lesson.unreadable, *findings]
    if not photos:
        each = "; ".join(finding.sentence for finding in findings) or "there are none"
        raise DatasetError(f"no photo can be used to teach {lesson.name!r}: {each}")
    known = find_class(lesson.name, bundle.manifest.classes)
    spec = _spec(bundle, lesson, known, photos)
    prompts, prompted, notes = _prompts(bundle, spec, known, encode)
    aspect = common_aspect([(p.pixels.shape[0], p.pixels.shape[1]) for p in photos])
    if networks.sizes.features_px:
        seen = ClassFeatures(networks, aspect, (1,))
        findings += foreign_photos(photos, [seen(photo.pixels)[-1] for photo in photos])
    found, held_out = calibrated_class(bundle, networks, spec, prompts, photos, lesson.settings, progress)
    record = replace(class_record(spec, len(photos), found), prompts=prompted)
    count = f"{record.shots} photo{'s' * (record.shots > 1)}"
    change = f"class {spec.name!r} {'taught anew' if known else 'added'} from {count}"
    out = lesson.out or bundle.path
    notes += write_class(bundle, spec.name, record, next(iter(found.values())), change, out, lesson.key)
    return TaughtClass(
        bundle=out,
        name=spec.name,
        anew=known is not None,
        photos=tuple((photo.name, photo.sha256) for photo in photos),
        findings=tuple(findings),
        notes=tuple(notes),
        calibrations={preset: model.calibration for preset, model in found.items()},
        preview=tuple(_previews(photos, held_out, next(iter(found.values())).calibration.threshold)),
        before_id=before,
        after_id=bundle_id(out),
        seconds=time.monotonic() - began,
    )


def _spec(bundle: Bundle, lesson: Lesson, known: str | None, photos: Sequence[GoodPhoto]) -> ClassSpec:
    """What is known of the class: by the bundle, the class file, the tables, or its photos."""
    if known is not None and known not in lesson.described:
        spec = bundle.specs()[known]
    else:
        spec = class_spec(lesson.name, lesson.described)
        if not is_described(lesson.name, lesson.described):
            spec = guess(spec, [photo.pixels for photo in photos[:4]])
        spec = replace(spec, name=known or spec.name)
    return spec if lesson.noun is None else replace(spec, noun=lesson.noun)


def _prompts(
    bundle: Bundle, spec: ClassSpec, known: str | None, encode: Encode | None
) -> tuple[dict[str, F32], PromptPair, list[str]]:
    """The (77,D) states of the class's prompts by level, the texts that they are of, and what there is to say."""
    wanted = PromptPair(spec.prompts().whole, spec.prompts().detail)
    if known is not None and (bundle.manifest.classes[known].prompts == wanted or encode is None):
        had = bundle.manifest.classes[known].prompts
        notes = [] if had == wanted else [f"no text encoder here: the prompt stays {had.whole!r}"]
        return bundle.prompts(known), had, notes
    if encode is None:
        said = "no text encoder here (a bundle holds none): the class is repainted by the empty prompt"
        return {"whole": bundle.constants[NEGATIVE_PROMPT]}, PromptPair("", None), [said]
    levels = {"whole": wanted.whole, "detail": wanted.detail}
    return {level: encode(text) for level, text in levels.items() if text is not None}, wanted, []


def calibrated_class(
    bundle: Bundle,
    networks: Networks,
    spec: ClassSpec,
    prompts: dict[str, F32],
    photos: Sequence[GoodPhoto],
    settings: CalibrationSettings,
    progress: Progress | None = None,
) -> tuple[dict[str, ClassModel], list[HeldOut]]:
    """A class from its good photos by preset of the bundle, and its held-out normals under the first of them."""
    shots = {spec.name: [photo.pixels for photo in photos]}
    found: dict[str, ClassModel] = {}
    held_out: list[HeldOut] = []
    for preset in sorted({p for record in bundle.manifest.classes.values() for p in record.calibration}) or ["edge"]:
        task = calibration_task(bundle, networks, shots, preset_settings(bundle, preset), settings)
        result = calibrate(replace(task, specs={spec.name: spec}, prompts={spec.name: prompts}), progress)
        found[preset] = result.classes[spec.name]
        held_out = held_out or result.held_out[spec.name]
    return found, held_out


def write_class(
    bundle: Bundle, name: str, record: ClassRecord, model: ClassModel, change: str, out: Path, key: Path | None
) -> list[str]:
    """Write the bundle with another record and other constants of one class; what there is to say of its signature."""
    gone = {prompt_key(name, level) for level in ("whole", "detail")}
    gone |= {prototypes_key(name, coarse) for coarse in (True, False)} | {patch_foreground_key(name)}
    constants = {key: value for key, value in bundle.constants.items() if key not in gone}
    constants |= constant_tensors({name: model}, bundle.constants[NEGATIVE_PROMPT])
    signed = (bundle.path / SIGNATURE).is_file()
    rewrite_bundle(bundle, out, {**bundle.manifest.classes, name: record}, constants, change, key)
    if signed and key is None:
        return ["the bundle was signed and the new one is not: sign it with 'sd-edge sign', or teach with --sign KEY"]
    return []


def _previews(
    photos: Sequence[GoodPhoto], held_out: Sequence[HeldOut], threshold: float | None
) -> Iterator[PreviewPhoto]:
    """Of photos that were held out; of copies where there is nothing else."""
    names = {id(photo.pixels): photo.name for photo in photos}
    own = [each for each in held_out if id(each.photo) in names] or held_out
    for each in own:
        small = resize(each.photo, each.anomaly_map.shape[0])
        low, high = heat_range(each.anomaly_map, threshold)
        name = names.get(id(each.photo), f"{photos[0].name}, disturbed")
        yield PreviewPhoto(name, each.score, encode_png(overlay(small, each.anomaly_map, low, high)))
