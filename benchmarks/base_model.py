"""Bases side by side: what an autoencoder's round trip keeps, and what a UNet repaints, on pictures no base has seen.

    python -m benchmarks.base_model nano NEW --textures DIR --out out/base-model.json

The pictures: crops of the fifth of DIR's photos that the recipe leaves out, and drawn scenes of another seed. Measured:
the round trip's PSNR and the share of a hairline's contrast that it keeps; the mean change of a repaint inside its mask
where nothing is wrong, and the share of a synthetic anomaly that is left after it, both against the picture's own round
trip, in grey levels; and how well the change of the latents alone tells anomalous pixels from others. Every base sees
the same pictures, masks, anomalies and noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomalysd_edge.calibration.synthetic_anomalies import synthetic_anomaly
from anomalysd_edge.core.files import write_json
from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.evaluation.metrics import pixel_auroc
from anomalysd_edge.method.anomaly_map import smooth
from anomalysd_edge.method.inpainting.mask_plan import packed_plan
from anomalysd_edge.method.inpainting.masks import to_pixels
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule, StepTable
from anomalysd_edge.reports.console import show_table
from anomalysd_edge.training.models.base import Base, decode, encode_mode, load_base, prompt_states
from anomalysd_edge.training.nano.images import render
from anomalysd_edge.training.nano.marks import hairline
from anomalysd_edge.training.nano.textures import cropped, split_photos

SEED = 977
"""No recipe draws with it."""
SCALES = (4, 8, 16)
HAIRLINES = ((1.0, 0.15), (1.0, 0.5), (2.0, 0.15), (2.0, 0.5))
"""(width in px, contrast as a share of the range from black to white)."""
STARTS = ((0.15, 1), (0.25, 2), (0.4, 4))
"""(lambda, passes)."""
BATCH = 32


@dataclass(frozen=True)
class HeldOutPicture:
    """One picture and its copy with an anomaly."""

    picture: U8
    """(S,S,3)."""
    noun: str
    anomalous: U8 | None
    """(S,S,3); None where none of a fitting size came out."""
    where: Mask
    """(S,S): where it was changed."""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="+", help="base folders, or nano")
    parser.add_argument("--textures", type=Path, required=True, help="the folder of photos that the recipe is given")
    parser.add_argument("--crops", type=int, default=126, help="crops of left-out photos")
    parser.add_argument("--scenes", type=int, default=66, help="drawn scenes")
    parser.add_argument("--repainted", type=int, default=16, help="pictures of each kind that are repainted")
    parser.add_argument("--threads", type=int, default=0, help="torch's CPU threads; 0 = its choice")
    parser.add_argument("--out", type=Path, required=True, help="results, JSON")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    loaded = {Path(name).name: load_base(name) for name in asked.bases}
    side = next(iter(loaded.values())).size_px
    sets = {
        "left-out photos": photo_samples(asked.textures, asked.crops, side),
        "scenes": scene_samples(asked.scenes, side),
    }
    results: list[dict[str, Any]] = []
    for kind, samples in sets.items():
        for name, base in loaded.items():
            base.unet.to(memory_format=torch.channels_last)
            figures = {**round_trips(base, samples), **repaints(base, samples[: asked.repainted])}
            results.append({"base": name, "sha256": base.sha256, "pictures": kind, "count": len(samples), **figures})
            write_json(asked.out, results)
    names = [key for key in results[0] if key not in ("base", "sha256", "pictures", "count")]
    show_table(
        "bases", ["", *(f"{line['base']}: {line['pictures']}" for line in results)],
        [[name, *(f"{line[name]:.3f}" for line in results)] for name in names],
    )  # fmt: skip


def photo_samples(folder: Path, count: int, side: int) -> list[HeldOutPicture]:
    """Crops of the held-out photos, each photo in turn."""
    held_out = split_photos(folder)[1]
    order = np.random.default_rng(SEED).permutation(len(held_out))
    pictures = []
    for number in range(count):
        photo = held_out[int(order[number % len(held_out)])]
        pictures.append((photo.noun, cropped([photo], [number], side, (SEED,))[number]))
    return _with_anomalies(pictures)


def scene_samples(count: int, side: int) -> list[HeldOutPicture]:
    """Drawn scenes."""
    return _with_anomalies([render(SEED, number, side) for number in range(count)])


def _with_anomalies(pictures: Sequence[tuple[str, U8]]) -> list[HeldOutPicture]:
    samples = []
    for number, (noun, picture) in enumerate(pictures):
        rng = np.random.default_rng((SEED, 1, number))
        everywhere = np.ones(picture.shape[:2], np.bool_)
        made = synthetic_anomaly(picture, everywhere, pictures[(number + 1) % len(pictures)][1], rng)
        none = np.zeros_like(everywhere)
        samples.append(HeldOutPicture(picture, noun, made.photo if made else None, made.mask if made else none))
    return samples


def round_trips(base: Base, samples: Sequence[HeldOutPicture]) -> dict[str, float]:
    """Mean PSNR in dB, and for each hairline the share of its contrast that is there after the round trip."""
    pictures = [sample.picture for sample in samples]
    plain = round_trip(base, pictures)
    errors = [((a - b.astype(np.float32)) ** 2).mean() for a, b in zip(plain, pictures, strict=True)]
    figures = {"PSNR, dB": float(np.mean([10 * np.log10(255**2 / error) for error in errors]))}
    for width, contrast in HAIRLINES:
        marked, signs, covers = list[U8](), list[float](), list[Mask]()
        for number, picture in enumerate(pictures):
            rng = np.random.default_rng((SEED, 2, number))
            cover = hairline(rng, len(picture), width, float(rng.uniform(10, 60)))
            # Towards the farther end of the range, so that little is cut off.
            sign = 1.0 if picture[cover > 0.3].mean() < 127.5 else -1.0
            changed = picture + sign * 255 * contrast * cover[..., None]
            marked.append(np.clip(np.rint(changed), 0, 255).astype(np.uint8))
            signs.append(sign)
            covers.append(cover > 0.5)
        after = round_trip(base, marked)
        kept = []
        for number, line in enumerate(covers):
            if line.any():
                given = signs[number] * (marked[number].astype(np.float32) - pictures[number])[line].mean()
                shown = signs[number] * (after[number] - plain[number])[line].mean()
                kept.append((given, shown))
        given_sum, shown_sum = (sum(values) for values in zip(*kept, strict=True))
        figures[f"contrast kept, {width:g} px at {contrast:.0%}"] = float(shown_sum / given_sum)
    return figures


def repaints(base: Base, samples: Sequence[HeldOutPicture]) -> dict[str, float]:
    """For each start: change where nothing is wrong, share of an anomaly left, the latents' change as a detector."""
    schedule = NoiseSchedule.from_config(base.scheduler)
    figures: dict[str, float] = {}
    for strength, passes in STARTS if samples else ():
        table = schedule.even_ddim(passes, strength)
        normal, left, before = [], [], []
        maps: list[F32] = []
        for number, sample in enumerate(samples):
            good = _repainted(base, sample.picture, sample.noun, table, number)
            normal.append(good["change"].mean())
            if sample.anomalous is not None:
                bad = _repainted(base, sample.anomalous, sample.noun, table, number)
                reference = good["trip"]
                left.append(np.abs(bad["repaint"] - reference)[:, sample.where].mean())
                before.append(np.abs(bad["trip"] - reference)[sample.where].mean())
                maps.append(bad["latents"])
        masks = [sample.where for sample in samples if sample.anomalous is not None]
        start = f"lambda {strength:g}, {passes} steps"
        figures[f"{start}: change of normal, levels"] = float(np.mean(normal))
        figures[f"{start}: share of anomaly left"] = float(np.sum(left) / np.sum(before))
        figures[f"{start}: pixel AUROC of latents"] = float(pixel_auroc(masks, maps))
    return figures


