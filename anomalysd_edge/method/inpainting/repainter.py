"""The planner: slots of many photos and classes through the loop, in the batch sizes that the networks have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from anomalysd_edge.core.timing import StageTimer
from anomalysd_edge.core.types import F32
from anomalysd_edge.method.inpainting.mask_plan import Slot, runs_of
from anomalysd_edge.method.inpainting.masks import to_pixels
from anomalysd_edge.method.inpainting.schedule import StepTable
from anomalysd_edge.method.networks import InpaintJob, Networks
from anomalysd_edge.method.settings import InspectSettings

_MOST_NOISE = 256
"""Noises kept: those of a plan come back with every photo, and a guided slot's is one more."""


class Repainter:
    """Repaints slots under one settings object. What a slot becomes depends on its photo, mask and noise alone."""

    def __init__(
        self, networks: Networks, settings: InspectSettings, steps: StepTable, negative_states: F32 | None
    ) -> None:
        self._networks, self._settings, self._steps = networks, settings, steps
        self._negative_states = negative_states
        self._noises: dict[tuple[int, int, int], F32] = {}

    def paint(
        self,
        slots: Sequence[Slot],
        owner: npt.NDArray[np.int64],
        states: F32,
        pixels: F32,
        latents: F32,
        timer: StageTimer,
    ) -> F32:
        """(slots,C,h,w) float32 repainted latents, a slot's draws averaged.

        owner (slots,) is each slot's row in states (P,77,D), pixels (P,3,S,S) and latents (P,C,h,w).
        """
        settings, factor = self._settings, self._networks.sizes.latent_factor
        painted = np.zeros((len(slots), *latents.shape[1:]), np.float32)
        for part in runs_of(len(slots), self._networks):
            masks = np.stack([slot.mask for slot in slots[part]])[:, None]
            of = owner[part]
            with timer.stage("encode"):
                hidden = np.stack([to_pixels(m, factor) for m in masks[:, 0]])[:, None]
                visible = pixels[of]
                np.copyto(visible, np.float32(0), where=hidden)
                known = self._networks.encode(visible)
            used, prompt_of = np.unique(of, return_inverse=True)
            with timer.stage("unet"):
                for draw in range(settings.draws):
                    noise = np.stack([self._noise(slot, draw, latents.shape[1:]) for slot in slots[part]])
                    painted[part] += self._networks.inpaint(
                        InpaintJob(
                            start_latents=self._steps.noised(latents[of], noise),
                            masks=masks.astype(np.float32),
                            masked_latents=known,
                            prompt_states=states[used],
                            prompt_of=prompt_of.astype(np.int64),
                            timesteps=self._steps.timesteps,
                            coefficients=self._steps.coefficients,
                            guidance_scale=settings.guidance_scale,
                            negative_states=self._negative_states,
                            history=self._steps.history,
                        )
                    )
        painted /= settings.draws
        return painted

    def _noise(self, slot: Slot, draw: int, shape: tuple[int, ...]) -> F32:
        """A slot's noise, drawn once: it is a function of (seed, slot)."""
        key = (slot.scale, slot.number, draw)
        if key not in self._noises:
            if len(self._noises) >= _MOST_NOISE:
                self._noises.clear()
            channels, height, width = shape
            self._noises[key] = slot.noise(self._settings.seed + draw, (channels, height, width))
        return self._noises[key]
