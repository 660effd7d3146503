"""Subcommand soak: the inspection box's engine and its worker process under mixed load, reloads and a lost GPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.core.types import U8
from anomalysd_edge.vision import images
from benchmarks.gpu.claims import Claim, Kit, Lines, Part, reason
from benchmarks.gpu.prepared import CLASS, prepared

PHOTOS, RELOADS = 240, 20
KEY = "line"
A_PHOTO, A_RELOAD = 64 << 10, 2 << 20
"""Bytes that memory may grow by for each, as the slope of its second half."""

CLAIMS = (
    Claim("soak.batches", "mixed batches give every photo the score that it has alone", f"{PHOTOS} photos within 1e-4"),
    Claim("soak.memory", "memory is flat in the number of photos", "worker and GPU: at most 64 KiB a photo"),
    Claim("soak.reloads", f"{RELOADS} reloads give the memory back", "worker and GPU: at most 2 MiB a reload"),
    Claim("soak.fault", "an illegal access costs the photo that made it, and no other", "1 error; the rest as before"),
    Claim(
        "soak.recovers", "the box restarts its worker and goes on", "at most 2 restarts; 20 further photos as before"
    ),
)


class SoakedBox:
    """The engine with one bundle open in its worker, and what it is asked."""

    def __init__(self, kit: Kit, bundle: Path) -> None:
        from anomalysd_runtime.server.inference.engine import Engine
        from anomalysd_runtime.server.settings import EngineSettings
        from benchmarks.gpu.faults import open_faulty

        self.kit, self.bundle = kit, bundle
        self.engine = Engine(EngineSettings(backend=kit.device, group=4, stuck_s=60), open_faulty)
        self.engine.start()
        self.engine.open(KEY, bundle)

    def submit(self, photo: U8, client: str = "soak") -> Any:
        """The future of a photo's result."""
        from anomalysd_runtime.server.inference.jobs import Job

        asked = Job(KEY, CLASS, photo, client, time.monotonic() + 120)
        self.engine.submit(asked)
        return asked.future

    def score(self, photo: U8, client: str = "soak") -> float:
        """Its score. Raises what the engine answers instead."""
        return float(self.submit(photo, client).result(120).inspection.pred_score)

    def reload(self) -> None:
        """Close the bundle and open it again, in the same worker."""
        self.engine.close(KEY)
        self.engine.open(KEY, self.bundle)

    def memory(self) -> tuple[int, int]:
        """Bytes: the worker's resident memory, and what is in use on the GPU by everyone (0 in a rehearsal)."""
        status = Path(f"/proc/{self.engine.worker_pid}/status").read_text(encoding="ascii")
        resident = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))
        if self.kit.rehearsal:
            return resident, 0
        import torch

        free, total = torch.cuda.mem_get_info()
        return resident, total - free


def run(kit: Kit, lines: Lines) -> None:
    """Show CLAIMS."""
    at = prepared(kit)
    photos = [images.load_rgb(file) for file in at.test_photos()]
    box = SoakedBox(kit, at.bundle)
    try:
        alone = [box.score(photo) for photo in photos]
        with lines.showing("soak.batches", "soak.memory"):
            _mixed(kit, lines, box, photos, alone)
        with lines.showing("soak.reloads"):
            _reloads(kit, lines, box, photos)
        with lines.showing("soak.fault", "soak.recovers"):
            _fault(lines, box, photos, alone)
    finally:
        box.engine.stop()


def slope(values: Sequence[float]) -> float:
    """Growth a step over the second half of a series, by least squares: the first half fills caches and arenas."""
    half = np.asarray(values[len(values) // 2 :], dtype=np.float64)
    return float(np.polyfit(np.arange(len(half)), half, 1)[0])


def _mixed(kit: Kit, lines: Lines, box: SoakedBox, photos: list[U8], alone: list[float]) -> None:
    """Rounds of 1 to 8 clients at once, so that groups of every size come up."""
    count = 60 if kit.rehearsal else PHOTOS
    memory: list[tuple[int, int]] = []
    far, sent, a_round = 0.0, 0, 20
    with ThreadPoolExecutor(8) as pool:
        while sent < count:
            width = 1 + len(memory) % 8
            for start in range(0, a_round, width):
                chosen = [(sent + start + i) % len(photos) for i in range(min(width, a_round - start))]
                found = list(pool.map(lambda n: box.score(photos[n], f"client {n}"), chosen))
                far = max([far, *(abs(a - alone[n]) for a, n in zip(found, chosen, strict=True))])
            sent += a_round
            memory.append(box.memory())
    lines.shown("soak.batches", far, far <= 1e-4, photos=sent, groups=box.engine.state.groups)
    growth = [slope(series) / a_round for series in zip(*memory, strict=True)]
    lines.shown("soak.memory", growth, max(growth) <= A_PHOTO, bytes=memory)


def _reloads(kit: Kit, lines: Lines, box: SoakedBox, photos: list[U8]) -> None:
    memory = []
    for number in range(6 if kit.rehearsal else RELOADS):
        box.reload()
        box.score(photos[number % len(photos)])
        memory.append(box.memory())
    growth = [slope(series) for series in zip(*memory, strict=True)]
    lines.shown("soak.reloads", growth, max(growth) <= A_RELOAD, bytes=memory)


def _fault(lines: Lines, box: SoakedBox, photos: list[U8], alone: list[float]) -> None:
    """A black photo among three others, then twenty photos one by one.

    The group's worker is lost, and a second one when the group is judged again photo by photo.
    """
    before = box.engine.state.restarts
    group = [photos[0], photos[1], np.zeros_like(photos[0]), photos[2]]
    futures = [box.submit(photo, f"client {number}") for number, photo in enumerate(group)]
    answers = [_score_or_reason(future) for future in futures]
    right = [alone[0], alone[1], None, alone[2]]
    errors = [answer for answer in answers if isinstance(answer, str)]
    fine = isinstance(answers[2], str) and all(
        _close(a, b) for a, b in zip(answers, right, strict=True) if b is not None
    )
    lines.shown("soak.fault", len(errors), fine and len(errors) == 1, answers=answers, expected=right)
    later = [_score_or_reason(box.submit(photo)) for photo in photos]
    restarts = box.engine.state.restarts - before
    judged = sum(_close(answer, score) for answer, score in zip(later, alone, strict=True))
    lines.shown(
        "soak.recovers", [restarts, judged], 1 <= restarts <= 2 and judged == len(photos), answers=later,
        lost=box.engine.state.lost,
    )  # fmt: skip


def _score_or_reason(future: Any) -> float | str:
    try:
        return float(future.result(120).inspection.pred_score)
    except Exception as error:  # what the engine answers in place of a score is what is measured
        return reason(error)


def _close(answer: float | str, score: float) -> bool:
    return isinstance(answer, float) and abs(answer - score) <= 1e-4


PARTS = (
    Part(
        "soak", "the box under mixed load, reloads, and an illegal access", 120,
        ("torch", "cuda-bindings", "onnxruntime-gpu", "bundle"), CLAIMS, run,
    ),
)  # fmt: skip
