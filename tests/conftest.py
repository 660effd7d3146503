"""The chain of README.md, run once a session on a small data set: what command-line tests start from."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from anomalysd_edge.demo.dataset import render_part
from anomalysd_edge.vision import images

ROOT = Path(__file__).parents[1]
VERBS = {
    "train",
    "export",
    "verify",
    "calibrate",
    "build",
    "sign",
    "inspect",
    "eval",
    "demo",
    "doctor",
    "bench",
    "serve",
    "watch",
    "history",
    "distill",
    "add-class",
    "push",
    "pull",
    "rollback",
    "fleet",
    "plan-capacity",
    "protocol",
}
"""Of the command."""


@dataclass(frozen=True)
class Chain:
    """A folder in which README's commands were run."""

    folder: Path
    outputs: dict[str, subprocess.CompletedProcess[str]]
    """By verb."""

    @property
    def bundle(self) -> Path:
        return self.folder / "BUNDLE"

    @property
    def photos(self) -> Path:
        return self.folder / "PHOTOS"


def sd_edge(*arguments: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own; `check` asserts exit code 0."""
    command = [sys.executable, "-m", "anomalysd_edge.cli", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def readme_blocks(language: str) -> list[str]:
    """The README's code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def readme_commands() -> list[list[str]]:
    """The `sd-edge` lines of the README, in order, without the demo."""
    lines = [line for block in readme_blocks("console") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("sd-edge ")]


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A data set of one class, "bracket", and README's own commands run on it with a few training steps."""
    folder = tmp_path_factory.mktemp("chain")
    for number in range(4):
        part = render_part("demo_washer", (1, number), 128)
        images.save_png(folder / "PHOTOS/bracket/train/good" / f"{number}.png", part.photo())
    for number in range(3):
        good = render_part("demo_washer", (2, number), 128)
        bad = render_part("demo_washer", (3, number), 128, "colour")
        images.save_png(folder / "PHOTOS/bracket/test/good" / f"{number}.png", good.photo())
        images.save_png(folder / "PHOTOS/bracket/test/colour" / f"{number}.png", bad.photo())
        images.save_png(folder / "PHOTOS/bracket/ground_truth/colour" / f"{number}_mask.png", bad.mask)
    shutil.copy(folder / "PHOTOS/bracket/test/colour/0.png", folder / "new.png")
    (folder / "classes.toml").write_text(readme_blocks("toml")[0], encoding="utf-8")
    few = {
        "train": ["--steps", "2", "--decoder-steps", "1", "--class-file", "classes.toml"],
        "verify": ["--limit", "4"],
        "calibrate": ["--synthetic", "0"],
    }
    outputs = {}
    for _, verb, *rest in readme_commands():
        outputs[verb] = sd_edge(verb, *rest, *few.get(verb, []), cwd=folder)
    return Chain(folder, outputs)
