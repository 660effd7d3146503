"""Subcommand primitives: the runtime's own device loop, buffers and captures over torch, without TensorRT.

With --device cpu the same code runs on the host device of tests/support/host_engines.py.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import BackendError
from anomalysd_edge.method.networks import InpaintJob
from benchmarks.gpu.claims import Claim, Kit, Lines, Part, reason
from benchmarks.gpu.machine import tf32

if TYPE_CHECKING:
    from benchmarks.gpu.small_networks import TorchWorker

BATCHES = (1, 4)
COUNTS = (1, 3, 9)
"""Slots of a job: alone, padded, and in several chunks."""
ROUNDS, WARM_UP = 1000, 30
MEMORY_BYTES = 16 << 20
"""What a thousand rounds may keep: a leak of one buffer or graph a round is far more."""

CLAIMS = (
    Claim("primitives.capture", "a captured loop gives what the uncaptured one gives", "0 values differ in a bit"),
    Claim("primitives.values", "a captured graph holds addresses, not values: another job gets its own", "0 differ"),
    Claim("primitives.copies", "nothing crosses between the last upload and the download", "0 copies"),
    Claim("primitives.loop", "the device's loop is the loop in numpy on the CPU", "largest difference at most 1e-4"),
    Claim("primitives.pictures", "encoder and decoder through static buffers are the CPU's", "at most 1e-4"),
    Claim("primitives.workers", "two workers capture and replay at once, in two threads", "0 values differ"),
    Claim("primitives.refused", "an error while a loop is captured costs no photo", "0 values differ"),
    Claim("primitives.memory", f"{ROUNDS} captures and closes give the memory back", "at most 16 MiB more"),
    Claim("primitives.default_stream", "a capture bears another thread's work on the default stream", "no error"),
)


def worker_of(kit: Kit, modules: dict[str, Any], captures: bool = True) -> TorchWorker:
    """The small networks as engines on the kit's device."""
    from benchmarks.gpu.small_networks import TorchWorker

    return TorchWorker(kit.device, modules, BATCHES, captures)


def primitives(kit: Kit, lines: Lines) -> None:
    """Show CLAIMS."""
    from benchmarks.gpu.small_networks import small_modules

    with tf32(False):
        modules = small_modules(kit.device)
        _loops(kit, lines, modules)
        with lines.showing("primitives.pictures"):
            _pictures(kit, lines, modules)
        with lines.showing("primitives.workers"):
            _workers(kit, lines, modules)
        with lines.showing("primitives.refused"):
            _refused(kit, lines, modules)
        with lines.showing("primitives.memory"):
            _memory(kit, lines, modules)
        if kit.rehearsal:
            lines.not_shown("primitives.default_stream", "host memory has no streams")
        else:  # last: a capture that fails may leave its stream unusable
            with lines.showing("primitives.default_stream"):
                _default_stream(kit, lines, modules)


def differing(first: F32, second: F32) -> int:
    """Values that are not equal to the bit."""
    return int((first.view(np.uint32) != second.view(np.uint32)).sum())


def _loops(kit: Kit, lines: Lines, modules: dict[str, Any]) -> None:
    from benchmarks.gpu.small_networks import job, on_the_cpu, small_modules

    jobs = [job(count, guidance) for guidance in (1.0, 7.5) for count in COUNTS]
    with worker_of(kit, modules, captures=False) as plain:
        right = [plain.networks.inpaint(each) for each in jobs]
        others = [plain.networks.inpaint(_changed(each)) for each in jobs]
        assert "replay" not in plain.device.seen, "the reference was captured"
    with lines.showing("primitives.loop"):
        unet = small_modules("cpu")["unet"]
        far = max(float(np.abs(found - on_the_cpu(each, unet)).max()) for each, found in zip(jobs, right, strict=True))
        lines.shown("primitives.loop", far, far <= 1e-4, jobs=len(jobs))
    with worker_of(kit, modules) as captured:
        with lines.showing("primitives.capture"):
            found = [[captured.networks.inpaint(each) for each in jobs] for _ in range(3)]
            replays = captured.device.seen.count("replay")
            count = sum(differing(a, b) for again in found for a, b in zip(again, right, strict=True))
            lines.shown("primitives.capture", count, count == 0 and replays > 0, replays=replays, jobs=3 * len(jobs))
        with lines.showing("primitives.values"):
            before = captured.device.seen.count("replay")
            again = [captured.networks.inpaint(_changed(each)) for each in jobs]
            replays = captured.device.seen.count("replay") - before
            count = sum(differing(a, b) for a, b in zip(again, others, strict=True))
            lines.shown("primitives.values", count, count == 0 and replays > 0, replays=replays)
        with lines.showing("primitives.copies"):
            _copies(kit, lines, captured, job(4, steps=12))


def _changed(of: InpaintJob) -> InpaintJob:
    """A job of the same shape with other latents, timesteps and coefficients."""
    from dataclasses import replace

    return replace(
        of, start_latents=of.start_latents * np.float32(0.5), timesteps=of.timesteps - 3,
        coefficients=of.coefficients * np.float32(0.9),
    )  # fmt: skip


