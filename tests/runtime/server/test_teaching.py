"""Classes taught at a running box: live without a lost request, recorded, taken back; and who may do it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from anomalysd_edge.bundle import versions
from anomalysd_edge.bundle.reader import MANIFEST, read_bundle
from anomalysd_edge.bundle.signing import new_key, sign
from anomalysd_edge.core.files import sha256_bytes
from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_runtime.server import settings as s
from anomalysd_runtime.server.errors import Unavailable
from anomalysd_runtime.server.inference import teaching
from anomalysd_runtime.server.records import history
from tests.support.parts import part
from tests.support.serving import Answer, Box, running_box, small_settings
from tests.support.small_graphs import small_bundle

pytestmark = [pytest.mark.net, pytest.mark.slow]

SECRETS = {name: f"secret-of-{name}-0123456789" for name in ("olga", "tom", "ada", "old")}
ROLES = {"olga": "operator", "tom": "teacher", "ada": "admin"}


PARTS = [part(seed) for seed in range(3)]
JSON = {"content-type": "application/json"}


def taught(box: Box, name: str, photos: Sequence[bytes], **fields: str) -> Answer:
    return box.form("/classes", [("class", name), *fields.items(), *(("photo", photo) for photo in photos)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small_bundle(tmp_path / "line1").path


@pytest.fixture
def box(path: Path, tmp_path: Path) -> Iterator[Box]:
    record = s.RecordSettings(tmp_path / "record.sqlite", keep_photo=True)
    with running_box(small_settings(path, record=record)) as opened:
        yield opened


def test_a_class_is_taught_without_losing_a_request_and_taken_back(box: Box, path: Path) -> None:
    first, statuses, done = versions.bundle_id(path), [], threading.Event()

    def inspect() -> None:
        while not done.is_set():
            statuses.append(box.inspect(PARTS[0], "?class=bottle").status)

    line = threading.Thread(target=inspect)
    line.start()
    try:
        answer = taught(box, "washer", [*PARTS, PARTS[1], b"no image"], noun="steel washer")
    finally:
        done.set()
        line.join()
    assert answer.status == 200, answer.body
    told = answer.json
    assert len(statuses) > 3
    assert set(statuses) == {200}
    assert (told["class"], told["anew"], told["shots"], told["before_id"]) == ("washer", False, 3, first)
    assert [(f["kind"], f["left_out"]) for f in told["findings"]][:2] == [("unreadable", True), ("duplicate", True)]
    assert [p["sha256"] for p in told["photos"]] == [sha256_bytes(photo) for photo in PARTS]
    assert any("empty prompt" in note for note in told["notes"]), "a box has no text encoder, and says so"
    verdict = box.inspect(PARTS[2], "?class=washer&full=true").json
    assert verdict["bundle_id"] == told["after_id"] == versions.bundle_id(path)
    assert verdict["threshold"] == told["thresholds"]["edge"]

    listed = box.get("/bundles/line1/versions").json
    assert [v["bundle_id"] for v in listed["versions"]] == [told["after_id"], first]
    assert listed["versions"][0]["change"] == "class 'washer' added from 3 photos"
    (row,) = listed["teachings"]
    assert (row["who"], row["action"], row["class_name"]) == ("127.0.0.1", "teach", "washer")
    assert row["photos"] == [sha256_bytes(photo) for photo in PARTS]
    assert (row["before_id"], row["after_id"]) == (first, told["after_id"])

    back = box.ask("POST", "/bundles/line1/restore", b'{"bundle_id": "%s"}' % first.encode(),
                   {"content-type": "application/json"})  # fmt: skip
    assert back.status == 200, back.body
    assert back.json["bundle_id"] == first
    assert box.inspect(PARTS[2], "?class=washer").status == 404
    assert box.inspect(PARTS[2], "?class=bottle").json["bundle_id"] == first
    rows = box.get("/bundles/line1/versions").json["teachings"]
    assert [(r["action"], r["after_id"]) for r in rows] == [("restore", first), ("teach", told["after_id"])]
    store = box.service.store
    assert store is not None
    again = history.reinspect(store, verdict["uid"], path, threads=1)
    assert again.same, "the version that gave the verdict is found by its id"


def test_what_cannot_be_taught_is_said_and_changes_nothing(box: Box, path: Path) -> None:
    before = versions.bundle_id(path)
    cases: tuple[tuple[list[tuple[str, bytes | str]], int, str], ...] = (
        ([("class", "washer"), ("photo", b"nothing")], 422, "no photo can be used to teach 'washer': photo.png: "),
        ([("class", "washer")], 422, "0 photos came; a class is taught with 1 to 20"),
        ([("class", "a/b"), ("photo", PARTS[0])], 422, "'a/b' cannot name a class"),
        ([("photo", PARTS[0])], 422, "no class was named"),
        ([("class", "washer"), ("colour", "red"), ("photo", PARTS[0])], 422, "the field 'colour' is not known"),
        ([("class", "washer"), ("bundle", "line9"), ("photo", PARTS[0])], 404, "bundle 'line9' is not here"),
        ([("class", "washer"), *[("photo", PARTS[0])] * 21], 400, "Too many files"),
    )  # fmt: skip
    for parts, status, sentence in cases:
        answer = box.form("/classes", parts)
        assert (answer.status, sentence in answer.json["error"]) == (status, True), answer.body
    assert box.ask("POST", "/classes", b"{}", {"content-type": "application/json"}).status == 415
    for body, status in ((b'{"bundle_id": "00"}', 409), (b"{}", 422)):
        asked = box.ask("POST", "/bundles/line1/restore", body, {"content-type": "application/json"})
        assert asked.status == status, asked.body
    with versions.changing(path):
        busy = taught(box, "washer", PARTS)
    assert (busy.status, "is being changed by another process" in busy.json["error"]) == (409, True)
    assert versions.bundle_id(path) == before
    assert box.get("/bundles/line1/versions").json["teachings"] == []


def test_a_dead_teacher_and_a_record_that_cannot_be_written_change_nothing(
    box: Box, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = versions.bundle_id(path)
    killer = threading.Thread(target=lambda: _kill_when_there(box.service.teacher))
    killer.start()
    answer = taught(box, "washer", PARTS)
    killer.join()
    assert answer.status == 500
    assert "the teaching process died (exit code -9)" in answer.json["error"]
    assert versions.bundle_id(path) == before

    def full(*_: object) -> None:
        raise Unavailable("the record cannot be written")

    monkeypatch.setattr(teaching, "end_teaching", full)
    assert taught(box, "washer", PARTS).status == 503
    assert versions.bundle_id(path) == before
    assert box.inspect(PARTS[0], "?class=bottle").json["bundle_id"] == before


def _kill_when_there(teacher: teaching.Teacher) -> None:
    while (process := teacher._lessons.process) is None or process.pid is None:
        threading.Event().wait(0.01)
    process.kill()


KILLED = """
import os, signal, sys
from pathlib import Path
from anomalysd_runtime.server.inference import teaching
from anomalysd_runtime.server.settings import RecordSettings
from tests.runtime.server.test_teaching import PARTS, taught
from tests.support.serving import running_box, small_settings
teaching.end_teaching = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
record = RecordSettings(Path(sys.argv[2]), keep_photo=True)
with running_box(small_settings(Path(sys.argv[1]), record=record)) as box:
    taught(box, "washer", PARTS)
