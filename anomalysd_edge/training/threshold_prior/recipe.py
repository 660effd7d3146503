"""Fits the threshold prior: python -m anomalysd_edge.training.threshold_prior.recipe --textures DIR --cache DIR --out F

Each photo of the folder becomes a class (variation.py): a surface where its file name starts with `tex`, else a thing;
drawn surfaces and parts are added. A class is measured with 1, 2 and 4 shots exactly as calibration measures a user's
(calibration/evidence.py), and its further good and defective photos (defects.py) are scored. The prior is fitted to all
of them; what it is worth is printed from classes left out, one by one and kind by kind. All is seeded; finished classes
stay in the cache. The result records the SHA-256 of every photo that was used; no photo enters it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomalysd_edge.calibration.evidence import Measured, measure
from anomalysd_edge.calibration.threshold_fit import KnownClass, LeftOut, fit, leave_one_class_out, reliability
from anomalysd_edge.calibration.threshold_model import Evidence
from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.data.class_inference import guess
from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.method.inpainting.masks import foreground
from anomalysd_edge.method.patches.distance_correction import shipped_correction
from anomalysd_edge.method.patches.multisize_scorer import MultisizeScorer
from anomalysd_edge.method.patches.patch_scorer import shipped_reading
from anomalysd_edge.training.models.features import DenseFeatures, load_features
from anomalysd_edge.training.patch_scorer.cases import PARTS, SURFACES
from anomalysd_edge.training.threshold_prior.defects import FAMILIES, defect
from anomalysd_edge.training.threshold_prior.variation import SIDE, surface, thing, to_u8
from anomalysd_edge.vision.images import list_images, load_rgb, resize, to_array

SEED = 20261127
SIZES_PX = (256, 448)
SHOTS = (1, 2, 4)
DRAWN = 24
"""Drawn classes beside those of the folder."""
_FURTHER = 8
"""Good photos of a class beside its shots, and as many defective ones."""
_TRIES = 80


def describe_with(network: DenseFeatures, photo: U8) -> tuple[F32, ...]:
    """(H,W,3) -> (D,f,f) unit features at each of SIZES_PX."""
    with torch.inference_mode():
        return tuple(network(torch.from_numpy(to_array(resize(photo, size)))).numpy()[0] for size in SIZES_PX)


@dataclass(frozen=True)
class Photographed:
    """The photos of one class, (SIDE,SIDE,3) uint8 each."""

    group: str
    """surface, thing, drawn surface or drawn part."""
    shots: list[U8]
    """As many as max(SHOTS)."""
    good: list[U8]
    """Further good photos."""
    defective: list[U8]
    """Photos with one painted defect each."""
    masks: list[Mask]
    """(SIDE,SIDE) where each of those was changed."""


def sources(folder: Sequence[Path], count: int) -> list[Path | int]:
    """What up to `count` classes are made from, in a seeded order: the folder's photos and DRAWN drawn things."""
    order: list[Path | int] = [*folder, *range(DRAWN)]
    return [order[i] for i in np.random.default_rng(SEED).permutation(len(order))[:count]]


