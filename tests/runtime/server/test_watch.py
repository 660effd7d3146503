"""A watched folder: every photo ends in one place with one verdict, also when the process is killed again and again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anomalysd_edge.core.files import write_json
from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_runtime.server import lifecycle
from anomalysd_runtime.server.connectors import watch as room
from anomalysd_runtime.server.connectors.watch import FolderWatch, WatchSettings
from anomalysd_runtime.server.inference.service import Service
from anomalysd_runtime.server.records.verdict_store import Record
from anomalysd_runtime.server.settings import EngineSettings, RecordSettings, ServeSettings
from tests.support.serving import CRASH, open_touchy, png, small_settings
from tests.support.small_graphs import small_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("watch") / "line1").path


def settings(bundle: Path, folder: Path) -> ServeSettings:
    record = RecordSettings(folder / ".sd-edge" / "record.sqlite")
    return ServeSettings(bundles=(bundle,), engine=EngineSettings(threads=1), record=record)


def files(folder: Path) -> dict[str, int]:
    """Photos by place."""
    places = ("ok", "ng", "unknown", "error", ".sd-edge/work", ".")
    return {
        place: len([p for p in ((folder / place).glob("*.*") if place == "." else (folder / place).rglob("*.png"))
                    if p.suffix == ".png"])
        for place in places
    }  # fmt: skip


def test_photos_go_where_their_verdict_says(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bottle").mkdir()
    photos = {f"{n}.png": png(n) for n in range(6)}
    for name, data in photos.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / "bottle" / name).write_bytes(data)
    (tmp_path / "cut.png").write_bytes(png(1)[:100])
    (tmp_path / "killer.png").write_bytes(png(1, CRASH))
    (tmp_path / "notes.txt").write_text("not a photo")
    where = WatchSettings(tmp_path, poll_s=0.05, settle_s=0.1)
    assert lifecycle.watch(settings(bundle, tmp_path), where, once=True, opener=open_touchy) == 14
    found = files(tmp_path)
    assert found["ok"] + found["ng"] == 12
    assert found["error"] == 2
    assert found["."] == found[".sd-edge/work"] == 0
    assert (tmp_path / "notes.txt").exists()
    record = Record(tmp_path / ".sd-edge" / "record.sqlite")
    try:
        scores = {v.photo: v.pred_score for v in record.select()}
    finally:
        record.close()
    assert len(scores) == 12
    for place in ("ok", "ng"):
        for photo in (tmp_path / place).rglob("*.png"):
            told = json.loads(photo.with_name(photo.name + ".json").read_text())
            relative = photo.relative_to(tmp_path / place).as_posix()
            assert told["verdict"] == {"ok": "good", "ng": "anomalous"}[place]
            assert told["pred_score"] == scores[relative]
            assert photo.read_bytes() == photos[photo.name]
    assert "died" in json.loads((tmp_path / "error" / "killer.png.json").read_text())["error"]


def test_the_same_name_again_overwrites_nothing(bundle: Path, tmp_path: Path) -> None:
    where = WatchSettings(tmp_path, poll_s=0.05, settle_s=0.05)
    for seed in (1, 2, 3):
        (tmp_path / "part.png").write_bytes(png(seed))
        lifecycle.watch(settings(bundle, tmp_path), where, once=True)
    moved = [p for place in ("ok", "ng") for p in (tmp_path / place).glob("part*.png")]
    assert sorted(p.read_bytes() for p in moved) == sorted(png(seed) for seed in (1, 2, 3))


def test_a_name_that_is_no_text_is_judged_as_well(bundle: Path, tmp_path: Path) -> None:
    """Shares hold names of other systems; SQLite and JSON take text only."""
    odd = os.fsdecode(b"teil-\xfc.png")
    (tmp_path / odd).write_bytes(png(1))
    assert lifecycle.watch(settings(bundle, tmp_path), WatchSettings(tmp_path, settle_s=0.05), once=True) == 1
    assert [p.name for place in ("ok", "ng") for p in (tmp_path / place).glob("*.png")] == [odd]
    record = Record(tmp_path / ".sd-edge" / "record.sqlite")
    assert [v.photo for v in record.select()] == ["teil-?.png"]
    record.close()


def test_a_place_that_cannot_be_written_is_tried_again(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk or a share that is away for a moment ends neither the watch nor a photo."""
    failures = iter([OSError(28, "No space left on device")] * 3)

    def sometimes(path: Path, told: object) -> None:
        if (error := next(failures, None)) is not None:
            raise error
        write_json(path, told)

    monkeypatch.setattr(room, "write_json", sometimes)
    monkeypatch.setattr(room, "AGAIN_S", 0.05)
    (tmp_path / "part.png").write_bytes(png(1))
    (tmp_path / "cut.png").write_bytes(png(1)[:100])
    where = WatchSettings(tmp_path, poll_s=0.05, settle_s=0.05)
    assert lifecycle.watch(settings(bundle, tmp_path), where, once=True) == 2
    found = files(tmp_path)
    assert found["ok"] + found["ng"] == found["error"] == 1
    record = Record(tmp_path / ".sd-edge" / "record.sqlite")
    assert len(record.select()) == 1
    record.close()


