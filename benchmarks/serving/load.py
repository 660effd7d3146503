"""Load on `sd-edge serve`: photos/s and latencies, closed and open loop, beside the plain Detector in the same minutes.

    python -m benchmarks.serving.load BUNDLE --photos DIR --class NAME --out results.json

Closed loop: each client sends its next photo when it has the verdict of the last. The plain Detector is measured
before and after each level on the same photos, from file to verdict, in groups of the same size and on all cores:
other work on the machine then disturbs both. Open loop: photos are sent at fixed times, whatever comes back. With
--deadlines also at seven tenths of the rate of whole plans, each photo asked for in full by a deadline.
All addresses are 127.0.0.1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.method.detector import Detector
from anomalysd_edge.vision import images
from anomalysd_runtime.loading import open_detector
from benchmarks import harness

SHORT_QUEUE = 16
"""Of the box that the open loop asks: past saturation it fills while somebody waits for the figures."""
LUA = Path(__file__).with_name("load.lua")


@dataclass(frozen=True)
class Sent:
    """One request."""

    photo: int
    status: int
    seconds: float
    score: float | None
    group: int | None
    mode: str = ""


def main() -> None:
    """Measure and write."""
    parser = harness.parser_of(__doc__, "bundle", "--class")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos, searched to its depth")
    parser.add_argument("--clients", default="1,4,16,64")
    parser.add_argument("--rates", default="0.5,0.8,2.0", help="open loop, in units of the plain Detector's rate")
    parser.add_argument("--deadlines", default="", help="milliseconds, by commas")
    parser.add_argument("--requests", type=int, default=32, help="photos of a level, at least; one a client")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--note", default="", help="a sentence about the machine for the results")
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    photos = sorted(p for p in told.photos.rglob("*") if p.suffix.lower() in images.IMAGE_SUFFIXES)[:8]
    data = [photo.read_bytes() for photo in photos]
    with tempfile.TemporaryDirectory() as folder, open_detector(told.bundle, backend=told.backend) as detector:

        def measured(count: int, group: int = detector.group, full: bool = False) -> float:
            return plain(detector, (photos * 9)[:count], told.class_name, group, full)

        with serving(told.bundle, told.backend, Path(folder)) as port:
            alone = [post(port, told.class_name, n, each) for n, each in enumerate(data)]
            scores = [each.score for each in alone]
            measured(4)
            levels = [
                closed(port, told.class_name, data, int(clients), told.requests, measured, scores)
                for clients in told.clients.split(",")
            ]
        base = measured(8)
        with serving(told.bundle, told.backend, Path(folder), queue=SHORT_QUEUE) as port:
            opened = [
                open_loop(port, told.class_name, data, float(rate), base, told.requests, scores)
                for rate in told.rates.split(",")
            ]
            timely = [
                by_deadline(port, told.class_name, data, float(ms), measured(8, 1, True), told.requests)
                for ms in told.deadlines.split(",")
                if ms
            ]
            wrk = cross_check(port, photos[0], told.class_name)
            metrics = harness.ask(port, "GET", "/metrics")[1].decode()
        found = {
            "bundle": told.bundle.name,
            "backend": detector.networks.backend,
            "machine": harness.processor(),
            "note": told.note,
            "closed": levels,
            "open": opened,
            "deadlines": timely,
            "wrk_16_clients": wrk,
            "worker_restarts": figure(metrics, "sd_edge_worker_restarts"),
        }
    harness.tell(found, told.out)


def plain(detector: Detector, files: list[Path], class_name: str, group: int, full: bool) -> float:
    """Photos a second of the Detector alone, from file to verdict, in groups, as the box judges them or in full."""
    began = time.perf_counter()
    for start in range(0, len(files), group):
        detector.inspect([images.load_rgb(file) for file in files[start : start + group]], class_name, full=full)
    return len(files) / (time.perf_counter() - began)


def serving(bundle: Path, backend: str, folder: Path, queue: int = 64) -> AbstractContextManager[int]:
    """The box, with a record on the disk; its port."""
    record = str(folder / "record.sqlite")
    return harness.serving(bundle, "--backend", backend, "--record", record, "--queue", str(queue))


def post(port: int, class_name: str, number: int, photo: bytes, query: str = "") -> Sent:
    """A photo, timed."""
    path = f"/inspect?class={class_name}{query}"
    (status, body), seconds, _ = harness.timed(harness.ask, port, "POST", path, photo)
    told: dict[str, Any] = json.loads(body) if status == 200 else {}
    return Sent(number, status, seconds, told.get("pred_score"), told.get("group"), told.get("mode", ""))


def closed(
    port: int,
    name: str,
    data: list[bytes],
    clients: int,
    least: int,
    measured: Callable[..., float],
    scores: list[Any],
) -> dict[str, Any]:
    """`clients` clients, each with one photo on its way."""
    count = max(least, clients)
    before, one_before = measured(8), measured(8, 1) if clients == 1 else 0.0
    sent: list[Sent] = []
    left = iter(range(count))
    lock = threading.Lock()

    def client() -> None:
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            found = post(port, name, number % len(data), data[number % len(data)])
            with lock:
                sent.append(found)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    one_after, after = measured(8, 1) if clients == 1 else 0.0, measured(8)
    rate = sum(each.status == 200 for each in sent) / took
    plainly = harness.joint_rate(before, after)
    # One client's photos come one by one: what groups gain, the box cannot have, so it is told apart.
    singly = (
        {
            "plain_one_by_one_per_s": [round(one_before, 3), round(one_after, 3)],
            "share_of_one_by_one": round(rate / 2 * (1 / one_before + 1 / one_after), 3),
        }
        if clients == 1
        else {}
    )
    found = {
        "clients": clients,
        "photos_per_s": round(rate, 3),
        "plain_photos_per_s": [round(before, 3), round(after, 3)],
        "share_of_plain": round(rate / plainly, 3),
        **singly,
        **summary(sent, scores),
    }
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def open_loop(
    port: int, name: str, data: list[bytes], share: float, base: float, least: int, scores: list[Any]
) -> dict[str, Any]:
    """Photos at fixed times; above saturation the queue fills and 503 is the right answer."""
    # Past saturation the queue has to fill before a refusal can be seen.
    count = least // 2 if share <= 1 else round(2 * SHORT_QUEUE / (1 - 1 / share))
    sent = at_fixed_times(port, name, data, share * base, count)
    found = {"rate_per_s": round(share * base, 3), "share_of_plain": share, **summary(sent, scores)}
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def by_deadline(port: int, name: str, data: list[bytes], ms: float, base: float, least: int) -> dict[str, Any]:
    """Photos at fixed times, asked for in full within `ms`: how many verdicts came in time, and how many were cut."""
    sent = at_fixed_times(port, name, data, 0.7 * base, 2 * least, f"&full=true&deadline_ms={ms:g}")
    kept = sum(each.status == 200 and each.seconds * 1e3 <= ms for each in sent)
    found = {
        "deadline_ms": ms,
        "rate_per_s": round(0.7 * base, 3),
        "kept": round(kept / len(sent), 3),
        "cut": sum(each.mode.endswith(" cut") for each in sent),
        **summary(sent, []),
    }
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


def at_fixed_times(port: int, name: str, data: list[bytes], rate: float, count: int, query: str = "") -> list[Sent]:
    """`count` photos, `rate` a second, whatever comes back."""
    sent: list[Sent] = []
    lock = threading.Lock()

    def one(number: int) -> None:
        found = post(port, name, number % len(data), data[number % len(data)], query)
        with lock:
            sent.append(found)

    threads = []
    began = time.perf_counter()
    for number in range(count):
        time.sleep(max(0.0, began + number / rate - time.perf_counter()))
        threads.append(threading.Thread(target=one, args=(number,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return sent


def summary(sent: list[Sent], scores: list[Any]) -> dict[str, Any]:
    """Statuses, latencies of the verdicts, and how far scores lie from the photo's score alone."""
    good = [each for each in sent if each.status == 200]
    times = np.array([each.seconds for each in good]) * 1e3
    p50, p95, p99 = np.percentile(times, (50, 95, 99)) if good else (np.nan,) * 3
    apart = [abs(each.score - scores[each.photo]) for each in good if scores and each.score is not None]
    return {
        "requests": len(sent),
        "statuses": {str(key): value for key, value in sorted(Counter(each.status for each in sent).items())},
        "p50_ms": round(float(p50), 1),
        "p95_ms": round(float(p95), 1),
        "p99_ms": round(float(p99), 1),
        "mean_group": round(float(np.mean([each.group for each in good])), 2) if good else None,
        "largest_score_difference": max(apart, default=None),
    }


def cross_check(port: int, photo: Path, class_name: str) -> dict[str, str] | str:
    """The same closed loop by wrk, where it is installed."""
    if shutil.which("wrk") is None:
        return "wrk is not installed"
    environment = {**os.environ, "PHOTO": str(photo), "CLASS": class_name}
    command = ["wrk", "-t1", "-c16", "-d30s", "--timeout", "120s", "-s", str(LUA), f"http://127.0.0.1:{port}"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    wanted = ("requests in", "Requests/sec", "Latency", "Non-2xx", "Socket errors")
    return {key: line.strip() for line in told.splitlines() for key in wanted if key in line}


def figure(metrics: str, name: str) -> float | None:
    """The value of a metric without labels."""
    found = [line for line in metrics.splitlines() if line.startswith(f"{name} ")]
    return float(found[0].split()[1]) if found else None


if __name__ == "__main__":
    main()
