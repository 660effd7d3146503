"""The stages of one group of photos: prototypes, repainting, distances, maps, the answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from anomalysd_edge import images, scoring
from anomalysd_edge.differences import Differences, Repaint
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.framing import Frame
from anomalysd_edge.inspection import ClassConstants, Evidence, Inspection, InspectSettings
from anomalysd_edge.masks import foreground, grid_cells, prototype_guided, to_pixels
from anomalysd_edge.networks import InpaintJob, Networks
from anomalysd_edge.plan import GUIDED, Slot, batches, make_plan
from anomalysd_edge.prototypes import prototype_distance
from anomalysd_edge.regions import dilate
from anomalysd_edge.schedule import NoiseSchedule

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass
class _Photo:
    """One photo on its way through the stages."""

    constants: ClassConstants
    class_name: str
    slots: list[Slot]
    frame: Frame
    foreground: Mask | None = None
    prototype_map: F32 | None = None
    maps: dict[str, F32] = field(default_factory=dict)
    per_scale: dict[int, F32] = field(default_factory=dict)
    repaints: dict[int, list[tuple[Mask, F32]]] = field(default_factory=dict)


class _Clock:
    """Milliseconds by stage, of one group of photos."""

    def __init__(self) -> None:
        self.ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.ms[name] = self.ms.get(name, 0.0) + (time.perf_counter() - began) * 1e3


class Stages:
    """Inspects groups of photos under one settings object: its plan and its steps are made once."""

    def __init__(
        self, networks: Networks, schedule: NoiseSchedule, settings: InspectSettings, negative_states: F32 | None
    ) -> None:
        """Raises SettingsError for settings that these networks cannot serve."""
        if settings.guidance_scale > 1 and negative_states is None:
            raise SettingsError("guidance_scale above 1 needs the states of a negative prompt, which are not there")
        if settings.features_weight and not networks.sizes.features_px:
            raise SettingsError("features_weight is above 0, but these networks hold no feature network; set it to 0")
        self.networks, self.settings, self.negative_states = networks, settings, negative_states
        self.plan = make_plan(settings.plan, networks.sizes.latent_side, settings.scales)
        if settings.grid_steps:
            self.steps = schedule.truncated_ddim(settings.grid_steps, settings.strength)
        else:
            self.steps = schedule.even_ddim(settings.passes, settings.strength)

    def inspect(
        self, photos: Sequence[U8], names: Sequence[str], constants: Sequence[ClassConstants]
    ) -> list[Inspection]:
        """(H,W,3) photos, their classes' names and constants -> their inspections. All share their batches."""
        sizes, clock = self.networks.sizes, _Clock()
        with clock.stage("preprocess"):
            work = [
                _Photo(known, name, list(self.plan.slots), Frame.of(photo.shape[:2], known.aspect))
                for photo, name, known in zip(photos, names, constants, strict=True)
            ]
            small = [w.frame.resize(p, sizes.size_px) for w, p in zip(work, photos, strict=True)]
            pixels = np.concatenate([images.to_array(p) for p in small])
            if self.settings.foreground:
                for photo, image in zip(work, small, strict=True):
                    if photo.constants.kind == "object":
                        photo.foreground = dilate(foreground(image, "object"), max(1, sizes.size_px // 32))
        self._prototypes(work, photos, clock)
        with clock.stage("encode"):
            latents = self.networks.encode(pixels)
        painted = self._repaint(work, pixels, latents, clock)
        differences = Differences(self.networks, self.settings, pixels, latents, clock)
        self._compare(work, latents, painted, differences)
        with clock.stage("score"):
            self._fuse(work)
        timings = {stage: ms / len(work) for stage, ms in clock.ms.items()}
        return [self._conclude(photo, timings) for photo in work]

    def _prototypes(self, work: list[_Photo], photos: Sequence[U8], clock: _Clock) -> None:
        """Prototype distance of each photo that has a bank, and the guided slot that follows from it."""
        sizes = self.networks.sizes
        chosen = [i for i, photo in enumerate(work) if photo.constants.bank is not None]
        if not chosen or not sizes.features_px:
            return
        with clock.stage("features"):
            framed = [work[i].frame.resize(photos[i], sizes.features_px) for i in chosen]
            batch = np.concatenate([images.to_array(p) for p in framed])
            features = self.networks.features(batch)
        with clock.stage("prototypes"):
            for i, dense in zip(chosen, features, strict=True):
                photo = work[i]
                assert photo.constants.bank is not None
                share = photo.constants.own_share(self.settings)
                photo.prototype_map = prototype_distance(photo.constants.bank, dense, share)
                if photo.constants.guided_threshold is not None:
                    mask = prototype_guided(
                        photo.prototype_map, photo.constants.guided_threshold, sizes.latent_side, dilate=1
                    )
                    photo.slots.append(Slot(scale=GUIDED, number=0, mask=mask))

    def _repaint(self, work: list[_Photo], pixels: F32, latents: F32, clock: _Clock) -> F32:
        """All slots of all photos through the loop: (slots,C,h,w) latents, photo by photo, their draws averaged."""
        settings, factor = self.settings, self.networks.sizes.latent_factor
        owner = np.array([i for i, photo in enumerate(work) for _ in photo.slots], np.int64)
        slots = [slot for photo in work for slot in photo.slots]
        states = np.stack([photo.constants.states(settings.prompt) for photo in work])
        noises = {
            (slot.scale, slot.number, draw): slot.noise(settings.seed + draw, latents.shape[1:])
            for slot in slots
            for draw in range(settings.draws)
        }
        painted = np.zeros((len(slots), *latents.shape[1:]), np.float32)
        for part in batches(len(slots), self.networks.max_batch):
            masks = np.stack([slot.mask for slot in slots[part]])[:, None]
            of = owner[part]
            with clock.stage("encode"):
                hidden = np.stack([to_pixels(m, factor) for m in masks[:, 0]])[:, None]
                known = self.networks.encode(np.where(hidden, np.float32(0), pixels[of]))
            used, prompt_of = np.unique(of, return_inverse=True)
            with clock.stage("unet"):
                for draw in range(settings.draws):
                    noise = np.stack([noises[slot.scale, slot.number, draw] for slot in slots[part]])
                    painted[part] += self.networks.inpaint(
                        InpaintJob(
                            start_latents=self.steps.noised(latents[of], noise),
                            masks=masks.astype(np.float32),
                            masked_latents=known,
                            prompt_states=states[used],
                            prompt_of=prompt_of.astype(np.int64),
                            timesteps=self.steps.timesteps,
                            coefficients=self.steps.coefficients,
                            guidance_scale=settings.guidance_scale,
                            negative_states=self.negative_states,
                        )
                    )
        painted /= settings.draws
        return painted

    def _compare(self, work: list[_Photo], latents: F32, painted: F32, differences: Differences) -> None:
        """Measure the repaints, a scale's merged or slot by slot, and sort the distances by photo and scale."""
        repaints: list[Repaint] = []
        position = 0
        for i, photo in enumerate(work):
            mine = painted[position : position + len(photo.slots)]
            position += len(photo.slots)
            if self.settings.merge_decode:
                for scale in dict.fromkeys(slot.scale for slot in photo.slots):
                    merged, whole = latents[i].copy(), np.zeros(latents.shape[2:], np.bool_)
                    for slot, repaint in zip(photo.slots, mine, strict=True):
                        if slot.scale == scale:
                            merged = np.where(slot.mask, repaint, merged)
                            whole |= slot.mask
                    repaints.append(Repaint(i, scale, whole, merged))
            else:
                repaints += [Repaint(i, s.scale, s.mask, r) for s, r in zip(photo.slots, mine, strict=True)]
        collected: dict[tuple[int, int], list[tuple[Mask, F32]]] = {}
        for found in differences.measure(repaints):
            i, scale = found.repaint.photo, found.repaint.scale
            collected.setdefault((i, scale), []).append((found.mask, found.distance))
            work[i].repaints.setdefault(scale, []).append((found.mask, found.pixels))
        for (i, scale), pairs in collected.items():
            if scale == GUIDED or self.settings.merge_decode:
                work[i].per_scale[scale] = pairs[0][1]
            else:
                masks = np.stack([mask for mask, _ in pairs])
                work[i].per_scale[scale] = scoring.covered(np.stack([d for _, d in pairs]), masks)

    def _fuse(self, work: list[_Photo]) -> None:
        settings, side = self.settings, self.networks.sizes.size_px
        sigmas = {"prototypes": settings.smoothing * side}
        repaint_sigma = settings.repaint_smoothing * side
        for photo in work:
            raw = {"multiscale": scoring.harmonic_mean([photo.per_scale[k] for k in self.plan.scales])}
            if GUIDED in photo.per_scale:
                raw["guided"] = photo.per_scale[GUIDED]
            if photo.prototype_map is not None:
                raw["prototypes"] = images.resize_map(photo.prototype_map, (side, side))
            inside = photo.foreground
            if inside is not None:
                raw = {name: np.where(inside, m, m[inside].min()) for name, m in raw.items()}
            raw = {name: photo.frame.cut(m) for name, m in raw.items()}
            photo.maps = {n: scoring.smooth(m, sigmas.get(n, repaint_sigma)) for n, m in raw.items()}
            photo.maps["fused"] = fuse(photo.maps, photo.constants.scales, settings)

    def _conclude(self, photo: _Photo, timings: Mapping[str, float]) -> Inspection:
        constants, fused = photo.constants, photo.maps["fused"]
        scores = {name: scoring.image_score(m, self.settings.top_share) for name, m in photo.maps.items()}
        evidence, repaint = self._evidence(photo, fused)
        score, threshold, pixel = scores["fused"], constants.threshold, constants.pixel_threshold
        return Inspection(
            class_name=photo.class_name,
            pred_score=score,
            pred_label=None if threshold is None else int(score >= threshold),
            threshold=threshold,
            anomaly_map=fused,
            pred_mask=None if pixel is None else fused >= pixel,
            maps=photo.maps,
            scores=scores,
            repaint=images.to_image(repaint),
            evidence=evidence,
            mode=self.mode,
            timings_ms=timings,
            backend=self.networks.backend,
        )

    @property
    def mode(self) -> str:
        """Plan, scales, lambda and passes in words, for instance 'packed K=2,4,8 lambda=0.4 passes=5'."""
        scales = ",".join(map(str, self.settings.scales))
        draws = f" draws={self.settings.draws}" if self.settings.draws > 1 else ""
        return f"{self.settings.plan} K={scales} lambda={self.settings.strength:g} passes={len(self.steps)}{draws}"

    def _evidence(self, photo: _Photo, fused: F32) -> tuple[Evidence, F32]:
        """The mask around the highest pixel whose repaint differs most there, and that repaint (3,S,S)."""
        side, factor = self.networks.sizes.latent_side, self.networks.sizes.latent_factor
        y, x = (int(v) for v in np.unravel_index(int(fused.argmax()), fused.shape))
        cut = photo.frame.cut_mask

        def covers(scale: int) -> tuple[Mask, F32] | None:
            return next(((m, r) for m, r in photo.repaints[scale] if cut(m)[y, x]), None)

        candidates = {scale: found for scale in photo.repaints if (found := covers(scale)) is not None}
        best = max(candidates, key=lambda scale: float(photo.frame.cut(photo.per_scale[scale])[y, x]))
        mask, repaint = candidates[best]
        if best != GUIDED:
            cells = grid_cells(best, side)
            mask = next(m for m in (to_pixels(c, factor) for c in cells) if cut(m)[y, x])
        shown = np.stack([photo.frame.cut(plane) for plane in repaint])
        kind = "guided" if best == GUIDED else "grid"
        return Evidence(kind=kind, scale=best, cell=cut(mask), x_px=x, y_px=y), shown


def fuse(maps: Mapping[str, F32], scales: Mapping[str, scoring.MapScale], settings: InspectSettings) -> F32:
    """(S,S) prototypes, multiscale and guided maps -> the fused one, as `settings.fusion` says.

    A class without calibrated scales (0 shots) has S_ms alone: there is nothing to bring the maps together with.
    """
    if settings.fusion == "scaled" and scales:
        weights = {
            "prototypes": settings.prototypes_weight,
            "multiscale": settings.multiscale_weight,
            "guided": settings.guided_weight,
        }
        return scoring.fuse_scaled(maps, scales, weights)
    if "guided" in maps:
        return scoring.fuse_paper(maps["multiscale"], maps["guided"], settings.alpha)
    return maps["multiscale"]