def _copies(kit: Kit, lines: Lines, worker: TorchWorker, long: InpaintJob) -> None:
    """Two ways to look: what the loop asks the device for, and on a GPU what the profiler saw."""
    from benchmarks.gpu.torch_engine import profiled

    for _ in range(2):
        worker.networks.inpaint(long)
    seen = worker.device.seen
    seen.clear()
    if kit.rehearsal:
        worker.networks.inpaint(long)
        profile = None
    else:
        profile = profiled(lambda: _nothing_of(worker.networks.inpaint(long)))
        if profile is None:
            lines.not_shown("primitives.copies", "the profiler saw no work of the GPU: is CUPTI allowed here?")
            return
    uploads = seen.count("upload")
    between = len(seen) - uploads - 2
    in_order = seen == ["upload"] * uploads + ["replay", "download"]
    if profile is not None:
        between += profile["uploads"] - uploads + profile["downloads"] - 1
    lines.shown("primitives.copies", between, in_order and between == 0, asked=seen, profile=profile)


def _nothing_of(_result: Any) -> None:
    pass


def _pictures(kit: Kit, lines: Lines, modules: dict[str, Any]) -> None:
    import torch

    from benchmarks.gpu.small_networks import SIZES, small_modules

    rng = np.random.default_rng(4)
    plain = small_modules("cpu")
    far = 0.0
    with worker_of(kit, modules) as worker:
        for count in (1, 2, 6):
            photos = rng.uniform(-1, 1, (count, 3, SIZES.size_px, SIZES.size_px)).astype(np.float32)
            latents = worker.networks.encode(photos)
            with torch.no_grad():
                encoded = plain["vae_encoder"](torch.from_numpy(photos))[0].numpy()
                decoded = plain["vae_decoder"](torch.from_numpy(latents))[0].numpy()
            far = max(far, float(np.abs(latents - encoded).max()))
            far = max(far, float(np.abs(worker.networks.decode(latents) - decoded).max()))
    lines.shown("primitives.pictures", far, far <= 1e-4)


def _workers(kit: Kit, lines: Lines, modules: dict[str, Any]) -> None:
    from benchmarks.gpu.small_networks import job

    jobs = [job(count, seed=count) for count in COUNTS]
    with worker_of(kit, modules, captures=False) as plain:
        right = [plain.networks.inpaint(each) for each in jobs]
    with worker_of(kit, modules) as one, worker_of(kit, modules) as two, ThreadPoolExecutor(2) as pool:
        turns = [pool.submit(lambda w: [w.networks.inpaint(j) for j in jobs * 8], worker) for worker in (one, two)]
        count = sum(
            differing(found, right[number % len(jobs)]) for turn in turns for number, found in enumerate(turn.result())
        )
    lines.shown("primitives.workers", count, count == 0)


def _refused(kit: Kit, lines: Lines, modules: dict[str, Any]) -> None:
    from benchmarks.gpu.small_networks import job

    each = job(3)
    with worker_of(kit, modules, captures=False) as plain:
        right = plain.networks.inpaint(each)
    with worker_of(kit, modules) as worker:

        def fail() -> None:
            if worker.device.capturing:
                raise BackendError("an engine that bears no capture")

        worker.engines["unet"].before_work = fail
        try:
            found = [worker.networks.inpaint(each) for _ in range(3)]
        except BackendError as error:
            lines.shown("primitives.refused", reason(error), False)
            return
    count = sum(differing(answer, right) for answer in found)
    lines.shown("primitives.refused", count, count == 0)


def _memory(kit: Kit, lines: Lines, modules: dict[str, Any]) -> None:
    from benchmarks.gpu.small_networks import job

    each = job(1)
    seen: list[int] = []
    for number in range(ROUNDS):
        with worker_of(kit, modules) as worker:
            for _ in range(2):  # once as it is and captured, once replayed
                worker.networks.inpaint(each)
            assert "replay" in worker.device.seen, "nothing was captured"
        if number % 100 == WARM_UP or number == ROUNDS - 1:
            gc.collect()
            seen.append(used_bytes(kit))
    more = seen[-1] - seen[0]
    lines.shown("primitives.memory", more, more <= MEMORY_BYTES, rounds=ROUNDS, used_bytes=seen)


def used_bytes(kit: Kit) -> int:
    """Memory in use on the GPU by everyone; on the CPU, resident memory of this process."""
    if kit.rehearsal:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
    import torch

    free, total = torch.cuda.mem_get_info()
    return total - free


def _default_stream(kit: Kit, lines: Lines, modules: dict[str, Any]) -> None:
    """A stream that waits for the legacy default one would lose its capture to another thread's work there."""
    from benchmarks.gpu.small_networks import job

    each, errors = job(2), list[str]()
    with _busy_default_stream(errors):
        for _ in range(20):
            try:
                with worker_of(kit, modules) as worker:
                    for _ in range(2):
                        worker.networks.inpaint(each)
            except Exception as error:
                errors.append(reason(error))
                break
    lines.shown("primitives.default_stream", errors[0] if errors else "no error", not errors)


@contextmanager
def _busy_default_stream(errors: list[str]) -> Iterator[None]:
    import torch

    stop = threading.Event()
    values = torch.zeros(1 << 16, device="cuda")

    def work() -> None:
        while not stop.is_set():
            try:
                values.add_(1)
                torch.cuda.default_stream().synchronize()
            except Exception as error:
                errors.append(f"in the other thread: {reason(error)}")
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


PARTS = (
    Part(
        "primitives", "the device loop, its buffers and captures, over torch", 120, ("torch", "cuda-bindings"),
        CLAIMS, primitives,
    ),
)  # fmt: skip
