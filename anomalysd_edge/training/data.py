"""Training batches from a few photos: augmented copies, masks, synthetic anomalies, and cached latents.

Every random draw is seeded by an index. Copy c of photo p of a class, mask m of that copy and its anomaly are functions
of the seed and of these indices; which of them a step uses, with which prompt, t and noise, is a function of the seed
and the step. So a resumed training needs no stored random state, and each (copy, mask) pair is encoded only once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomalysd_edge.core.types import U8, Mask
from anomalysd_edge.data.classes import ClassSpec, symmetry_group
from anomalysd_edge.errors import DatasetError
from anomalysd_edge.method.inpainting.masks import foreground, random_rectangles, to_pixels
from anomalysd_edge.training.augmentation import augmented, with_anomaly
from anomalysd_edge.training.models.base import Base, encode_mode, prompt_states
from anomalysd_edge.training.prompt_tuning import context_states
from anomalysd_edge.training.settings import TrainSettings
from anomalysd_edge.vision.images import load_rgb, to_array
from anomalysd_edge.vision.letterbox import Letterbox, common_aspect

# The first entry of each random seed, so that no two kinds of draw share a random stream.
_COPY, _MASK, _ANOMALY, _STEP, _DECODER_STEP = range(1, 6)

GRIDS = (4, 8, 16)
"""Cells a side of the grids that training masks are every other cell of: those that an inspection may repaint."""


@dataclass(frozen=True)
class TrainingPhoto:
    """One good photo, letterboxed to the training size S."""

    class_name: str
    pixels: U8
    """(S,S,3)."""
    foreground: Mask
    """(S,S): where synthetic anomalies may lie."""


@dataclass(frozen=True)
class UNetBatch:
    """The samples of one UNet step, on the training device. (h,w) is the latent size, C the latent channels."""

    clean: Tensor
    """(N,C,h,w) float32 latents of the augmented copies."""
    start: Tensor
    """(N,C,h,w) latents to add noise to: `clean`, or those of the copy with a synthetic anomaly."""
    masked: Tensor
    """(N,C,h,w) latents of the copies with masked pixels set to 0 in [-1,1]: z_o."""
    masks: Tensor
    """(N,1,h,w) float32 in {0,1}: inpainting mask, 1 = repaint."""
    corrupted: Tensor
    """(N,) bool: whether `start` shows a synthetic anomaly."""
    states: Tensor
    """(N,77,D) text encoder states."""
    prompts: tuple[tuple[int, int], ...]
    """(class index, prompt level) of each sample; (-1, 0) is the empty prompt."""
    timesteps: Tensor
    """(N,) int64."""
    noise: Tensor
    """(N,C,h,w) standard normal."""


@dataclass(frozen=True)
class _Sample:
    """The indices that define one sample of a step."""

    pair: tuple[int, int, int, int]
    """(class, photo, copy, mask) indices."""
    prompt: tuple[int, int]
    """As UNetBatch.prompts."""
    corrupted: bool
    """Whether it starts from the copy with a synthetic anomaly."""


class TrainingData:
    """The photos of all classes and the batches drawn from them. Latents are cached on the CPU in float32."""

    def __init__(
        self,
        shots: Mapping[str, Sequence[Path]],
        specs: Mapping[str, ClassSpec],
        base: Base,
        settings: TrainSettings,
        train_steps: int,
        device: torch.device | None = None,
    ) -> None:
        """Read the photos. Raises ImageError if one cannot be read, DatasetError for a class without photos."""
        self._settings = settings
        self._vae: Any = base.vae
        self._channels = base.vae.config.latent_channels
        self._device, self._memory_format = device or torch.device(settings.device), memory_format(settings)
        self._vae.to(memory_format=self._memory_format)
        self._factor = base.latent_factor
        self.size_px = settings.size_px or base.size_px
        self._side = self.size_px // self._factor
        self._views = {name: symmetry_group(spec.symmetries) for name, spec in specs.items()}
        self.last_timestep = max(1, round(settings.max_timestep * train_steps))
        """Timesteps are drawn uniformly from [0, last_timestep)."""
        self.classes = sorted(shots)
        self._photos: list[list[TrainingPhoto]] = []
        for name in self.classes:
            if not shots[name]:
                raise DatasetError(f"class {name!r} has no photos; give at least one or train with 0 shots")
            self._photos.append(self._read(name, shots[name], specs[name].kind))
        self._states = {name: prompt_states(base, prompt_levels(specs[name])) for name in self.classes}
        self._empty = prompt_states(base, [""])
        self._copies: dict[tuple[int, int, int], tuple[U8, Mask]] = {}
        self._latents: dict[tuple[int, ...], Tensor] = {}
        self._masks: dict[tuple[int, int, int, int], Mask] = {}

    def unet_batch(self, step: int, rows: slice | None = None) -> UNetBatch:
        """The batch of UNet step `step`; with `rows` only these rows, equal to those of the whole batch."""
        samples, rng = self._samples(step)
        side, channels = self._side, int(self._channels)
        timesteps = rng.integers(0, self.last_timestep, len(samples))
        noise = rng.standard_normal((len(samples), channels, side, side), dtype=np.float32)
        part = rows or slice(None)
        samples, timesteps, noise = samples[part], timesteps[part], noise[part]

        def on_device(tensors: list[Tensor]) -> Tensor:
            return torch.stack(tensors).to(self._device)

        clean = [self._clean(sample.pair[:3]) for sample in samples]
        start = [
            self._corrupted(sample.pair) if sample.corrupted else known
            for sample, known in zip(samples, clean, strict=True)
        ]
        return UNetBatch(
            clean=on_device(clean),
            start=on_device(start),
            masked=on_device([self._masked(sample.pair) for sample in samples]),
            masks=on_device([torch.from_numpy(self._mask(s.pair)[None].astype(np.float32)) for s in samples]),
            corrupted=torch.tensor([sample.corrupted for sample in samples], device=self._device),
            states=on_device([self.prompt_state(sample.prompt) for sample in samples]),
            prompts=tuple(sample.prompt for sample in samples),
            timesteps=torch.from_numpy(timesteps).to(self._device),
            noise=torch.from_numpy(noise).to(self._device),
        )

    def prompt_state(self, prompt: tuple[int, int]) -> Tensor:
        """(77,D) states of a prompt identified as in UNetBatch.prompts."""
        return self._empty[0] if prompt[0] < 0 else self._states[self.classes[prompt[0]]][prompt[1]]

    def set_contexts(self, base: Base, specs: Mapping[str, ClassSpec], contexts: Mapping[str, Tensor]) -> None:
        """Recompute the prompt states of the classes in `contexts` with their learned (M,E) context vectors."""
        for name, vectors in contexts.items():
            texts = prompt_levels(specs[name])
            with torch.no_grad():
                device = self._states[name].device
                self._states[name] = context_states(base, texts, vectors.to(device).expand(len(texts), -1, -1))

    def decoder_batch(self, step: int, rows: slice | None = None) -> tuple[Tensor, Tensor]:
        """The batch of decoder step `step`: (N,3,S,S) copies in [-1,1] and their (N,C,h,w) scaled latents."""
        samples = self._decoder_samples(step)[rows or slice(None)]
        pixels = [torch.from_numpy(to_array(self._copy(index)[0])[0]) for index in samples]
        latents = [self._clean(index) for index in samples]
        return torch.stack(pixels).to(self._device), torch.stack(latents).to(self._device)

    def encode_ahead(
        self,
        unet: Sequence[tuple[int, slice]],
        decoder: Sequence[tuple[int, slice]],
        progress: Callable[[int, int], None],
    ) -> None:
        """Encode all latents of these (step, rows), then release the VAE: no other batches can be drawn afterwards."""
        jobs: dict[tuple[int, ...], Callable[[], Tensor]] = {}
        for step, rows in unet:
            for sample in self._samples(step)[0][rows]:
                pair = sample.pair
                jobs[pair[:3]] = partial(self._clean, pair[:3])
                jobs[(*pair, 0)] = partial(self._masked, pair)
                if sample.corrupted:
                    jobs[(*pair, 1)] = partial(self._corrupted, pair)
        for step, rows in decoder:
            jobs.update((index, partial(self._clean, index)) for index in self._decoder_samples(step)[rows])
        for done, job in enumerate(jobs.values(), 1):
            job()
            progress(done, len(jobs))
        self._vae = None

    def _samples(self, step: int) -> tuple[list[_Sample], np.random.Generator]:
        """The sample indices of UNet step `step`, and the generator from which its t and noise are drawn next."""
        settings, rng = self._settings, self._rng(_STEP, step)
        samples = []
        for _ in range(settings.batch):
            number = int(rng.integers(len(self.classes)))
            photo, copy = int(rng.integers(len(self._photos[number]))), int(rng.integers(settings.copies))
            pair = (number, photo, copy, int(rng.integers(settings.masks_per_copy)))
            levels = self._states[self.classes[number]]
            level, dropped = int(rng.integers(len(levels))), bool(rng.random() < settings.prompt_drop)
            corrupted = bool(rng.random() < settings.start_corruption)
            samples.append(_Sample(pair, (-1, 0) if dropped else (number, level), corrupted))
        return samples, rng

    def _decoder_samples(self, step: int) -> list[tuple[int, int, int]]:
        rng = self._rng(_DECODER_STEP, step)
        samples = []
        for _ in range(self._settings.decoder_batch):
            number = int(rng.integers(len(self.classes)))
            photo, copy = int(rng.integers(len(self._photos[number]))), int(rng.integers(self._settings.copies))
            samples.append((number, photo, copy))
        return samples

    def _read(self, name: str, paths: Sequence[Path], kind: str) -> list[TrainingPhoto]:
        photos = [load_rgb(path) for path in paths]
        aspect = common_aspect([(photo.shape[0], photo.shape[1]) for photo in photos])
        squares = [Letterbox.of(photo.shape[:2], aspect).resize(photo, self.size_px) for photo in photos]
        return [TrainingPhoto(name, pixels, foreground(pixels, kind)) for pixels in squares]

    def _rng(self, *index: int) -> np.random.Generator:
        return np.random.default_rng([self._settings.seed, *index])

    def _copy(self, index: tuple[int, int, int]) -> tuple[U8, Mask]:
        if index not in self._copies:
            photo = self._photos[index[0]][index[1]]
            if index[2] == 0:
                self._copies[index] = (photo.pixels, photo.foreground)
            else:
                views = self._views[photo.class_name]
                rng = self._rng(_COPY, *index)
                self._copies[index] = augmented(photo.pixels, photo.foreground, views, self._settings, rng)
        return self._copies[index]

    def _mask(self, pair: tuple[int, int, int, int]) -> Mask:
        if pair not in self._masks:
            blocks = self._copy(pair[:3])[1].reshape(self._side, self._factor, self._side, self._factor)
            shown: Mask = np.asarray(blocks.any((1, 3)))
            self._masks[pair] = random_mask(self._rng(_MASK, *pair), self._side, shown, self._settings)
        return self._masks[pair]

    def _clean(self, index: tuple[int, int, int]) -> Tensor:
        return self._encoded(index, lambda: self._copy(index)[0], None)

    def _masked(self, pair: tuple[int, int, int, int]) -> Tensor:
        return self._encoded((*pair, 0), lambda: self._copy(pair[:3])[0], self._mask(pair))

    def _corrupted(self, pair: tuple[int, int, int, int]) -> Tensor:
        def corrupt() -> U8:
            rng = self._rng(_ANOMALY, *pair)
            number = int(rng.integers(len(self._photos)))
            other = self._photos[number][int(rng.integers(len(self._photos[number])))].pixels
            return with_anomaly(self._copy(pair[:3])[0], other, to_pixels(self._mask(pair), self._factor), rng)

        return self._encoded((*pair, 1), corrupt, None)

    def _encoded(self, key: tuple[int, ...], pixels: Any, mask: Mask | None) -> Tensor:
        """(C,h,w) latents, cached. Batch size 1, because another would round differently after a resume."""
        if key not in self._latents:
            array = to_array(pixels())
            if mask is not None:
                array = array * (~to_pixels(mask, self._factor)).astype(np.float32)
            image = torch.from_numpy(array).to(self._device).contiguous(memory_format=self._memory_format)
            with torch.no_grad():
                encoded = encode_mode(self._vae, image)
            self._latents[key] = encoded[0].float().cpu().contiguous()
        return self._latents[key]


def random_mask(rng: np.random.Generator, side: int, shown: Mask, settings: TrainSettings) -> Mask:
    """(side,side) bool training mask inside the foreground `shown`: sometimes a sparse grid, else rectangles."""
    if rng.random() < settings.grid_masks:
        k = int(rng.choice([grid for grid in GRIDS if grid <= side] or [2]))
        cell, odd = np.arange(side) * k // side, rng.integers(0, 2, 2)
        grid: Mask = np.asarray(np.logical_and.outer(cell % 2 == odd[0], cell % 2 == odd[1]) & shown)
        if grid.any():
            return grid
    return random_rectangles(rng, side, settings.mask_most, shown)


def memory_format(settings: TrainSettings) -> torch.memory_format:
    """Channels last on a CPU, where it makes convolutions a fifth faster."""
    return torch.channels_last if settings.device == "cpu" else torch.contiguous_format


def prompt_levels(spec: ClassSpec) -> list[str]:
    """A class's prompts by level: the whole, and the detail if its parts are known."""
    prompts = spec.prompts()
    return [prompts.whole] if prompts.detail is None else [prompts.whole, prompts.detail]
