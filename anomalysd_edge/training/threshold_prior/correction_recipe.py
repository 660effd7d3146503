"""Teaches the distance correction: python -m anomalysd_edge.training.threshold_prior.correction_recipe --textures D ...

Classes are made as for the threshold prior (training/threshold_prior): one photo of a surface or of a thing, seen again
and again, with painted defects. What the correction reads of each photo is measured once and kept in the cache. The
loss has three parts: a defective photo scores above a good one of its class; one score, the same for all classes,
separates both; a defective pixel exceeds others of its photo. Members are taught on the classes of one family of
defects and judged on those of the other; what ships is their mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor, nn

from anomalysd_edge.calibration.evidence import PROTOTYPES, VIEWS
from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.data.classes import apply_view
from anomalysd_edge.evaluation.metrics import image_auroc
from anomalysd_edge.method.patches.distance_correction import CHANNELS, DILATIONS, FIELDS, DistanceCorrection, inputs_of
from anomalysd_edge.method.patches.patch_scorer import shipped_reading
from anomalysd_edge.method.patches.shot_banks import ShotBanks
from anomalysd_edge.training.models.features import DenseFeatures, load_features
from anomalysd_edge.training.threshold_prior.recipe import SEED, describe_with, photographed, sources
from anomalysd_edge.vision.images import list_images

HIDDEN = 16
STEPS = 500
_CLASSES_A_STEP, _PHOTOS_A_CLASS = 4, 3
_TOUCHED = 0.15
"""A patch counts as defective from this share of its pixels; below it, but above 0, it counts as neither."""
_LARGE_LOG = CHANNELS - FIELDS
"""Channel of `correction_inputs` that holds the larger size's distance to prototypes, as a logarithm plus 2."""
_TOP = 0.01
_SIGMA = 0.875
"""Of the smoothing, in patches of the larger size: 4 pixels of 256."""


@dataclass(frozen=True)
class Lesson:
    """One class under the bank of some of its shots."""

    inputs: F32
    """(N,CHANNELS,f,f) of its further photos."""
    shares: F32
    """(N,f,f) share of each patch's pixels that are defective."""
    family: int
    """Which family its defects belong to."""


