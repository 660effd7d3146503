"""The recipe of the embedded base "nano": what lies in anomalysd_edge/nano/ is its output.

    python -m anomalysd_edge.training.nano.recipe --textures DIR --out DIR --checkpoints DIR --resume

Stage 1 draws scenes and cuts crops of photos (images.py, textures.py). Stage 2 trains the autoencoder, whose weights
then stand (autoencoder.py). Stage 3 trains the inpainting UNet with the text encoder on pictures and masks, encoded
when first met (unet.py, pairs.py). Everything is seeded; each stage keeps checkpoints, and --resume goes on from them.
--export writes the folder of the newest averaged weights and trains nothing.

On a CPU one process a core is far faster than one process of several threads, above all beside other work:

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 -m anomalysd_edge.training.nano.recipe ...
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anomalysd_edge.core.files import folder_aside, read_json, write_json
from anomalysd_edge.errors import InputError
from anomalysd_edge.training.models.base import folder_sha256, load_base
from anomalysd_edge.training.nano import models
from anomalysd_edge.training.nano.autoencoder import train_autoencoder
from anomalysd_edge.training.nano.common import SEED, RecipeContext
from anomalysd_edge.training.nano.images import FAMILIES, NOUNS, make_pictures
from anomalysd_edge.training.nano.pairs import FACTS, Pairs
from anomalysd_edge.training.nano.textures import PhotoFile, split_photos
from anomalysd_edge.training.nano.unet import Learner, train_unet

IDENTITY = "recipe.json"


@dataclass(frozen=True)
class Recipe:
    """How much is drawn and taught."""

    textures: Path | None
    """Folder of photos whose licences let weights taught on them ship; None = drawn scenes alone."""
    start: Path | None
    """An earlier base whose weights are gone on from; None = from nothing."""
    scenes: int = 32000
    """PictureSet drawn in code."""
    crops: int = 32000
    """Crops of photos."""
    autoencoder_steps: int = 14000
    """Of 32 crops of 64 px each."""
    pairs: int = 64000
    """PictureSet with a mask; every picture once where there are as many."""
    unet_steps: int = 12500
    unet_batch: int = 32

    def photos(self) -> list[PhotoFile]:
        """The photos that teach."""
        return split_photos(self.textures)[0] if self.textures else []

    def identity(self) -> dict[str, Any]:
        """What the weights are a function of: kept beside the checkpoints, and shipped beside the weights."""
        photos = self.photos()
        return {
            "seed": SEED,
            "start": folder_sha256(self.start) if self.start else None,
            "scenes": self.scenes,
            "crops": self.crops if photos else 0,
            "autoencoder_steps": self.autoencoder_steps,
            "pairs": self.pairs,
            "unet_steps": self.unet_steps,
            "unet_batch": self.unet_batch,
            "photos": {photo.path.name: photo.sha256 for photo in photos},
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages, or export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--textures", type=Path, help="folder of photos; without it drawn scenes alone teach")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets diffusers' layout")
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder for caches, checkpoints and the log")
    parser.add_argument(
        "--from-base", dest="start", type=Path, help="an earlier base to go on from; without it from nothing"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints that are there")
    parser.add_argument("--export", action="store_true", help="write the newest averaged weights to --out, no training")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    for name in ("scenes", "crops", "autoencoder_steps", "pairs", "unet_steps", "unet_batch"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Recipe, name))
    asked = parser.parse_args(arguments)
    recipe = Recipe(
        asked.textures, asked.start, asked.scenes, asked.crops, asked.autoencoder_steps, asked.pairs, asked.unet_steps,
        asked.unet_batch,
    )  # fmt: skip
    context = RecipeContext(asked.checkpoints, asked.device, asked.precision)
    if asked.export:
        export(recipe, context, asked.out)
        return
    open_checkpoints(recipe, context, asked.resume)
    run_stages(recipe, context)
    if context.processes.is_main:
        export(recipe, context, asked.out)


def open_checkpoints(recipe: Recipe, context: RecipeContext, resume: bool) -> None:
    """Open the checkpoints' folder. Raises InputError where it holds another recipe's work, or any without `resume`."""
    if torch.device(context.device).type == "cuda" and not torch.cuda.is_available():
        raise InputError("the device cuda was asked for, but torch sees none; use --device cpu")
    file, identity = context.checkpoints / IDENTITY, recipe.identity()
    there = file.exists()
    if there and not resume:
        raise InputError(f"{context.checkpoints} holds checkpoints: go on with --resume, or name a new folder")
    if there:
        known = read_json(file)
        other = [name for name, value in identity.items() if known.get(name) != value]
        if other:
            raise InputError(f"{context.checkpoints} is of a recipe with other {', '.join(other)}; name a new folder")
    context.processes.barrier()  # all have read before one writes
    if context.processes.is_main and not there:
        write_json(file, identity)
    context.processes.barrier()


def run_stages(recipe: Recipe, context: RecipeContext) -> None:
    """All stages; what is done already is not done again."""
    torch.manual_seed(SEED)
    workers = max(1, (os.cpu_count() or 1) // context.processes.world_size)
    pictures = make_pictures(context, recipe.scenes, recipe.crops if recipe.textures else 0, recipe.photos(), workers)
    vae, learner = networks(recipe, pictures.nouns)
    vae = train_autoencoder(context, pictures, vae, recipe.autoencoder_steps)
    pairs = Pairs(context, pictures, vae, recipe.pairs)
    if workers > 1:  # cores that would idle while a device or a single process computes
        pairs.encode_all(workers)
    train_unet(context, pairs, learner, recipe.unet_steps, recipe.unet_batch)


def networks(recipe: Recipe, nouns: Sequence[str]) -> tuple[Any, Learner]:
    """The autoencoder, and the UNet with its text encoder and tokenizer: those of `start`, or new ones."""
    if recipe.start:
        base = load_base(recipe.start)
        return base.vae.requires_grad_(True), Learner(base.unet, base.text_encoder, base.tokenizer)
    torch.manual_seed(SEED)
    sentences = [f"A perfect {noun}." for noun in sorted({*nouns, *FAMILIES})]
    words = models.tokenizer(sentences * 2)
    return models.autoencoder(), Learner(models.unet(), models.text_encoder(len(words)), words)


def export(recipe: Recipe, context: RecipeContext, out: Path) -> None:
    """Write the newest averaged weights to the folder `out`; recipe.json there says how far the UNet has come.

    Raises InputError before the UNet's first checkpoint.
    """
    autoencoder, unet = context.load("autoencoder"), context.load("unet")
    if autoencoder is None or unet is None:
        raise InputError(f"{context.checkpoints} has no UNet's checkpoint yet; nothing can be exported")
    nouns = read_json(context.checkpoints / NOUNS)
    scale = float(read_json(context.checkpoints / FACTS)["scale"])
    vae, learner = networks(recipe, nouns)
    vae.load_state_dict(autoencoder["average"])
    vae.register_to_config(scaling_factor=scale)
    learner.restore(unet)
    identity = read_json(context.checkpoints / IDENTITY)
    with folder_aside(out, marker=IDENTITY) as aside:
        models.save_pipeline(aside, learner.slow_net, vae, learner.slow_text, learner.words)
        write_json(aside / IDENTITY, {**identity, "unet_steps_done": int(unet["step"])})


if __name__ == "__main__":
    main()
