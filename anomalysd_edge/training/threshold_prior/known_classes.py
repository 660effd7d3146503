"""Classes whose good and defective photos are known, made from a folder of photos and measured once into a cache.

Each photo of the folder becomes a class (variation.py): a surface where its file name starts with `tex`, else a thing;
drawn surfaces and parts are added. A class is seen with several numbers of shots exactly as calibration sees a user's
(calibration/evidence.py), and its further good and defective photos (defects.py) beside them. What is kept of each
photo are the distances from which any correction makes its score, so that corrections are taught, and the threshold
prior is fitted, without looking at a photo again. All is seeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from anomalysd_edge.calibration.evidence import PROTOTYPES, View, banks_of, observe
from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.data.class_inference import guess
from anomalysd_edge.data.classes import ClassSpec, apply_view
from anomalysd_edge.method.inpainting.masks import foreground
from anomalysd_edge.method.networks import NetworkSizes
from anomalysd_edge.method.patches.distance_correction import inputs_of
from anomalysd_edge.method.patches.feature_windows import dense_features, tiled_side
from anomalysd_edge.method.patches.memory_bank import MemoryBank
from anomalysd_edge.method.patches.patch_scorer import PatchScorer, layer_distances, shipped_patch_scorer
from anomalysd_edge.method.patches.shot_banks import ShotBanks
from anomalysd_edge.training.models.features import DenseFeatures
from anomalysd_edge.training.patch_scorer.cases import PARTS, SURFACES
from anomalysd_edge.training.threshold_prior.defects import FAMILIES, defect
from anomalysd_edge.training.threshold_prior.variation import SIDE, surface, thing, to_u8
from anomalysd_edge.vision.images import load_rgb, resize

SEED = 20261127
TILES = (1, 2)
"""Windows along a side at the smaller and the larger size: 256 and 448 px."""
SHOTS = (1, 2, 4)
MANY_SHOTS = 8
"""Of every third class."""
DRAWN = 60
"""Drawn classes beside those of the folder."""
FURTHER = 8
"""Good photos of a class beside its shots, and as many defective ones."""
_TRIES = 80
ROLES = ("left_out", "copies", "synthetic", "good", "defective")
FOREGROUND_SIDE = 64


class TorchFeatures:
    """The feature network as patches.feature_windows takes it, and features as evidence.Describe gives them."""

    def __init__(self, network: DenseFeatures) -> None:
        self.network, self.sizes = network, NetworkSizes(0, 0, 1, DenseFeatures.side)

    def features(self, images: F32) -> F32:
        """(N,3,F,F) -> (N,D,f,f) unit features."""
        with torch.inference_mode():
            found: F32 = self.network(torch.from_numpy(images)).numpy()
        return found

    def __call__(self, photo: U8, view: View = (0, False)) -> tuple[F32, ...]:
        """(H,W,3) -> (D,f,f) unit features of a view of it at each of TILES."""
        seen, side = apply_view(photo, view), self.sizes.features_px
        return tuple(dense_features(self, [resize(seen, tiled_side(side, n))], n)[0] for n in TILES)


@dataclass(frozen=True)
class Photographed:
    """The photos of one class, (SIDE,SIDE,3) uint8 each."""

    group: str
    """surface, thing, drawn surface or drawn part."""
    shots: list[U8]
    """As many as the most that are wanted."""
    good: list[U8]
    """Further good photos."""
    defective: list[U8]
    """Photos with one painted defect each."""
    masks: list[Mask]
    """(SIDE,SIDE) where each of those was changed."""
    severity: float
    """How large and strong its defects are, 0.1 to 1.3 (defects.Spot.drawn)."""


def sources(folder: Sequence[Path], count: int) -> list[Path | int]:
    """What up to `count` classes are made from, in a seeded order: the folder's photos and DRAWN drawn things.

    A surface of the folder comes twice, at other places with other defects: there are few.
    """
    surfaces = [file for file in folder if file.name.startswith("tex")]
    order: list[Path | int] = [*folder, *surfaces, *range(DRAWN)]
    return [order[i] for i in np.random.default_rng(SEED).permutation(len(order))[:count]]


def photographed(source: Path | int, number: int, folder: Sequence[Path]) -> Photographed:
    """The photos of class `number`; a source that is no file is drawn in code."""
    rng = np.random.default_rng((SEED, number))
    if isinstance(source, Path):
        photo = _unit_range(load_rgb(source))
        group = "surface" if source.name.startswith("tex") else "thing"
    else:
        group = "drawn surface" if source % 2 else "drawn part"
        kinds = SURFACES if source % 2 else PARTS
        photo = np.asarray(kinds[source // 2 % len(kinds)](rng, 1024 if source % 2 else 512), np.float32).clip(0, 1)
    camera = surface(photo, rng) if "surface" in group else thing(photo, rng)
    family = FAMILIES[number % len(FAMILIES)]
    kinds_shown = [str(kind) for kind in rng.choice(family, int(rng.integers(1, 4)), replace=False)]
    severity = rng.uniform(0.1, 1.3)
    shots = [to_u8(camera("shot")) for _ in range(shots_of(number)[-1])]
    good = [to_u8(camera("test")) for _ in range(FURTHER)]
    bad: list[U8] = []
    masks: list[Mask] = []
    for _ in range(_TRIES):
        if len(bad) == FURTHER:
            break
        shown = camera("test")
        inside = np.ones((SIDE, SIDE), np.bool_) if "surface" in group else foreground(to_u8(shown), "object")
        foreign = shown
        if folder and rng.random() < 0.6:
            foreign = _unit_range(resize(load_rgb(folder[int(rng.integers(len(folder)))]), SIDE))
        made = defect(shown, inside, str(rng.choice(kinds_shown)), severity * rng.uniform(0.6, 1.4), foreign, rng)
        if made is not None:
            bad.append(to_u8(made[0]))
            masks.append(made[1])
    return Photographed(group, shots, good, bad, masks, severity)


def shots_of(number: int) -> tuple[int, ...]:
    """Numbers of shots that class `number` is measured with."""
    return SHOTS if number % 3 else (*SHOTS, MANY_SHOTS)


@dataclass(frozen=True)
class Seen:
    """What is kept of N photos under one bank; numbers are float16."""

    small: F32
    """(N,g,g) distance to the nearest prototype at the smaller size."""
    large: F32
    """(N,f,f) at the larger size."""
    inputs: F32
    """(N,CHANNELS,f,f) of distance_correction.inputs_of."""
    inside: Mask
    """(N,FOREGROUND_SIDE,FOREGROUND_SIDE) the photo's foreground, widened."""


