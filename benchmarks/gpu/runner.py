"""Runs subcommands one after another, each in a process of its own that is killed at its time limit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from anomalysd_edge.core.files import read_json, write_json
from anomalysd_edge.profiling.hardware import machine_facts, package_versions
from benchmarks.gpu.claims import REHEARSAL, Kit, Lines, Part, read_lines, reason
from benchmarks.gpu.needs import first_missing

PACKAGES = (
    "torch", "diffusers", "transformers", "peft", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt-rtx-cu13",
    "tensorrt", "polygraphy", "cuda-bindings", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "numpy",
)  # fmt: skip
HOLDS, FAILS, NOT_SHOWN = 0, 1, 3
"""Exit codes: every claim holds; one does not; none fails, but some were not shown. 2 is a wrong call."""


def in_this_process(part: Part, kit: Kit, file: Path | None) -> Lines:
    """Measure a part's claims here, or say of each why not."""
    lines = Lines(part.claims, file, kit.rehearsal)
    why = first_missing(kit, part.needs)
    if why is None:
        kit.work.mkdir(parents=True, exist_ok=True)
        why = "the subcommand ended without measuring it"
        try:
            part.run(kit, lines)
        except Exception as error:
            traceback.print_exc()
            why = reason(error)
    lines.not_shown_rest(why)
    return lines


def in_own_process(part: Part, kit: Kit, limit_s: float) -> dict[str, Any]:
    """Run a part in a process group of its own; how it ended, its seconds, and a line for every claim.

    At the limit the whole group is killed: boxes and workers that it started end with it. What it printed beside its
    lines lies in WORK/NAME.log.
    """
    kit.work.mkdir(parents=True, exist_ok=True)
    file, log = kit.work / f"{part.name}.jsonl", kit.work / f"{part.name}.log"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", part.name, "--here", "--work", str(kit.work)]
    began = time.monotonic()
    with log.open("wb") as words:
        process = subprocess.Popen([*command, "--device", kit.device], stderr=words, start_new_session=True)
        try:
            code = process.wait(limit_s)
            ended = "done" if code in (HOLDS, FAILS, NOT_SHOWN) else f"ended with exit code {code}: {_last_words(log)}"
        except subprocess.TimeoutExpired:
            ended = f"the time limit of {limit_s:g} s was reached"
        finally:
            _end_group(process)
    lines = Lines(part.claims, None, kit.rehearsal, read_lines(file))
    lines.not_shown_rest(ended)
    found = [lines.written[claim.name] for claim in part.claims]
    return {"ended": ended, "seconds": round(time.monotonic() - began, 1), "limit_s": limit_s, "lines": found}


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # all of it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_words(log: Path) -> str:
    words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return words[-1] if words else "it said nothing"


def results_of(kit: Kit, commit: str) -> dict[str, Any]:
    """What a results file says of the machine, without any part's lines."""
    # In a process of its own: to see whether CUDA works, doctor opens a context, which would stay all the while.
    told = (
        "import json; from anomalysd_edge.workflows.doctor import examine;"
        "print(json.dumps({found.what: [found.able, found.because] for found in examine()}))"
    )
    done = subprocess.run([sys.executable, "-c", told], check=True, stdout=subprocess.PIPE, text=True)
    says, facts = json.loads(done.stdout.splitlines()[-1]), machine_facts()
    return {
        "what": "claims about the GPU side, measured by python -m benchmarks.gpu",
        "rehearsal": REHEARSAL if kit.rehearsal else None,
        "device": says["NVIDIA GPU"][1] if says["NVIDIA GPU"][0] else None,
        "driver": facts.get("gpu", {}).get("driver_version") or _driver(),
        "versions": package_versions(PACKAGES),
        "commit": commit,
        "machine": {**facts, "doctor": {what: because for what, (_, because) in says.items()}},
        "parts": {},
    }


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return "none"
    found = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", text)
    return found.group(0) if found else text.splitlines()[0]


def commit_here() -> str:
    """The commit of this checkout, and whether files differ from it; 'unknown' where there is no git or no checkout."""

    def git(*arguments: str) -> str:
        where = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=where, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def file_of(out: Path, results: Mapping[str, Any]) -> Path:
    """Where results of this device go: gpu-NAME.json in the folder `out`; gpu-none.json where there is no GPU."""
    if results["rehearsal"]:
        return out / "gpu-rehearsal.json"
    name = (results["device"] or "none").split(",")[0]
    return out / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"


def keep(out: Path, results: dict[str, Any]) -> Path:
    """Write the results. Parts that were measured before on the same device, driver, versions and commit stay."""
    file = file_of(out, results)
    if file.is_file():
        earlier = read_json(file)
        if all(earlier.get(key) == results[key] for key in ("device", "driver", "versions", "commit")):
            results = {**results, "parts": {**earlier["parts"], **results["parts"]}}
    lines = [line for part in results["parts"].values() for line in part["lines"]]
    write_json(file, {**results, "summary": summary(lines)})
    return file


def summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many claims hold, do not, and were not shown."""
    return {
        "hold": sum(line["holds"] is True for line in lines),
        "fail": sum(line["holds"] is False for line in lines),
        "not_shown": sum(line["holds"] is None for line in lines),
    }


def exit_code(lines: Sequence[Mapping[str, Any]]) -> int:
    """HOLDS, FAILS or NOT_SHOWN."""
    found = summary(lines)
    return FAILS if found["fail"] else NOT_SHOWN if found["not_shown"] else HOLDS
