"""A class's stream at a running box: answers, acceptance and back; what is refused, what a loss of power leaves."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anomalysd_edge.bundle import versions
from anomalysd_edge.calibration import drift
from anomalysd_edge.core.files import sha256_bytes
from anomalysd_edge.errors import SettingsError
from anomalysd_runtime.server import settings as s
from anomalysd_runtime.server.errors import Unavailable
from anomalysd_runtime.server.inference import teaching
from anomalysd_runtime.server.records.line import class_history, line_photos
from anomalysd_runtime.server.records.teachings import Teaching, begin_teaching, end_teaching, teachings
from anomalysd_runtime.server.records.verdict_store import VerdictStore
from tests.support.parts import part
from tests.support.serving import Answer, Box, running_box, small_settings
from tests.support.small_graphs import small_bundle

pytestmark = [pytest.mark.net, pytest.mark.slow]

SHOTS = [part(seed, mottle=10) for seed in range(4)]
GOOD = [part(seed, mottle=10) for seed in range(10, 24)]
BAD = [part(seed, mottle=10, spot=18) for seed in range(40, 42)]
STATE = "/classes/washer/commissioning"


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Box, Path]]:
    """A box whose bundle was taught washers, before any stream; the tests of this module go on with one another's."""
    folder = tmp_path_factory.mktemp("commission")
    path = small_bundle(folder / "line1").path
    record = s.RecordSettings(folder / "record.sqlite", keep_photo=True, keep_map=True)
    with running_box(small_settings(path, record=record)) as box:
        answer = box.form("/classes", [("class", "washer"), *(("photo", photo) for photo in SHOTS)])
        assert answer.status == 200, answer.body
        yield box, path


def post(box: Box, path: str, body: dict[str, Any], **headers: str) -> Answer:
    return box.ask("POST", path, json.dumps(body).encode(), {"content-type": "application/json", **headers})


def test_a_class_begins_as_learning_and_is_judged_in_full(taught: tuple[Box, Path]) -> None:
    box, _ = taught
    state = box.get(STATE).json
    assert (state["state"], state["seen"], state["proposed"], state["ask"]) == ("learning", 0, None, [])
    assert state["reason"] == "0 of 8 photos seen: let parts go by"
    for photo in (*GOOD, *BAD):
        verdict = box.inspect(photo, "?class=washer").json
        assert "settle" not in verdict["mode"].split(), "scores of the whole plan alone can be compared"
    assert "settle" in box.inspect(GOOD[0], "?class=bottle").json["mode"].split(), "other classes cost what they did"


def test_answers_move_thresholds_and_rates(taught: tuple[Box, Path]) -> None:
    box, _ = taught
    state = box.get(STATE).json
    assert state["seen"] == len(GOOD) + len(BAD)
    assert state["bank_stays"] is None
    for which in ("now", "proposed"):
        for name in ("false_alarms", "missed", "balanced"):
            rate = state[which]["expected"][name]
            assert 0 <= rate["low"] <= rate["mean"] <= rate["high"] <= 1
    first = state["ask"][0]
    assert "would become" in first["why"]
    for kind in first["pictures"].values():
        assert box.get(kind).status == 200
    bad = {sha256_bytes(photo) for photo in BAD}
    shas = {v["uid"]: v["photo_sha256"] for v in box.get("/verdicts?class=washer").json["verdicts"]}
    thresholds = [state["proposed"]["threshold"]]
    for _ in range(10):
        uid = state["ask"][0]["uid"]
        said = "bad" if shas[uid] in bad else "good"
        answer = post(box, "/classes/washer/answers", {"uid": uid, "answer": said})
        assert answer.status == 200, answer.body
        state = answer.json
        assert uid not in [one["uid"] for one in state["ask"]]
        assert box.get(f"/verdicts/{uid}").json["correction"] == ("ng" if said == "bad" else "ok")
        thresholds.append(state["proposed"]["threshold"])
    assert len(set(thresholds)) > 5
    assert sum(state["answers"].values()) == 10
    uid = state["ask"][0]["uid"]
    state = post(box, "/classes/washer/answers", {"uid": uid, "answer": "skip"}).json
    assert state["answers"]["skipped"] == 1
    assert uid not in [one["uid"] for one in state["ask"]]
    state = post(box, "/classes/washer/answers", {"uid": uid, "answer": None}).json
    assert state["answers"]["skipped"] == 0
    assert uid in [one["uid"] for one in state["ask"]]
    known = box.inspect(part(90, mottle=10, spot=18), "?class=washer").json["uid"]
    before = state["share"]["mean"]
    state = post(box, "/classes/washer/answers", {"uid": known, "answer": "known-bad"}).json
    assert state["answers"]["known-bad"] == 1
    assert abs(state["share"]["mean"] - before) < 0.05, "what comes from elsewhere says nothing of the line's share"
    assert post(box, "/classes/washer/answers", {"uid": known, "answer": "bad"}).json["share"]["mean"] > before
    state = post(box, "/classes/washer/answers", {"uid": known, "answer": "known-bad"}).json
    for change in state["changes"]:
        assert change["now"] != change["proposed"]