"""


def test_killed_between_the_switch_and_its_row_the_row_is_ended_at_the_next_start(path: Path) -> None:
    before, file = versions.bundle_id(path), path.with_name("record.sqlite")
    done = subprocess.run([sys.executable, "-c", KILLED, path, file], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    now = versions.bundle_id(path)
    assert now != before, "it died after the switch"
    with running_box(small_settings(path, record=s.RecordSettings(file, keep_photo=True))) as box:
        (row,) = box.get("/bundles/line1/versions").json["teachings"]
        assert (row["class_name"], row["before_id"], row["after_id"]) == ("washer", before, now)
        assert set(row["photos"]) == {sha256_bytes(photo) for photo in PARTS}
        assert box.inspect(PARTS[0], "?class=washer").json["bundle_id"] == now
        restored = json.dumps({"bundle_id": before}).encode()
        assert box.ask("POST", "/bundles/line1/restore", restored, JSON).status == 200
        assert box.inspect(PARTS[0], "?class=bottle").json["bundle_id"] == before


def test_roles_say_who_may_teach_and_who_may_load(path: Path) -> None:
    security = s.SecuritySettings(tokens=SECRETS, roles=ROLES)
    restore = b'{"bundle_id": "00"}'
    with running_box(replace(small_settings(path), security=security)) as box:
        for who, teach, load in (("olga", 403, 403), ("tom", 415, 403), ("ada", 415, 200), ("old", 403, 200)):
            token = {"Authorization": f"Bearer {SECRETS[who]}", "content-type": "application/json"}
            assert box.ask("POST", "/classes", b"{}", token).status == teach, who
            undone = box.ask("POST", "/bundles/line1/restore", restore, token)
            assert undone.status == (403 if teach == 403 else 409), who
            for route in ("/bundles/line1/reload", "/v2/repository/models/line1/load"):
                assert box.ask("POST", route, b"{}", token).status == load, (who, route)
            assert box.ask("GET", "/bundles/line1/versions", None, token).status == 200
            assert box.inspect(PARTS[0], **{"Authorization": token["Authorization"]}).status == 200
        told = box.ask("POST", "/classes", b"{}", {"Authorization": f"Bearer {SECRETS['olga']}"}).json["error"]
    assert told == "the token 'olga' (role operator) may not teach; a teacher or an admin may"


def test_roles_stand_behind_the_secret(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(
        "a:0123456789abcdef:operator\nb:0123456789abcdef\nc:0123456789:abcdef:admin\nd:0123456789abc:other\n"
    )
    assert s.read_tokens(None, file) == {
        "a": "0123456789abcdef", "b": "0123456789abcdef", "c": "0123456789:abcdef", "d": "0123456789abc:other",
    }  # fmt: skip
    assert s.read_roles(file) == {"a": "operator", "c": "admin"}
    file.write_text("a:teacher\n")
    with pytest.raises(SettingsError, match="shorter than 16"):
        s.read_tokens(None, file)


def test_where_a_signature_is_required_teaching_needs_a_key(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    public = new_key(tmp_path / "line.pem")
    sign(path / MANIFEST, tmp_path / "line.pem")
    before = versions.bundle_id(path)
    settings = small_settings(path)
    required = replace(settings.engine, public_key=public)
    with running_box(replace(settings, engine=required)) as box:
        answer = taught(box, "washer", PARTS)
        assert answer.status == 409
        assert "holds no key to sign with: start it with --sign KEY" in answer.json["error"]
        assert versions.bundle_id(path) == before
    other = new_key(tmp_path / "other.pem")
    for key, sentence in ((tmp_path / "other.pem", "what it signed would be refused"), (other, "is no unencrypted")):
        with (
            pytest.raises(InputError, match=sentence),
            running_box(replace(settings, engine=replace(required, sign_key=key))),
        ):
            raise AssertionError("it started")
    with running_box(replace(settings, engine=replace(required, sign_key=tmp_path / "line.pem"))) as box:
        assert taught(box, "washer", PARTS).status == 200
        assert box.inspect(PARTS[0], "?class=washer").status == 200
    read_bundle(path, public_key=public)
