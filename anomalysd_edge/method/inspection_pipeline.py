"""The stages of one group of photos: prototypes, repainting, distances, maps, the answer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method import anomaly_map
from anomalysd_edge.method.class_model import ClassConstants
from anomalysd_edge.method.deadline import Pace
from anomalysd_edge.method.fusion import Fusing
from anomalysd_edge.method.inpainting.mask_plan import GUIDED, Slot, make_plan, touching
from anomalysd_edge.method.inpainting.masks import foreground, prototype_guided, to_pixels
from anomalysd_edge.method.inpainting.reconstruction_error import Differences, Repaint
from anomalysd_edge.method.inpainting.repainter import Repainter
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.patches.feature_windows import dense_features, tiled_side
from anomalysd_edge.method.photo_state import PhotoWork
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.method.settings import InspectSettings
from anomalysd_edge.method.verdict import conclude
from anomalysd_edge.vision import images
from anomalysd_edge.vision.letterbox import Frame
from anomalysd_edge.vision.morphology import dilate


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
        self.networks, self.settings = networks, settings
        self.plan = make_plan(settings.plan, networks.sizes.latent_side, settings.scales)
        self.steps = schedule.table(settings.sampler, settings.grid_steps, settings.passes, settings.strength)
        self._repainter = Repainter(networks, settings, self.steps, negative_states)
        self._fusing = Fusing(settings, networks.sizes.size_px, self.plan.scales)
        self._pace = Pace()

    def inspect(
        self,
        photos: Sequence[U8],
        names: Sequence[str],
        constants: Sequence[ClassConstants],
        deadline: float | None = None,
    ) -> list[Inspection]:
        """(H,W,3) photos, their classes' names and constants -> their inspections. All share their batches.

        With `deadline` (on time.monotonic's clock) coarse scales come first, and what cannot be done by then is left.
        """
        sizes, clock = self.networks.sizes, _Clock()
        with clock.stage("preprocess"):
            frames = [Frame.of(photo.shape[:2], known.aspect) for photo, known in zip(photos, constants, strict=True)]
            squares = [
                frame.squares(photo, (sizes.size_px, *self._features_side(known)))
                for photo, frame, known in zip(photos, frames, constants, strict=True)
            ]
            work = [
                PhotoWork(known, name, list(self.plan.slots), frame, square[0])
                for name, known, frame, square in zip(names, constants, frames, squares, strict=True)
            ]
            if self.settings.foreground:
                for photo in work:
                    if photo.constants.kind == "object":
                        photo.foreground = dilate(foreground(photo.seen, "object"), max(1, sizes.size_px // 32))
        self._prototypes(work, squares, clock)
        with clock.stage("score"):
            for photo in work:
                self._choose_slots(photo)
        self._repaint(work, deadline, clock)
        with clock.stage("score"):
            for photo in work:
                self._fusing.finish(photo)
        timings = {stage: ms / len(work) for stage, ms in clock.ms.items()}
        met = None if deadline is None else time.monotonic() <= deadline
        return [conclude(photo, self.settings, sizes, self.mode, timings, self.networks.backend, met) for photo in work]

    def _features_side(self, constants: ClassConstants) -> tuple[int, ...]:
        """Side in pixels of the square that prototypes are looked for in; nothing without a bank."""
        side = self.networks.sizes.features_px
        return (tiled_side(side, constants.tiles),) if side and constants.bank is not None else ()

    def _prototypes(self, work: list[PhotoWork], squares: Sequence[Sequence[U8]], clock: _Clock) -> None:
        """Prototype distance of each photo that has a bank; its second square is what the network sees."""
        chosen = [i for i, mine in enumerate(squares) if len(mine) > 1]
        if not chosen:
            return
        found: dict[int, F32] = {}
        with clock.stage("features"):
            for tiles in sorted({work[i].constants.tiles for i in chosen}):
                alike = [i for i in chosen if work[i].constants.tiles == tiles]
                dense = dense_features(self.networks, [squares[i][1] for i in alike], tiles)
                found |= zip(alike, dense, strict=True)
        with clock.stage("prototypes"):
            for i, field in sorted(found.items()):
                known = work[i].constants
                work[i].prototype_map, work[i].middle_distance = known.by_prototypes(field, self.settings)

    def _choose_slots(self, photo: PhotoWork) -> None:
        """What of the plan this photo needs, by its prototypes, and the guided slot that follows from them."""
        settings, constants, sizes = self.settings, photo.constants, self.networks.sizes
        if photo.prototype_map is None:
            return
        far = None
        if constants.guided_threshold is not None:
            far = prototype_guided(photo.prototype_map, constants.guided_threshold, sizes.latent_side, dilate=1)
        score = self._fusing.prototypes_score(photo) if settings.cascade else None
        if score is not None and constants.clear is not None and score < constants.clear:
            photo.slots, photo.ended = [], "clear"
            return
        if settings.cells == "none":
            photo.slots = []
            return
        if settings.cells == "suspect" and constants.scales and far is not None:
            photo.slots = touching(photo.slots, far)
            for slot in photo.slots:
                before = photo.planned.get(slot.scale, np.zeros((sizes.size_px, sizes.size_px), np.bool_))
                photo.planned[slot.scale] = before | to_pixels(slot.mask, sizes.latent_factor)
        if far is not None:
            photo.slots.append(Slot(scale=GUIDED, number=0, mask=far))

    def _repaint(self, work: list[PhotoWork], deadline: float | None, clock: _Clock) -> None:
        """Repaint and measure: all slots at once or, where it may end early, scale by scale."""
        by_scale = self.settings.settle or deadline is not None
        rounds = self._rounds() if by_scale else [None]
        live = [photo for photo in work if photo.slots]
        differences: Differences | None = None
        pixels = latents = states = np.zeros(0, np.float32)
        seats: dict[int, int] = {}
        for scale in rounds:
            with clock.stage("score"):
                live = self._still_open(live)
            todo = [(photo, slot) for photo in live for slot in photo.slots if scale is None or slot.scale == scale]
            if deadline is not None and not self._pace.fits(len(todo), deadline):
                for photo in live:
                    if photo.per_scale or self._by_prototypes(photo):
                        photo.ended = "cut"
                live = [photo for photo in live if photo.ended == "whole"]
                todo = [(photo, slot) for photo, slot in todo if photo.ended == "whole"]
            if not todo:
                continue
            with self._pace.round(len(todo)):
                if differences is None:
                    seats = {id(photo): seat for seat, photo in enumerate(live)}
                    pixels = np.concatenate([images.to_array(photo.seen) for photo in live])
                    states = np.stack([photo.constants.states(self.settings.prompt) for photo in live])
                    with clock.stage("encode"):
                        latents = self.networks.encode(pixels)
                    differences = Differences(self.networks, self.settings, pixels, latents, clock)
                slots = [slot for _, slot in todo]
                owner = np.array([seats[id(photo)] for photo, _ in todo], np.int64)
                painted = self._repainter.paint(slots, owner, states, pixels, latents, clock)
                seated = {seats[id(photo)]: photo for photo in live}
                self._compare(seated, slots, owner, latents, painted, differences)

    def _rounds(self) -> list[int | None]:
        """Scales from coarse to fine. The guided mask comes first where the verdict counts it, else last."""
        counts = self.settings.guided_weight > 0 if self.settings.fusion == "scaled" else self.settings.alpha > 0
        scales: list[int | None] = [*sorted(self.plan.scales)]
        return [GUIDED, *scales] if counts else [*scales, GUIDED]

    def _still_open(self, live: list[PhotoWork]) -> list[PhotoWork]:
        """Those of `live` whose verdict a further repaint can still change."""
        if self.settings.settle:
            for photo in live:
                if (photo.per_scale or self._by_prototypes(photo)) and self._fusing.settled(photo):
                    photo.ended = "settled"
        return [photo for photo in live if photo.ended == "whole"]

    def _by_prototypes(self, photo: PhotoWork) -> bool:
        """Whether prototypes alone give this photo a score on the verdict's scale."""
        able = self.settings.fusion == "scaled" and self.settings.prototypes_weight > 0
        return able and photo.prototype_map is not None and "prototypes" in photo.constants.scales

    def _compare(
        self,
        seated: dict[int, PhotoWork],
        slots: Sequence[Slot],
        owner: npt.NDArray[np.int64],
        latents: F32,
        painted: F32,
        differences: Differences,
    ) -> None:
        """Measure the repaints, a scale's merged or slot by slot, and sort the distances by photo and scale."""
        repaints: list[Repaint] = []
        for seat in seated:
            mine = [(slots[n], painted[n]) for n in np.flatnonzero(owner == seat).tolist()]
            if self.settings.merge_decode:
                for scale in dict.fromkeys(slot.scale for slot, _ in mine):
                    merged, whole = latents[seat].copy(), np.zeros(latents.shape[2:], np.bool_)
                    for slot, repaint in mine:
                        if slot.scale == scale:
                            merged = np.where(slot.mask, repaint, merged)
                            whole |= slot.mask
                    repaints.append(Repaint(seat, scale, whole, merged))
            else:
                repaints += [Repaint(seat, slot.scale, slot.mask, repaint) for slot, repaint in mine]
        collected: dict[tuple[int, int], list[tuple[Mask, F32]]] = {}
        for found in differences.measure(repaints):
            seat, scale = found.repaint.photo, found.repaint.scale
            collected.setdefault((seat, scale), []).append((found.mask, found.distance))
            seated[seat].repaints.setdefault(scale, []).append((found.mask, found.pixels))
        for (seat, scale), pairs in collected.items():
            if scale == GUIDED or self.settings.merge_decode:
                seated[seat].per_scale[scale] = pairs[0][1]
            else:
                masks = np.stack([mask for mask, _ in pairs])
                seated[seat].per_scale[scale] = anomaly_map.covered(np.stack([d for _, d in pairs]), masks)

    @property
    def mode(self) -> str:
        """Plan, scales, lambda and passes in words, for instance 'packed K=2,4,8 lambda=0.4 passes=5'."""
        s = self.settings
        words = [s.plan, f"K={','.join(map(str, s.scales))}", f"lambda={s.strength:g}", f"passes={len(self.steps)}"]
        words += [f"draws={s.draws}"] if s.draws > 1 else []
        words += [s.sampler] if s.sampler != "ddim" else []
        words += {"all": [], "suspect": ["suspect cells"], "none": ["prototypes alone"]}[s.cells]
        words += ["cascade"] if s.cascade else []
        words += ["settle"] if s.settle else []
        return " ".join(words)
