"""Registry and boxes: transfers that break off, files that are tampered with, switches under load, how boxes are."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.bundle.reader import MANIFEST, read_bundle
from anomalysd_edge.bundle.signing import new_key, sign
from anomalysd_edge.bundle.update import read_manifest, write_manifest
from anomalysd_edge.errors import BundleError, InputError, RegistryError, SDEdgeError
from anomalysd_edge.fleet import registry
from anomalysd_edge.fleet.box_client import box_state, fleet_state, read_boxes, read_metrics, reload
from anomalysd_edge.fleet.installed import Installed
from anomalysd_edge.fleet.pulling import Pulled, pull
from anomalysd_edge.fleet.registry import push, version_of
from anomalysd_edge.fleet.storage import Storage
from tests.support.command import sd_edge
from tests.support.serving import png, running_box, small_settings
from tests.support.small_graphs import small_bundle

PIECE = 256
"""Bytes: the small bundle's files then have several pieces."""


def silent(*_: Any) -> None:
    """No progress."""


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PIECE_BYTES", PIECE)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return small_bundle(tmp_path / "made/line").path


def another(bundle: Path, created: str = "2999-01-01T00:00:00+00:00") -> Path:
    """The same bundle with a threshold moved: a new version that shares every file with the old one."""
    copy = bundle.parent.parent / f"made-{created[:4]}/line"
    shutil.copytree(bundle, copy)
    value = json.loads((copy / MANIFEST).read_text())
    value["created"] = created
    value["classes"]["bottle"]["calibration"]["edge"]["threshold"] = 0.5
    (copy / MANIFEST).write_text(json.dumps(value))
    return copy


def get(url: str, box: Path, **how: Any) -> Pulled:
    return pull(url, "line", box, silent, pauses_s=(), **how)


def version(path: Path) -> str:
    return version_of((path / MANIFEST).read_bytes())


