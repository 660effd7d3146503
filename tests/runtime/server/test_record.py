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

import numpy as np
import pytest

from anomalysd_edge.core.files import write_json
from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_runtime.server.records import history
from anomalysd_runtime.server.records import verdict_store as room
from anomalysd_runtime.server.records.retention import DAY_S, ClockWatch, Retention
from anomalysd_runtime.server.records.verdict_store import Entry, Record, RecordError
from anomalysd_runtime.server.settings import RecordSettings
from anomalysd_runtime.server.verdicts import Verdict
from tests.conftest import sd_edge
from tests.support.serving import png, running_box, small_settings
from tests.support.small_graphs import small_bundle


def verdict(number: int, score: float = 0.5, **changes: object) -> Verdict:
    """A verdict that nobody made."""
    made = Verdict(
        uid=f"{number:032x}", at=1000.0 + number, source="http", client="test", photo=f"{number}.png",
        photo_sha256="0" * 64, width_px=20, height_px=20, bundle="line1", bundle_id="b" * 16, preset="edge",
        settings={"seed": 0}, class_name="bottle", pred_score=score, threshold=0.75, pred_label=int(score >= 0.75),
        verdict="anomalous" if score >= 0.75 else "good", scores={"fused": score}, regions=[], evidence={},
        mode="packed", backend="cpu", timings_ms={"unet": 1.0},
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    opened = Record(tmp_path / "record.sqlite")
    yield opened
    opened.close()


def test_what_goes_in_comes_out(record: Record) -> None:
    values = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    record.add(Entry(verdict(1, 0.9), b"photo", values)).result()
    assert record.by_uid(verdict(1).uid) == verdict(1, 0.9)
    assert record.stored_photo(verdict(1).uid) == b"photo"
    stored = record.stored_map(verdict(1).uid)
    assert stored is not None
    assert (stored == values).all()
    assert record.stored_photo("absent") is None


def test_a_request_key_is_recorded_once(record: Record) -> None:
    asked = [record.add(Entry(verdict(n, request_key="same"))) for n in range(3)]
    asked.append(record.add(Entry(verdict(9))))
    failed = [each.exception() for each in asked]
    assert sum(error is None for error in failed) == 2
    assert failed[-1] is None, "another's fault costs nobody else"
    assert len(record.select("request_key = 'same'")) == 1
    assert record.failing is None


def test_what_cannot_be_stored_costs_nobody_else(record: Record) -> None:
    """Half of a surrogate pair: JSON carries it, SQLite takes no such text."""
    asked = [record.add(Entry(verdict(n, photo="\ud800" if n == 1 else "fine"))) for n in range(3)]
    failed = [each.exception() for each in asked]
    assert [error is None for error in failed] == [True, False, True]
    assert record.failing is None


def test_a_record_that_was_taken_away_is_begun_anew(record: Record) -> None:
    """An open connection would go on writing into a file that nobody finds any more."""
    record.add(Entry(verdict(1))).result()
    for path in record.path.parent.glob("record.sqlite*"):
        path.rename(path.with_name(f"away-{path.name}"))
    record.add(Entry(verdict(2))).result()
    assert [v.uid for v in record.select()] == [verdict(2).uid]
    away = Record(record.path.with_name("away-record.sqlite"))
    assert [v.uid for v in away.select()] == [verdict(1).uid]
    away.close()


def test_many_writers_lose_nothing(record: Record) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: record.add(Entry(verdict(n))).result(), range(300)))
    assert len(record.select()) == 300