@dataclass(frozen=True)
class KnownRun:
    """One class with one number of shots."""

    name: str
    group: str
    number: int
    shots: int
    severity: float
    """As Photographed has it."""
    seen: dict[str, Seen]
    """By role; a role without photos is not in it."""
    shares: F32
    """(N,f,f) share of each patch's pixels that are defective, of the defective photos."""

    @property
    def family(self) -> int:
        """Which family its defects belong to."""
        return self.number % len(FAMILIES)


def measure_class(
    features: TorchFeatures, source: Path | int, number: int, folder: Sequence[Path], cache: Path
) -> Path | None:
    """Measure class `number` into a file of `cache`, once; None where too few of its defects show."""
    file = cache / f"class-{SEED}-{number}.npz"
    if not file.exists():
        made = photographed(source, number, folder)
        found: dict[str, Any] = {"group": np.array(made.group), "severity": np.array(made.severity)}
        found["name"] = np.array(source.name if isinstance(source, Path) else f"drawn {source}")
        if len(made.defective) >= FURTHER // 2:
            found |= _measured(features, made, number)
        part = file.with_suffix(".part.npz")
        np.savez(part, **found)
        part.replace(file)
    with np.load(file) as kept:
        return file if "shares" in kept.files else None


def load_runs(file: Path, number: int) -> list[KnownRun]:
    """What `measure_class` wrote."""
    with np.load(file) as kept:
        name, group, severity = str(kept["name"]), str(kept["group"]), float(kept["severity"])
        shares = kept["shares"].astype(np.float32)
        runs = []
        for shots in shots_of(number):
            seen = {
                role: Seen(*(kept[f"{shots}/{role}/{entry.name}"] for entry in fields(Seen)))
                for role in ROLES
                if f"{shots}/{role}/small" in kept.files
            }
            runs.append(KnownRun(name, group, number, shots, severity, seen, shares))
    return runs


