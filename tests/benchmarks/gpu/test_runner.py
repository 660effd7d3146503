"""The kit's frame: what it promises, what a skip counts as, time limits that stop, results files, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from anomalysd_edge.core.files import read_json
from benchmarks.gpu import __main__ as kit_main
from benchmarks.gpu import runner
from benchmarks.gpu.claims import Claim, Kit, Lines, Part, read_lines
from tests.support.benchmarks import RunBenchmark
from tests.support.command import ROOT

PARTS = kit_main.PARTS
CLAIMS = (Claim("try.one", "one is one", "1"), Claim("try.two", "two is two", "2"))
SUBCOMMANDS = {
    "facts", "ceiling", "primitives", "prepare", "parity", "engines", "naive", "bench", "large", "train", "soak",
}  # fmt: skip


def part(run: Callable[[Kit, Lines], None], needs: tuple[str, ...] = (), name: str = "try") -> Part:
    return Part(name, "a trial", 5, needs, CLAIMS, run)


def users_of(work: Path) -> list[int]:
    """Processes that were started with this folder."""
    found = psutil.process_iter(["pid", "cmdline"])
    return [process.info["pid"] for process in found if str(work) in (process.info["cmdline"] or [])]


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    return Kit("cpu", tmp_path / "work")


def test_the_subcommands_are_there_and_fit_twenty_five_minutes() -> None:
    assert {each.name for each in PARTS} == SUBCOMMANDS
    assert sum(each.limit_s for each in PARTS) <= 25 * 60
    names = [claim.name for each in PARTS for claim in each.claims]
    assert len(set(names)) == len(names)
    assert all(claim.name.startswith(f"{each.name}.") for each in PARTS for claim in each.claims)


def test_a_dry_run_lists_every_claim_without_torch() -> None:
    program = (
        "import runpy, sys; sys.modules.update(torch=None, onnxruntime=None, diffusers=None, tensorrt_rtx=None);"
        "sys.argv = ['gpu', 'all', '--dry-run']; runpy.run_module('benchmarks.gpu', run_name='__main__')"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "export"), str(ROOT / "runtime")])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    for each in PARTS:
        assert f"{each.name}: {each.says}; at most {each.limit_s} s" in done.stdout
        for claim in each.claims:
            assert f"{claim.name}: {claim.says}; expected: {claim.expected}" in done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith(f"{len(PARTS)} subcommands, {sum(len(each.claims) for each in PARTS)} claims, at most 2")


def test_a_skip_counts_as_not_shown_and_says_why(kit: Kit) -> None:
    def never(_kit: Kit, _lines: Lines) -> None:
        raise AssertionError("it was run without what it needs")

    lines = list(runner.in_this_process(part(never, ("tensorrt-rtx",)), kit, None).written.values())
    assert [line["holds"] for line in lines] == [None, None]
    assert all(line["because"] == "engines run on a GPU alone" for line in lines)
    assert runner.summary(lines) == {"hold": 0, "fail": 0, "not_shown": 2}
    assert runner.exit_code(lines) == runner.NOT_SHOWN


def test_an_error_is_no_proof_and_costs_no_other_claim(kit: Kit) -> None:
    def half(_kit: Kit, lines: Lines) -> None:
        with lines.showing("try.one"):
            raise ValueError("a fault\nof two lines")
        lines.shown("try.two", 2, True)

    written = runner.in_this_process(part(half), kit, None).written
    assert written["try.one"]["holds"] is None
    assert written["try.one"]["because"] == "ValueError: a fault"
    assert written["try.two"]["holds"] is True

    def whole(_kit: Kit, lines: Lines) -> None:
        lines.shown("try.two", 3, False)
        raise ValueError("after the second")

    written = runner.in_this_process(part(whole), kit, None).written
    assert written["try.one"]["because"] == "ValueError: after the second"
    assert runner.exit_code(list(written.values())) == runner.FAILS


def test_what_only_a_gpu_shows_is_not_shown_by_a_rehearsal(kit: Kit) -> None:
    claims = (Claim("try.one", "it is fast", "1", gpu_only=True), CLAIMS[1])
    lines = Lines(claims, rehearsal=True)
    lines.shown("try.one", 1, True)
    lines.shown("try.two", 2, True)
    assert [line["holds"] for line in lines.written.values()] == [None, True]


@pytest.mark.parametrize(
    ("holds", "code"), [((True, True), 0), ((True, False), 1), ((None, False), 1), ((None, True), 3)]
)
def test_exit_codes(
    holds: tuple[bool | None, ...], code: int, run_benchmark: RunBenchmark, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def run(_kit: Kit, lines: Lines) -> None:
        for claim, each in zip(CLAIMS, holds, strict=True):
            if each is None:
                lines.not_shown(claim.name, "no such thing here")
            else:
                lines.shown(claim.name, 1, each)

    monkeypatch.setattr(kit_main, "PARTS", (part(run),))
    with pytest.raises(SystemExit) as ended:
        run_benchmark(kit_main, "all", "--here", "--device", "cpu", "--work", tmp_path)
    assert ended.value.code == code
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["holds"] for line in printed] == list(holds)
    assert {"claim", "says", "expected", "measured", "holds"} <= set(printed[0])
    assert list(read_lines(tmp_path / "try.jsonl").values()) == printed


def test_a_wrong_call_has_code_2(run_benchmark: RunBenchmark) -> None:
    with pytest.raises(SystemExit) as ended:
        run_benchmark(kit_main, "everything")
    assert ended.value.code == 2


@pytest.mark.slow
def test_a_time_limit_stops_the_subcommand_and_what_it_started(kit: Kit) -> None:
    known = {each.name: each for each in PARTS}
    began = time.monotonic()
    found = runner.in_own_process(known["primitives"], kit, 6.0)
    assert time.monotonic() - began < 30
    assert found["ended"] == "the time limit of 6 s was reached"
    lines = {line["claim"]: line for line in found["lines"]}
    assert set(lines) == {claim.name for claim in known["primitives"].claims}
    assert lines["primitives.memory"]["holds"] is None
    assert lines["primitives.memory"]["because"] == "the time limit of 6 s was reached"
    assert not users_of(kit.work), "a process outlived its limit"


def test_a_process_that_dies_leaves_what_it_told(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code and last words are why the rest is not shown."""
    line = json.dumps({"claim": "try.one", "says": "one is one", "expected": "1", "measured": 1, "holds": True})
    script = kit.work / "dies.py"
    kit.work.mkdir(parents=True)
    told, cut = kit.work / "try.jsonl", '{"claim": "try.tw'
    script.write_text(
        f"import os, sys\nopen({str(told)!r}, 'w').write({line!r} + '\\n' + {cut!r})\n"
        "print('a last word', file=sys.stderr, flush=True)\nos._exit(9)\n"
    )
    real = subprocess.Popen

    def popen(command: list[str], **named: Any) -> Any:
        return real([sys.executable, str(script)], **named)

    monkeypatch.setattr(subprocess, "Popen", popen)
    found = runner.in_own_process(part(lambda _kit, _lines: None), kit, 60)
    assert found["ended"] == "ended with exit code 9: a last word"
    assert [entry["holds"] for entry in found["lines"]] == [True, None]
    assert found["lines"][1]["because"] == found["ended"]


