"""The record: what is acknowledged is on the disk; age, size, clocks, locks, a full disk; history's questions."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.core.files import write_json
from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_runtime.server.records import history
from anomalysd_runtime.server.records import verdict_store as room
from anomalysd_runtime.server.records.retention import DAY_S, ClockWatch, Retention
from anomalysd_runtime.server.records.tables import VerdictEntry
from anomalysd_runtime.server.records.teachings import Teaching, begin_teaching, class_photos, end_teaching
from anomalysd_runtime.server.records.verdict_store import StoreError, VerdictStore
from anomalysd_runtime.server.settings import RecordSettings
from tests.support.command import sd_edge
from tests.support.serving import png, running_box, small_settings
from tests.support.small_graphs import small_bundle
from tests.support.verdicts import verdict


@pytest.fixture
def record(tmp_path: Path) -> Iterator[VerdictStore]:
    opened = VerdictStore(tmp_path / "record.sqlite")
    yield opened
    opened.close()


def test_what_goes_in_comes_out(record: VerdictStore) -> None:
    values = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    record.add(VerdictEntry(verdict(1, 0.9), b"photo", values)).result()
    assert record.by_uid(verdict(1).uid) == verdict(1, 0.9)
    assert record.stored_photo(verdict(1).uid) == b"photo"
    stored = record.stored_map(verdict(1).uid)
    assert stored is not None
    assert (stored == values).all()
    assert record.stored_photo("absent") is None


def test_a_request_key_is_recorded_once(record: VerdictStore) -> None:
    asked = [record.add(VerdictEntry(verdict(n, request_key="same"))) for n in range(3)]
    asked.append(record.add(VerdictEntry(verdict(9))))
    failed = [each.exception() for each in asked]
    assert sum(error is None for error in failed) == 2
    assert failed[-1] is None, "another's fault costs nobody else"
    assert len(record.select("request_key = 'same'")) == 1
    assert record.failing is None


def test_what_cannot_be_stored_costs_nobody_else(record: VerdictStore) -> None:
    """Half of a surrogate pair: JSON carries it, SQLite takes no such text."""
    asked = [record.add(VerdictEntry(verdict(n, photo="\ud800" if n == 1 else "fine"))) for n in range(3)]
    failed = [each.exception() for each in asked]
    assert [error is None for error in failed] == [True, False, True]
    assert record.failing is None


def test_a_record_that_was_taken_away_is_begun_anew(record: VerdictStore) -> None:
    """An open connection would go on writing into a file that nobody finds any more."""
    record.add(VerdictEntry(verdict(1))).result()
    for path in record.path.parent.glob("record.sqlite*"):
        path.rename(path.with_name(f"away-{path.name}"))
    record.add(VerdictEntry(verdict(2))).result()
    assert [v.uid for v in record.select()] == [verdict(2).uid]
    away = VerdictStore(record.path.with_name("away-record.sqlite"))
    assert [v.uid for v in away.select()] == [verdict(1).uid]
    away.close()


def test_many_writers_lose_nothing(record: VerdictStore) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: record.add(VerdictEntry(verdict(n))).result(), range(300)))
    assert len(record.select()) == 300


def test_a_locked_database_is_waited_for_then_told(record: VerdictStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BUSY_S", 0.3)
    with closing(sqlite3.connect(record.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = record.add(VerdictEntry(verdict(1)))
        time.sleep(0.1)
        other.execute("COMMIT")
        waiting.result()
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            record.add(VerdictEntry(verdict(2))).result()
        assert record.failing is not None
        other.execute("COMMIT")
    record.add(VerdictEntry(verdict(3))).result()
    assert record.failing is None


@pytest.mark.slow
def test_a_full_disk_is_told_and_nothing_is_acknowledged(tmp_path: Path) -> None:
    """SQLite's own limit of pages stands in for the disk: the same error at the same place."""
    bundle = small_bundle(tmp_path / "line1").path
    settings = replace(small_settings(bundle), record=RecordSettings(tmp_path / "r.sqlite", keep_photo=True))
    with running_box(settings) as box:
        assert box.inspect(png(1)).status == 200
        record = box.service.store
        assert record is not None
        with record.connection() as db:
            pages = db.execute("PRAGMA page_count").fetchone()[0]
        record.write(f"PRAGMA max_page_count = {pages}").result()
        refused = [box.inspect(png(seed, side=60)) for seed in range(3)]
        assert {answer.status for answer in refused} == {503}
        assert "full" in refused[0].json["error"]
        health = box.get("/health").json
        assert health["status"] == "degraded"
        assert "full" in health["reasons"][0]
        record.write("PRAGMA max_page_count = 1000000").result()
        assert box.inspect(png(5)).status == 200
        assert box.get("/health").json["status"] == "ok"
        assert len(record.select()) == 2


