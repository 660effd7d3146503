"""large and train rehearsed with small networks: the whole of their code but what a GPU alone has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import large, training
from benchmarks.gpu.claims import REHEARSAL, Kit, Lines


@pytest.mark.slow
def test_large_measures_every_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "BATCHES", (1, 2))
    lines = Lines(large.CLAIMS, rehearsal=True)
    large.run(Kit("cpu", tmp_path), lines)
    assert set(lines.written) == {claim.name for claim in large.CLAIMS}
    assert lines.written["large.graph"]["holds"] is True
    assert lines.written["large.graph"]["figures"]["operators"] > 0
    for name, line in lines.written.items():
        assert name == "large.graph" or line["because"] == REHEARSAL, line
    share = lines.written["large.rate"]["measured"]
    assert 0 < share < 1.5, "the UNet is faster than the machine"


@pytest.mark.parametrize(("ratio", "holds"), [(0.9, True), (1.2, False), (0.3, False)])
@pytest.mark.slow
def test_memory_beyond_or_far_below_the_estimate_is_seen(
    ratio: float, holds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foretold: list[Any] = []
    estimated = training._foretold

    def remember(trainer: Any) -> Any:
        foretold.append(estimated(trainer))
        return foretold[-1]

    monkeypatch.setattr(training, "_foretold", remember)
    monkeypatch.setattr(training, "_peak_bytes", lambda _kit: int(ratio * foretold[-1].unet))
    monkeypatch.setattr(training, "PRECISIONS", ("none",))
    lines = Lines(training.CLAIMS)
    training._large_memory(Kit("cpu", tmp_path), lines, tmp_path, [training._photo(tmp_path, n) for n in range(2)])
    assert lines.written["train.memory"]["holds"] is holds
    assert lines.written["train.memory"]["measured"]["none"] == pytest.approx(ratio, rel=1e-3)


def test_losses_are_compared_step_by_step() -> None:
    assert training.apart([1.0, 2.0], [1.0, 2.0]) == 0
    assert training.apart([1.0, 2.2], [1.0, 2.0]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="longer than argument 1"):
        training.apart([1.0], [1.0, 2.0])