@torch.inference_mode()
def round_trip(base: Base, pictures: Sequence[U8]) -> F32:
    """N (S,S,3) bytes -> (N,S,S,3) float32 levels in [0,255] after encoding and decoding."""
    parts = []
    for start in range(0, len(pictures), BATCH):
        decoded = decode(base.vae, encode_mode(base.vae, _tensor(np.stack(pictures[start : start + BATCH]))))
        parts.append(_levels(decoded))
    return np.concatenate(parts)


@torch.inference_mode()
def _repainted(base: Base, picture: U8, noun: str, table: StepTable, number: int) -> Mapping[str, F32]:
    """All packed slots of SCALES over one picture.

    "trip": (S,S,3) its round trip; "repaint": (K,S,S,3), each scale's cells together; "change": (S,S) mean difference
    of the two in levels; "latents": (S,S) mean absolute change of the latents over channels and scales, smoothed.
    """
    image = _tensor(picture[None])
    z = encode_mode(base.vae, image)
    factor, channels, side = base.latent_factor, z.shape[1], z.shape[-1]
    slots = packed_plan(side, SCALES).slots
    masks = torch.from_numpy(np.stack([slot.mask for slot in slots])[:, None].astype(np.float32))
    hidden = torch.from_numpy(np.stack([to_pixels(slot.mask, factor) for slot in slots])[:, None])
    known = encode_mode(base.vae, torch.where(hidden, 0.0, image))
    noise = torch.from_numpy(np.stack([slot.noise(number, (channels, side, side)) for slot in slots]))
    x = float(np.sqrt(table.start_abar)) * z + float(np.sqrt(1 - table.start_abar)) * noise
    states = prompt_states(base, [f"A perfect {noun}."]).expand(len(slots), -1, -1)
    for t, (keep, add) in zip(table.timesteps.tolist(), table.coefficients.tolist(), strict=True):
        x = keep * x + add * base.unet(torch.cat([x, masks, known], 1), t, encoder_hidden_states=states).sample
    merged = torch.stack(
        [
            sum((x[n] * masks[n] for n, slot in enumerate(slots) if slot.scale == k), torch.zeros_like(z[0]))
            for k in SCALES
        ]
    )
    trip = _levels(decode(base.vae, z))[0]
    repaint = _levels(decode(base.vae, merged))
    moved = (merged - z).abs().mean((0, 1)).numpy()
    wide = np.repeat(np.repeat(moved, factor, axis=0), factor, axis=1)
    change = np.abs(repaint - trip).mean((0, 3))
    return {"trip": trip, "repaint": repaint, "change": change, "latents": smooth(wide, len(wide) / 28)}


def _tensor(pictures: U8) -> Tensor:
    planes = pictures.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    return torch.from_numpy(planes).contiguous(memory_format=torch.channels_last)


def _levels(images: Tensor) -> F32:
    """(N,3,S,S) in [-1,1] -> (N,S,S,3) in [0,255]."""
    return np.asarray((images.clamp(-1, 1).numpy().transpose(0, 2, 3, 1) + 1) * 127.5, dtype=np.float32)


if __name__ == "__main__":
    main()
