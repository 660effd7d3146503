"""What the benchmarks share: options, facts of the machine, timing, a box to send photos to, results files."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from anomalysd_edge.core.files import read_json, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.data.datasets import ClassData, Dataset
from anomalysd_edge.errors import SettingsError
from anomalysd_edge.evaluation import aggregate
from anomalysd_edge.evaluation.evaluate import ClassResult, result_of
from anomalysd_edge.workflows.doctor import examine

P = ParamSpec("P")
T = TypeVar("T")

OPTIONS: Mapping[str, dict[str, Any]] = {
    "bundle": {"type": Path, "help": "bundle folder"},
    "--bundle": {"type": Path, "required": True, "help": "bundle folder"},
    "--data": {"type": Path, "required": True, "help": "labelled photos, as for sd-edge eval"},
    "--photos": {"type": Path, "required": True, "help": "the run it came from, or a data set: the shots"},
    "--class": {"dest": "class_name", "required": True, "help": "class of the photos"},
    "--class-file": {"type": Path, "default": None, "help": "TOML with nouns, parts, kinds and symmetries"},
    "--classes": {"default": None, "help": "some of them, by commas"},
    "--steps": {"type": int, "default": None, "help": "UNet steps; the base's default if left out"},
    "--tests": {"type": int, "default": 24, "help": "test photos a class, half of them good"},
    "--threads": {"type": int, "default": 2, "help": "CPU threads"},
    "--out": {"type": Path, "required": True, "help": "results: a JSON file, or the folder that holds it"},
}
"""Options of more than one benchmark, by name: arguments of `add_argument`."""


def parser_of(description: str | None, *names: str) -> argparse.ArgumentParser:
    """A parser whose help is the module's text, with the OPTIONS of these names."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in names:
        parser.add_argument(name, **OPTIONS[name])
    return parser


def numbers(words: str) -> list[int]:
    """Integers by commas."""
    return [int(word) for word in words.split(",")]


def facts(asked: argparse.Namespace) -> dict[str, Any]:
    """Machine, versions and settings for a results file.

    Of a path its name alone: where the data lay on one machine says nothing to another.
    """
    settings = {name: value.name if isinstance(value, Path) else str(value) for name, value in vars(asked).items()}
    return {"machine": machine(), "settings": settings}


def machine() -> dict[str, str]:
    """What `sd-edge doctor` finds."""
    return {finding.what: finding.because for finding in examine()}


def processor() -> str:
    """Architecture and cores that this process may use."""
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def tell(found: Mapping[str, Any], out: Path | None) -> None:
    """Print the results and, with `out`, write them."""
    print(json.dumps(found, indent=2))
    if out:
        write_json(out, found)


def labelled(progress: Progress, label: str) -> Progress:
    """`progress` with `label` before every phase."""
    return lambda phase, done, total, detail: progress(f"{label} {phase}", done, total, detail)


def kept_results(file: Path, key: Any) -> list[ClassResult] | None:
    """Results per class that `keep_results` wrote to `file` under the same `key`, if it did."""
    if file.is_file() and (stored := read_json(file))["key"] == key:
        return [result_of(result) for result in stored["results"]]
    return None


def keep_results(file: Path, key: Any, results: list[ClassResult]) -> list[ClassResult]:
    """Write `results` under `key`, which is JSON; returns them."""
    write_json(file, {"key": key, "results": results})
    return results


def auroc_pair(seeds: list[list[ClassResult]], class_name: str, kind: str) -> str:
    """Image / pixel AUROC of one class and map, in percent, over seeds."""
    figures = (aggregate.figure(seeds, class_name, kind, what) for what in ("image_auroc", "pixel_auroc"))
    return " / ".join(map(str, figures))


def timed(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> tuple[T, float, float]:
    """What `work` gives, its seconds on the wall, and those of the processor: a busy machine changes these less."""
    began, cpu = time.perf_counter(), time.process_time()
    found = work(*arguments, **named)
    return found, time.perf_counter() - began, time.process_time() - cpu


def joint_rate(before: float, after: float) -> float:
    """Rate over two measurements of the same work, one before and one after what is compared with it."""
    return 2 / (1 / before + 1 / after)


def last_json(module: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark in a process of its own; the JSON of the last line that it prints."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ask(port: int, method: str, path: str, body: bytes | None = None, timeout_s: float = 600) -> tuple[int, bytes]:
    """Status and body of one request to 127.0.0.1, on a connection of its own. Raises OSError, HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(method, path, body, {"Content-Type": "image/png"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@contextmanager
def serving(bundle: Path, *options: str, start_s: float = 300) -> Iterator[int]:
    """`sd-edge serve` in a process of its own, on a free port, ready for photos."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "anomalysd_edge.cli", "serve", str(bundle), "--port", str(port)]
    command += ["--deadline-ms", "600000", *options]
    process = subprocess.Popen(command, env={**os.environ, "SD_EDGE_LOG": "WARNING"})
    try:
        until = time.monotonic() + start_s
        while not _ready(port):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"sd-edge serve {bundle} was not ready within {start_s:g} s")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(120)


def _ready(port: int) -> bool:
    try:
        return ask(port, "GET", "/v2/health/ready")[0] == 200
    except OSError:
        return False


def few_tests(data: Dataset, count: int, seed: int = 0) -> Dataset:
    """At most `count` test photos of each class, half of them good where there are so many, by a seeded permutation.

    A smaller choice lies within a larger one of the same seed. Raises SettingsError for count < 2.
    """
    if count < 2:
        raise SettingsError(f"asked for {count} test photos a class; expected at least 2, a good and a bad one")
    classes = {}
    for name, part in data.classes.items():
        good = [s for s in part.test if not s.label]
        bad = [s for s in part.test if s.label]
        wanted_good = min(len(good), max(count // 2, count - len(bad)))
        chosen = []
        for pool, wanted in ((good, wanted_good), (bad, count - wanted_good)):
            order = np.random.default_rng(seed).permutation(len(pool))[:wanted]
            chosen += [pool[i] for i in sorted(order)]
        classes[name] = ClassData(name, part.train, tuple(chosen))
    return Dataset(data.root, data.layout, classes)
