"""The command in a process of its own, and the tutorial's commands, which tests run as a reader would type them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from anomalysd_edge.cli import main

ROOT = Path(__file__).parents[2]
"""Of the repository."""


@dataclass(frozen=True)
class Chain:
    """A folder in which the tutorial's commands were run."""

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


def verbs() -> set[str]:
    """Those that the command has."""
    group = typer.main.get_group(main.app)
    return set(group.list_commands(group.context_class(group)))


def tutorial_blocks(language: str) -> list[str]:
    """The tutorial's code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(encoding="utf-8"), re.DOTALL)


def tutorial_commands() -> list[list[str]]:
    """The `sd-edge` lines of the tutorial's shell blocks, in order."""
    lines = [line for block in tutorial_blocks("shell") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("sd-edge ")]
