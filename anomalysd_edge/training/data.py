"""Training samples from a handful of photos: augmented copies, masks, synthetic anomalies, and cached latents.

Every draw has an address. Copy c of photo p of a class, mask m of that copy and its anomaly are functions of the seed
and of that address; which of them a step uses, with which prompt, t and noise, is a function of the seed and the step.
So a resumed training needs no stored random state, and each (copy, mask) pair is encoded once, when first met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anomalysd_edge.classes import ClassSpec, symmetry_group
from anomalysd_edge.errors import DatasetError
from anomalysd_edge.framing import Frame, common_aspect
from anomalysd_edge.images import load_rgb, to_array
from anomalysd_edge.inspection import EDGE
from anomalysd_edge.masks import foreground, random_rectangles, to_pixels
from anomalysd_edge.training.base import Base, encode_mode, prompt_states
from anomalysd_edge.training.copies import augmented, with_anomaly
from anomalysd_edge.training.settings import TrainSettings

U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

# The first entry of each address, so that no two kinds of draw share a stream.
_COPY, _MASK, _ANOMALY, _STEP, _DECODER_STEP = range(1, 6)


@dataclass(frozen=True)
class Photo:
    """One good photo at training size."""

    class_name: str
    pixels: U8
    """(S,S,3)."""
    foreground: Mask
    """(S,S): where anomalies can be."""


@dataclass(frozen=True)
class Draw:
    """One step's samples on the training device."""

    clean: Tensor
    """(N,C,h,w) latents of the copies."""
    start: Tensor
    """(N,C,h,w) the latents that are noised: `clean`, or those of the copy with an anomaly."""
    masked: Tensor
    """(N,C,h,w) latents of the copies with the masked pixels at 0."""
    masks: Tensor
    """(N,1,h,w) in {0,1}."""
    corrupted: Tensor
    """(N,) bool."""
    states: Tensor
    """(N,77,D) prompt states."""
    timesteps: Tensor
    """(N,) int64."""
    noise: Tensor
    """(N,C,h,w)."""


