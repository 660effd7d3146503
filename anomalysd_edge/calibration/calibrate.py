"""What a bundle learns of a class from its good photos alone: prototypes, map scales, thresholds, settings of its own.

No defect photo is ever asked for. Thresholds come from held-out normals (heldout.py); where settings are to be chosen
too, from synthetic anomalies painted on those (synthetic.py, choosing.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anomalysd_edge.calibration.holdout import Fold, folds_of
from anomalysd_edge.calibration.settings_search import ROUNDS, Judged, Trial, choose, judged, small_masks
from anomalysd_edge.calibration.synthetic_anomalies import Synthetic, synthetic_anomaly
from anomalysd_edge.core.types import F32, U8, Progress
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.anomaly_map import MapScale, image_score
from anomalysd_edge.method.class_model import ClassConstants
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.method.fusion import clear_bound, fuse
from anomalysd_edge.method.inpainting.masks import foreground
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.patches.feature_windows import dense_features, tiled_side, tiles_for
from anomalysd_edge.method.patches.memory_bank import Bank
from anomalysd_edge.method.patches.out_of_distribution import Limits, contrast
from anomalysd_edge.method.patches.patch_scorer import Reading
from anomalysd_edge.method.patches.prediction_bounds import upper_bound
from anomalysd_edge.method.settings import PRESETS, InspectSettings
from anomalysd_edge.vision.letterbox import Frame, common_aspect

_ALONE = 0.1
"""False-alarm rate from which the threshold of a single shot is taken."""


@dataclass(frozen=True)
class CalibrationSettings:
    """How the constants of a class are fitted to its shots."""

    bank_size: int = 2048
    """Prototypes kept a class."""
    exposures: tuple[float, ...] = (0.7, 1.4, 2.0)
    """Each shot is also seen with its light multiplied by these: a lamp ages, and a border that is not in the shots is
    black or white. Prototypes alone see such copies; training does not."""
    negatives: int = 8
    """Held-out normals a class: shots judged without themselves, and disturbed copies of them."""
    false_alarm_rate: float = 0.02
    """Share of good photos that may be called anomalous; the threshold is the upper prediction bound at this rate."""
    guided_quantile: float = 0.995
    """Quantile of the negatives' prototype distances above which a patch goes into the guided mask."""
    spread_quantile: float = 0.995
    """Quantile of a normal map's pixels that is brought to 1 before fusion."""
    synthetic: int = 0
    """Synthetic anomalies a class, on which settings are chosen; 0 = the preset's settings hold for every class."""
    seed: int = 0
    """Of the disturbances and the anomalies."""

    def __post_init__(self) -> None:
        if not 0 < self.false_alarm_rate < 0.5:
            raise SettingsError(f"false_alarm_rate is {self.false_alarm_rate}; it must lie between 0 and 0.5")
        if not all(0.1 <= e <= 10 for e in self.exposures):
            raise SettingsError(f"exposures are {self.exposures}; each must lie between 0.1 and 10")
        if min(self.bank_size, self.negatives) < 1 or self.synthetic < 0:
            raise SettingsError("bank_size and negatives must be at least 1, synthetic at least 0")


def calibrate(
    networks: Networks,
    schedule: NoiseSchedule,
    shots: Mapping[str, Sequence[U8]],
    specs: Mapping[str, ClassSpec],
    prompts: Mapping[str, Mapping[str, F32]],
    inspect: InspectSettings,
    settings: CalibrationSettings | None = None,
    negative_states: F32 | None = None,
    progress: Progress | None = None,
    trials: dict[str, list[Trial]] | None = None,
    held_out: dict[str, tuple[list[Fold], Bank | None]] | None = None,
    reading: Reading | None = None,
) -> dict[str, ClassConstants]:
    """Constants of every class in `specs`. A class without shots keeps its prompts alone: no bank, no threshold.

    `shots` holds (H,W,3) uint8 photos and `prompts` (77,D) states by level. Deterministic for given settings. What was
    tried to choose settings is put into `trials`, by class; `held_out` keeps folds and banks for the next call;
    `reading` is what reads these features' distances.
    """
    settings = settings or CalibrationSettings()
    found: dict[str, ClassConstants] = {}
    for number, name in enumerate(specs):
        if progress:
            progress("calibrate", number, len(specs), name)
        photos = list(shots.get(name, ()))
        shapes = [(photo.shape[0], photo.shape[1]) for photo in photos]
        aspect = common_aspect(shapes)
        spec = replace(specs[name], tiles=specs[name].tiles or tiles_for(shapes, networks.sizes.features_px))
        bare = ClassConstants(prompts[name], spec.kind, aspect, spec.tiles, reading=reading)
        if not photos:
            found[name] = bare
            continue
        known = {} if held_out is None else held_out
        if name not in known:
            known[name] = folds_of(
                networks,
                photos,
                spec,
                aspect,
                settings.negatives,
                settings.bank_size,
                settings.seed,
                settings.exposures,
            )
        folds, bank = known[name]
        guided, middles = _by_prototypes(networks, folds, bare, inspect, settings)
        bare = replace(bare, guided=guided, guided_threshold=guided.get(bare.map_kind(inspect)))
        judge = _Judge(networks, schedule, bare, folds, inspect, negative_states, settings)
        choices: dict[str, Any] = {}
        if settings.synthetic:
            choices, tried = judge.choose()
            if trials is not None:
                trials[name] = tried
        tuned = replace(inspect, **choices)
        fused, scales = judge.normals(tuned)
        rate = settings.false_alarm_rate
        scores = [image_score(m, tuned.top_share) for m in fused]
        expected = _expected(bare, judge.prototype_scores(tuned), scores, scales, tuned, rate)
        # Copies of one shot count as photos only where there is nothing better.
        own = upper_bound(scores, rate) if expected is None or len(photos) == 1 else max(scores)
        threshold = own if expected is None else max(own, expected)
        found[name] = replace(
            bare,
            bank=bank,
            scales=scales,
            choices=choices,
            threshold=threshold,
            clear=judge.clear(tuned, scales, threshold),
            pixel_threshold=max(threshold, upper_bound([float(m.max()) for m in fused], rate)),
            limits=Limits.of(middles, _contrasts(photos, aspect, networks.sizes.size_px)) if middles else None,
        )
    if progress:
        progress("calibrate", len(specs), len(specs), "done")
    return found


