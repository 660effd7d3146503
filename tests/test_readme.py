"""What README and tutorial tell a reader to type, typed."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.support.command import ROOT, Chain, tutorial_blocks, tutorial_commands, verbs

LEAN = """
import sys
for heavy in ("torch", "diffusers", "transformers", "onnx"):
    sys.modules[heavy] = None
"""


@pytest.mark.slow
def test_the_commands_do_what_they_say(chain: Chain) -> None:
    assert [verb for _, verb, *_ in tutorial_commands()] == ["train", "export", "verify", "calibrate", "inspect"]
    assert (chain.folder / "RUN/run.json").is_file()
    assert (chain.bundle / "manifest.json").is_file()
    assert "verified" in chain.outputs["verify"].stderr
    result = json.loads((chain.folder / "RESULTS/new/result.json").read_text())
    assert result["class"] == "bracket"
    assert {f.name for f in (chain.folder / "RESULTS/new").iterdir()} >= {"overlay.png", "repaint.png", "evidence.png"}


@pytest.mark.slow
def test_the_class_file_reaches_the_prompts(chain: Chain) -> None:
    manifest = json.loads((chain.bundle / "manifest.json").read_text())
    prompts = manifest["classes"]["bracket"]["prompts"]
    assert prompts["whole"] == "A perfect steel bracket."
    assert prompts["detail"] == "A steel bracket with intact holes and edges."


@pytest.mark.slow
def test_the_python_block_runs_without_torch(chain: Chain) -> None:
    (block,) = tutorial_blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", LEAN + block], cwd=chain.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    score, threshold, verdict, probability, kind = done.stdout.split()
    sure = {"good": float(score) < float(threshold), "anomalous": float(score) >= float(threshold)}
    assert sure.get(verdict, verdict == "uncertain")
    assert 0 <= float(probability) <= 1
    assert kind in ("grid", "guided", "prototypes")


def test_make_has_the_two_commands_and_ci_calls_exactly_these() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "\ndemo:" in makefile
    assert "\ntest:" in makefile
    lines = [line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("make ")]
    assert lines == ["make demo", "make test"]
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^(make \w+)  +#", page, re.MULTILINE) == lines, "the README's two commands"


def test_the_readme_is_one_screen() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60, "what is more belongs into docs/, with a link"
    assert max(map(len, lines)) <= 240


def test_the_changelog_and_the_command_have_the_same_verbs() -> None:
    spans = re.findall(r"`([^`]+)`", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    named = {words[1] for words in map(str.split, spans) if words[0] == "sd-edge" and words[1:] and words[1][0] != "-"}
    assert named, "the changelog names verbs as `sd-edge VERB`"
    assert named <= verbs()
    # A list of verbs names the program once: "`sd-edge train`, `export`, ...".
    assert verbs() - named - {span.split()[0] for span in spans} == set()
