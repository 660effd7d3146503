"""The kit's primitives on a host device: they hold for the runtime's loop, and fail for a loop that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import primitives
from benchmarks.gpu.claims import Kit, Lines
from benchmarks.gpu.machine import has_kernels
from benchmarks.gpu.small_networks import job, small_modules
from benchmarks.gpu.torch_engine import copies_of
from tests.support.host_engines import HostDevice


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit("cpu", tmp_path)


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primitives, "ROUNDS", 40)


def shown(kit: Kit) -> dict[str, Any]:
    lines = Lines(primitives.CLAIMS, rehearsal=True)
    primitives.primitives(kit, lines)
    return {name.partition(".")[2]: line["holds"] for name, line in lines.written.items()}


@pytest.mark.slow
def test_they_hold_on_a_host_device(kit: Kit) -> None:
    found = shown(kit)
    assert found.pop("default_stream") is None, "host memory has no streams"
    assert found == dict.fromkeys(found, True)
    assert len(found) == len(primitives.CLAIMS) - 1


@pytest.mark.slow
def test_a_replay_that_differs_is_seen(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that does not do what was captured: here it leaves out its first kernel."""
    capture = HostDevice.capture

    def wrong(device: HostDevice, work: Any) -> Any:
        recorded: list[Any] = []
        submit = device.submit
        monkeypatch.setattr(device, "submit", recorded.append, raising=False)
        replay = capture(device, work)
        monkeypatch.setattr(device, "submit", submit)
        return lambda: (replay(), [one() for one in recorded[1:]])

    monkeypatch.setattr(HostDevice, "capture", wrong)
    found = shown(kit)
    assert found["capture"] is False
    assert found["loop"] is True


def test_a_copy_within_the_loop_is_seen(kit: Kit) -> None:
    lines = Lines(primitives.CLAIMS, rehearsal=True)
    with primitives.worker_of(kit, small_modules("cpu"), captures=False) as worker:
        worker.engines["step"].before_work = lambda: worker.device.seen.append("upload")
        primitives._copies(kit, lines, worker, job(4, steps=12))
    assert lines.written["primitives.copies"]["holds"] is False


@pytest.mark.slow
def test_memory_that_stays_is_seen(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    close = HostDevice.close

    def leaking(device: HostDevice) -> None:
        kept.append(np.ones(4 << 20, np.uint8))
        close(device)

    monkeypatch.setattr(HostDevice, "close", leaking)
    monkeypatch.setattr(primitives, "WARM_UP", 10)
    lines = Lines(primitives.CLAIMS, rehearsal=True)
    primitives._memory(kit, lines, small_modules("cpu"))
    assert lines.written["primitives.memory"]["holds"] is False
    assert lines.written["primitives.memory"]["measured"] >= 64 << 20


def test_a_value_that_differs_in_a_bit_counts() -> None:
    first = np.array([0.0, 1.0, np.nan], np.float32)
    second = np.array([-0.0, np.nextafter(np.float32(1), np.float32(2)), np.nan], np.float32)
    assert primitives.differing(first, first) == 0
    assert primitives.differing(first, second) == 2


def test_copies_are_told_from_kernels_by_name() -> None:
    names = [
        "Memcpy HtoD (Pageable -> Device)",
        "Memcpy DtoD (Device -> Device)",
        "Memset (Device)",
        "gemm",
        "Memcpy DtoH (Device -> Pageable)",
    ]
    assert copies_of(names) == {"uploads": 1, "downloads": 1, "kernels": 1}


@pytest.mark.parametrize(
    ("held", "capability", "runs"),
    [
        (["sm_80", "sm_90"], (9, 0), True),
        (["sm_80"], (8, 6), True),
        (["sm_86"], (8, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["sm_80"], (9, 0), False),
        (["sm_80", "compute_80"], (12, 0), True),
        (["compute_90"], (8, 9), False),
    ],
)
def test_which_builds_run_on_which_gpu(held: list[str], capability: tuple[int, int], runs: bool) -> None:
    assert has_kernels(held, capability) is runs