def _expected(
    bare: ClassConstants,
    held_out: PrototypeScores,
    fused: Sequence[float],
    scales: Mapping[str, MapScale],
    settings: InspectSettings,
    rate: float,
) -> float | None:
    """Fused score that a further good photo exceeds with probability `rate`; None where nothing but the class's says.

    From the prototype scores of the shots, each judged without itself, and what the drawn classes' good photos tell of
    how such scores spread (reading.Usual); `fused` are the fused scores of all held-out photos, and the most that the
    other maps added to one of them is added here. Disturbed copies are no further photos and do not enter the bound.
    A single shot has no score, and asking the drawn classes alone for a rate that a dozen photos would carry gives a
    threshold that misses every other defect: there it is _ALONE.
    """
    reading, weight = bare.reading, settings.prototypes_weight
    if bare.map_kind(settings) != "reading" or reading is None or reading.usual is None:
        return None
    if settings.fusion != "scaled" or not weight or "prototypes" not in scales:
        return None
    others = settings.multiscale_weight * ("multiscale" in scales) + settings.guided_weight * ("guided" in scales)
    share, scale = weight / (weight + others), scales["prototypes"]

    def part(scores: Sequence[float]) -> F32:
        return share * scale.apply(np.array(scores, np.float32))

    shots = held_out.shots
    bound = reading.usual[bare.kind == "object"].bound(shots, rate if shots else max(rate, _ALONE))
    added = max(0.0, float((np.array(fused) - part(held_out.all)).max()))
    return float(part([bound])[0]) + added


def _by_prototypes(
    networks: Networks, folds: list[Fold], bare: ClassConstants, inspect: InspectSettings, settings: CalibrationSettings
) -> tuple[dict[str, float], list[float]]:
    """What prototypes say of held-out normals; nothing without prototypes.

    By kind of prototype map, the value that they hardly reach, above which a patch goes into the guided mask; and under
    `inspect`, where a reading judges, the foreign.middle_distance of each.
    """
    kinds = {bare.map_kind(preset): preset for preset in (*PRESETS.values(), inspect)}
    found: dict[str, list[F32]] = {kind: [] for kind in kinds}
    middles: list[float] = []
    for fold in folds:
        if fold.bank is None:
            return {}, []
        side = tiled_side(networks.sizes.features_px, bare.tiles)
        framed = [Frame.of(p.shape[:2], bare.aspect).resize(p, side) for p in fold.photos]
        features = dense_features(networks, framed, bare.tiles)
        for kind, preset in kinds.items():
            for field in features:
                judged_map, middle = bare.by_prototypes(field, preset, fold.bank)
                found[kind].append(judged_map)
                if kind == bare.map_kind(inspect) and middle is not None:
                    middles.append(middle)
    guided = {kind: float(np.quantile(np.stack(maps), settings.guided_quantile)) for kind, maps in found.items()}
    return guided, middles


def _contrasts(photos: Sequence[U8], aspect: float | None, side: int) -> list[float]:
    """Of each photo as the networks see it."""
    return [contrast(Frame.of((p.shape[0], p.shape[1]), aspect).resize(p, side)) for p in photos]


@dataclass(frozen=True)
class PrototypeScores:
    """What the prototypes say of held-out normals."""

    all: list[float]
    """Image score of each, copies included; empty without prototypes."""
    shots: list[float]
    """Of the shots themselves, each under the bank of the others; empty where there is a single one."""


