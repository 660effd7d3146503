"""The help texts: whole in 80 columns, an example for each verb, old spellings hidden, nothing heavy imported."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from anomalysd_edge.cli.help_groups import GROUPS, MOST, OWN
from anomalysd_edge.cli.main import VERBS, app
from anomalysd_edge.cli.options import RENAMED, limit_bytes, listed, modern, numbers, size_bytes
from anomalysd_edge.errors import SettingsError
from tests.support.command import ROOT as REPOSITORY

ROOT: Any = typer.main.get_command(app)


def help_of(*verb: str) -> str:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*verb, "--help"])
    assert done.exit_code == 0, done.output
    return done.stdout


def spellings(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts}


def test_the_list_of_verbs_is_whole_in_80_columns() -> None:
    page = help_of()
    assert all(len(line) <= 80 for line in page.splitlines())
    assert "..." not in page.partition("Commands:")[2]
    for verb, (_, summary) in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(summary)}$", page, re.MULTILINE), verb


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example_that_its_options_allow(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("record.sqlite").touch()
    page = help_of(verb)
    assert all(len(line) <= 80 for line in page.splitlines())
    example = re.search(r"^  Example: (sd-edge .*)$", page, re.MULTILINE)
    assert example is not None
    command, words = ROOT, shlex.split(example[1])[1:]
    while words and hasattr(command, "list_commands"):
        command = command.get_command(None, words.pop(0))
    with command.make_context(verb, words, resilient_parsing=False) as context:
        assert {word for word in words if word.startswith("--")} <= spellings(command)
        assert context.params


@pytest.mark.parametrize("verb", VERBS)
def test_many_options_stand_under_several_headings(verb: str) -> None:
    command, page = ROOT.get_command(None, verb), help_of(verb)
    sections = re.split(r"^([A-Z][\w ]+):\n", page.partition("Example:")[2], flags=re.MULTILINE)[1:]
    names = dict(
        zip(sections[::2], (re.findall(r"^  (--[\w-]+)", s, re.MULTILINE) for s in sections[1::2]), strict=True)
    )
    options = [p for p in command.params if p.param_type_name == "option"]
    shown = [name for some in names.values() for name in some]
    assert sorted(shown) == sorted(["--help", *(p.opts[0] for p in options)]), "each stands there once"
    if len(shown) > MOST:
        assert len(names) > 2 if "Arguments" in names else len(names) > 1
        assert all(len(some) > 1 for heading, some in names.items() if heading not in ("Arguments", "Options"))
    else:
        assert set(names) <= {"Arguments", "Options", "Commands"}


def test_the_headings_name_options_that_there_are() -> None:
    there = {verb: {name.lstrip("-") for name in spellings(ROOT.get_command(None, verb))} for verb in VERBS}
    listed_names = [name for names in GROUPS.values() for name in names.split()]
    assert len(listed_names) == len(set(listed_names))
    assert set(listed_names) <= set().union(*there.values())
    for verb, headings in OWN.items():
        assert {name for names in headings.values() for name in names.split()} <= there[verb]


@pytest.mark.parametrize("group", ["history", "fleet"])
def test_verbs_of_a_group_fit_too(group: str) -> None:
    page = help_of(group)
    assert "..." not in page.partition("Commands:")[2]
    assert "--install-completion" not in page


@pytest.mark.parametrize(
    ("verb", "old", "new"), [(v, old, new) for v, names in RENAMED.items() for old, new in names.items()]
)
def test_spellings_of_0_1_0_still_work_and_no_help_shows_them(verb: str, old: str, new: str) -> None:
    command = ROOT.get_command(None, verb)
    assert new in spellings(command)
    assert old not in spellings(command)
    with command.make_context(verb, [old, "8"], resilient_parsing=True) as context:
        value = context.params[new.strip("-").replace("-", "_")]
    assert str(value) == ("8MiB" if old.endswith("-mb") else "8")


def test_only_options_are_renamed() -> None:
    renamed = {"--batch": "--batch-size", "--memory-mb": "--memory-budget"}
    assert modern(["RUN", "--batch", "4", "--lr", "1"], renamed) == ["RUN", "--batch-size=4", "--lr", "1"]
    assert modern(["--batch=4", "--memory-mb=500"], renamed) == ["--batch-size=4", "--memory-budget=500MiB"]
    assert modern(["--", "--batch", "4"], renamed) == ["--", "--batch", "4"]
    assert modern(["--batch"], renamed) == ["--batch-size"], "its missing value is the parser's to report"


@pytest.mark.parametrize(("text", "expected"), [("6GiB", 6 * 2**30), ("800MB", 800 * 10**6), ("5", 5), (None, None)])
def test_sizes(text: str | None, expected: int | None) -> None:
    assert size_bytes(text, "--memory-budget") == expected


def test_sizes_and_numbers_that_are_none() -> None:
    assert [limit_bytes(text, "--max-record-size") for text in ("0", "0MiB", "2KiB")] == [0, 0, 2048]
    for wrong in ("lots", "0", "-1"):
        with pytest.raises(SettingsError, match=f"--memory-budget is '{wrong}'"):
            size_bytes(wrong, "--memory-budget")
    with pytest.raises(SettingsError, match="--max-record-size is '-5MiB'"):
        limit_bytes("-5MiB", "--max-record-size")
    assert listed(" a, b,") == ("a", "b")
    assert numbers("1, 4", "--shots") == (1, 4)
    for wrong in ("1,x", "", "0"):
        with pytest.raises(SettingsError, match="--batches is"):
            numbers(wrong, "--batches", 1)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["inspect", "--help"], ["train", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['sd-edge', *{arguments}]\n"
        "from anomalysd_edge.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'PIL', 'rich.progress', 'onnxruntime', 'torch', 'anomalysd_edge.workflows'}\n"
        "print('loaded:', sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_completion_offers_the_verbs() -> None:
    environment = {"_SD_EDGE_COMPLETE": "complete_bash", "COMP_WORDS": "sd-edge ca", "COMP_CWORD": "1"}
    done = CliRunner(env=environment).invoke(app, [], prog_name="sd-edge")
    assert done.stdout.split() == ["calibrate"]


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    command = f"{sys.executable} -m anomalysd_edge.cli --help | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode in (0, 141), "141 is a program that SIGPIPE ended; a short help may be written before that"
    assert done.stderr == ""


@pytest.mark.slow
def test_a_locale_without_letters_is_no_error() -> None:
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii",
        "PYTHONCOERCECLOCALE": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "anomalysd_edge.cli", "inspect", "n\xf6.png", "x.png"],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("sd-edge: ")
    assert "Traceback" not in done.stderr