def test_age_and_size_take_the_oldest(record: VerdictStore) -> None:
    for number in range(40):
        record.add(VerdictEntry(verdict(number, at=number * DAY_S), bytes(20_000))).result()
    steady = ClockWatch(lambda: 0.0, lambda: 0.0)
    by_age = Retention(record, RecordSettings(max_age_days=30), steady)
    assert by_age.sweep(now=40 * DAY_S) == 10
    assert min(v.at for v in record.select()) == 10 * DAY_S
    by_size = Retention(record, RecordSettings(max_bytes=400_000), steady)
    assert by_size.sweep(now=0) > 0
    left = record.select()
    assert left
    assert by_size.used_bytes() <= 400_000
    assert min(v.at for v in left) > 10 * DAY_S
    assert max(v.at for v in left) == 39 * DAY_S
    assert record.path.stat().st_size < 500_000, "the file was not given back"


def test_a_classs_own_photos_cost_no_verdict_and_go_with_its_last_versions(record: VerdictStore) -> None:
    record.add(VerdictEntry(verdict(1), bytes(1000))).result()
    row = Teaching(at=1.0, who="tom", action="teach", bundle="line1", class_name="nut", photos=["a"], before_id="b0")
    photos = {f"{number}": bytes(200_000) for number in range(9)}
    for number, digest in enumerate(photos):
        begun = replace(row, photos=[digest], before_id=f"b{number}")
        entry = begin_teaching(record, begun, {digest: photos[digest]})
        end_teaching(record, entry, replace(begun, after_id=f"b{number + 1}"))
    assert sorted(class_photos(record, list(photos))) == ["3", "4", "5", "6", "7", "8"], (
        "of the version in use and five"
    )
    by_size = Retention(record, RecordSettings(max_bytes=400_000), ClockWatch(lambda: 0.0, lambda: 0.0))
    assert by_size.sweep(now=0) == 0
    assert len(record.select()) == 1


def test_a_clock_that_jumps_removes_nothing(record: VerdictStore) -> None:
    now = [1000.0]
    clock = ClockWatch(lambda: now[0], lambda: 0.0)
    record.add(VerdictEntry(verdict(1, at=1000.0))).result()
    retention = Retention(record, RecordSettings(max_age_days=1), clock)
    now[0] += 3650 * DAY_S
    assert retention.sweep(now[0]) == 0
    now[0] = 1000.0 - 3650 * DAY_S
    assert retention.sweep(now[0]) == 0
    assert len(record.select()) == 1