def test_a_locked_database_is_waited_for_then_told(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "BUSY_S", 0.3)
    with closing(sqlite3.connect(record.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = record.add(Entry(verdict(1)))
        time.sleep(0.1)
        other.execute("COMMIT")
        waiting.result()
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RecordError, match="locked"):
            record.add(Entry(verdict(2))).result()
        assert record.failing is not None
        other.execute("COMMIT")
    record.add(Entry(verdict(3))).result()
    assert record.failing is None


def test_a_full_disk_is_told_and_nothing_is_acknowledged(tmp_path: Path) -> None:
    """SQLite's own limit of pages stands in for the disk: the same error at the same place."""
    bundle = small_bundle(tmp_path / "line1").path
    settings = replace(small_settings(bundle), record=RecordSettings(tmp_path / "r.sqlite", keep_photo=True))
    with running_box(settings) as box:
        assert box.inspect(png(1)).status == 200
        record = box.service.record
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


def test_age_and_size_take_the_oldest(record: Record) -> None:
    for number in range(40):
        record.add(Entry(verdict(number, at=number * DAY_S), bytes(20_000))).result()
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


def test_a_clock_that_jumps_removes_nothing(record: Record) -> None:
    now = [1000.0]
    clock = ClockWatch(lambda: now[0], lambda: 0.0)
    record.add(Entry(verdict(1, at=1000.0))).result()
    retention = Retention(record, RecordSettings(max_age_days=1), clock)
    now[0] += 3650 * DAY_S
    assert retention.sweep(now[0]) == 0
    now[0] = 1000.0 - 3650 * DAY_S
    assert retention.sweep(now[0]) == 0
    assert len(record.select()) == 1


def test_verdicts_keep_their_order_when_the_clock_is_set_back(record: Record) -> None:
    for number, at in enumerate((5000.0, 4000.0, 3000.0)):
        record.add(Entry(verdict(number, at=at))).result()
    assert [v.photo for v in record.select()] == ["2.png", "1.png", "0.png"]


def test_a_file_that_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(RecordError, match=r"x\.sqlite"):
        Record(tmp_path / "x.sqlite")
    with closing(sqlite3.connect(tmp_path / "new.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(RecordError, match="99"):
        Record(tmp_path / "new.sqlite")


def test_the_threshold_worked_by_hand() -> None:
    scores, ng = [0.1, 0.2, 0.3, 0.6, 0.7, 0.4], [False, False, False, True, True, False]
    assert history.threshold_from_corrections(scores, ng) == pytest.approx(0.5)
    assert history.threshold_from_corrections(scores, ng, current=0.45) == 0.45
    mixed, bad = [0.1, 0.2, 0.3, 0.4, 0.5], [False, True, False, False, True]
    assert history.threshold_from_corrections(mixed, bad) == pytest.approx(0.45)
    assert history.threshold_from_corrections(mixed, bad, missed_cost=5) == pytest.approx(0.15)
    with pytest.raises(InputError, match="NG"):
        history.threshold_from_corrections([1.0, 2.0], [False, False])


def test_a_proposal_counts_the_present_bundle_only(record: Record) -> None:
    for number in range(8):
        record.add(Entry(verdict(number, 9.0, bundle_id="old"))).result()
        record.correct(verdict(number).uid, "ok", 1.0).result()
    for number in range(20, 40):
        record.add(Entry(verdict(number, 0.5 + (number - 20) / 100))).result()
        record.correct(verdict(number).uid, "ng" if number >= 30 else "ok", 1.0).result()
    told = history.propose(record, "bottle")
    assert told.proposed == pytest.approx(0.595)
    assert (told.ok, told.ng) == (10, 10)
    assert told.missed == (10, 0)
    assert told.false_alarms == (0, 0)
    with pytest.raises(InputError, match="screw"):
        history.propose(record, "screw")


def test_too_few_corrections_propose_nothing_unless_the_rest_counts(record: Record) -> None:
    for number in range(20):
        record.add(Entry(verdict(number, number / 20))).result()
    record.correct(verdict(13).uid, "ng", 1.0).result()
    record.correct(verdict(14).uid, "ng", 1.0).result()
    with pytest.raises(InputError, match="10"):
        history.propose(record, "bottle")
    told = history.propose(record, "bottle", rest_is_right=True)
    assert told.proposed == pytest.approx(0.625)
    assert told.missed == (2, 0)


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


def test_times_are_utc_unless_they_say(record: Record) -> None:
    record.add(Entry(verdict(1, at=1_700_000_000.0))).result()
    assert len(history.find(record, history.Wanted(since="2023-11-14T22:13:20"))) == 1
    assert len(history.find(record, history.Wanted(since="2023-11-14T22:13:21"))) == 0
    assert len(history.find(record, history.Wanted(until="2023-11-14T23:13:20+01:00"))) == 0
    with pytest.raises(SettingsError):
        history.find(record, history.Wanted(since="soon"))


def test_reading_goes_on_while_somebody_writes(record: Record) -> None:
    with closing(sqlite3.connect(record.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(len(record.select())))
        thread.start()
        thread.join(5)
        other.execute("COMMIT")
    assert found == [0]