class Correction(nn.Module):
    """What DistanceCorrection.factor computes, for one member, times the distance: the logarithm of the map."""

    def __init__(self, hidden: int = HIDDEN, bound: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, hidden, 1)
        self.layers = nn.ModuleList(
            nn.Conv2d(hidden, hidden, 3, padding=d, dilation=d, padding_mode="reflect") for d in DILATIONS
        )
        self.last = nn.Conv2d(hidden, 1, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        self.bound = bound
        self.steepness, self.middle = nn.Parameter(torch.tensor(4.0)), nn.Parameter(torch.tensor(-1.7))

    def forward(self, x: Tensor) -> Tensor:
        """(N,CHANNELS,f,f) -> (N,f,f) natural logarithm of the corrected distance."""
        y = nnf.relu(self.first(x))
        for layer in self.layers:
            y = nnf.relu(layer(y)) + y
        return torch.as_tensor(x[:, _LARGE_LOG] - 2 + self.bound * torch.tanh(self.last(y)[:, 0]))


def joined(members: Sequence[Correction]) -> DistanceCorrection:
    """The same for numpy, as one."""

    def stacked(name: str) -> F32:
        return np.stack([member.get_parameter(name).detach().numpy() for member in members])

    return DistanceCorrection(
        stacked("first.weight"),
        stacked("first.bias"),
        tuple(stacked(f"layers.{number}.weight") for number in range(len(DILATIONS))),
        tuple(stacked(f"layers.{number}.bias") for number in range(len(DILATIONS))),
        stacked("last.weight"),
        stacked("last.bias"),
        members[0].bound,
    )


def scored(log_map: Tensor) -> tuple[Tensor, Tensor]:
    """(N,f,f) log maps -> (N,) log image scores and (N,f*f) the smoothed log maps."""
    taps = torch.exp(-0.5 * (torch.arange(-3, 4) / _SIGMA) ** 2)
    kernel = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    padded = nnf.pad(torch.exp(log_map)[:, None], (3, 3, 3, 3), mode="reflect")
    smoothed = nnf.conv2d(padded, kernel)[:, 0].flatten(1)
    top = max(1, round(_TOP * smoothed.shape[1]))
    return torch.log(smoothed.topk(top, 1)[0].mean(1)), torch.log(smoothed)


def loss_of(model: Correction, log_map: Tensor, shares: Tensor, owner: Tensor) -> Tensor:
    """(N,f,f) log maps, (N,f,f) shares and (N,) class numbers -> the three parts' sum."""
    scores, pixels = scored(log_map)
    flat = shares.flatten(1)
    bad = flat.amax(1) > _TOUCHED
    pairs = (owner[:, None] == owner[None]) & bad[:, None] & ~bad[None]
    between = (scores[:, None] - scores[None])[pairs]
    ranked = 0.48 * nnf.softplus(-between / 0.12).mean() if len(between) else scores.sum() * 0
    judged = nnf.binary_cross_entropy_with_logits(model.steepness * (scores - model.middle), bad.float())
    parts = []
    for number in torch.nonzero(bad)[:, 0].tolist():
        inside, outside = pixels[number][flat[number] > _TOUCHED], pixels[number][flat[number] == 0]
        if len(inside) and len(outside):
            a, b = (part[torch.randint(len(part), (64,))] for part in (inside, outside))
            parts.append(0.8 * nnf.softplus(-(a - b) / 0.2).mean())
    return ranked + judged + (torch.stack(parts).mean() if parts else 0)


def teach(lessons: Sequence[Lesson], steps: int = STEPS, seed: int = 0) -> Correction:
    """One member."""
    torch.manual_seed(seed)
    rng, model = np.random.default_rng(seed), Correction()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=3e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in range(steps):
        xs, ys, owner = [], [], []
        for number in rng.choice(len(lessons), min(_CLASSES_A_STEP, len(lessons)), replace=False):
            lesson = lessons[int(number)]
            bad = lesson.shares.max(axis=(1, 2)) > _TOUCHED
            for kind in (np.flatnonzero(bad), np.flatnonzero(lesson.shares.max(axis=(1, 2)) == 0)):
                for i in rng.permutation(kind)[:_PHOTOS_A_CLASS]:
                    xs.append(lesson.inputs[i])
                    ys.append(lesson.shares[i])
                    owner.append(int(number))
        turns = int(rng.integers(4))
        x, y = (torch.rot90(torch.from_numpy(np.stack(part)), turns, (-2, -1)) for part in (xs, ys))
        loss = loss_of(model, model(x), y, torch.tensor(owner))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
    return model.eval()


def lessons_of(
    network: DenseFeatures, source: Path | int, number: int, folder: Sequence[Path], cache: Path
) -> list[Lesson]:
    """Class `number` under banks of one and of four shots; measured once into `cache`."""
    file = cache / f"lessons-{SEED}-{number}.npz"
    if not file.exists():
        made, reading = photographed(source, number, folder), shipped_reading("efficientnet_lite2")
        assert reading is not None
        views = [[describe_with(network, _turned(photo, view)) for view in VIEWS] for photo in made.shots]
        further = [describe_with(network, photo) for photo in (*made.good, *made.defective)]
        masks = [np.zeros_like(made.masks[0])] * len(made.good) + made.masks if made.masks else []
        found: dict[str, F32] = (
            {"shares": np.stack([_share(mask, further[0][1].shape[-1]) for mask in masks])} if masks else {}
        )
        for count in (1, len(made.shots)) if masks else ():
            banks = [
                ShotBanks.of([np.stack([v[size] for v in mine]) for mine in views[:count]], PROTOTYPES).joined()
                for size in range(2)
            ]
            found[f"inputs-{count}"] = np.stack([inputs_of(f, banks, reading) for f in further]).astype(np.float16)
        part = file.with_suffix(".part.npz")
        np.savez(part, **found)  # type: ignore[arg-type]
        part.replace(file)
    with np.load(file) as kept:
        return [
            Lesson(kept[name].astype(np.float32), kept["shares"].astype(np.float32), number % 2)
            for name in kept.files
            if name.startswith("inputs")
        ]


def auroc_of(model: Correction | None, lesson: Lesson) -> float:
    """Image AUROC on one lesson's photos; without a model, of the distance itself."""
    with torch.inference_mode():
        x = torch.from_numpy(lesson.inputs)
        scores, _ = scored(x[:, _LARGE_LOG] - 2 if model is None else model(x))
    return image_auroc(lesson.shares.max(axis=(1, 2)) > 0, scores.numpy())


def _turned(photo: U8, view: tuple[int, bool]) -> U8:
    return np.ascontiguousarray(apply_view(photo, view))


def _share(mask: Mask, side: int) -> F32:
    plane = Image.fromarray((mask * np.uint8(255)).astype(np.uint8)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(np.asarray(plane, np.float32) / 255, np.float32)


def main() -> None:
    """Measure, teach a member for each family, judge it on the other, write their mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--textures", type=Path, required=True, help="folder of photos; tex*: surfaces, others: things")
    parser.add_argument("--cache", type=Path, required=True, help="folder of measured classes; kept")
    parser.add_argument("--classes", type=int, default=240)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, required=True, help="the weights, safetensors")
    asked = parser.parse_args()
    asked.cache.mkdir(parents=True, exist_ok=True)
    folder, (network, _) = list_images(asked.textures), load_features()
    chosen = sources(folder, asked.classes)
    lessons = [one for n, source in enumerate(chosen) for one in lessons_of(network, source, n, folder, asked.cache)]
    members = []
    for family in range(2):
        members.append(teach([one for one in lessons if one.family != family], asked.steps, family))
        judged = [one for one in lessons if one.family == family]
        before, after = (100 * np.mean([auroc_of(m, one) for one in judged]) for m in (None, members[-1]))
        print(f"family {family} left out, {len(judged)} lessons: image AUROC {before:.1f} -> {after:.1f}")  # noqa: T201
    save_file(joined(members).tensors(), asked.out)


if __name__ == "__main__":
    main()