def _measured(features: TorchFeatures, made: Photographed, number: int) -> dict[str, Any]:
    scorer = shipped_patch_scorer("efficientnet_lite2")
    assert scorer is not None
    remembered = {id(photo): features(photo) for photo in (*made.shots, *made.good, *made.defective)}

    def describe(photo: U8, view: View = (0, False)) -> tuple[F32, ...]:
        return features(photo, view) if view != (0, False) or id(photo) not in remembered else remembered[id(photo)]

    # The first prototypes of a shot are those of a smaller share: banks of more shots are cut from larger ones.
    widest = [banks_of(describe, [photo], PROTOTYPES // _least_shots(i)) for i, photo in enumerate(made.shots)]
    found: dict[str, Any] = {}
    side = remembered[id(made.shots[0])][-1].shape[-1]
    found["shares"] = np.stack([share_of(mask, side) for mask in made.masks])
    for count in shots_of(number):
        chosen = made.shots[:count]
        kind = guess(ClassSpec(name="class", noun="class"), chosen).kind
        banks = [ShotBanks.joined_of([w[size] for w in widest[:count]], PROTOTYPES) for size in (0, 1)]

        def judge(
            photo: U8, seen: tuple[F32, ...], banks: list[MemoryBank], kind: str = kind, scorer: PatchScorer = scorer
        ) -> tuple[F32, F32, F32, Mask]:
            distances = [bank.distance(part) for bank, part in zip(banks, seen, strict=True)]
            layered = layer_distances(banks[0], seen[0], scorer.layers)
            return distances[0], distances[1], inputs_of(seen[1], distances, layered, scorer), _inside(photo, kind)

        own = observe(describe, chosen, [foreground(photo, kind) for photo in chosen], banks, judge, SEED + number)
        everything = [bank.joined() for bank in banks]
        parts = {
            **vars(own),
            "good": [judge(photo, describe(photo), everything) for photo in made.good],
            "defective": [judge(photo, describe(photo), everything) for photo in made.defective],
        }
        for role in ROLES:
            if parts[role]:
                small, large, inputs, inside = (np.stack(values) for values in zip(*parts[role], strict=True))
                found[f"{count}/{role}/small"] = small.astype(np.float16)
                found[f"{count}/{role}/large"] = large.astype(np.float16)
                found[f"{count}/{role}/inputs"] = inputs.astype(np.float16)
                found[f"{count}/{role}/inside"] = inside
    return found


def _least_shots(number: int) -> int:
    """The smallest number of shots with which shot `number` (from 0) is in the bank."""
    return next(count for count in (*SHOTS, MANY_SHOTS) if count > number)


def _inside(photo: U8, kind: str) -> Mask:
    mask = Image.fromarray((foreground(photo, kind) * np.uint8(255)).astype(np.uint8))
    return np.asarray(mask.resize((FOREGROUND_SIDE, FOREGROUND_SIDE), Image.Resampling.BOX)) > 0


def share_of(mask: Mask, side: int) -> F32:
    """(H,W) -> (side,side) share of each patch's pixels."""
    plane = Image.fromarray((mask * np.uint8(255)).astype(np.uint8)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(np.asarray(plane, np.float32) / 255, np.float32)


def _unit_range(photo: U8) -> F32:
    """(H,W,3) uint8 -> float32 in [0,1]."""
    return np.asarray(photo / np.float32(255), np.float32)