def test_a_file_that_still_grows_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    service = Service(small_settings(bundle))
    watch = FolderWatch(service, WatchSettings(tmp_path, settle_s=0.15))
    data = png(1)
    for end in range(100, len(data), 400):
        (tmp_path / "slow.png").write_bytes(data[:end])
        assert watch._claim_new() == []
        time.sleep(0.05)
    (tmp_path / "slow.png").write_bytes(data)
    assert watch._claim_new() == []
    time.sleep(0.2)
    (claimed,) = watch._claim_new()
    assert claimed.path.read_bytes() == data
    os.close(watch._lock)
    service.stop()


def test_one_folder_has_one_watcher(bundle: Path, tmp_path: Path) -> None:
    service = Service(small_settings(bundle))
    first = FolderWatch(service, WatchSettings(tmp_path))
    with pytest.raises(SettingsError, match="another process"):
        FolderWatch(service, WatchSettings(tmp_path))
    os.close(first._lock)
    with pytest.raises(InputError, match="no folder"):
        FolderWatch(service, WatchSettings(tmp_path / "absent"))
    service.stop()


RUN = """
import sys
from pathlib import Path
from anomalysd_runtime.server import running
from anomalysd_runtime.server import watch as room
from anomalysd_runtime.server.connectors.watch import WatchSettings
from tests.runtime.server.test_watch import settings

if __name__ == "__main__":
    bundle, folder = map(Path, sys.argv[1:])
    lifecycle.watch(settings(bundle, folder), WatchSettings(folder, poll_s=0.02, settle_s=0.05), once=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_killed_at_any_moment_nothing_is_lost_or_done_twice(how: int, bundle: Path, tmp_path: Path) -> None:
    count, kills = 40, 3 if how == signal.SIGKILL else 1
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:02}.png").write_bytes(png(number))
    (tmp_path / "run.py").write_text(RUN)
    command = [sys.executable, str(tmp_path / "run.py"), str(bundle), str(folder)]
    rng, killed = random.Random(5), 0
    record_file = folder / ".sd-edge" / "record.sqlite"
    for attempt in range(60):
        before = recorded(record_file)
        running_now = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while killed < kills and running_now.poll() is None and time.monotonic() < until:
            if recorded(record_file) > before + rng.randrange(8):  # in the middle of the work, not of the start
                time.sleep(rng.uniform(0, 0.02))
                running_now.send_signal(how)
                killed += 1
                break
            time.sleep(0.005)
        running_now.wait(60)
        if killed == kills and attempt >= kills and running_now.returncode == 0:
            break
    assert killed == kills, "the process was never caught at work"
    found = files(folder)
    assert found["ok"] + found["ng"] == count, found
    assert found["."] == found[".sd-edge/work"] == found["error"] == 0, found
    record = Record(record_file)
    try:
        verdicts = record.select()
    finally:
        record.close()
    assert sorted(v.photo for v in verdicts) == sorted(f"{n:02}.png" for n in range(count))
    for verdict in verdicts:
        place = {"good": "ok", "anomalous": "ng"}[verdict.verdict]
        told = json.loads((folder / place / f"{verdict.photo}.json").read_text())
        assert told["uid"] == verdict.uid, "the verdict beside the photo is not the recorded one"


def recorded(path: Path) -> int:
    """Verdicts in the record, seen from outside."""
    import sqlite3
    from contextlib import closing

    if not path.exists():
        return 0
    try:
        with closing(sqlite3.connect(path, timeout=5)) as db:
            return int(db.execute("SELECT count(*) FROM verdicts").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
