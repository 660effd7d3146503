"""Training the patch scorer: python -m anomalysd_edge.training.patch_scorer.recipe --cache DIR

Stage 1 draws cases (cases.py) and measures the distances of their photos' patches to the memory bank of their shot,
with the functions of an inspection. Stage 2 trains an ensemble of convolutional networks, equal but for their seeds, to
classify patches as changed or not. All is seeded; finished pieces of stage 1 are kept in DIR. On two cores about 15
minutes for the 1000 cases of the shipped weights, and 7 for each network.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor, nn

from anomalysd_edge.core.threads import use_threads
from anomalysd_edge.core.types import F32, U8
from anomalysd_edge.data.classes import apply_view, symmetry_group
from anomalysd_edge.evaluation.metrics import image_auroc, pixel_auroc
from anomalysd_edge.method.patches.memory_bank import build_memory_bank
from anomalysd_edge.method.patches.patch_scorer import (
    SELF_SHARES,
    SHIPPED,
    PatchScorer,
    layer_distances,
    scorer_inputs,
)
from anomalysd_edge.training.models.features import LAYERS, DenseFeatures, load_features
from anomalysd_edge.training.patch_scorer.cases import Case, draw_case
from anomalysd_edge.vision.images import to_array

SEED = 20261125
PIECE = 20
"""Cases in one file of the cache."""
EXPOSURES = (0.7, 1.4, 2.0)
BANK = 2048
DILATIONS = (1, 2, 2, 1)
HIDDEN = 32
MEMBERS = 3
"""Convolutions whose log odds are averaged: what one sees in a surface unlike the drawn ones depends on its start."""
_TOUCHED = 0.15
"""A patch counts as changed from this share of its pixels; below it, but above 0, it counts as neither."""


def measure_piece(cache: Path, seed: int, piece: int) -> Path:
    """Cases PIECE*piece.. : their photos' distances, drawn and measured once into `cache`."""
    file = cache / f"distances-{seed}-{piece}.npz"
    if file.exists():
        return file
    torch.set_num_threads(1)  # a process a core
    use_threads(1)
    network, _ = load_features()
    distances, changed, textured, owner = [], [], [], []
    for number in range(piece * PIECE, (piece + 1) * PIECE):
        case = draw_case(seed, number, network.side)
        for photo, mask in zip(distances_of(network, case, number), case.masks, strict=True):
            distances.append(photo.astype(np.float16))
            side = photo.shape[-1]
            small = Image.fromarray(mask.astype(np.float32)).resize((side, side), Image.Resampling.BOX)
            changed.append(np.asarray(small, np.float16))
            textured.append(case.textured)
            owner.append(number)
    part = file.with_suffix(".part.npz")
    np.savez(part, distances=distances, changed=changed, textured=textured, owner=owner)
    part.replace(file)
    return file


def with_exposure(photo: U8, exposure: float) -> U8:
    """(H,W,3) -> the same under a light `exposure` times as strong; what it makes too bright is white."""
    return np.asarray(np.clip(photo * np.float32(exposure) + np.float32(0.5), 0, 255), np.uint8)


def distances_of(network: DenseFeatures, case: Case, number: int) -> list[F32]:
    """(C,f,f) distances of each photo of a case to its shot's prototypes, copies in other lights among them."""
    rng = np.random.default_rng((SEED, number))
    group = symmetry_group(("rotate90", "flip_x"))
    views = group if case.textured or rng.random() < 0.5 else group[:1]
    mean_layer_distance = features_of_all(network, [apply_view(case.shot, view) for view in views])
    lit = features_of_all(
        network, [apply_view(with_exposure(case.shot, e), views[int(rng.integers(len(views)))]) for e in EXPOSURES]
    )
    bank = build_memory_bank(mean_layer_distance, BANK, lit)
    return [layer_distances(bank, found, LAYERS) for found in features_of_all(network, case.photos)]


@torch.inference_mode()
def features_of_all(network: DenseFeatures, photos: list[U8]) -> F32:
    """(N,D,f,f)."""
    arrays = [torch.from_numpy(to_array(np.ascontiguousarray(photo))) for photo in photos]
    return np.concatenate([network(torch.cat(arrays[i : i + 4])).numpy() for i in range(0, len(arrays), 4)])