def test_an_acceptance_that_fails_changes_nothing(taught: tuple[Box, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    box, path = taught
    before, state = versions.bundle_id(path), box.get(STATE).json

    def full(*_: object) -> None:
        raise Unavailable("the record cannot be written")

    def refused() -> tuple[int, str]:
        answer = post(box, "/classes/washer/accept", {"bundle_id": before})
        return answer.status, answer.json["error"]

    with versions.changing(path):
        status, sentence = refused()
    assert (status, "is being changed by another process" in sentence) == (409, True)
    killer = threading.Thread(target=kill_lesson, args=(box,))
    killer.start()
    status, sentence = refused()
    killer.join()
    assert (status, "the teaching process died (exit code -9)" in sentence) == (500, True)
    with monkeypatch.context() as patched:
        patched.setattr(teaching, "end_teaching", full)
        assert refused() == (503, "the record cannot be written")
    required = replace(box.service.settings, engine=replace(box.service.settings.engine, public_key=path))
    with monkeypatch.context() as patched:
        patched.setattr(box.service.teacher, "_settings", required)
        status, sentence = refused()
    assert (status, "holds no key to sign with" in sentence) == (409, True)
    assert versions.bundle_id(path) == before
    assert box.get(STATE).json == state
    rows = box.get("/bundles/line1/versions").json["teachings"]
    assert [row["action"] for row in rows] == ["teach"]
    assert box.service.store is not None
    assert box.service.store.rows("SELECT count(*) AS n FROM teachings") == [{"n": 1}]


def kill_lesson(box: Box) -> None:
    while (process := box.service.teacher._lessons.process) is None or process.pid is None:
        time.sleep(0.01)
    process.kill()


def test_what_is_accepted_is_a_new_version_with_the_good_ones_in_its_bank(taught: tuple[Box, Path]) -> None:
    box, path = taught
    before, state = versions.bundle_id(path), box.get(STATE).json
    assert post(box, "/classes/washer/accept", {"bundle_id": "0" * 16}).status == 409
    assert versions.bundle_id(path) == before, "nothing is switched without a person who saw the proposal"
    assert state["joining"] == state["answers"]["good"] > 0
    answer = post(box, "/classes/washer/accept", {"bundle_id": before})
    assert answer.status == 200, answer.body
    done = answer.json
    assert done["joined"] == len(SHOTS) + state["answers"]["good"]
    assert (done["before_id"], done["after_id"]) == (before, versions.bundle_id(path))
    verdict = box.inspect(part(77, mottle=10), "?class=washer").json
    assert (verdict["bundle_id"], verdict["threshold"]) == (done["after_id"], done["thresholds"]["after"])
    after = box.get(STATE).json
    assert after["state"] == ("trusted" if done["trusted"] else "learning")
    assert after["seen"] == state["seen"] + (not done["trusted"]), "the stream was judged again under the new bank"
    assert after["answers"] == state["answers"], "those that joined the bank stay good photos of the stream"
    assert after["proposed"]["threshold"] == pytest.approx(done["thresholds"]["after"], rel=1e-6), "it says the same"
    listed = box.get("/bundles/line1/versions").json
    row = listed["teachings"][0]
    assert (row["who"], row["action"], row["class_name"]) == ("127.0.0.1", "accept", "washer")
    assert set(row["photos"]) >= {sha256_bytes(photo) for photo in SHOTS}
    assert len(row["details"]["answers"]["good"]) == state["answers"]["good"]
    assert row["details"]["thresholds"]["before"] == state["now"]["threshold"]
    assert "accepted on" in listed["versions"][0]["change"]

    assert after["joining"] == 0, "all that were called good are in the bank"
    answered = post(box, "/classes/washer/answers", {"uid": verdict["uid"], "answer": "good"})
    assert (answered.status, answered.json["joining"], answered.json["bank_stays"]) == (200, 1, None)
    again = post(box, "/classes/washer/accept", {"bundle_id": done["after_id"]})
    assert again.status == 200, again.body
    assert again.json["joined"] == done["joined"] + 1, "the bank of the first acceptance, and the new one"
    twice = box.get(STATE).json
    assert (twice["joining"], twice["answers"]["good"]) == (0, state["answers"]["good"] + 1)
    assert twice["proposed"]["threshold"] == pytest.approx(again.json["thresholds"]["after"], rel=1e-6)
    assert [r["action"] for r in box.get("/bundles/line1/versions").json["teachings"]] == ["accept", "accept", "teach"]

    back = post(box, "/bundles/line1/restore", {"bundle_id": before})
    assert back.status == 200, back.body
    restored = box.get(STATE).json
    assert restored["now"]["threshold"] == state["now"]["threshold"]
    assert (restored["seen"], restored["answers"]) == (state["seen"], state["answers"]), "its own stream came back, too"


def test_pictures_outlive_the_memory_where_photo_and_map_are_kept(taught: tuple[Box, Path]) -> None:
    box, _ = taught
    uid = box.get("/verdicts?class=washer&limit=1").json["verdicts"][0]["uid"]
    pictures = f"/verdicts/{uid}/pictures"
    before = {kind: box.get(f"{pictures}/{kind}").body for kind in ("photo", "heat", "map")}
    with box.service.cache._lock:
        box.service.cache._kept.clear()
    for kind, body in before.items():
        assert box.get(f"{pictures}/{kind}").body == body, kind
    assert box.get(f"{pictures}/overlay").status == 200
    with Image.open(io.BytesIO(box.get(f"{pictures}/large").body)) as large:
        assert large.size == (64, 64), "as it came, not as the networks saw it"
    for kind in ("repaint", "evidence"):
        gone = box.get(f"{pictures}/{kind}")
        assert (gone.status, "no longer in memory" in gone.json["error"]) == (404, True)


def test_what_cannot_be_answered_or_accepted_is_said(taught: tuple[Box, Path]) -> None:
    box, _ = taught
    uid = box.get("/verdicts?class=washer&limit=1").json["verdicts"][0]["uid"]
    cases = (
        ("/classes/nut/answers", {"uid": uid, "answer": "good"}, 404, "class 'nut' is not in bundle line1"),
        ("/classes/washer/answers", {"uid": "f" * 32, "answer": "good"}, 404, "is no photo of the stream of washer"),
        ("/classes/washer/answers", {"uid": uid, "answer": "perhaps"}, 422, "answer"),
        ("/classes/bottle/accept", {"bundle_id": "0" * 16}, 409, "nothing can be accepted of bottle"),
    )
    for route, body, status, sentence in cases:
        answer = post(box, route, body)
        assert (answer.status, sentence in answer.json["error"]) == (status, True), answer.body
    assert box.get("/classes/nut/commissioning").status == 404


def test_a_stream_that_is_half_bad_proposes_nothing(tmp_path: Path) -> None:
    path = small_bundle(tmp_path / "line1").path
    record = s.RecordSettings(tmp_path / "record.sqlite")
    with running_box(small_settings(path, record=record)) as box:
        assert box.form("/classes", [("class", "washer"), *(("photo", photo) for photo in SHOTS)]).status == 200
        for seed in range(10):
            for photo in (part(100 + seed, mottle=10), part(200 + seed, mottle=10, spot=30)):
                assert box.inspect(photo, "?class=washer").status == 200
        state = box.get(STATE).json
        assert (state["state"], state["proposed"], state["changes"]) == ("learning", None, [])
        assert "nothing is proposed" in state["reason"]
        assert "look defective" in state["reason"]
        assert state["bank_stays"] == "the record keeps no photos (--keep photo)"
        refused = post(box, "/classes/washer/accept", {"bundle_id": state["bundle_id"]})
        assert (refused.status, "nothing is proposed" in refused.json["error"]) == (409, True)


def test_thresholds_alone_are_accepted_where_photos_are_not_kept_and_auto_accepts_alone(tmp_path: Path) -> None:
    path = small_bundle(tmp_path / "line1").path
    record = s.RecordSettings(tmp_path / "record.sqlite")
    settings = replace(small_settings(path, record=record), trusted_width=1.0, auto=True)
    with running_box(settings) as box:
        assert box.form("/classes", [("class", "washer"), *(("photo", photo) for photo in SHOTS)]).status == 200
        for photo in GOOD:
            assert box.inspect(photo, "?class=washer").status == 200
        until = time.monotonic() + 60
        while (state := box.get(STATE).json)["state"] != "trusted" and time.monotonic() < until:
            time.sleep(0.2)
        assert state["state"] == "trusted", state
        assert state["seen"] >= 8, "the same bank: its scores go on counting"
        row = box.get("/bundles/line1/versions").json["teachings"][0]
        assert (row["who"], row["action"], row["photos"]) == ("auto", "accept", [])
    with pytest.raises(SettingsError, match="--auto needs --record"):
        replace(settings, record=s.RecordSettings())
    with pytest.raises(SettingsError, match="expected percent"):
        replace(settings, trusted_width=0.0)


def test_accepting_needs_a_teacher_and_answering_does_not(tmp_path: Path) -> None:
    path = small_bundle(tmp_path / "line1").path
    tokens = {name: f"secret-of-{name}-0123456789" for name in ("olga", "tom")}
    security = s.SecuritySettings(tokens=tokens, roles={"olga": "operator", "tom": "teacher"})
    record = s.RecordSettings(tmp_path / "record.sqlite")
    with running_box(replace(small_settings(path, record=record), security=security)) as box:
        for who, accept in (("olga", 403), ("tom", 409)):
            token = {"Authorization": f"Bearer {tokens[who]}"}
            assert post(box, "/classes/bottle/accept", {"bundle_id": "00"}, **token).status == accept
            assert post(box, "/classes/bottle/answers", {"uid": "00", "answer": "good"}, **token).status == 404
            assert box.get("/classes/bottle/commissioning", **token).status == 200
    with running_box(small_settings(path)) as box:
        refused = box.get("/classes/bottle/commissioning")
        assert (refused.status, "--record" in refused.json["error"]) == (409, True)


def test_a_change_whose_row_was_not_ended_is_ended_or_removed_at_the_next_start(tmp_path: Path) -> None:
    path = small_bundle(tmp_path / "line1").path
    now, record = versions.bundle_id(path), s.RecordSettings(tmp_path / "record.sqlite")
    store = VerdictStore(record.path or tmp_path)
    row = Teaching(
        at=1.0, who="tom", action="teach", bundle="line1", class_name="nut", photos=["aa"], before_id="0" * 16
    )
    begin_teaching(store, row)
    begin_teaching(store, replace(row, before_id=now, who="olga"))
    assert teachings(store, "line1") == [], "what has begun is nothing yet"
    store.close()
    left = path.with_name(".line1-0123abcd.aside")
    left.mkdir()
    with running_box(small_settings(path, record=record)) as box:
        (found,) = box.get("/bundles/line1/versions").json["teachings"]
        assert (found["who"], found["after_id"]) == ("tom", now), "the switch was done, the row was lost"
    assert not left.exists()


def test_scores_are_compared_over_changes_that_left_the_bank_alone(tmp_path: Path) -> None:
    store = VerdictStore(tmp_path / "record.sqlite")

    def done(action: Any, name: str | None, photos: list[str], before: str, after: str, **details: Any) -> None:
        row = Teaching(
            at=float(len(teachings(store, "line1"))), who="tom", action=action, bundle="line1", class_name=name,
            photos=photos, before_id=before, after_id=after, details=details,
        )  # fmt: skip
        end_teaching(store, begin_teaching(store, replace(row, after_id="")), row)

    done("teach", "nut", ["a"], "b0", "b1")
    done("teach", "bolt", ["b"], "b1", "b2")
    done("accept", "nut", [], "b2", "b3", trusted=True, repaint=0.25)
    done("accept", "nut", ["a", "c"], "b3", "b4", trusted=False, repaint=0.5)
    done("restore", None, [], "b4", "b3")
    third, fourth = (class_history(store, "line1", "nut", ident) for ident in ("b3", "b4"))
    assert sorted(third.comparable) == ["b1", "b2", "b3"]
    assert (third.trusted, third.photos, third.made_here, third.repaint) == (True, ("a",), True, 0.25)
    assert fourth.comparable == ("b4",)
    assert (fourth.trusted, fourth.photos, fourth.repaint) == (False, ("a", "c"), 0.5)
    other = class_history(store, "line1", "screw", "b4")
    assert sorted(other.comparable) == ["b0", "b1", "b2", "b3", "b4"]
    assert (other.made_here, other.trusted) == (False, False)
    assert line_photos(store, "line1", "nut", "edge", third) == []
    store.close()


@pytest.mark.parametrize("record", [True, False])
def test_a_lamp_that_ages_and_a_blur_are_said_before_verdicts_go_wrong(tmp_path: Path, record: bool) -> None:
    path = small_bundle(tmp_path / "line1").path
    kept = s.RecordSettings(tmp_path / "record.sqlite") if record else s.RecordSettings()
    settings, number = small_settings(path, record=kept), 1000

    def judge(box: Box, count: int, **changes: Any) -> list[str]:
        nonlocal number
        for _ in range(count):
            number += 1
            assert box.inspect(part(number, mottle=10, **changes), "?class=bottle").status == 200
        return list(box.get("/health").json["reasons"])

    with running_box(settings) as box:
        assert judge(box, drift.LEAST_REFERENCE + 2 * drift.BLOCK + 7) == [], "the line is what it was"
        drifted = 'sd_edge_drift{bundle="line1",class_name="bottle",quantity="%s"} %s'
        assert drifted % ("brightness", "0.0") in box.get("/metrics").body.decode()
        reasons = judge(box, 2 * drift.BLOCK, gain=0.9)
        assert any(reason.startswith("class bottle: the lamp ages: photos are ") for reason in reasons), reasons
        assert drifted % ("brightness", "1.0") in box.get("/metrics").body.decode()
        assert box.get("/health").json["status"] == "degraded"
        if record:
            told = box.get("/classes/bottle/commissioning").json["drift"]
            assert any("the lamp ages" in sentence for sentence in told)
        reasons = judge(box, 2 * drift.BLOCK)
        assert not any("lamp" in reason for reason in reasons), "a new lamp is as good as the old one"
        reasons = judge(box, 2 * drift.BLOCK, blur_px=2.0)
        assert any("the camera lost focus" in reason for reason in reasons), reasons
    with running_box(settings) as box:
        reasons = judge(box, 1, blur_px=2.0)
        assert any("lost focus" in reason for reason in reasons) is record, "a restart goes on by the record"
