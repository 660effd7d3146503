"""What tests/test_ray.py asks of a real Ray on this machine: a process and a start of Ray for each scenario."""

from __future__ import annotations

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from anomalysd_edge.bundle.reader import MANIFEST
from anomalysd_edge.core.files import sha256_file
from anomalysd_runtime.distributed.journal import Journal
from anomalysd_runtime.distributed.packing import unpack
from anomalysd_runtime.distributed.ray_inspect import Photo, RaySettings, Task, run_groups
from anomalysd_runtime.server.settings import EngineSettings
from tests.support.serving import open_slow


def photos(folder: Path) -> dict[str, Any]:
    """Two workers; one is killed when a third is done; one photo kills whoever judges it, one is no photo."""
    bundle = folder / "line"
    names = sorted(str(path) for path in (folder / "photos").iterdir())
    listed = [Photo(number, name, "bottle") for number, name in enumerate(names)]
    groups = [listed[start : start + 4] for start in range(0, len(listed), 4)]
    task = Task(bundle, sha256_file(bundle / MANIFEST), EngineSettings(threads=1), True, open_slow)
    counts: list[int] = []
    killed: list[int] = []

    def note(_phase: str, done: int, _total: int, _detail: str) -> None:
        counts.append(done)
        if done >= len(listed) // 3 and not killed:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if not killed and process.cmdline()[0].startswith("ray::MapWorker"):
                        process.kill()
                        killed.append(process.pid)

    with Journal(folder / "journal.sqlite", {"run": 1}) as journal:
        run_groups(task, groups, RaySettings(workers=2), journal, note)
        found = [
            {"score": unpack(kept.answer).pred_score if kept.answer else None, "error": kept.error} for kept in journal
        ]
        before = len(counts)
        run_groups(task, [group for group in groups if group[0].number < 4], RaySettings(workers=2), journal, note)
    return {"found": found, "counts": counts, "killed": len(killed), "ran_again": len(counts) - before}


def serve(folder: Path) -> dict[str, Any]:
    """Two replicas; four clients; one replica is killed; then what one replica may not be asked alone."""
    port = 8791
    command = [
        sys.executable, "-m", "anomalysd_edge.cli", "serve", str(folder / "line"), "--ray", "local", "--replicas", "2",
        "--threads", "1", "--port", str(port),
    ]  # fmt: skip
    with started(command) as process:
        photo = (folder / "photos/00.png").read_bytes()
        answers: list[tuple[int, float | None]] = []
        stop = threading.Event()

        def client() -> None:
            while not stop.is_set():
                answers.append(ask(port, "/inspect", photo))

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answers) >= 20)
        replicas(process.pid)[0].kill()
        at = len(answers)
        wait_for(lambda: len(answers) >= at + 60 and len(replicas(process.pid)) == 2)
        stop.set()
        for thread in threads:
            thread.join()
        reload = ask(port, "/bundles/line/reload", b"")[0]
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    return {"answers": answers, "reload": reload, "code": code}


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The command, once it says that it is ready."""
    with tempfile.TemporaryFile("w+") as heard, subprocess.Popen(command, stderr=heard) as process:

        def ready() -> bool:
            heard.seek(0)
            return "ready: " in heard.read() or process.poll() is not None

        try:
            wait_for(ready)
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def replicas(pid: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ServeReplica"):
                found.append(process)
    return found


def ask(port: int, path: str, body: bytes) -> tuple[int, float | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, body, {"content-type": "image/png"})
        response = connection.getresponse()
        data = response.read()
        return response.status, json.loads(data)["pred_score"] if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()


def wait_for(what: Any, limit_s: float = 120) -> None:
    until = time.monotonic() + limit_s
    while not what():
        if time.monotonic() > until:
            raise SystemExit("it took too long")
        time.sleep(0.1)


if __name__ == "__main__":
    told = {"photos": photos, "serve": serve}[sys.argv[1]](Path(sys.argv[2]))
    with Path(sys.argv[3]).open("w", encoding="utf-8") as file:
        json.dump(told, file)
    sys.stdout.flush()
    os._exit(0)  # Ray's threads take seconds to end; everything of ours is closed
