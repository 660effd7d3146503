"""What a bundle learns of a class from its good photos alone: prototypes, map scales, thresholds.

No defect photo is ever asked for. With two or more shots every shot is judged by a bank built without it; with one, by
a bank of itself, but only in disturbed copies (moved, turned, relit, grained), so that it is never its own negative.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from anomalysd_edge import images
from anomalysd_edge.classes import ClassSpec, apply_view, symmetry_group
from anomalysd_edge.detector import Detector, fuse
from anomalysd_edge.framing import Frame, common_aspect
from anomalysd_edge.inspection import ClassConstants, InspectSettings
from anomalysd_edge.networks import Networks
from anomalysd_edge.prototypes import Bank, build_bank, prototype_distance
from anomalysd_edge.schedule import NoiseSchedule
from anomalysd_edge.scoring import MapScale, image_score

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Progress = Callable[[str, int, int, str], None]


@dataclass(frozen=True)
class CalibrationSettings:
    """How the constants of a class are fitted to its shots."""

    bank_size: int = 4096
    """Prototypes kept a class."""
    negatives: int = 8
    """Held-out normals a class: shots judged without themselves, and disturbed copies of them."""
    false_alarm_rate: float = 0.02
    """Share of good photos that may be called anomalous; the threshold is the upper prediction bound at this rate."""
    guided_quantile: float = 0.995
    """Quantile of the negatives' prototype distances above which a patch goes into the guided mask."""
    spread_quantile: float = 0.995
    """Quantile of a normal map's pixels that is brought to 1 before fusion."""
    seed: int = 0
    """Of the disturbances."""


def disturbed(photo: U8, rng: np.random.Generator) -> U8:
    """(H,W,3) -> the same good part as another shot might show it: moved, turned, scaled, relit, grained a little."""
    height, width = photo.shape[:2]
    angle, zoom = rng.normal(0, 1.5), math.exp(rng.normal(0, 0.015))
    c, s = math.cos(math.radians(angle)) / zoom, math.sin(math.radians(angle)) / zoom
    dx, dy = rng.normal(0, 0.012, 2) * (width, height)
    cx, cy = width / 2, height / 2
    margin = max(4, round(0.08 * max(height, width)))
    # Mirrored margins, so that no black corner turns up and is learned as normal.
    padded = Image.fromarray(np.pad(photo, ((margin, margin), (margin, margin), (0, 0)), mode="reflect"))
    mx, my = cx + margin, cy + margin
    moved = padded.transform(
        (width, height),
        Image.Transform.AFFINE,
        (c, s, mx - c * cx - s * cy + dx, -s, c, my + s * cx - c * cy + dy),
        Image.Resampling.BICUBIC,
    )
    lit = ImageEnhance.Contrast(ImageEnhance.Brightness(moved).enhance(math.exp(rng.normal(0, 0.03)))).enhance(
        math.exp(rng.normal(0, 0.03))
    )
    grain = rng.normal(0, rng.uniform(0, 2.5), (height, width, 3))
    return np.clip(np.asarray(lit, np.float32) + grain + 0.5, 0, 255).astype(np.uint8)


def upper_bound(values: Sequence[float], rate: float) -> float:
    """Upper prediction bound: a new normal value exceeds it with probability about `rate`.

    mean + t(1-rate, n-1) * sd * sqrt(1+1/n), for values taken as normal; never below the largest value seen.
    """
    data = np.asarray(values, np.float64)
    count = len(data)
    if count < 2:
        return float(data.max())
    bound = data.mean() + student_t(1 - rate, count - 1) * data.std(ddof=1) * math.sqrt(1 + 1 / count)
    return float(max(bound, data.max()))


def student_t(quantile: float, freedom: int) -> float:
    """Quantile of Student's t: the Cornish-Fisher expansion around the normal (Abramowitz & Stegun 26.7.5)."""
    from statistics import NormalDist

    z = NormalDist().inv_cdf(quantile)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3


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
) -> dict[str, ClassConstants]:
    """Constants of every class in `specs`. A class without shots keeps its prompts alone: no bank, no threshold.

    `shots` holds (H,W,3) uint8 photos and `prompts` (77,D) states by level. Deterministic for given settings.
    """
    settings = settings or CalibrationSettings()
    found: dict[str, ClassConstants] = {}
    for number, name in enumerate(specs):
        if progress:
            progress("calibrate", number, len(specs), name)
        photos = list(shots.get(name, ()))
        aspect = common_aspect([(p.shape[0], p.shape[1]) for p in photos])
        bare = ClassConstants(prompts=prompts[name], kind=specs[name].kind, aspect=aspect)
        if not photos:
            found[name] = bare
            continue
        folds, bank = _folds(networks, photos, specs[name], aspect, settings)
        judged, guided = _judge(networks, schedule, bare, folds, inspect, negative_states, settings)
        scales = _scales(judged, settings.spread_quantile)
        fused = [fuse(maps, scales, inspect) for maps in judged]
        rate = settings.false_alarm_rate
        found[name] = replace(
            bare,
            bank=bank,
            guided_threshold=guided,
            scales=scales,
            threshold=upper_bound([image_score(m, inspect.top_share) for m in fused], rate),
            pixel_threshold=upper_bound([float(m.max()) for m in fused], rate),
        )
    if progress:
        progress("calibrate", len(specs), len(specs), "done")
    return found