def photographed(source: Path | int, number: int, folder: Sequence[Path]) -> Photographed:
    """The photos of class `number`; a source that is no file is drawn in code."""
    rng = np.random.default_rng((SEED, number))
    if isinstance(source, Path):
        photo = unit_range(load_rgb(source))
        group = "surface" if source.name.startswith("tex") else "thing"
    else:
        group = "drawn surface" if source % 2 else "drawn part"
        kinds = SURFACES if source % 2 else PARTS
        photo = np.asarray(kinds[source // 2 % len(kinds)](rng, 1024 if source % 2 else 512), np.float32).clip(0, 1)
    camera = surface(photo, rng) if "surface" in group else thing(photo, rng)
    family = FAMILIES[number % len(FAMILIES)]
    kinds_shown = [str(kind) for kind in rng.choice(family, int(rng.integers(1, 4)), replace=False)]
    severity = rng.uniform(0.1, 1.3)
    shots = [to_u8(camera("shot")) for _ in range(max(SHOTS))]
    good = [to_u8(camera("test")) for _ in range(_FURTHER)]
    bad: list[U8] = []
    masks: list[Mask] = []
    for _ in range(_TRIES):
        if len(bad) == _FURTHER:
            break
        shown = camera("test")
        inside = np.ones((SIDE, SIDE), np.bool_) if "surface" in group else foreground(to_u8(shown), "object")
        foreign = shown
        if folder and rng.random() < 0.6:
            foreign = unit_range(resize(load_rgb(folder[int(rng.integers(len(folder)))]), SIDE))
        made = defect(shown, inside, str(rng.choice(kinds_shown)), severity * rng.uniform(0.6, 1.4), foreign, rng)
        if made is not None:
            bad.append(to_u8(made[0]))
            masks.append(made[1])
    return Photographed(group, shots, good, bad, masks)


def measured_class(
    network: DenseFeatures,
    scorer: MultisizeScorer,
    source: Path | int,
    number: int,
    folder: Sequence[Path],
    cache: Path,
) -> Any:
    """What is known of class `number`, as plain values; measured once into `cache`. None where no defect shows."""
    file = cache / f"class-{SEED}-{number}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    made = photographed(source, number, folder)
    good, bad = made.good, made.defective
    found: dict[str, Any] | None = None
    if len(bad) >= _FURTHER // 2:
        name = source.name if isinstance(source, Path) else f"drawn {source}"
        further = [describe_with(network, photo) for photo in (*good, *bad)]
        found = {"name": name, "group": made.group, "runs": []}
        for count in SHOTS:
            chosen = made.shots[:count]
            kind = guess(ClassSpec(name="class", noun="class"), chosen).kind
            inside = [foreground(photo, kind) for photo in chosen]
            known: Measured = measure(
                lambda photo: describe_with(network, photo), chosen, inside, scorer, SEED + number
            )
            scores = [known.score(features) for features in further]
            parts = {"good": scores[: len(good)], "defective": scores[len(good) :]}
            found["runs"].append({**vars(known.evidence), **parts})
    part = file.with_suffix(".part")
    part.write_text(json.dumps(found), encoding="utf-8")
    part.replace(file)
    return found


def known_classes(measured: Sequence[dict[str, Any]]) -> list[KnownClass]:
    """Plain values of `measured_class` -> one KnownClass a class and number of shots."""
    return [
        KnownClass(
            one["name"],
            Evidence(
                tuple(run["left_out"]), tuple(run["copies"]), tuple(run["synthetic"]), float(run["self_similarity"])
            ),
            tuple(run["good"]),
            tuple(run["defective"]),
        )
        for one in measured
        for run in one["runs"]
    ]


def unit_range(photo: U8) -> F32:
    """(H,W,3) uint8 -> float32 in [0,1]."""
    return np.asarray(photo / np.float32(255), np.float32)


def lines(judged: Sequence[LeftOut], groups: dict[str, str]) -> list[str]:
    """What a prior is worth on classes that it did not see, for people."""
    told = []
    for shots in sorted({one.shots for one in judged}):
        for group in ("all", *sorted(set(groups.values()))):
            mine = [one for one in judged if one.shots == shots and group in ("all", groups[one.name])]
            if mine:
                error, best = (100 * np.mean([getattr(o, k) for o in mine]) for k in ("balanced_error", "best_error"))
                told.append(f"{shots} shots, {group}, {len(mine)} classes: {error:.1f} %, at the best {best:.1f} %")
    told += [f"stated {b.stated:.2f}, observed {b.observed:.2f}, {b.count} photos" for b in reliability(judged)]
    return told


def main() -> None:
    """Measure, judge on classes left out, fit to all, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--textures", type=Path, required=True, help="folder of photos; tex*: surfaces, others: things")
    parser.add_argument("--cache", type=Path, required=True, help="folder of measured classes; kept")
    parser.add_argument("--classes", type=int, default=120, help="classes at most, drawn ones among them")
    parser.add_argument("--out", type=Path, required=True, help="the prior, JSON")
    asked = parser.parse_args()
    asked.cache.mkdir(parents=True, exist_ok=True)
    folder = list_images(asked.textures)
    chosen = sources(folder, asked.classes)
    network, source = load_features()
    scorer = MultisizeScorer(shipped_reading("efficientnet_lite2"), shipped_correction("efficientnet_lite2"))
    found = []
    for number, one in enumerate(chosen):
        measured = measured_class(network, scorer, one, number, folder, asked.cache)
        if measured is not None:
            found.append(measured)
    classes, groups = known_classes(found), {one["name"]: one["group"] for one in found}
    print("\n".join(lines(leave_one_class_out(classes), groups)))  # noqa: T201
    used = {one.name: sha256_file(one) for one in chosen if isinstance(one, Path)}
    made_from = {"seed": SEED, "features": source, "classes": len(found), "photos": used}
    values = {"regressions": fit(classes).to_json(), "made_from": made_from}
    asked.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