def test_a_results_file_says_on_what_it_was_measured(kit: Kit, tmp_path: Path) -> None:
    results = runner.results_of(kit, "abc123")
    assert {"device", "driver", "versions", "commit", "machine"} <= set(results)
    assert results["commit"] == "abc123"
    assert results["versions"]["torch"]
    line = {"claim": "try.one", "says": "", "expected": "1", "measured": 1, "holds": True}
    first = {**results, "parts": {"facts": {"ended": "done", "lines": [line]}}}
    second = {**results, "parts": {"soak": {"ended": "done", "lines": [{**line, "holds": False}]}}}
    runner.keep(tmp_path, first)
    file = runner.keep(tmp_path, second)
    assert file == tmp_path / "gpu-rehearsal.json"
    assert set(read_json(file)["parts"]) == {"facts", "soak"}
    assert read_json(file)["summary"] == {"hold": 1, "fail": 1, "not_shown": 0}
    runner.keep(tmp_path, {**second, "commit": "def456"})
    assert set(read_json(file)["parts"]) == {"soak"}, "figures of two commits in one file"


def test_a_device_names_its_file(tmp_path: Path) -> None:
    device = "NVIDIA GeForce RTX 4090, sm89, CUDA 13.1"
    assert runner.file_of(tmp_path, {"rehearsal": None, "device": device}).name == "gpu-nvidia-geforce-rtx-4090.json"


def test_the_commit_is_this_checkouts() -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("no git checkout here")
    assert runner.commit_here().split()[0] == head.stdout.strip()


@pytest.mark.slow
def test_a_kit_that_is_ended_ends_what_it_started(kit: Kit, tmp_path: Path) -> None:
    """By two signals, as `timeout` and a shell send them."""
    command = [sys.executable, "-m", "benchmarks.gpu", "primitives", "--device", "cpu", "--work", str(kit.work)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "export"), str(ROOT / "runtime")])
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while not (kit.work / "primitives.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert users_of(kit.work), "the subcommand was not started"
    process.terminate()
    process.terminate()
    assert process.wait(30) == 128 + 15
    assert not users_of(kit.work)


def test_without_a_gpu_nothing_goes_among_the_results(kit: Kit, tmp_path: Path) -> None:
    results = {**runner.results_of(kit, "abc"), "rehearsal": None}
    if results["device"] is not None:
        pytest.skip("this machine has a GPU")
    assert runner.file_of(tmp_path, results) == tmp_path / "gpu-none.json"
