"""A watched folder: every photo ends in one place with one verdict, also when the process is killed again and again."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from anomalysd_edge.bundle.writer import rewrite_bundle
from anomalysd_edge.core.files import write_json
from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_runtime.server import lifecycle
from anomalysd_runtime.server.connectors import watch as room
from anomalysd_runtime.server.connectors.inbox_names import places
from anomalysd_runtime.server.connectors.watch import FolderWatch, WatchSettings
from anomalysd_runtime.server.inference.service import Service
from anomalysd_runtime.server.records.verdict_store import VerdictStore
from tests.support.serving import CRASH, open_touchy, png, recorded_settings, small_settings
from tests.support.small_graphs import small_bundle


def files(folder: Path) -> dict[str, int]:
    """Photos by place."""
    places = ("ok", "ng", "unknown", "error", ".sd-edge/work", ".")
    return {
        place: len([p for p in ((folder / place).glob("*.*") if place == "." else (folder / place).rglob("*.png"))
                    if p.suffix == ".png"])
        for place in places
    }  # fmt: skip


@pytest.mark.slow
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
    assert lifecycle.watch(recorded_settings(bundle, tmp_path), where, once=True, opener=open_touchy) == 14
    found = files(tmp_path)
    assert found["ok"] + found["ng"] == 12
    assert found["error"] == 2
    assert found["."] == found[".sd-edge/work"] == 0
    assert (tmp_path / "notes.txt").exists()
    record = VerdictStore(tmp_path / ".sd-edge" / "record.sqlite")
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


@pytest.mark.slow
def test_the_same_name_again_overwrites_nothing(bundle: Path, tmp_path: Path) -> None:
    where = WatchSettings(tmp_path, poll_s=0.05, settle_s=0.05)
    for seed in (1, 2, 3):
        (tmp_path / "part.png").write_bytes(png(seed))
        lifecycle.watch(recorded_settings(bundle, tmp_path), where, once=True)
    moved = [p for place in ("ok", "ng") for p in (tmp_path / place).glob("part*.png")]
    assert sorted(p.read_bytes() for p in moved) == sorted(png(seed) for seed in (1, 2, 3))


def test_a_name_that_is_no_text_is_judged_as_well(bundle: Path, tmp_path: Path) -> None:
    """Shares hold names of other systems; SQLite and JSON take text only."""
    odd = os.fsdecode(b"teil-\xfc.png")
    (tmp_path / odd).write_bytes(png(1))
    assert lifecycle.watch(recorded_settings(bundle, tmp_path), WatchSettings(tmp_path, settle_s=0.05), once=True) == 1
    assert [p.name for place in ("ok", "ng") for p in (tmp_path / place).glob("*.png")] == [odd]
    record = VerdictStore(tmp_path / ".sd-edge" / "record.sqlite")
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
    assert lifecycle.watch(recorded_settings(bundle, tmp_path), where, once=True) == 2
    found = files(tmp_path)
    assert found["ok"] + found["ng"] == found["error"] == 1
    record = VerdictStore(tmp_path / ".sd-edge" / "record.sqlite")
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
    watch._lock.close()
    service.stop()


def test_one_folder_has_one_watcher(bundle: Path, tmp_path: Path) -> None:
    service = Service(small_settings(bundle))
    first = FolderWatch(service, WatchSettings(tmp_path))
    with pytest.raises(SettingsError, match="another process"):
        FolderWatch(service, WatchSettings(tmp_path))
    first._lock.close()
    with pytest.raises(InputError, match="no folder"):
        FolderWatch(service, WatchSettings(tmp_path / "absent"))
    service.stop()


RUN = """
import sys
from pathlib import Path
from anomalysd_runtime.server import lifecycle
from anomalysd_runtime.server.connectors.inbox_names import places
from anomalysd_runtime.server.connectors.watch import WatchSettings
from anomalysd_runtime.server.records.verdict_store import VerdictStore
from tests.support.serving import recorded_settings

if __name__ == "__main__":
    bundle, folder = map(Path, sys.argv[1:])
    lifecycle.watch(recorded_settings(bundle, folder), WatchSettings(folder, poll_s=0.02, settle_s=0.05), once=True)
