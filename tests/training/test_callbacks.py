"""What a training tells its callbacks: every event in order, stopped and resumed ones too; the documents' loggers."""

from __future__ import annotations

import ast
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anomalysd_edge import TrainingCallback, train
from anomalysd_edge.training.checkpoints import partial_folder, read_log
from tests.support.command import ROOT
from tests.support.progress import Stop
from tests.support.tiny_models import tiny_base
from tests.support.tiny_training import tiny_settings

pytestmark = pytest.mark.slow


class Recording(TrainingCallback):
    """Keeps every event."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.fail_at = fail_at

    def on_start(self, settings: Mapping[str, Any], step: int) -> None:
        self.events.append(("start", settings["steps"], step))

    def on_step(self, phase: str, step: int, of: int, numbers: Mapping[str, float]) -> None:
        self.events.append((phase, step, of, dict(numbers)))
        if step == self.fail_at:
            raise ConnectionError("the tracking server is gone")

    def on_checkpoint(self, step: int, folder: Path) -> None:
        self.events.append(("checkpoint", step, (folder / "state.json").is_file()))

    def on_end(self, run: Path | None) -> None:
        self.events.append(("end", run))

    @property
    def kinds(self) -> list[tuple[Any, ...]]:
        """Kind and step of every event."""
        return [event[:2] for event in self.events]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    photo = tmp_path_factory.mktemp("photos") / "nut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)).save(photo)
    return {"nut": [photo]}


def test_every_event_comes_in_order(base: Path, shots: dict[str, list[Path]], tmp_path: Path) -> None:
    told = Recording()
    train(tiny_settings(base, decoder_steps=1), shots, tmp_path / "run", callbacks=[told])
    assert told.kinds == [
        ("start", 3), ("unet", 1), ("unet", 2), ("checkpoint", 2), ("unet", 3), ("checkpoint", 3), ("decoder", 4),
        ("checkpoint", 4), ("end", tmp_path / "run"),
    ]  # fmt: skip
    assert told.events[0] == ("start", 3, 0)
    assert all(event[2] for event in told.events if event[0] == "checkpoint"), "it was whole when it was told"
    steps = [event for event in told.events if event[0] in ("unet", "decoder")]
    assert {event[2] for event in steps} == {4}
    for (phase, step, _, numbers), line in zip(steps, read_log(tmp_path / "run/log.jsonl"), strict=True):
        assert {"phase": phase, "total": step, **numbers} == {k: v for k, v in line.items() if k != "step"}
        assert numbers.keys() >= {"loss", "lr", "grad_norm", "seconds"}
        assert numbers["grad_norm"] > 0
    again = Recording()
    train(tiny_settings(base, decoder_steps=1), shots, tmp_path / "run", resume=True, callbacks=[again])
    assert again.events == [], "nothing was trained"


def test_a_stop_is_told_and_a_resumed_training_says_where_it_starts(
    base: Path, shots: dict[str, list[Path]], tmp_path: Path
) -> None:
    first, second = Recording(), Recording()
    with pytest.raises(KeyboardInterrupt):
        train(tiny_settings(base), shots, tmp_path / "run", progress=Stop("train", 3), callbacks=[first])
    assert first.kinds[-1] == ("end", None)
    train(tiny_settings(base), shots, tmp_path / "run", resume=True, callbacks=[second])
    assert second.events[0] == ("start", 3, 2)
    assert second.kinds[1:] == [("unet", 3), ("checkpoint", 3), ("end", tmp_path / "run")]


def test_a_logger_that_fails_stops_the_training_and_costs_no_checkpoint(
    base: Path, shots: dict[str, list[Path]], tmp_path: Path
) -> None:
    told = Recording(fail_at=3)
    with pytest.raises(ConnectionError):
        train(tiny_settings(base), shots, tmp_path / "run", callbacks=[told])
    assert told.kinds[-1] == ("end", None)
    assert (partial_folder(tmp_path / "run") / "checkpoints/step-000002").is_dir()


def test_without_photos_only_start_and_end_are_told(base: Path, tmp_path: Path) -> None:
    told = Recording()
    train(tiny_settings(base, shots=0), {"nut": []}, tmp_path / "run", callbacks=[told])
    assert told.events == [("start", 3, 0), ("end", tmp_path / "run")]


class Module(types.ModuleType):
    """Stands in for a tracking library: whatever is called is kept."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.summary: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> Module:
            self.calls.append((name, arguments, named))
            return self

        return call


@pytest.mark.parametrize(("package", "class_name"), [("mlflow", "ToMlflow"), ("wandb", "ToWandb")])
def test_the_documents_loggers_run(
    package: str, class_name: str, base: Path, shots: dict[str, list[Path]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (text for text in blocks if f"import {package}" in text)
    module, found = Module(package), dict[str, Any]()
    monkeypatch.setitem(sys.modules, package, module)
    exec(block, found)
    train(tiny_settings(base), shots, tmp_path / "run", callbacks=[found[class_name]()])
    names = [name for name, _, _ in module.calls]
    if package == "mlflow":
        assert names[:2] == ["start_run", "log_params"]
        assert module.calls[1][1][0]["steps"] == 3
        assert names.count("set_tag") == 2
        assert module.calls[-1] == ("end_run", ("FINISHED",), {})
    else:
        assert names[0] == "init"
        assert module.calls[0][2]["config"]["steps"] == 3
        assert module.summary == {"checkpoint": 3}
        assert module.calls[-1] == ("finish", (), {"exit_code": 0})
    logged = [call for call in module.calls if call[0] in ("log", "log_metrics")]
    assert [named["step"] for _, _, named in logged] == [1, 2, 3]
    assert logged[0][1][0].keys() == {"unet/loss", "unet/lr", "unet/grad_norm", "unet/seconds"}
    calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, (ast.Expr, ast.Assign))]
    assert len(calls) <= 5, "an adapter is short"
