"""The capacity model against measurement: photos a second of one and two workers, another plan, latency of a box.

    python benchmarks/capacity.py BUNDLE --data DIR --class NAME --out results.json

The model is fitted on one process of one thread under one plan. What it says of more workers, of another plan and of
a box's latencies is then measured in the same minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from anomalysd_edge.cli.bench import in_own_process
from anomalysd_edge.core.files import write_json
from anomalysd_edge.data.datasets import open_dataset
from anomalysd_edge.fleet.box_client import box_state
from anomalysd_edge.fleet.capacity import PhotoCost, read_bench
from anomalysd_edge.fleet.waiting_time import latency_quantile_s
from anomalysd_edge.profiling.measurement import BenchRequest

GROUP = 4
PASSES = 3
"""UNet passes of the other plan."""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="data set with test photos")
    parser.add_argument("--class", dest="class_name", required=True)
    parser.add_argument("--rounds", type=int, default=4, help="groups of photos of a measurement")
    parser.add_argument("--photos", type=int, default=60, help="photos that are sent to the box")
    parser.add_argument("--use", type=float, default=0.6, help="share of its time that the box is to work")
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    files = [str(s.path) for s in open_dataset(told.data).classes[told.class_name].test]
    asked = BenchRequest(
        str(told.bundle), [(file, told.class_name) for file in files], in_flight=GROUP, rounds=told.rounds, warm_up=1,
        threads=1,
    )  # fmt: skip
    base = cost_of(asked)
    one = rate(asked, 1)
    two = rate(asked, 2)
    again = rate(asked, 1)
    passes = replace(asked, changes={"passes": PASSES}, rounds=max(1, told.rounds // 2))
    more = {**{name: cost.samples for name, cost in base.networks.items()}}
    more["unet"] *= PASSES
    found: dict[str, Any] = {
        "bundle": told.bundle.name,
        "machine": platform.machine(),
        "seconds_a_photo": {"predicted": base.seconds, "unet": base.networks["unet"].seconds, "host": base.host_s},
        "photos_per_s": {
            "1 worker": compared(1 / base.seconds, 2 / (1 / one + 1 / again)),
            "2 workers": compared(2 / base.seconds, two),
        },
        f"seconds_a_photo_with_{PASSES}_passes": compared(base.under(more).seconds, cost_of(passes).seconds),
    }
    print(json.dumps(found), flush=True)
    found["latency_of_a_box"] = latency(told, base, files)
    print(json.dumps(found, indent=2))
    if told.out:
        write_json(told.out, found)


def compared(predicted: float, measured: float) -> dict[str, float]:
    """Both, and their ratio."""
    return {"predicted": predicted, "measured": measured, "predicted_over_measured": predicted / measured}


def cost_of(asked: BenchRequest) -> PhotoCost:
    """Measured in a process of its own."""
    return read_bench({"rows": [asdict(in_own_process(asked))]}, "this run")[0]


def rate(asked: BenchRequest, workers: int) -> float:
    """Photos a second of so many processes at the same time."""
    with ThreadPoolExecutor(workers) as pool:
        return sum(row.photos_a_second for row in pool.map(in_own_process, [asked] * workers))


def latency(told: argparse.Namespace, base: PhotoCost, files: list[str]) -> dict[str, Any]:
    """Photos at random times to `sd-edge serve` of one thread, at the wanted use.

    Few photos at random times make a queue of their own, so the measurement is held against the model's queue with
    these very times of arrival; the formula of plan-capacity stands beside both.
    """
    data = [Path(file).read_bytes() for file in files[:8]]
    came: list[float] = [0.0] * told.photos
    taken: list[float] = [0.0] * told.photos
    dice = random.Random(0)
    with box(told.bundle) as port:
        seconds_of(port, told.class_name, data[0])

        def one(number: int) -> None:
            taken[number] = seconds_of(port, told.class_name, data[number % len(data)])

        threads = []
        for number in range(told.photos):
            came[number] = time.perf_counter()
            threads.append(threading.Thread(target=one, args=(number,)))
            threads[-1].start()
            time.sleep(dice.expovariate(told.use / base.seconds))
        for thread in threads:
            thread.join()
    queued = queue(came, base.seconds)
    return {
        "use": told.use,
        "photos": len(taken),
        **{
            f"p{round(100 * share)}_s": {
                **compared(float(np.quantile(queued, share)), float(np.quantile(taken, share))),
                "formula": latency_quantile_s(base.seconds, GROUP, told.use, False, share),
            }
            for share in (0.5, 0.9)
        },
        "mean_s": compared(float(np.mean(queued)), float(np.mean(taken))),
    }


def queue(came: list[float], photo_s: float) -> list[float]:
    """Seconds from arrival to verdict: whoever waits is taken, up to GROUP at once, and told with the last of them."""
    answered: list[float] = []
    free = -np.inf
    while len(answered) < len(came):
        first = len(answered)
        begins = max(free, came[first])
        group = [at for at in came[first : first + GROUP] if at <= begins]
        free = begins + photo_s * len(group)
        answered += [free - at for at in group]
    return answered


@contextmanager
def box(bundle: Path) -> Iterator[int]:
    """`sd-edge serve` of one thread, ready; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [
        sys.executable, "-m", "anomalysd_edge.cli", "serve", str(bundle), "--port", str(port), "--threads", "1",
        "--group", str(GROUP), "--deadline-ms", "600000",
    ]  # fmt: skip
    with subprocess.Popen(command, env={**os.environ, "SD_EDGE_LOG": "WARNING"}) as process:
        try:
            while process.poll() is None and box_state(f"http://127.0.0.1:{port}", None, 5).status != "ok":
                time.sleep(0.2)
            yield port
        finally:
            process.terminate()


def seconds_of(port: int, class_name: str, photo: bytes) -> float:
    """From sending a photo to its verdict. Raises HTTPError where there is none."""
    url = f"http://127.0.0.1:{port}/inspect?class={class_name}"
    began = time.perf_counter()
    request = urllib.request.Request(url, photo, {"content-type": "image/png"})
    with urllib.request.urlopen(request, timeout=600) as response:
        response.read()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