"""


@pytest.mark.slow
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
    record = VerdictStore(record_file)
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


def watched(bundle: Path, folder: Path, seconds: float = 0.0) -> None:
    """Judge what lies in `folder` until nothing is left, or for so long."""
    service = Service(small_settings(bundle))
    watch = FolderWatch(service, WatchSettings(folder, "bottle", poll_s=0.02, settle_s=0.05))
    service.start()
    try:
        timer = threading.Timer(seconds or 60, watch.stop)
        timer.start()
        watch.run(once=not seconds)
        timer.cancel()
    finally:
        service.stop()


def test_what_nobody_looks_at_is_named_once(bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for place in ("Bottle", "other", "bottle/2026"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "a.png").write_bytes(png(1))
    (tmp_path / "b.heic").write_bytes(b"x")
    (tmp_path / "c.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "good.png").write_bytes(png(2))
    watched(bundle, tmp_path, 0.6)
    said = [record.getMessage() for record in caplog.records if record.name == "sd-edge.watch"]
    for name in (
        "Bottle is not looked into",
        "other is not",
        "bottle/2026 is not",
        "b.heic is left",
        "c.png is a link",
    ):
        assert sum(line.startswith(name) for line in said) == 1, (name, said)
    assert files(tmp_path)["ok"] + files(tmp_path)["ng"] == 1, "and the photo among them is judged"


def test_an_empty_file_waits_for_its_writer(bundle: Path, tmp_path: Path) -> None:
    """A camera makes the file, and fills it through the handle that it holds: here, once it was seen to be empty."""
    written: list[int] = []

    class Camera(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("cam.png is empty"):
                written.append(camera.write(png(1)))

    with (tmp_path / "cam.png").open("wb", buffering=0) as camera:
        logging.getLogger("sd-edge.watch").addHandler(handler := Camera())
        watched(bundle, tmp_path, 1.5)
    logging.getLogger("sd-edge.watch").removeHandler(handler)
    found = files(tmp_path)
    assert (found["ok"] + found["ng"], found["error"]) == (1, 0)
    assert written == [len(png(1))], "it is named once"


def test_names_near_the_limit_and_links_are_judged(bundle: Path, tmp_path: Path) -> None:
    inbox, store = tmp_path / "in", tmp_path / "store"
    inbox.mkdir()
    store.mkdir()
    long = "\N{LATIN SMALL LETTER E WITH ACUTE}" * 125 + ".png"  # 254 bytes
    (inbox / long).write_bytes(png(1))
    (store / "photo.png").write_bytes(png(2))
    (inbox / "relative.png").symlink_to("../store/photo.png")
    watched(bundle, inbox)
    judged = [path for place in ("ok", "ng") for path in (inbox / place).rglob("*.png")]
    assert len(judged) == 2
    assert all(path.with_name(path.name + ".json").is_file() and path.is_file() for path in judged)
    assert files(inbox)["error"] == 0
    assert (store / "photo.png").is_file(), "the photo behind the link stays where it is"


def test_an_unreadable_folder_costs_its_own_photos_alone(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Root reads every folder, so the refusal is made here."""
    (tmp_path / "bottle").mkdir()
    (tmp_path / "a.png").write_bytes(png(1))
    listed = Path.iterdir

    def refuse(self: Path) -> Iterator[Path]:
        if self.name == "bottle":
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", refuse)
    watched(bundle, tmp_path)
    assert files(tmp_path)["ok"] + files(tmp_path)["ng"] == 1
    assert "bottle cannot be looked through (Permission denied)" in caplog.text


def test_what_an_earlier_process_left_broken_does_not_end_the_next(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / ".sd-edge/work/u1").mkdir(parents=True)
    (tmp_path / ".sd-edge/work/u1/gone.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "a.png").write_bytes(png(1))
    watched(bundle, tmp_path)
    assert files(tmp_path)["ok"] + files(tmp_path)["ng"] == 1
    assert "cannot be read" in json.loads((tmp_path / "error/gone.png.json").read_text())["error"]


@pytest.mark.slow
def test_a_class_that_is_called_like_a_folder_of_verdicts_is_judged(tmp_path: Path) -> None:
    named = small_bundle(tmp_path / "line1")
    record = named.manifest.classes["bottle"]
    constants = {key.replace("bottle", "unsure"): value for key, value in named.constants.items()}
    rewrite_bundle(named, named.path, {"unsure": record}, constants, "renamed")
    inbox = tmp_path / "inbox"
    (inbox / "unsure").mkdir(parents=True)
    (inbox / "unsure" / "new.png").write_bytes(png(1))
    (inbox / "unsure" / "old.png").write_bytes(png(2))
    write_json(inbox / "unsure" / "old.png.json", {"request_key": "watch:0123"})
    where = WatchSettings(inbox, poll_s=0.05, settle_s=0.05)
    assert lifecycle.watch(recorded_settings(named.path, inbox), where, once=True) == 1
    (judged,) = [path for path in inbox.rglob("new.png") if ".sd-edge" not in path.parts]
    assert judged.relative_to(inbox).as_posix() in ("ok/unsure/new.png", "ng/unsure/new.png")
    assert (inbox / "unsure" / "old.png").exists(), "a verdict of before the class was called so stays"
    assert places({"unsure", "OK", "unsure-verdicts"})["uncertain"] == "unsure-verdicts-verdicts"
    assert places({"bottle"}) == {kind: kind if kind in ("unknown", "error") else name for kind, name in (
        ("good", "ok"), ("anomalous", "ng"), ("uncertain", "unsure"), ("unknown", ""), ("error", ""),
    )}  # fmt: skip