class Convolution(nn.Module):
    """What Reading.read computes from its inputs, up to the softplus."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels] + [HIDDEN] * len(DILATIONS)
        self.layers = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, padding=d, dilation=d, padding_mode="reflect")
            for i, d in enumerate(DILATIONS)
        )
        self.last = nn.Conv2d(HIDDEN, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N,C,f,f) -> (N,f,f) log odds."""
        for layer in self.layers:
            x = nnf.relu(layer(x))
        return torch.as_tensor(self.last(x)[:, 0])

    def patch_scorer(self) -> PatchScorer:
        """The same for numpy."""
        convolutions = [*self.layers, self.last]
        return PatchScorer(
            LAYERS,
            tuple(c.weight.detach().numpy()[None].copy() for c in convolutions),
            tuple(c.bias.detach().numpy()[None].copy() for c in convolutions),
            (*DILATIONS, 1),
        )


def teach(x: Tensor, changed: Tensor, epochs: int, seed: int = 0) -> Convolution:
    """(N,C,f,f) inputs, (N,f,f) changed shares -> the convolution. Changed patches weigh four times: they are few."""
    torch.manual_seed(seed)
    target = (changed > _TOUCHED).float()
    weight = torch.where((changed > 0) & (changed <= _TOUCHED), 0.0, 1.0) * (1 + 3 * target)
    model = Convolution(x.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-3)
    steps = max(1, epochs * len(x) // 32)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (32,))
        turns, mirror = int(torch.randint(4, (1,))), bool(torch.rand(()) < 0.5)
        seen, wanted, counted = (
            torch.rot90(t.flip(-1) if mirror else t, turns, (-2, -1)) for t in (x[rows], target[rows], weight[rows])
        )
        loss = nnf.binary_cross_entropy_with_logits(model(seen), wanted, counted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        rate.step()
    return model.eval()


def figures(score: F32, changed: F32) -> tuple[float, float]:
    """(image, pixel) AUROC of (N,f,f) scores; an image's score is the mean of its ten highest patches."""
    touched = changed > _TOUCHED
    tops = np.sort(score.reshape(len(score), -1), axis=1)[:, -10:].mean(axis=1)
    return image_auroc(touched.any(axis=(1, 2)), tops), pixel_auroc(list(touched), list(score))


def main() -> None:
    """Draw and measure cases, train, evaluate on held-out cases, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder of measured cases; kept")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--members", type=int, default=MEMBERS, help="convolutions to teach")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=SHIPPED["efficientnet_lite2"])
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(options.workers) as pool:
        files = list(pool.map(partial(measure_piece, options.cache, SEED), range(-(-options.cases // PIECE))))
    pieces = [np.load(file) for file in files]
    distances = np.concatenate([p["distances"] for p in pieces]).astype(np.float32)
    changed = np.concatenate([p["changed"] for p in pieces]).astype(np.float32)
    textured, owner = np.concatenate([p["textured"] for p in pieces]), np.concatenate([p["owner"] for p in pieces])
    seen = np.stack([scorer_inputs(d, bool(t)) for d, t in zip(distances, textured, strict=True)])
    kept = owner % 6 != 0
    lesson = torch.from_numpy(seen[kept]), torch.from_numpy(changed[kept])
    models = [teach(*lesson, options.epochs, seed) for seed in range(options.members)]
    with torch.inference_mode():
        read = np.mean([model(torch.from_numpy(seen)).numpy() for model in models], axis=0)
    each = 1 + len(SELF_SHARES)
    nearest = distances[:, ::each].mean(axis=1)
    for name, chosen in (("surfaces", ~kept & textured), ("parts", ~kept & ~textured)):
        before, after = (figures(s[chosen], changed[chosen]) for s in (nearest, read))
        print(  # noqa: T201
            f"{name}, {int(chosen.sum())} photos of cases left out, image / pixel AUROC: nearest prototype "
            f"{before[0]:.3f} / {before[1]:.3f}, read {after[0]:.3f} / {after[1]:.3f}"
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(PatchScorer.ensemble([model.patch_scorer() for model in models]).tensors(), options.out)


if __name__ == "__main__":
    main()
