"""From a bundle to a detector and, at export, from calibrated classes to what a bundle stores of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from anomalysd_edge.bundle.manifest import ClassRecord, PromptPair
from anomalysd_edge.bundle.reader import (
    CONSTANTS,
    NEGATIVE_PROMPT,
    Bundle,
    patch_foreground_key,
    prompt_key,
    prototypes_key,
)
from anomalysd_edge.calibration.calibrate import CalibrationTask
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.calibration.threshold_model import shipped_prior
from anomalysd_edge.core.types import F32, U8, Array
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.errors import BundleError, SettingsError
from anomalysd_edge.method.class_model import Calibration, ClassModel
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.patches.distance_correction import DistanceCorrection
from anomalysd_edge.method.patches.memory_bank import MemoryBank
from anomalysd_edge.method.patches.patch_foreground import PatchForeground
from anomalysd_edge.method.patches.patch_scorer import PatchScorer
from anomalysd_edge.method.settings import InspectSettings


def preset_settings(bundle: Bundle, preset: str) -> InspectSettings:
    """The inspection settings of a preset of the bundle. Raises SettingsError naming those that there are."""
    if preset not in bundle.manifest.presets:
        raise SettingsError(
            f"{bundle.path} has no preset {preset!r}, it has {', '.join(sorted(bundle.manifest.presets))}"
        )
    try:
        return InspectSettings.from_json(bundle.manifest.presets[preset])
    except (TypeError, ValueError) as error:
        raise BundleError(f"{bundle.path}: the preset {preset!r} cannot be used ({error}): export again") from error


def class_models(bundle: Bundle, preset: str) -> dict[str, ClassModel]:
    """What the bundle knows of each class under `preset`; without a calibration for it there is no threshold."""
    found: dict[str, ClassModel] = {}
    patch_scorer, settings = patch_scorer_of(bundle), preset_settings(bundle, preset)
    correction = correction_of(bundle)
    for name, record in bundle.manifest.classes.items():
        calibration = record.calibration.get(preset, Calibration())
        known = ClassModel(
            prompts=bundle.prompts(name),
            kind=record.kind,
            aspect=record.aspect,
            tiles=record.tiles,
            banks=tuple(MemoryBank(vectors) for vectors in bundle.prototypes(name)),
            patch_scorer=patch_scorer,
            correction=correction,
            patch_foreground=_patch_foreground(bundle, name),
            guided=record.guided,
            calibration=replace(calibration, choices=_choices(bundle, preset, calibration)),
        )
        if not record.guided and record.guided_threshold is not None:  # a bundle from before each kind had its own
            known = replace(known, guided={known.map_kind(settings): record.guided_threshold})
        found[name] = known
    return found


def patch_scorer_of(bundle: Bundle) -> PatchScorer | None:
    """What reads the distances of the bundle's features; None in a bundle without one. Raises BundleError."""
    return PatchScorer.of_tensors(bundle.constants, bundle.path / CONSTANTS)


def correction_of(bundle: Bundle) -> DistanceCorrection | None:
    """What corrects the distances of the bundle's features; None in a bundle without one. Raises BundleError."""
    return DistanceCorrection.of_tensors(bundle.constants, bundle.path / CONSTANTS)


def _patch_foreground(bundle: Bundle, name: str) -> PatchForeground | None:
    stored = bundle.constants.get(patch_foreground_key(name))
    return None if stored is None else PatchForeground.of_tensor(stored)


def _choices(bundle: Bundle, preset: str, calibration: Calibration) -> dict[str, Any]:
    """The class's own settings with their types: JSON knows no tuples, and a typo must not pass."""
    if not calibration.choices:
        return {}
    try:
        chosen = InspectSettings.from_json({**bundle.manifest.presets[preset], **calibration.choices})
    except (TypeError, ValueError) as error:
        raise BundleError(f"{bundle.path}: a class's settings cannot be used ({error}): calibrate again") from error
    return {name: getattr(chosen, name) for name in calibration.choices}


def detector_of(bundle: Bundle, networks: Networks, preset: str = "edge") -> Detector:
    """The detector that `bundle` describes, over any backend's networks.

    Raises SettingsError for an unknown preset and BundleError where the networks are not of the bundle's sizes.
    """
    if networks.sizes != bundle.manifest.sizes:
        raise BundleError(f"{bundle.path} is for {bundle.manifest.sizes}, but the networks are of {networks.sizes}")
    return Detector(
        networks,
        bundle.schedule(),
        class_models(bundle, preset),
        preset_settings(bundle, preset),
        bundle.constants[NEGATIVE_PROMPT],
    )


def calibration_task(
    bundle: Bundle,
    networks: Networks,
    shots: Mapping[str, Sequence[U8]],
    inspect: InspectSettings,
    settings: CalibrationSettings | None = None,
) -> CalibrationTask:
    """Calibrate the bundle's classes on `shots`, (H,W,3) photos by class, under the settings `inspect`."""
    return CalibrationTask(
        networks,
        bundle.schedule(),
        bundle.specs(),
        {name: bundle.prompts(name) for name in bundle.manifest.classes},
        shots,
        inspect,
        settings or CalibrationSettings(),
        bundle.constants[NEGATIVE_PROMPT],
        patch_scorer_of(bundle),
        correction_of(bundle),
        shipped_prior(bundle.manifest.features.kind) if bundle.manifest.features else None,
    )


def class_record(spec: ClassSpec, shots: int, calibrated: Mapping[str, ClassModel]) -> ClassRecord:
    """What the manifest says of a class; `calibrated` holds its constants by preset."""
    prompts = spec.prompts()
    guided = {kind: value for found in calibrated.values() for kind, value in found.guided.items()}
    aspects = [found.aspect for found in calibrated.values() if found.aspect is not None]
    tiles = [found.tiles for found in calibrated.values()]
    return ClassRecord(
        kind=spec.kind,
        noun=spec.noun,
        prompts=PromptPair(prompts.whole, prompts.detail),
        shots=shots,
        parts=spec.parts,
        symmetries=spec.symmetries,
        tiles=tiles[0] if tiles else 1,
        aspect=aspects[0] if aspects else None,
        guided=guided,
        calibration={
            preset: found.calibration for preset, found in calibrated.items() if found.calibration.threshold is not None
        },
    )


def constant_tensors(classes: Mapping[str, ClassModel], negative_states: F32) -> dict[str, Array]:
    """The tensors of constants.safetensors: prompt states (77,D) float32, prototypes (B,Df) float16, and the weights of
    patch scorer and correction."""
    tensors: dict[str, Array] = {NEGATIVE_PROMPT: negative_states}
    for patch_scorer in {id(found.patch_scorer): found.patch_scorer for found in classes.values()}.values():
        tensors |= {} if patch_scorer is None else patch_scorer.tensors()
    for correction in {id(found.correction): found.correction for found in classes.values()}.values():
        tensors |= {} if correction is None else correction.tensors()
    for name, found in classes.items():
        for level, states in found.prompts.items():
            tensors[prompt_key(name, level)] = states
        for size, bank in enumerate(reversed(found.banks)):
            tensors[prototypes_key(name, coarse=size > 0)] = bank.vectors.astype(np.float16)
        tensors |= found.patch_foreground.tensors(patch_foreground_key(name)) if found.patch_foreground else {}
    return tensors