@dataclass(frozen=True)
class _Fold:
    """Normals that a bank built without them judges."""

    photos: list[U8]
    bank: Bank


def _folds(
    networks: Networks, photos: list[U8], spec: ClassSpec, aspect: float | None, settings: CalibrationSettings
) -> tuple[list[_Fold], Bank | None]:
    if not networks.sizes.features_px:
        return [_Fold(_negatives(photo, i, len(photos), settings), Bank(_NONE)) for i, photo in enumerate(photos)], None
    views = [_view_features(networks, photo, spec, aspect) for photo in photos]
    bank = build_bank(np.concatenate(views), settings.bank_size)
    folds = []
    for i, photo in enumerate(photos):
        others = [v for j, v in enumerate(views) if j != i]
        judge = bank if not others else build_bank(np.concatenate(others), settings.bank_size)
        folds.append(_Fold(_negatives(photo, i, len(photos), settings), judge))
    return folds, bank


_NONE = np.empty((0, 0), np.float32)


def _negatives(photo: U8, number: int, shots: int, settings: CalibrationSettings) -> list[U8]:
    """A shot's share of the negatives: the shot itself where its bank was built without it, then disturbed copies."""
    share = max(1, round(settings.negatives / shots))
    rng = np.random.default_rng((settings.seed, number))
    copies = [disturbed(photo, rng) for _ in range(share)]
    return copies if shots == 1 else [photo, *copies[1:]]


def _view_features(networks: Networks, photo: U8, spec: ClassSpec, aspect: float | None) -> F32:
    """(V,D,f,f) features of the photo and of every copy that the class's symmetries allow."""
    small = Frame.of(photo.shape[:2], aspect).resize(photo, networks.sizes.features_px)
    views = [np.ascontiguousarray(apply_view(small, view)) for view in symmetry_group(spec.symmetries)]
    return networks.features(np.concatenate([images.to_array(v) for v in views]))


def _judge(
    networks: Networks,
    schedule: NoiseSchedule,
    bare: ClassConstants,
    folds: list[_Fold],
    inspect: InspectSettings,
    negative_states: F32 | None,
    settings: CalibrationSettings,
) -> tuple[list[Mapping[str, F32]], float | None]:
    """Maps of every negative under its own fold's bank, and the guided threshold that the negatives ask for."""
    guided: float | None = None
    banked = bool(networks.sizes.features_px)
    if banked:
        distances = []
        for fold in folds:
            framed = [Frame.of(p.shape[:2], bare.aspect).resize(p, networks.sizes.features_px) for p in fold.photos]
            batch = [images.to_array(p) for p in framed]
            features = networks.features(np.concatenate(batch))
            distances += [prototype_distance(fold.bank, f, bare.own_share(inspect)) for f in features]
        guided = float(np.quantile(np.stack(distances), settings.guided_quantile))
    maps: list[Mapping[str, F32]] = []
    for fold in folds:
        constants = replace(bare, bank=fold.bank if banked else None, guided_threshold=guided)
        detector = Detector(networks, schedule, {"": constants}, inspect, negative_states)
        maps += [answer.maps for answer in detector.inspect(fold.photos, "")]
    return maps, guided


def _scales(judged: Sequence[Mapping[str, F32]], quantile: float) -> dict[str, MapScale]:
    """What normals give for each map. S_pg takes S_ms's scale: the same unit, and 0 where the guided mask is empty."""
    scales: dict[str, MapScale] = {}
    for name in ("prototypes", "multiscale"):
        pixels = [maps[name] for maps in judged if name in maps]
        if pixels:
            stacked = np.stack(pixels)
            centre = float(stacked.mean())
            scales[name] = MapScale(centre, max(float(np.quantile(stacked, quantile)) - centre, 1e-6))
    if any("guided" in maps for maps in judged):
        scales["guided"] = MapScale(0.0, scales["multiscale"].centre + scales["multiscale"].spread)
    return scales