class TrainingData:
    """Photos, and everything that is drawn from them. Latents are cached on the CPU in float32."""

    def __init__(
        self,
        shots: Mapping[str, Sequence[Path]],
        specs: Mapping[str, ClassSpec],
        base: Base,
        settings: TrainSettings,
        train_steps: int,
    ) -> None:
        """Reads the photos. Raises ImageError for a photo that cannot be read, DatasetError if a class has none."""
        self._settings, self._vae = settings, base.vae
        self._device, self._layout = torch.device(settings.device), memory_layout(settings)
        self._vae.to(memory_format=self._layout)
        self._factor = base.latent_factor
        self.size_px = settings.size_px or base.size_px
        self._side = self.size_px // self._factor
        self._views = {name: symmetry_group(spec.symmetries) for name, spec in specs.items()}
        self._last_timestep = max(1, round(settings.max_timestep * train_steps))
        self.classes = sorted(shots)
        self._photos: list[list[Photo]] = []
        for name in self.classes:
            if not shots[name]:
                raise DatasetError(f"class {name!r} has no photos; give at least one or train with 0 shots")
            self._photos.append(self._read(name, shots[name], specs[name].kind))
        self._states = {name: prompt_states(base, levels(specs[name])) for name in self.classes}
        self._empty = prompt_states(base, [""])
        self._copies: dict[tuple[int, int, int], tuple[U8, Mask]] = {}
        self._latents: dict[tuple[int, ...], Tensor] = {}
        self._masks: dict[tuple[int, int, int, int], Mask] = {}

    def draw(self, step: int) -> Draw:
        """The samples of UNet step `step`."""
        settings, rng = self._settings, self._rng(_STEP, step)
        count = settings.batch
        clean, start, masked, masks, states, corrupted = [], [], [], [], [], []
        for _ in range(count):
            number = int(rng.integers(len(self.classes)))
            photo, copy = int(rng.integers(len(self._photos[number]))), int(rng.integers(settings.copies))
            pair = (number, photo, copy, int(rng.integers(settings.masks_per_copy)))
            known = self._states[self.classes[number]]
            level, dropped = int(rng.integers(len(known))), bool(rng.random() < settings.prompt_drop)
            hit = bool(rng.random() < settings.start_corruption)
            clean.append(self._clean(pair[:3]))
            start.append(self._corrupted(pair) if hit else clean[-1])
            masked.append(self._masked(pair))
            masks.append(torch.from_numpy(self._mask(pair)[None].astype(np.float32)))
            states.append(self._empty[0] if dropped else known[level])
            corrupted.append(hit)
        timesteps = rng.integers(0, self._last_timestep, count)
        noise = rng.standard_normal((count, *clean[0].shape), dtype=np.float32)

        def on_device(tensors: list[Tensor]) -> Tensor:
            return torch.stack(tensors).to(self._device)

        return Draw(
            clean=on_device(clean),
            start=on_device(start),
            masked=on_device(masked),
            masks=on_device(masks),
            corrupted=torch.tensor(corrupted, device=self._device),
            states=on_device(states),
            timesteps=torch.from_numpy(timesteps).to(self._device),
            noise=torch.from_numpy(noise).to(self._device),
        )

    def draw_photos(self, step: int) -> tuple[Tensor, Tensor]:
        """Decoder step `step`: (N,3,S,S) copies in [-1,1] and their (N,C,h,w) scaled latents."""
        rng = self._rng(_DECODER_STEP, step)
        pixels, latents = [], []
        for _ in range(self._settings.decoder_batch):
            number = int(rng.integers(len(self.classes)))
            address = (
                number,
                int(rng.integers(len(self._photos[number]))),
                int(rng.integers(self._settings.copies)),
            )
            pixels.append(torch.from_numpy(to_array(self._copy(address)[0])[0]))
            latents.append(self._clean(address))
        return torch.stack(pixels).to(self._device), torch.stack(latents).to(self._device)

    def _read(self, name: str, paths: Sequence[Path], kind: str) -> list[Photo]:
        photos = [load_rgb(path) for path in paths]
        aspect = common_aspect([(photo.shape[0], photo.shape[1]) for photo in photos])
        squares = [Frame.of(photo.shape[:2], aspect).resize(photo, self.size_px) for photo in photos]
        return [Photo(name, pixels, foreground(pixels, kind)) for pixels in squares]

    def _rng(self, *address: int) -> np.random.Generator:
        return np.random.default_rng([self._settings.seed, *address])

    def _copy(self, address: tuple[int, int, int]) -> tuple[U8, Mask]:
        if address not in self._copies:
            photo = self._photos[address[0]][address[1]]
            if address[2] == 0:
                self._copies[address] = (photo.pixels, photo.foreground)
            else:
                views = self._views[photo.class_name]
                rng = self._rng(_COPY, *address)
                self._copies[address] = augmented(photo.pixels, photo.foreground, views, self._settings, rng)
        return self._copies[address]

    def _mask(self, pair: tuple[int, int, int, int]) -> Mask:
        if pair not in self._masks:
            blocks = self._copy(pair[:3])[1].reshape(self._side, self._factor, self._side, self._factor)
            seen: Mask = np.asarray(blocks.any((1, 3)))
            self._masks[pair] = random_mask(self._rng(_MASK, *pair), self._side, seen, self._settings)
        return self._masks[pair]

    def _clean(self, address: tuple[int, int, int]) -> Tensor:
        return self._encoded(address, lambda: self._copy(address)[0], None)

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
        """(C,h,w) latents, cached. One photo a call: another batch would round differently after a resume."""
        if key not in self._latents:
            array = to_array(pixels())
            if mask is not None:
                array = array * (~to_pixels(mask, self._factor)).astype(np.float32)
            image = torch.from_numpy(array).to(self._device).contiguous(memory_format=self._layout)
            with torch.no_grad():
                encoded = encode_mode(self._vae, image)
            self._latents[key] = encoded[0].float().cpu().contiguous()
        return self._latents[key]


def random_mask(rng: np.random.Generator, side: int, shown: Mask, settings: TrainSettings) -> Mask:
    """(side,side) bool training mask inside the foreground `shown`: a packed grid now and then, else rectangles."""
    if rng.random() < settings.grid_masks:
        k = int(rng.choice([grid for grid in EDGE.scales if grid <= side] or [2]))
        cell, odd = np.arange(side) * k // side, rng.integers(0, 2, 2)
        packed: Mask = np.asarray(np.logical_and.outer(cell % 2 == odd[0], cell % 2 == odd[1]) & shown)
        if packed.any():
            return packed
    return random_rectangles(rng, side, settings.mask_most, shown)


def memory_layout(settings: TrainSettings) -> torch.memory_format:
    """Channels last on a CPU, where convolutions then take a fifth less time."""
    return torch.channels_last if settings.device == "cpu" else torch.contiguous_format


def levels(spec: ClassSpec) -> list[str]:
    """The prompt levels that a class has: the whole, and the detail where its parts are known."""
    prompts = spec.prompts()
    return [prompts.whole] if prompts.detail is None else [prompts.whole, prompts.detail]
