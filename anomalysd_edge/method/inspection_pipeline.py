"""The stages of one group of photos: prototypes, repainting, distances, maps, the answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anomalysd_edge.core.timing import StageTimer
from anomalysd_edge.core.types import F32, U8, Mask
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method import anomaly_map
from anomalysd_edge.method.class_model import ClassModel
from anomalysd_edge.method.deadline import DeadlinePacer
from anomalysd_edge.method.fusion import MapFusion, counted_area
from anomalysd_edge.method.inpainting.mask_plan import GUIDED, Slot, make_plan, touching
from anomalysd_edge.method.inpainting.masks import prototype_guided, to_pixels
from anomalysd_edge.method.inpainting.reconstruction_error import ReconstructionError, Repaint
from anomalysd_edge.method.inpainting.repainter import Repainter
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.networks import Networks
from anomalysd_edge.method.patches.feature_windows import dense_features, tiled_side
from anomalysd_edge.method.photo_state import PhotoState
from anomalysd_edge.method.result import Inspection
from anomalysd_edge.method.settings import InspectSettings
from anomalysd_edge.method.verdict import make_inspection
from anomalysd_edge.vision import images
from anomalysd_edge.vision.letterbox import Letterbox


@dataclass(frozen=True)
class GroupTensors:
    """The photos of one group that are repainted, as arrays: row r of each belongs to photos[r], whose `row` is r."""

    photos: Sequence[PhotoState]
    """In order."""
    pixels: F32
    """(P,3,S,S) in [-1,1]."""
    latents: F32
    """(P,C,h,w) scaled latents."""
    states: F32
    """(P,77,D) prompt states."""
    error: ReconstructionError
    """Compares repaints with these photos."""


class InspectionPipeline:
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
        self._fusing = MapFusion(settings, networks.sizes.size_px, self.plan.scales)
        self._pace = DeadlinePacer()

    def inspect(
        self,
        photos: Sequence[U8],
        names: Sequence[str],
        constants: Sequence[ClassModel],
        deadline: float | None = None,
        full: Sequence[bool] = (),
    ) -> list[Inspection]:
        """(H,W,3) photos, their classes' names and constants -> their inspections. All share their batches.

        Photos whose `full` is False settle as under the setting `settle`, unless the fusion is the paper's; () asks
        for all of them in full.
        With `deadline` (on time.monotonic's timer) coarse scales come first, and what cannot be done by then is left.
        """
        sizes, timer = self.networks.sizes, StageTimer()
        with timer.stage("preprocess"):
            frames = [
                Letterbox.of(photo.shape[:2], known.aspect) for photo, known in zip(photos, constants, strict=True)
            ]
            squares = [
                frame.squares(photo, (sizes.size_px, *self._features_sides(known)))
                for photo, frame, known in zip(photos, frames, constants, strict=True)
            ]
            work = [
                PhotoState(known, name, list(self.plan.slots), frame, square[0])
                for name, known, frame, square in zip(names, constants, frames, squares, strict=True)
            ]
            able = self.settings.fusion != "paper"
            for photo, whole in zip(work, full or [True] * len(work), strict=True):
                photo.settles = self.settings.settle or (able and not whole)
            for photo in work:
                photo.foreground = counted_area(photo.seen, photo.constants.kind, self.settings)
        self._prototypes(work, squares, timer)
        with timer.stage("score"):
            for photo in work:
                self._choose_slots(photo)
        self._repaint(work, deadline, timer)
        with timer.stage("score"):
            for photo in work:
                self._fusing.finish(photo)
        timings = {stage: ms / len(work) for stage, ms in timer.ms.items()}
        met = None if deadline is None else time.monotonic() <= deadline
        return [
            make_inspection(photo, self.settings, sizes, self._mode(photo.settles), timings, self.networks.backend, met)
            for photo in work
        ]

    def _features_sides(self, constants: ClassModel) -> tuple[int, ...]:
        """Sides in pixels of the squares that prototypes are looked for in; nothing without a bank."""
        side = self.networks.sizes.features_px
        return tuple(tiled_side(side, n) for n in constants.windows(self.settings)) if side and constants.banks else ()

    def _prototypes(self, work: list[PhotoState], squares: Sequence[Sequence[U8]], timer: StageTimer) -> None:
        """Prototype distance of each photo that has banks; its squares after the first are what the network sees."""
        seen = [
            (i, tiles, square)
            for i, mine in enumerate(squares)
            for tiles, square in zip(work[i].constants.windows(self.settings), mine[1:], strict=False)
        ]
        found: dict[int, list[F32]] = {}
        with timer.stage("features"):
            for tiles in sorted({tiles for _, tiles, _ in seen}):
                alike = [(i, square) for i, n, square in seen if n == tiles]
                dense = dense_features(self.networks, [square for _, square in alike], tiles)
                for (i, _), field in zip(alike, dense, strict=True):
                    found.setdefault(i, []).append(field)
        with timer.stage("prototypes"):
            for i, fields in sorted(found.items()):
                known = work[i].constants
                work[i].prototype_map, work[i].median_patch_distance = known.by_prototypes(fields, self.settings)

    def _choose_slots(self, photo: PhotoState) -> None:
        """What of the plan this photo needs, by its prototypes, and the guided slot that follows from them."""
        settings, constants, sizes = self.settings, photo.constants, self.networks.sizes
        if photo.prototype_map is None:
            return
        far = None
        if (threshold := constants.guided_threshold(settings)) is not None:
            far = prototype_guided(photo.prototype_map, threshold, sizes.latent_side, dilate=1)
        score = self._fusing.prototypes_score(photo) if settings.cascade else None
        if score is not None and constants.calibration.clear is not None and score < constants.calibration.clear:
            photo.slots, photo.ended = [], "clear"
            return
        if settings.cells == "none":
            photo.slots = []
            return
        if settings.cells == "suspect" and constants.calibration.scales and far is not None:
            photo.slots = touching(photo.slots, far)
            for slot in photo.slots:
                before = photo.planned.get(slot.scale, np.zeros((sizes.size_px, sizes.size_px), np.bool_))
                photo.planned[slot.scale] = before | to_pixels(slot.mask, sizes.latent_factor)
        if far is not None:
            photo.slots.append(Slot(scale=GUIDED, number=0, mask=far))

    def _repaint(self, work: list[PhotoState], deadline: float | None, timer: StageTimer) -> None:
        """Repaint and measure: all slots at once or, where it may end early, scale by scale.

        A photo that is not good by its prototypes alone is shown repainted where it is suspect, which is what a person
        will ask for; the rest of its plan is spared.
        """
        begun = [photo for photo in work if photo.slots]
        early = deadline is not None or any(photo.settles for photo in begun)
        with timer.stage("score"):
            live = self._still_open(begun)
        extra = [
            (photo, slot)
            for photo in begun
            if photo.verdict not in (None, "good")
            for slot in photo.slots
            if slot.scale == GUIDED
        ]
        shown = [photo for photo, _ in extra]
        group: GroupTensors | None = None
        for scale in self._rounds() if early else [None]:
            with timer.stage("score"):
                live = self._still_open(live)
            todo = [(photo, slot) for photo in live for slot in photo.slots if scale is None or slot.scale == scale]
            todo, extra = [*todo, *extra], []
            if deadline is not None and not self._pace.fits(len(todo), deadline):
                for photo in live:
                    if photo.per_scale or self._by_prototypes(photo):
                        photo.ended = "cut"
                live = [photo for photo in live if photo.ended == "whole"]
                todo = [(photo, slot) for photo, slot in todo if photo.ended == "whole"]
            if not todo:
                continue
            with self._pace.round(len(todo)):
                group = group or self._prepare([*live, *shown], timer)
                slots, rows = [slot for _, slot in todo], np.array([photo.row for photo, _ in todo], np.int64)
                painted = self._repainter.paint(slots, rows, group.states, group.pixels, group.latents, timer)
                repaints = [
                    repaint
                    for photo in group.photos
                    for repaint in self._merged(
                        photo.row, [(slots[n], painted[n]) for n in np.flatnonzero(rows == photo.row)], group.latents
                    )
                ]
                self._compare(group, repaints)

    def _prepare(self, live: list[PhotoState], timer: StageTimer) -> GroupTensors:
        """Encode the photos that are to be repainted, and give each its row."""
        for row, photo in enumerate(live):
            photo.row = row
        pixels = np.concatenate([images.to_array(photo.seen) for photo in live])
        states = np.stack([photo.constants.states(self.settings.prompt) for photo in live])
        with timer.stage("encode"):
            latents = self.networks.encode(pixels)
        return GroupTensors(
            live, pixels, latents, states, ReconstructionError(self.networks, self.settings, pixels, latents, timer)
        )

    def _rounds(self) -> list[int | None]:
        """Scales from coarse to fine. The guided mask comes first where the verdict counts it, else last."""
        counts = self.settings.guided_weight > 0 if self.settings.fusion != "paper" else self.settings.alpha > 0
        scales: list[int | None] = [*sorted(self.plan.scales)]
        return [GUIDED, *scales] if counts else [*scales, GUIDED]

    def _still_open(self, live: list[PhotoState]) -> list[PhotoState]:
        """Those of `live` whose verdict a further repaint can still change."""
        for photo in live:
            if photo.settles and (photo.per_scale or self._by_prototypes(photo)):
                photo.verdict = self._fusing.settled(photo)
                photo.ended = "whole" if photo.verdict is None else "settled"
        return [photo for photo in live if photo.ended == "whole"]

    def _by_prototypes(self, photo: PhotoState) -> bool:
        """Whether prototypes alone give this photo a score on the verdict's scale."""
        able = self.settings.fusion != "paper" and self.settings.prototypes_weight > 0
        return able and photo.prototype_map is not None and "prototypes" in photo.constants.calibration.scales

    def _merged(self, row: int, painted: list[tuple[Slot, F32]], latents: F32) -> list[Repaint]:
        """What of a photo's repainted slots is decoded: each by itself or, with `merge_decode`, one for each scale."""
        if not self.settings.merge_decode:
            return [Repaint(row, slot.scale, slot.mask, repaint) for slot, repaint in painted]
        merged: dict[int, tuple[Mask, F32]] = {}
        for slot, repaint in painted:
            mask, whole = merged.get(slot.scale, (np.zeros(latents.shape[2:], np.bool_), latents[row]))
            merged[slot.scale] = mask | slot.mask, np.where(slot.mask, repaint, whole)
        return [Repaint(row, scale, mask, whole) for scale, (mask, whole) in merged.items()]

    def _compare(self, group: GroupTensors, repaints: Sequence[Repaint]) -> None:
        """Measure the repaints and sort what they give by photo and scale."""
        distances: dict[tuple[int, int], list[tuple[Mask, F32]]] = {}
        for found in group.error.measure(repaints):
            row, scale = found.repaint.photo, found.repaint.scale
            distances.setdefault((row, scale), []).append((found.mask, found.distance))
            group.photos[row].repaints.setdefault(scale, []).append((found.mask, found.pixels))
        for (row, scale), pairs in distances.items():
            if scale == GUIDED or self.settings.merge_decode:
                group.photos[row].per_scale[scale] = pairs[0][1]
            else:
                masks = np.stack([mask for mask, _ in pairs])
                group.photos[row].per_scale[scale] = anomaly_map.covered(np.stack([d for _, d in pairs]), masks)

    @property
    def mode(self) -> str:
        """Plan, scales, lambda and passes in words, for instance 'packed K=2,4,8 lambda=0.4 passes=5'."""
        return self._mode(self.settings.settle)

    def _mode(self, settles: bool) -> str:
        s = self.settings
        words = [s.plan, f"K={','.join(map(str, s.scales))}", f"lambda={s.strength:g}", f"passes={len(self.steps)}"]
        words += [f"draws={s.draws}"] if s.draws > 1 else []
        words += [s.sampler] if s.sampler != "ddim" else []
        words += {"all": [], "suspect": ["suspect cells"], "none": ["prototypes alone"]}[s.cells]
        words += ["cascade"] if s.cascade else []
        words += ["settle"] if settles else []
        return " ".join(words)
