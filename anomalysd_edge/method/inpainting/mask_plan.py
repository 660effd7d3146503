"""From scales to slots: which masks are repainted together, and in which batches.

A slot is one sample in the UNet's batch: a mask of one or more cells of one scale's grid. The paper plan gives every
cell a slot of its own. The packed plan lets cells of one grid that do not touch share a slot: colouring a grid by the
parities of row and column needs four slots for any k >= 2, so K = {1,2,4,8} takes 13 slots in place of 85.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from anomalysd_edge.core.types import Mask
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.inpainting.masks import grid_cells
from anomalysd_edge.method.networks import Networks

GUIDED = 0
"""The scale number under which the prototype-guided mask's slot goes."""


@dataclass(frozen=True)
class Slot:
    """One sample of the UNet's batch."""

    scale: int
    """k of the k x k grid it belongs to; GUIDED for the prototype-guided mask."""
    number: int
    """Its number within the scale: with the seed it names the slot's noise."""
    mask: Mask
    """(h,w) latent cells to repaint."""

    def noise(self, seed: int, shape: tuple[int, int, int]) -> npt.NDArray[np.float32]:
        """(C,h,w) standard normal: a function of (seed, scale, number), so no packing or load can change a verdict."""
        rng = np.random.default_rng((seed, self.scale, self.number))
        return rng.standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class Plan:
    """The slots of one photo, the same for every photo of a size."""

    name: str
    slots: tuple[Slot, ...]

    @property
    def scales(self) -> tuple[int, ...]:
        """The scales, in order."""
        return tuple(dict.fromkeys(slot.scale for slot in self.slots))


def paper_plan(side: int, scales: Sequence[int]) -> Plan:
    """A slot per cell: 85 for scales (1,2,4,8). `side` is the latent's side in cells."""
    return _plan("paper", side, scales, lambda k: np.arange(k * k))


def packed_plan(side: int, scales: Sequence[int]) -> Plan:
    """Cells that do not touch share a slot: 13 for scales (1,2,4,8)."""
    return _plan("packed", side, scales, _parity_colours)


def make_plan(name: str, side: int, scales: Sequence[int]) -> Plan:
    """'paper' or 'packed'."""
    if name == "paper":
        return paper_plan(side, scales)
    if name == "packed":
        return packed_plan(side, scales)
    raise SettingsError(f"plan {name!r} is not known; use 'paper' or 'packed'")


def batches(count: int, largest: int) -> Iterator[slice]:
    """Slices that cut `count` slots into runs of nearly equal length, none longer than `largest`."""
    if largest < 1:
        raise SettingsError(f"the largest batch is {largest}; at least 1 is needed")
    pieces = -(-count // largest)
    edges = [round(i * count / pieces) for i in range(pieces + 1)] if pieces else [0]
    for start, stop in pairwise(edges):
        yield slice(start, stop)


def runs_of(count: int, networks: Networks) -> Iterator[slice]:
    """Slices of `count` slots for one call each.

    Networks of any batch size get runs of nearly equal length. Those with a few static sizes get whole multiples of the
    largest that fits, since they cut a call into runs of their own: nearly equal parts would each be padded.
    """
    sizes = [size for size in getattr(networks, "batch_sizes", ()) if size <= networks.max_batch]
    if not sizes:
        yield from batches(count, networks.max_batch)
        return
    largest = max(sizes)
    for start in range(0, count, largest):
        yield slice(start, min(count, start + largest))


def touching(slots: Sequence[Slot], where: Mask) -> list[Slot]:
    """The slots of grids without the cells that do not meet `where` (h,w); empty ones are left out.

    A slot keeps its number, and with it its noise.
    """
    kept: list[Slot] = []
    for slot in slots:
        cells = grid_cells(slot.scale, len(where))
        met = cells[(cells & slot.mask & where).any(axis=(1, 2))]
        if len(met):
            kept.append(replace(slot, mask=np.asarray(met.any(axis=0))))
    return kept


def _parity_colours(k: int) -> npt.NDArray[np.int64]:
    row, column = np.divmod(np.arange(k * k), k)
    return np.asarray((row % 2) * 2 + column % 2, dtype=np.int64)


def _plan(name: str, side: int, scales: Sequence[int], colours: Callable[[int], npt.NDArray[np.int64]]) -> Plan:
    if not scales:
        raise SettingsError("a plan needs at least one scale, for instance 1,2,4,8")
    slots: list[Slot] = []
    for k in scales:
        if not 1 <= k <= side:
            raise SettingsError(f"scale {k} does not fit a latent of {side} x {side} cells; use 1 to {side}")
        cells, colour = grid_cells(k, side), colours(k)
        for number, value in enumerate(np.unique(colour)):
            slots.append(Slot(scale=k, number=number, mask=cells[colour == value].any(axis=0)))
    return Plan(name=name, slots=tuple(slots))
