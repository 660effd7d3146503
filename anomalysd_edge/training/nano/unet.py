"""Stage 3 of nano's recipe: the inpainting UNet and its text encoder, trained together.

Two things differ from training Stable Diffusion. Timesteps are drawn mostly below 0.45 T, since an inspection starts at
lambda*T. And half of the samples start corrupted: z_t carries content that does not belong inside the mask (a drawn
anomaly, content of another picture, a smooth stain), while the target still leads to the clean latents; losses.py has
the formula. An inspection starts from the photo itself, defects and all; a plain denoiser would faithfully keep them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as nnf
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from anomalysd_edge.training.losses import noisy_samples, unet_loss
from anomalysd_edge.training.nano import models
from anomalysd_edge.training.nano.common import SEED, UNET, RecipeContext, blend, drawn_ahead, set_rate, stream
from anomalysd_edge.training.nano.pairs import Pairs

PEAK_RATE = 6e-4
CORRUPTED = 0.5
OUTSIDE_WEIGHT = 0.3
"""Inside the mask is where repainting happens; outside, z_o all but gives the answer away."""
NO_PROMPT = 0.1
"""Share of samples with the empty prompt."""

Rng = np.random.Generator


@dataclass
class Learner:
    """The networks of the stage: what learns, and its moving average, which is the result."""

    net: Any
    """UNet2DConditionModel."""
    text: Any
    """CLIPTextModel."""
    words: Any
    """CLIPTokenizer."""

    def __post_init__(self) -> None:
        self.slow_net = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.slow_text = copy.deepcopy(self.text).eval().requires_grad_(False)

    def modules(self) -> dict[str, Any]:
        """By their names in a checkpoint."""
        return {"net": self.net, "text": self.text, "slow_net": self.slow_net, "slow_text": self.slow_text}

    def restore(self, state: dict[str, Any]) -> None:
        """Take the weights of a checkpoint."""
        for name, module in self.modules().items():
            module.load_state_dict(state[name])


@dataclass(frozen=True)
class Batch:
    """Some rows of a step, on the device, float32."""

    clean: Tensor
    """(n,4,32,32) scaled latents."""
    start: Tensor
    """(n,4,32,32) what is noised: `clean`, or latents with foreign content inside the mask."""
    known: Tensor
    """(n,4,32,32) latents of the masked picture."""
    masks: Tensor
    """(n,1,32,32) in {0,1}."""
    corrupted: Tensor
    """(n,) bool."""
    timesteps: Tensor
    """(n,) int64."""
    noise: Tensor
    """(n,4,32,32) standard normal."""
    prompts: list[str]


def train_unet(context: RecipeContext, pairs: Pairs, learner: Learner, steps: int, batch: int) -> None:
    """Train the learner from its weights or the last checkpoint; checkpoints hold the moving averages as well."""
    torch.manual_seed(SEED + 1)
    for module in learner.modules().values():
        module.to(device=context.place)
    learner.net.to(memory_format=context.layout).train().requires_grad_(True)
    learner.text.train().requires_grad_(True)
    if context.place.type == "cpu":
        learner.net.set_attn_processor(AttnProcessor())  # plain products: the fused backward takes three times as long
    parameters = [*learner.net.parameters(), *learner.text.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    state, start = context.load("unet"), 0
    if state is not None:
        learner.restore(state)
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    abar = models.scheduler().alphas_cumprod.float().to(context.place)
    rows = context.rows(batch)
    recent: float | None = None
    batches = drawn_ahead(lambda step: unet_batch(context, pairs, step, rows), range(start, steps), context.place)
    for step, drawn in enumerate(batches, start):
        set_rate(optimizer, step, steps, PEAK_RATE, warm=200, hold=0.6)
        samples = noisy_samples(
            drawn.clean, drawn.start, drawn.noise, abar[drawn.timesteps], drawn.corrupted, "epsilon"
        )
        seen = torch.cat([samples.noisy, drawn.masks, drawn.known], dim=1).contiguous(memory_format=context.layout)
        tokens = models.tokenize(learner.words, drawn.prompts).to(context.place)
        with context.autocast():
            states = learner.text(tokens).last_hidden_state
            guess = learner.net(seen, drawn.timesteps, states).sample
        loss = unet_loss(guess, samples, drawn.masks, OUTSIDE_WEIGHT)
        value = context.update(loss, len(drawn.clean) / batch, optimizer)
        blend(learner.slow_net, learner.net, step, 0.9995)
        blend(learner.slow_text, learner.text, step, 0.9995)
        recent = value if recent is None else recent * 0.99 + value * 0.01
        if step % 100 == 99:
            context.note("unet", step + 1, steps, loss=recent)
        if context.due() or step == steps - 1:
            weights = {name: module.state_dict() for name, module in learner.modules().items()}
            context.save("unet", {**weights, "optimizer": optimizer.state_dict(), "step": step + 1})


def unet_batch(context: RecipeContext, pairs: Pairs, step: int, rows: slice) -> Batch:
    """Some rows of step `step`; each row is a function of the seed, the step and its number."""
    drawn = [stream(UNET, step, row) for row in range(rows.start, rows.stop)]
    numbers = [int(rng.integers(pairs.count)) for rng in drawn]
    latents, seen = pairs.take(numbers)
    masks = torch.from_numpy(seen[:, None])
    clean, known, anomaly = torch.from_numpy(latents).unbind(1)
    corrupted = torch.tensor([bool(rng.random() < CORRUPTED) for rng in drawn])
    starts = []
    for row, (rng, z, mask) in enumerate(zip(drawn, clean, masks, strict=True)):
        other = anomaly_of(rng, pairs, z, anomaly[row]) if corrupted[row] else z
        strength = 1.0 if rng.random() < 0.5 else rng.uniform(0.2, 1.0)
        starts.append(z + mask * np.float32(strength) * (other - z))
    start = torch.stack(starts)
    timesteps = torch.tensor([draw_timestep(rng) for rng in drawn])
    noise = torch.from_numpy(np.stack([rng.standard_normal(clean.shape[1:], dtype=np.float32) for rng in drawn]))
    prompts = [
        "" if rng.random() < NO_PROMPT else f"A perfect {pairs.noun(number)}."
        for rng, number in zip(drawn, numbers, strict=True)
    ]
    place = context.place
    return Batch(
        clean=clean.to(place),
        start=start.to(place),
        known=known.to(place),
        masks=masks.to(place),
        corrupted=corrupted.to(place),
        timesteps=timesteps.to(place),
        noise=noise.to(place),
        prompts=prompts,
    )


def draw_timestep(rng: Rng) -> int:
    """t: three quarters where inspections work (lambda up to 0.45), the rest up to T, so that a start may be bolder."""
    highest = 450 if rng.random() < 0.75 else 1000
    return int(rng.integers(0, highest))


def anomaly_of(rng: Rng, pairs: Pairs, clean: Tensor, anomaly: Tensor) -> Tensor:
    """(4,h,w) latents with foreign content: the pair's drawn anomaly, or one made of latents."""
    if rng.random() < 0.55:
        return anomaly
    side = clean.shape[-1]
    kind = int(rng.integers(3))
    shift = (int(rng.integers(2, side - 1)), int(rng.integers(2, side - 1)))
    if kind == 0:
        foreign = torch.from_numpy(pairs.take([int(rng.integers(pairs.count))])[0][0, 0])
    elif kind == 1:
        tint = torch.from_numpy(rng.standard_normal((len(clean), 1, 1), dtype=np.float32))
        foreign = clean + tint * float(rng.uniform(0.2, 1.5))
    else:
        foreign = clean.roll(shift, (1, 2))
    return clean + blob(rng, side) * (foreign - clean)


def blob(rng: Rng, side: int) -> Tensor:
    """(1,side,side) float32 in [0,1]: soft-edged regions of many sizes and forms, from thresholded noise."""
    cells = int(rng.integers(2, 14))
    stretch = int(rng.integers(1, 4)) if rng.random() < 0.5 else 1
    values: npt.NDArray[np.float32] = rng.standard_normal((1, 1, cells, max(2, cells // stretch)), dtype=np.float32)
    field = torch.from_numpy(values)
    if rng.random() < 0.5:
        field = field.transpose(2, 3)
    field = nnf.interpolate(field, size=(side, side), mode="bicubic")
    return torch.sigmoid((field[0] - float(rng.uniform(0.2, 1.4))) * 12)
