"""What the README tells a reader to type, typed."""

from __future__ import annotations

import json
import subprocess
import sys

from anomalysd_edge.cli import main
from tests.conftest import ROOT, VERBS, Chain, readme_blocks, readme_commands

LEAN = """
import sys
for heavy in ("torch", "diffusers", "transformers", "onnx"):
    sys.modules[heavy] = None
"""


def test_the_commands_do_what_they_say(chain: Chain) -> None:
    assert [verb for _, verb, *_ in readme_commands()] == ["train", "export", "verify", "calibrate", "inspect"]
    assert (chain.folder / "RUN/run.json").is_file()
    assert (chain.bundle / "manifest.json").is_file()
    assert "verified" in chain.outputs["verify"].stderr
    result = json.loads((chain.folder / "RESULTS/new/result.json").read_text())
    assert result["class"] == "bracket"
    assert {f.name for f in (chain.folder / "RESULTS/new").iterdir()} >= {"overlay.png", "repaint.png", "evidence.png"}


def test_the_class_file_reaches_the_prompts(chain: Chain) -> None:
    manifest = json.loads((chain.bundle / "manifest.json").read_text())
    prompts = manifest["classes"]["bracket"]["prompts"]
    assert prompts["whole"] == "A perfect steel bracket."
    assert prompts["detail"] == "A steel bracket with intact holes and edges."


def test_the_python_block_runs_without_torch(chain: Chain) -> None:
    (block,) = readme_blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", LEAN + block], cwd=chain.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    score, threshold, label, kind = done.stdout.split()
    assert float(score) >= float(threshold) if int(label) else float(score) < float(threshold)
    assert kind in ("grid", "guided")


def test_make_has_the_two_commands_and_ci_calls_exactly_these() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "\ndemo:" in makefile
    assert "\ntest:" in makefile
    lines = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make ")]
    assert lines == ["make demo", "make test"]


def test_every_verb_of_the_changelog_exists() -> None:
    verbs = {info.name or (info.callback.__name__ if info.callback else "") for info in main.app.registered_commands}
    verbs |= {group.name or "" for group in main.app.registered_groups}
    assert verbs == VERBS