def test_a_bundle_goes_through_a_registry_byte_by_byte(bundle: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    first = push(bundle, url, None, silent)
    assert (first.name, first.version, first.sent_bytes <= first.total_bytes) == ("line", version(bundle), True)
    assert push(bundle, url, None, silent).sent_bytes == 0
    done = get(url, tmp_path / "box")
    assert done.switched
    assert done.fetched_bytes == done.total_bytes == first.total_bytes
    link = tmp_path / "box/line"
    for file in (p for p in bundle.rglob("*") if p.is_file()):
        assert (link / file.relative_to(bundle)).read_bytes() == file.read_bytes()
    assert read_bundle(link).manifest == read_bundle(bundle).manifest
    assert not get(url, tmp_path / "box").switched
    assert list((tmp_path / "box/.versions/line").glob(".pull-*")) == []


def test_a_new_version_brings_only_what_changed_and_rolls_back(bundle: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/registry"
    box = tmp_path / "box"
    old, new = version(bundle), version(another(bundle))
    push(bundle, url, None, silent)
    get(url, box)
    assert push(tmp_path / "made-2999/line", url, None, silent).sent_bytes == 0
    done = get(url, box)
    assert (done.before, done.version, done.fetched_bytes) == (old, new, 0)
    assert read_bundle(box / "line").manifest.classes["bottle"].calibration["edge"].threshold == 0.5
    installed = Installed(box, "line")
    assert (installed.current, installed.previous) == (new, old)
    assert sd_edge("rollback", "line", "--into", box, cwd=tmp_path).returncode == 0
    assert (installed.current, installed.previous) == (old, new)
    assert installed.rollback() == new
    # A third version pushes the oldest out; a switch that was noted but never happened misleads nobody.
    third = another(bundle, "3000-01-01T00:00:00+00:00")
    push(third, url, None, silent)
    for folder in (old, new):  # what they were before they were taught, as bundle/versions.py keeps it
        (installed.versions / f"{folder}.versions").mkdir()
    get(url, box)
    kept = [new, f"{new}.versions", version(third)]
    assert sorted(p.name for p in installed.versions.iterdir() if p.is_dir()) == sorted(kept)
    with (installed.versions / "switches").open("a") as file:
        file.write("0123456789abcdef\n")
    assert installed.previous == new


def test_the_first_version_has_nothing_to_go_back_to(bundle: Path, tmp_path: Path) -> None:
    push(bundle, str(tmp_path / "registry"), None, silent)
    get(str(tmp_path / "registry"), tmp_path / "box")
    with pytest.raises(InputError, match="no earlier version"):
        Installed(tmp_path / "box", "line").rollback()
    (tmp_path / "other/line").mkdir(parents=True)
    with pytest.raises(InputError, match="not a link"):
        Installed(tmp_path / "other", "line")


def test_an_older_latest_is_refused_unless_asked_for(bundle: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "registry")
    newer = another(bundle)
    push(newer, url, None, silent)
    get(url, tmp_path / "box")
    push(bundle, url, None, silent)
    with pytest.raises(BundleError, match="before what is in use here"):
        get(url, tmp_path / "box")
    assert get(url, tmp_path / "box", version=version(bundle)).version == version(bundle)


@contextmanager
def web(folder: Path, most: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """A plain web server over `folder` whose line breaks in the middle of the answer after `most` objects."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if "/objects/" in self.path:
                asked.append(self.path)
                if most is not None and len(asked) > most:
                    self.send_response(200)
                    self.send_header("Content-Length", str(PIECE))
                    self.end_headers()
                    self.wfile.write(b"half")
                    self.close_connection = True
                    return
            super().do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/registry", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_broken_transfer_goes_on_where_it_was(bundle: Path, tmp_path: Path) -> None:
    """Over HTTP: the line breaks in the middle of the sixth piece; the second run asks for the rest alone."""
    push(bundle, str(tmp_path / "registry"), None, silent)
    total = get(str(tmp_path / "registry"), tmp_path / "reference").fetched_bytes
    box = tmp_path / "box"
    with web(tmp_path, most=5) as (url, asked), pytest.raises(RegistryError, match="cannot be reached"):
        get(url, box)
    assert len(asked) == 6
    assert not (box / "line").exists()
    assert Installed(box, "line").current is None
    with web(tmp_path) as (url, asked):
        done = get(url, box)
    assert done.switched
    assert done.fetched_bytes < total
    assert read_bundle(box / "line").manifest == read_bundle(bundle).manifest
    came_before = total - done.fetched_bytes
    assert 4 * PIECE < came_before <= 5 * PIECE


def test_a_short_outage_is_waited_for(bundle: Path, tmp_path: Path) -> None:
    push(bundle, str(tmp_path / "registry"), None, silent)
    storage = Storage(str(tmp_path / "registry"), (0.0, 0.0))
    failures = iter([OSError("cable"), ConnectionResetError("cable")])
    whole = storage._system.open

    def flaky(*arguments: Any, **named: Any) -> Any:
        error = next(failures, None)
        if error is not None:
            raise error
        return whole(*arguments, **named)

    storage._system = type("Flaky", (), {"open": staticmethod(flaky)})()
    assert json.loads(storage.read("bundles/line/latest.json", 100)) == {"version": version(bundle)}
    with pytest.raises(RegistryError, match="longer than 3 bytes"):
        storage.read("bundles/line/latest.json", 3)


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["object", "index", "manifest", "exchanged", "signature"])
def test_what_was_tampered_with_never_gets_in_use(bundle: Path, tmp_path: Path, what: str) -> None:
    key = tmp_path / "key.pem"
    public = new_key(key)
    sign(bundle / MANIFEST, key)
    store, box = tmp_path / "registry", tmp_path / "box"
    push(bundle, str(store), None, silent, public_key=public)
    good = get(str(store), box, public_key=public).version
    newer = another(bundle)
    graph = newer / "unet/model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\x00\x00")  # a file of its own, so that something must be fetched
    value = read_manifest(newer)
    from anomalysd_edge.bundle.update import replace_files

    write_manifest(newer, replace_files(newer, value, ["unet/model.onnx"], ["unet/model.onnx"]))
    sign(newer / MANIFEST, key)
    sent = push(newer, str(store), None, silent, public_key=public)
    place = store / "bundles/line" / sent.version
    last = json.loads((place / "index.json").read_text())["files"]["unet/model.onnx"][-1]
    expected: dict[str, tuple[type[SDEdgeError], str]] = {
        "object": (RegistryError, "is not what its name says"),
        "index": (RegistryError, "do not make the file"),
        "manifest": (RegistryError, "another manifest"),
        "exchanged": (BundleError, "does not fit its manifest"),
        "signature": (BundleError, "is not signed"),
    }
    if what == "object":
        damage(store / registry.object_name(last))
    elif what == "index":  # a right piece in the wrong place
        told = json.loads((place / "index.json").read_text())
        told["files"]["unet/model.onnx"][-1] = told["files"]["unet/model.onnx"][0]
        (place / "index.json").write_text(json.dumps(told))
    elif what == "manifest":
        damage(place / MANIFEST)
    elif what == "exchanged":  # an attacker's own bundle, whole and consistent, under somebody else's signature
        own = json.loads((newer / MANIFEST).read_text())
        own["classes"]["bottle"]["calibration"]["edge"]["threshold"] = 99.0
        (newer / MANIFEST).write_text(json.dumps(own))
        push(newer, str(store), None, silent)
    else:
        (place / "manifest.sig").unlink()
    kind, words = expected[what]
    with pytest.raises(kind, match=words):
        get(str(store), box, public_key=public)
    assert Installed(box, "line").current == good
    assert read_bundle(box / "line", public_key=public).manifest == read_bundle(bundle).manifest
    done = sd_edge(
        "pull", store, "line", "--into", box, "--require-signature", public, "--quiet", cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_names_and_missing_things_are_told_plainly(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no name for a bundle"):
        push(bundle, str(tmp_path / "registry"), "../line", silent)
    with pytest.raises(RegistryError, match=r"has no file bundles/line/latest\.json"):
        get(str(tmp_path / "registry"), tmp_path / "box")
    with pytest.raises(RegistryError, match="cannot be opened"):
        Storage("nonsense://here")
    with Installed(tmp_path / "box", "line").locked(), pytest.raises(InputError, match="is running"):
        get(str(tmp_path / "registry"), tmp_path / "box")


@pytest.mark.net
@pytest.mark.slow
def test_a_box_is_updated_without_a_hole(bundle: Path, tmp_path: Path) -> None:
    """Requests go on while a new version is pulled, opened, and rolled back: every answer is 200, from one or other."""
    url, box = str(tmp_path / "registry"), tmp_path / "box"
    push(bundle, url, None, silent)
    old = get(url, box).version
    newer = another(bundle)
    push(newer, url, None, silent)
    with running_box(small_settings(box / "line")) as running:
        at = f"http://127.0.0.1:{running.port}"
        answers: list[Any] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                answers.append(running.inspect(png(1)))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            new = get(url, box).version
            assert reload(at, "line", None) == new
            seen = len(answers)
            while len(answers) < seen + 5:
                stop.wait(0.01)
            assert Installed(box, "line").rollback() == old
            assert reload(at, "line", None) == old
        finally:
            stop.set()
            thread.join()
        assert {answer.status for answer in answers} == {200}
        told = [answer.json for answer in answers]
        assert {each["bundle_id"] for each in told} >= {new}
        assert {(each["bundle_id"], each["threshold"]) for each in told} <= {(old, 0.75), (new, 0.5)}
        assert len({each["pred_score"] for each in told}) == 1
        state = box_state(at, None, 30)
        assert (state.status, state.bundles, state.fine) == ("ok", {"line": old}, True)
        assert sum(state.verdicts.values()) == len(answers)
        assert state.mean_s is not None
        # The command, with a box that cannot open what was pulled: the version before counts again.
        (box / ".versions/line" / new / "unet/model.onnx").unlink()
        done = sd_edge("rollback", "line", "--into", box, "--box", at, cwd=tmp_path, check=False)
        assert done.returncode == 1
        assert "does not open it" in done.stderr
        assert Installed(box, "line").current == old
        assert running.inspect(png(1)).status == 200
        shown = sd_edge("fleet", "status", at, "http://127.0.0.1:9", "--json", cwd=tmp_path, check=False)
        assert shown.returncode == 1
        first, second = json.loads(shown.stdout)
        assert (first["status"], first["bundles"]) == ("ok", {"line": old})
        assert second["status"] == "unreachable"
        table = sd_edge("fleet", "status", at, cwd=tmp_path)
        assert "1 of 1 boxes are ok" in table.stdout
    assert reload(at, "line", None) is None


def test_boxes_come_from_a_file_and_metrics_from_their_text(tmp_path: Path) -> None:
    (tmp_path / "boxes").write_text("# line 1\nhttp://127.0.0.1:9\n\n")
    assert read_boxes(tmp_path / "boxes") == ["http://127.0.0.1:9"]
    with pytest.raises(InputError, match="no address of a box"):
        fleet_state(["box7"], None)
    with pytest.raises(InputError, match="no box was named"):
        fleet_state([], None)
    told = read_metrics(
        'sd_edge_verdicts_total{bundle="a",class_name="x",verdict="good"} 3.0\n'
        'sd_edge_verdicts_total{bundle="b",class_name="y",verdict="good"} 2.0\n'
        'sd_edge_verdicts_total{bundle="b",class_name="y",verdict="uncertain"} 4.0\n'
        'sd_edge_requests_total{source="http",status="200"} 5.0\n'
        'sd_edge_requests_total{source="http",status="503"} 7.0\n'
        "# TYPE sd_edge_request_seconds histogram\n"
        'sd_edge_request_seconds_sum{source="http"} 2.0\n'
        'sd_edge_request_seconds_count{source="http"} 4.0\n'
    )
    assert told["verdicts"] == {"good": 5, "uncertain": 4}
    assert told["refused"] == 7
    assert np.isclose(told["mean_s"], 0.5)