class _Judge:
    """Maps of a class's normals, and of synthetic anomalies on them, each under its own fold's bank.

    Repaints are the expensive part: settings that differ in fusion and score alone share them.
    """

    _CHEAP = ("prototypes_weight", "multiscale_weight", "guided_weight", "alpha", "fusion", "top_share")

    def __init__(
        self,
        networks: Networks,
        schedule: NoiseSchedule,
        bare: ClassConstants,
        folds: list[Fold],
        inspect: InspectSettings,
        negative_states: F32 | None,
        settings: CalibrationSettings,
    ) -> None:
        self._networks, self._schedule, self._bare, self._folds = networks, schedule, bare, folds
        self._inspect, self._negative_states, self._settings = inspect, negative_states, settings
        self._painted: list[list[Synthetic]] = [[] for _ in folds]
        self._maps: dict[tuple[InspectSettings, bool], list[Mapping[str, F32]]] = {}

    def normals(self, settings: InspectSettings) -> tuple[list[F32], dict[str, MapScale]]:
        """Fused maps of the held-out normals, and the scales that brought their parts together."""
        maps = self._judged(settings, synthetic=False)
        scales = _scales(maps, self._settings.spread_quantile)
        return [fuse(m, scales, settings) for m in maps], scales

    def prototype_scores(self, settings: InspectSettings) -> PrototypeScores:
        """Image scores of the held-out normals' prototype maps, before scaling."""
        maps = [m["prototypes"] for m in self._judged(settings, synthetic=False) if "prototypes" in m]
        scores = [image_score(m, settings.top_share) for m in maps]
        firsts = np.cumsum([0, *(len(fold.photos) for fold in self._folds[:-1])])
        return PrototypeScores(scores, [scores[i] for i in firsts] if scores and len(firsts) > 1 else [])

    def clear(self, settings: InspectSettings, scales: Mapping[str, MapScale], threshold: float) -> float | None:
        """The cascade's bound; None without prototypes."""
        maps = [m["prototypes"] for m in self._judged(settings, synthetic=False) if "prototypes" in m]
        if not maps:
            return None
        scaled = [scales["prototypes"].apply(m) for m in maps]
        return clear_bound([image_score(m, settings.top_share) for m in scaled], threshold)

    def choose(self) -> tuple[dict[str, Any], list[Trial]]:
        """Settings for this class, and what was tried."""
        self._paint()
        masks = small_masks(
            [None for fold in self._folds for _ in fold.photos] + [s.mask for mine in self._painted for s in mine]
        )

        def under(changes: Mapping[str, Any]) -> Judged:
            settings = replace(self._inspect, **changes)
            good, scales = self.normals(settings)
            bad = [fuse(m, scales, settings) for m in self._judged(settings, synthetic=True)]
            return judged([*good, *bad], settings.top_share)

        side = self._networks.sizes.latent_side
        fitting = [[c for c in candidates if max(c.get("scales", (1,))) <= side] for candidates in ROUNDS]
        return choose(under, masks, fitting)

    def _paint(self) -> None:
        everything = [photo for fold in self._folds for photo in fold.photos]
        share = -(-self._settings.synthetic // len(everything))
        for number, fold in enumerate(self._folds):
            rng = np.random.default_rng((self._settings.seed, 1, number))
            for photo in fold.photos:
                inside = foreground(photo, self._bare.kind)
                for _ in range(share):
                    other = everything[int(rng.integers(len(everything)))]
                    if (made := synthetic_anomaly(photo, inside, other, rng)) is not None:
                        self._painted[number].append(made)

    def _judged(self, settings: InspectSettings, synthetic: bool) -> list[Mapping[str, F32]]:
        default = {name: getattr(self._inspect, name) for name in self._CHEAP}
        key = (replace(settings, **default), synthetic)
        if key not in self._maps:
            found: list[Mapping[str, F32]] = []
            for fold, painted in zip(self._folds, self._painted, strict=True):
                constants = replace(self._bare, bank=fold.bank)
                detector = Detector(self._networks, self._schedule, {"": constants}, key[0], self._negative_states)
                photos = [s.photo for s in painted] if synthetic else fold.photos
                found += [answer.maps for answer in detector.inspect(photos, "")]
            self._maps[key] = found
        return self._maps[key]


def _scales(judged_maps: Sequence[Mapping[str, F32]], quantile: float) -> dict[str, MapScale]:
    """What normals give for each map. S_pg takes S_ms's scale: the same unit, and 0 where the guided mask is empty."""
    scales: dict[str, MapScale] = {}
    for name in ("prototypes", "multiscale"):
        pixels = [maps[name] for maps in judged_maps if name in maps]
        if pixels:
            stacked = np.stack(pixels)
            centre = float(stacked.mean())
            scales[name] = MapScale(centre, max(float(np.quantile(stacked, quantile)) - centre, 1e-6))
    if any("guided" in maps for maps in judged_maps):
        scales["guided"] = MapScale(0.0, scales["multiscale"].centre + scales["multiscale"].spread)
    return scales
