"""Ray on one machine against one process: scores, speed, a killed worker, a resumed run; replicas under load.

    python -m benchmarks.serving.cluster photos BUNDLE --data DIR --workers 2 --out results.json
    python -m benchmarks.serving.cluster serve BUNDLE --data DIR --class NAME --out results.json

`photos` judges all test photos of DIR with a plain Detector of one thread, then with Ray actors of one thread each, the
way `sd-edge eval --ray` does. Rates are taken between the first and the last answer, so that starting Ray (told apart)
counts in neither; the plain rate is measured before and after, because other work on the machine comes and goes.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from anomalysd_edge.bundle.reader import MANIFEST
from anomalysd_edge.core.files import sha256_file
from anomalysd_edge.data.datasets import open_dataset
from anomalysd_edge.vision import images
from anomalysd_runtime.distributed.journal import Journal
from anomalysd_runtime.distributed.ray_inspect import PhotoTask, RaySettings, RayTask, run_groups
from anomalysd_runtime.loading import open_detector
from anomalysd_runtime.server.settings import EngineSettings
from benchmarks import harness

GROUP = 4
Note = Callable[[str, int, int, str], None]


def main() -> None:
    """Measure and write."""
    parser = harness.parser_of(__doc__, "bundle", "--data")
    parser.add_argument("what", choices=("photos", "serve", "journal"))
    parser.add_argument("--class", dest="class_name", help="serve: class of the photos that are sent")
    parser.add_argument("--most", type=int, default=1000, help="photos, at most")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--journal", type=Path, help="journal: its file")
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    if told.what == "journal":  # the process that `photos` kills
        groups = groups_of(told.data, told.most)
        with Journal(told.journal, {"benchmark": 1}) as journal:
            run_groups(task_of(told.bundle), groups, RaySettings(workers=told.workers), journal, shown)
        return
    measured = photos(told) if told.what == "photos" else serve(told)
    found = {
        "bundle": told.bundle.name,
        "machine": harness.processor(),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        **measured,
    }
    harness.tell(found, told.out)


def groups_of(data: Path, most: int) -> list[list[PhotoTask]]:
    """Groups within classes, as one machine makes them."""
    groups: list[list[PhotoTask]] = []
    number = 0
    for name, found in open_dataset(data).classes.items():
        for start in range(0, len(found.test), GROUP):
            part = found.test[start : start + GROUP][: most - number]
            groups.append([PhotoTask(number + i, str(sample.path), name) for i, sample in enumerate(part)])
            number += len(part)
    return [group for group in groups if group]


def task_of(bundle: Path) -> RayTask:
    """One thread a worker."""
    return RayTask(bundle.resolve(), sha256_file(bundle / MANIFEST), EngineSettings(threads=1, group=GROUP), False)


def shown(_phase: str, done: int, total: int, _detail: str) -> None:
    """What `resume` reads."""
    print(f"{done}/{total}", flush=True)


def photos(told: argparse.Namespace) -> dict[str, Any]:
    """Rates, equality, a killed actor, a killed run that goes on."""
    groups = groups_of(told.data, told.most)
    count = sum(map(len, groups))
    before, alone = plain(told.bundle, groups, 1)
    spread, scores = over_ray(told.bundle, groups, told.workers)
    after, again = plain(told.bundle, groups, 1)
    killed, with_kill = over_ray(told.bundle, groups, told.workers, kill_after=len(groups) // 3 * GROUP)
    resumed = resume(told, groups, alone)
    plain_rate = harness.joint_rate(before, after)
    return {
        "photos": count,
        "workers": told.workers,
        "plain_photos_per_s": [round(before, 3), round(after, 3)],
        "plain_twice_equal": alone == again,
        "ray": spread,
        "speed_up": round(spread["photos_per_s"] / plain_rate, 2),
        "bit_equal": sum(a == b for a, b in zip(alone, scores, strict=True)),
        "with_a_killed_worker": {**killed, "bit_equal": sum(a == b for a, b in zip(alone, with_kill, strict=True))},
        "resumed": resumed,
    }


def plain(bundle: Path, groups: Sequence[Sequence[PhotoTask]], threads: int) -> tuple[float, list[float | None]]:
    """Photos a second of one process, file to score, after the first group; the scores."""
    scores: list[float | None] = []
    with open_detector(bundle, threads=threads) as detector:
        began = 0.0
        for group in groups:
            read = [images.load_rgb(Path(photo.place)) for photo in group]
            scores += [answer.pred_score for answer in detector.inspect(read, group[0].class_name, full=False)]
            began = began or time.perf_counter()
        took = time.perf_counter() - began
    return (len(scores) - len(groups[0])) / took, scores


def over_ray(
    bundle: Path, groups: Sequence[Sequence[PhotoTask]], workers: int, kill_after: int | None = None
) -> tuple[dict[str, Any], list[float | None]]:
    """The same over Ray; after `kill_after` photos one actor gets SIGKILL."""
    told: list[tuple[float, int]] = []
    victims: list[int] = []

    def note(_phase: str, done: int, _total: int, _detail: str) -> None:
        told.append((time.perf_counter(), done))
        if kill_after is not None and done >= kill_after and not victims:
            victims.append(kill_below(psutil.Process(), "ray::MapWorker"))

    began = time.perf_counter()
    with Journal(None, {}) as journal:
        run_groups(task_of(bundle), groups, RaySettings(workers=workers), journal, note)
        kept = list(journal)
    (first, head), (last, total) = told[0], told[-1]
    scores = [None if each.answer is None else json.loads(each.answer)["pred_score"] for each in kept]
    return {
        "photos_per_s": round((total - head) / (last - first), 3),
        "first_answer_s": round(first - began, 1),
        "whole_s": round(time.perf_counter() - began, 1),
        "errors": sum(each.error is not None for each in kept),
        "killed_pid": victims,
    }, scores


def resume(
    told: argparse.Namespace, groups: Sequence[Sequence[PhotoTask]], alone: list[float | None]
) -> dict[str, Any]:
    """Kill the whole run at a third (SIGKILL), start it again with its journal."""
    total = sum(map(len, groups))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "journal.sqlite"
        command = [
            sys.executable, "-m", "benchmarks.serving.cluster", "journal", str(told.bundle), "--data", str(told.data),
            "--most", str(told.most), "--workers", str(told.workers), "--journal", str(file),
        ]  # fmt: skip
        killed_at = 0
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as first:
            assert first.stdout is not None
            for line in first.stdout:
                killed_at = int(line.split("/")[0])
                if killed_at >= total / 3:
                    first.send_signal(signal.SIGKILL)
                    break
        second = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        begun_with = int(second.stdout.split("/")[0])
        with Journal(file, {"benchmark": 1}) as journal:
            scores = [json.loads(kept.answer)["pred_score"] if kept.answer else None for kept in journal]
    return {
        "killed_after": killed_at,
        "first_count_of_the_second_run": begun_with,
        "bit_equal": sum(a == b for a, b in zip(alone, scores, strict=True)),
    }


def serve(told: argparse.Namespace) -> dict[str, Any]:
    """Closed loop on two replicas; after a third of the time one is killed."""
    chosen = open_dataset(told.data).classes[told.class_name].test[:8]
    data = [sample.path.read_bytes() for sample in chosen]
    with boxes(told.bundle, told.workers) as (port, parent):
        alone = [ask(port, told.class_name, each)[1]["pred_score"] for each in data]
        sent: list[tuple[float, int, bool]] = []
        began = time.perf_counter()
        until = began + told.seconds
        lock = threading.Lock()

        def client(number: int) -> None:
            while time.perf_counter() < until:
                at = time.perf_counter()
                photo = number % len(data)
                status, body = ask(port, told.class_name, data[photo])
                with lock:
                    sent.append((at, status, status == 200 and body["pred_score"] == alone[photo]))
                number += 1
                if status != 200:
                    time.sleep(0.2)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(told.clients)]
        for thread in threads:
            thread.start()
        time.sleep(told.seconds / 3)
        killed_s = time.perf_counter() - began
        pid = kill_below(parent, "ray::ServeReplica")
        for thread in threads:
            thread.join()
        replicas = len(named(parent, "ray::ServeReplica"))
    thirds = [0.0, killed_s, 2 * told.seconds / 3, 1e9]
    statuses = [
        dict(Counter(str(status) for at, status, _ in sent if low <= at - began < high))
        for low, high in pairwise(thirds)
    ]
    failed = [at - began for at, status, _ in sent if status != 200]
    return {
        "replicas": told.workers,
        "clients": told.clients,
        "requests": len(sent),
        "killed": {"pid": pid, "after_s": round(killed_s, 1)},
        "statuses_before_kill_then_by_third": statuses,
        "failed_requests_began_at_s": [round(at, 1) for at in failed],
        "equal_to_the_score_alone": f"{sum(same for _, _, same in sent)} of {sum(s == 200 for _, s, _ in sent)}",
        "replicas_at_the_end": replicas,
    }


@contextlib.contextmanager
def boxes(bundle: Path, replicas: int) -> Iterator[tuple[int, psutil.Process]]:
    """`sd-edge serve --ray local`, ready; its port and process."""
    port = 8799
    command = [
        sys.executable, "-m", "anomalysd_edge.cli", "serve", str(bundle), "--ray", "local", "--replicas", str(replicas),
        "--threads", "1", "--port", str(port),
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as heard, subprocess.Popen(command, stderr=heard) as process:
        try:
            for _ in range(600):
                time.sleep(0.5)
                heard.seek(0)
                if "ready: " in heard.read():
                    break
                if process.poll() is not None:
                    raise SystemExit("the boxes did not start")
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def named(parent: psutil.Process, name: str) -> list[psutil.Process]:
    found = []
    for process in parent.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if " ".join(process.cmdline()).startswith(name):
                found.append(process)
    return found


def kill_below(parent: psutil.Process, name: str) -> int:
    process = named(parent, name)[0]
    process.kill()
    return int(process.pid)


def ask(port: int, class_name: str, photo: bytes) -> tuple[int, Any]:
    """(status, body); status 0 where the connection broke."""
    try:
        status, body = harness.ask(port, "POST", f"/inspect?class={class_name}", photo, timeout_s=120)
    except (OSError, http.client.HTTPException):
        return 0, {}
    return status, json.loads(body) if status == 200 else {}


if __name__ == "__main__":
    main()