def test_verdicts_keep_their_order_when_the_clock_is_set_back(record: VerdictStore) -> None:
    for number, at in enumerate((5000.0, 4000.0, 3000.0)):
        record.add(VerdictEntry(verdict(number, at=at))).result()
    assert [v.photo for v in record.select()] == ["2.png", "1.png", "0.png"]


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match=r"x\.sqlite"):
        VerdictStore(tmp_path / "x.sqlite")
    with closing(sqlite3.connect(tmp_path / "new.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="99"):
        VerdictStore(tmp_path / "new.sqlite")


def test_the_threshold_worked_by_hand() -> None:
    scores, ng = [0.1, 0.2, 0.3, 0.6, 0.7, 0.4], [False, False, False, True, True, False]
    assert history.threshold_from_corrections(scores, ng) == pytest.approx(0.5)
    assert history.threshold_from_corrections(scores, ng, current=0.45) == 0.45
    mixed, bad = [0.1, 0.2, 0.3, 0.4, 0.5], [False, True, False, False, True]
    assert history.threshold_from_corrections(mixed, bad) == pytest.approx(0.45)
    assert history.threshold_from_corrections(mixed, bad, missed_cost=5) == pytest.approx(0.15)
    with pytest.raises(InputError, match="NG"):
        history.threshold_from_corrections([1.0, 2.0], [False, False])


def test_a_proposal_counts_the_present_bundle_only(record: VerdictStore) -> None:
    for number in range(8):
        record.add(VerdictEntry(verdict(number, 9.0, bundle_id="old"))).result()
        record.correct(verdict(number).uid, "ok", 1.0).result()
    for number in range(20, 40):
        record.add(VerdictEntry(verdict(number, 0.5 + (number - 20) / 100))).result()
        record.correct(verdict(number).uid, "ng" if number >= 30 else "ok", 1.0).result()
    told = history.propose(record, "bottle")
    assert told.proposed == pytest.approx(0.595)
    assert (told.ok, told.ng) == (10, 10)
    assert told.missed == (10, 0)
    assert told.false_alarms == (0, 0)
    with pytest.raises(InputError, match="screw"):
        history.propose(record, "screw")


def test_too_few_corrections_propose_nothing_unless_the_rest_counts(record: VerdictStore) -> None:
    for number in range(20):
        record.add(VerdictEntry(verdict(number, number / 20))).result()
    record.correct(verdict(13).uid, "ng", 1.0).result()
    record.correct(verdict(14).uid, "ng", 1.0).result()
    with pytest.raises(InputError, match="10"):
        history.propose(record, "bottle")
    told = history.propose(record, "bottle", rest_is_right=True)
    assert told.proposed == pytest.approx(0.625)
    assert told.missed == (2, 0)


@pytest.mark.slow
def test_history_from_the_command_line(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "line1").path
    record = tmp_path / "r.sqlite"
    settings = replace(small_settings(bundle), record=RecordSettings(record, keep_photo=True))
    with running_box(settings) as box:
        uids = [box.inspect(png(seed)).json["uid"] for seed in range(12)]
        scores = [v["pred_score"] for v in box.get("/verdicts").json["verdicts"]][::-1]
        middle = sorted(scores)[6]
        for uid, score in zip(uids, scores, strict=True):
            word = json.dumps({"correction": "ng" if score >= middle else "ok"}).encode()
            box.ask("POST", f"/verdicts/{uid}/correction", word, {"content-type": "application/json"})
    listed = sd_edge("history", "list", record, "--limit", "3", cwd=tmp_path).stdout
    assert uids[-1] in listed
    assert uids[0] not in listed
    sd_edge("history", "export", record, "--out", "all.jsonl", "--corrected", cwd=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [line["uid"] for line in lines] == uids[::-1]
    again = sd_edge("history", "again", record, uids[3], "--bundle", bundle, "--threads", "1", cwd=tmp_path)
    assert "the same" in again.stderr
    told = json.loads(sd_edge("history", "propose", record, "--class", "bottle", "--json", cwd=tmp_path).stdout)
    assert told["false_alarms"][1] == told["missed"][1] == 0
    for_all = sd_edge("calibrate", bundle, "--from-history", record, "--json", cwd=tmp_path)
    assert json.loads(for_all.stdout) == [told]
    assert "bottle" in sd_edge("calibrate", bundle, "--from-history", record, cwd=tmp_path).stdout
    neither = sd_edge("calibrate", bundle, cwd=tmp_path, check=False)
    assert neither.returncode == 2
    assert "--from-history" in neither.stderr
    wrong = sd_edge("history", "list", record, "--since", "yesterday", cwd=tmp_path, check=False)
    assert wrong.returncode == 2
    assert "yesterday" in wrong.stderr
    manifest = json.loads((bundle / "manifest.json").read_text())
    write_json(bundle / "manifest.json", {**manifest, "created": "later"})
    other = sd_edge("history", "again", record, uids[3], "--bundle", bundle, cwd=tmp_path, check=False)
    assert other.returncode == 2
    assert "id" in other.stderr


def test_times_are_utc_unless_they_say(record: VerdictStore) -> None:
    record.add(VerdictEntry(verdict(1, at=1_700_000_000.0))).result()
    assert len(history.find_verdicts(record, history.VerdictFilter(since="2023-11-14T22:13:20"))) == 1
    assert len(history.find_verdicts(record, history.VerdictFilter(since="2023-11-14T22:13:21"))) == 0
    assert len(history.find_verdicts(record, history.VerdictFilter(until="2023-11-14T23:13:20+01:00"))) == 0
    with pytest.raises(SettingsError):
        history.find_verdicts(record, history.VerdictFilter(since="soon"))


def test_reading_goes_on_while_somebody_writes(record: VerdictStore) -> None:
    with closing(sqlite3.connect(record.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(len(record.select())))
        thread.start()
        thread.join(5)
        other.execute("COMMIT")
    assert found == [0]


TABLE_OF_0_1_0 = """
CREATE TABLE verdicts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uid TEXT NOT NULL UNIQUE,
    request_key TEXT UNIQUE,
    at REAL NOT NULL,
    source TEXT NOT NULL, client TEXT NOT NULL, photo TEXT NOT NULL, photo_sha256 TEXT NOT NULL,
    width_px INTEGER NOT NULL, height_px INTEGER NOT NULL,
    bundle TEXT NOT NULL, bundle_id TEXT NOT NULL, preset TEXT NOT NULL, settings TEXT NOT NULL,
    class_name TEXT NOT NULL, pred_score REAL NOT NULL, threshold REAL, pred_label INTEGER, verdict TEXT NOT NULL,
    scores TEXT NOT NULL, regions TEXT NOT NULL, evidence TEXT NOT NULL,
    mode TEXT NOT NULL, backend TEXT NOT NULL, timings_ms TEXT NOT NULL, "group" INTEGER NOT NULL,
    correction TEXT CHECK (correction IN ('ok', 'ng')), corrected_at REAL
);
INSERT INTO verdicts VALUES (
    1, 'old', 'key', 1.5, 'http', 'me', 'a.png', 'ab', 4, 3, 'line', 'id', 'edge', '{"passes": 2}', 'bottle',
    0.25, NULL, NULL, 'unknown', '{"whole": 0.25}', '[]', '{"kind": "grid"}', 'm', 'b', '{"unet": 1.5}', 2, 'ng', 2.0
);
PRAGMA user_version = 1;
"""


INSERT_OF_0_1_0 = """
INSERT INTO verdicts (uid, request_key, at, source, client, photo, photo_sha256, width_px, height_px, bundle, bundle_id,
    preset, settings, class_name, pred_score, threshold, pred_label, verdict, scores, regions, evidence, mode, backend,
    timings_ms, "group", correction)
VALUES ('older', NULL, 3.5, 'http', 'me', 'b.png', 'cd', 4, 3, 'line', 'id', 'edge', '{}', 'bottle', 0.5, 0.4, 1,
    'anomalous', '{}', '[]', '{}', 'm', 'b', '{}', 1, NULL)
"""
"""As that release goes on writing after a roll-back."""


def test_a_record_of_the_first_release_opens_and_its_table_is_still_made(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "old.sqlite")) as db:
        db.executescript(TABLE_OF_0_1_0)
        columns = db.execute("PRAGMA table_info(verdicts)").fetchall()
    store = VerdictStore(tmp_path / "old.sqlite")
    old = store.by_uid("old")
    assert old is not None
    assert store.by_key("key") == old
    plain = old.to_json()
    assert {key: plain[key] for key in ("class", "settings", "scores", "regions", "group", "threshold")} == {
        "class": "bottle", "settings": {"passes": 2}, "scores": {"whole": 0.25}, "regions": [], "group": 2,
        "threshold": None,
    }  # fmt: skip
    assert (old.correction, old.request_key, old.timings_ms) == ("ng", "key", {"unet": 1.5})
    assert (old.verdict, old.pred_probability, old.limits) == ("unknown", None, None)
    between: dict[str, Any] = {
        "verdict": "uncertain",
        "pred_probability": 1 / 3,
        "limits": {"good": 0.1, "anomalous": 1 / 7},
        "brightness": 1 / 9,
        "sharpness": 0.5,
    }
    store.add(VerdictEntry(replace(old, uid="new", request_key=None, **between))).result()
    new, kept = store.select()
    assert (new.uid, kept) == ("new", old)
    assert {name: getattr(new, name) for name in between} == between
    assert history.find_verdicts(store, history.VerdictFilter(verdict="uncertain")) == [new]
    store.close()
    VerdictStore(tmp_path / "old.sqlite").close()  # a second time there is nothing to add
    with closing(sqlite3.connect(tmp_path / "old.sqlite")) as db:
        migrated = db.execute("PRAGMA table_info(verdicts)").fetchall()
        assert db.execute("PRAGMA user_version").fetchone() == (1,), "the first release still opens it"
        db.execute(INSERT_OF_0_1_0)
        db.commit()
    assert migrated[: len(columns)] == columns
    assert {column[1:4] for column in migrated[len(columns) :]} == {
        ("pred_probability", "REAL", 0),
        ("limits", "TEXT", 0),
        ("brightness", "REAL", 0),
        ("sharpness", "REAL", 0),
    }
    store = VerdictStore(tmp_path / "old.sqlite")
    assert [verdict.uid for verdict in store.select()] == ["older", "new", "old"]
    store.close()
    store = VerdictStore(tmp_path / "new.sqlite")
    store.add(VerdictEntry(old)).result()
    store.close()
    with closing(sqlite3.connect(tmp_path / "new.sqlite")) as db:
        fresh = db.execute("PRAGMA table_info(verdicts)").fetchall()
        assert {column[1:] for column in fresh} == {column[1:] for column in migrated}
        with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            db.execute("UPDATE verdicts SET correction = 'maybe'")
