"""The same scores over Ray, on a real one with two workers; what runs without it: journal and packing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.errors import InputError, MissingExtra, SettingsError
from anomalysd_edge.method.result import Evidence, Inspection
from anomalysd_edge.method.score_model import Limits
from anomalysd_edge.vision.images import decode_rgb
from anomalysd_runtime.distributed.journal import Journal, JournalEntry
from anomalysd_runtime.distributed.ray_inspect import RaySettings
from anomalysd_runtime.distributed.ray_serve import ReplicaSettings, check
from anomalysd_runtime.distributed.remote_photos import list_photos, read_photo
from anomalysd_runtime.distributed.serialization import pack, unpack
from anomalysd_runtime.loading import open_detector
from anomalysd_runtime.server.settings import RecordSettings, ServeSettings, WebhookSettings
from tests.support.command import ROOT, sd_edge
from tests.support.serving import CRASH, png
from tests.support.small_graphs import small_bundle

pytestmark = pytest.mark.net

with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -e '.[ray]'"
)


def scenario(name: str, folder: Path) -> Any:
    """Run one of tests/ray_scenarios.py in a process of its own: Ray's warnings and threads end with it."""
    out = folder / f"{name}.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-m", "tests.support.ray_scenarios", name, str(folder), str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.slow
@with_ray
def test_two_workers_give_the_scores_of_one_process(tmp_path: Path) -> None:
    small_bundle(tmp_path / "line")
    (tmp_path / "photos").mkdir()
    files = {f"{number:02}.png": png(number) for number in range(24)}
    files["09.png"] = png(9, CRASH)
    files["14.png"] = b"no photo"
    for name, data in files.items():
        (tmp_path / "photos" / name).write_bytes(data)
    told = scenario("photos", tmp_path)
    assert told["killed"] == 1
    errors = {number: each["error"] for number, each in enumerate(told["found"]) if each["error"]}
    assert set(errors) == {9, 14}
    assert "died (exit code 66) while it judged this photo" in errors[9]
    assert "14.png is not an image" in errors[14]
    with open_detector(tmp_path / "line", threads=1) as detector:
        for start in range(0, 24, 4):
            numbers = [n for n in range(start, start + 4) if n not in errors]
            expected = detector.inspect([decode_rgb(files[f"{n:02}.png"]) for n in numbers], "bottle", full=False)
            assert [told["found"][n]["score"] for n in numbers] == [each.pred_score for each in expected]
    assert told["ran_again"] == 0, "what the journal holds is not judged again"
    assert told["counts"][-1] >= 24


@pytest.mark.slow
@with_ray
def test_a_killed_replica_costs_its_requests_alone(tmp_path: Path) -> None:
    small_bundle(tmp_path / "line")
    (tmp_path / "photos").mkdir()
    photo = png(side=1200)  # long in decoding: a replica that dies is at one, and Ray cannot give it to another
    (tmp_path / "photos/00.png").write_bytes(photo)
    told = scenario("serve", tmp_path)
    failed = [status for status, _ in told["answers"] if status != 200]
    assert 1 <= len(failed) <= 8, "four clients: what was with the dead replica, and little more"
    with open_detector(tmp_path / "line", threads=1) as detector:
        (expected,) = detector.inspect([decode_rgb(photo)], "bottle", full=False)
    assert {score for status, score in told["answers"] if status == 200} == {expected.pred_score}
    assert told["reload"] == 501
    assert told["code"] == 0


@pytest.mark.slow
@with_ray
def test_the_command_goes_over_ray_and_on_from_its_journal(tmp_path: Path) -> None:
    small_bundle(tmp_path / "line")
    (tmp_path / "photos").mkdir()
    for number in range(5):
        (tmp_path / f"photos/{number}.png").write_bytes(png(number))
    asked = ["inspect", "line", "photos", "--ray", "local", "--workers", "1", "--journal", "j.sqlite", "--json"]
    over_ray = json.loads(sd_edge(*asked, "--out", "results", cwd=tmp_path).stdout)
    alone = json.loads(sd_edge("inspect", "line", "photos", "--threads", "1", "--json", "--full", cwd=tmp_path).stdout)
    for each in (*over_ray, *alone):
        del each["timings_ms"]
    assert over_ray == alone
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["0", "1", "2", "3", "4"]
    other = sd_edge(*asked, "--full", cwd=tmp_path, check=False)
    assert other.returncode == 2
    assert "belongs to another run (answers differ)" in other.stderr
    nobody = sd_edge("inspect", "line", "photos", "--ray", "127.0.0.1:1", cwd=tmp_path, check=False)
    assert nobody.returncode == 2
    assert "Ray at 127.0.0.1:1 does not answer" in nobody.stderr


def inspection(**changes: Any) -> Inspection:
    rng = np.random.default_rng(0)
    maps = {name: rng.random((8, 8)).astype(np.float32) for name in ("prototypes", "fused")}
    values: dict[str, Any] = {
        "class_name": "bottle", "pred_score": 0.1 + 0.2, "pred_label": 1, "threshold": 1 / 3,
        "verdict": "uncertain", "pred_probability": 2 / 7, "limits": Limits(0.1, 1 / 7),
        "anomaly_map": maps["fused"], "pred_mask": maps["fused"] > 0.5, "maps": maps,
        "scores": {"fused": 2 / 3, "prototypes": 1e-300},
        "repaint": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8),
        "evidence": Evidence("grid", 4, np.eye(8, dtype=bool), 3, 5), "mode": "packed", "timings_ms": {"unet": 0.1},
        "backend": "onnxruntime",
    }  # fmt: skip
    return Inspection(**{**values, **changes})


UNKNOWN = ("pred_label", "threshold", "verdict", "pred_probability", "limits", "pred_mask")
"""What a class without a threshold leaves open."""


@pytest.mark.parametrize("changes", [{}, dict.fromkeys(UNKNOWN)])
def test_an_inspection_travels_bit_for_bit(changes: dict[str, Any]) -> None:
    before = inspection(**changes)
    after = unpack(pack(before))
    for entry in fields(Inspection):
        old, new = getattr(before, entry.name), getattr(after, entry.name)
        if entry.name == "evidence":
            assert np.array_equal(old.cell, new.cell)
            assert (old.kind, old.scale, old.x_px, old.y_px) == (new.kind, new.scale, new.x_px, new.y_px)
        elif entry.name == "maps":
            assert list(old) == list(new)
            assert all(np.array_equal(old[k], new[k]) and new[k].dtype == old[k].dtype for k in old)
        elif isinstance(old, np.ndarray):
            assert np.array_equal(old, new)
            assert old.dtype == new.dtype
        else:
            assert old == new, entry.name
    with pytest.raises(InputError, match="hold no inspection"):
        unpack(pack(before)[:-9])


def test_a_journal_keeps_order_and_refuses_another_run(tmp_path: Path) -> None:
    file = tmp_path / "kept/journal.sqlite"
    with Journal(file, {"bundle": "a", "count": 3}) as journal:
        journal.add([JournalEntry(2, b"two", None), JournalEntry(0, None, "broken")])
        journal.add([JournalEntry(1, b"one", None)])
        assert journal.answered() == {1, 2}
    with Journal(file, {"count": 3, "bundle": "a"}) as journal:
        journal.add([JournalEntry(0, b"none", None)])
        assert [kept.answer for kept in journal] == [b"none", b"one", b"two"]
    with pytest.raises(InputError, match=r"another run \(bundle differ\)"):
        Journal(file, {"bundle": "b", "count": 3})
    (tmp_path / "text").write_text("not a database at all, but long enough to be read as one" * 20)
    with pytest.raises(InputError, match="cannot be used"):
        Journal(tmp_path / "text", {})


def test_photos_are_listed_anywhere(tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("b.png", "a.PNG", "notes.txt"):
        store.pipe_file(f"/{tmp_path.name}/{name}", png(1) if name != "notes.txt" else b"")
    url = f"memory://{tmp_path.name}"
    listed = list_photos([url])
    assert [place.rpartition("/")[2] for place in listed] == ["a.PNG", "b.png"]
    assert np.array_equal(read_photo(listed[0]), decode_rgb(png(1)))
    with pytest.raises(InputError, match="holds no photos"):
        list_photos([f"memory://{tmp_path.name}-empty"])
    with pytest.raises(InputError, match=r"absent\.png cannot be read"):
        read_photo(f"{url}/absent.png")
    with pytest.raises(InputError, match="does not exist"):
        list_photos([str(tmp_path / "absent")])


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    small_bundle(tmp_path / "line")
    assert ReplicaSettings.parse("1-4", 0.5) == ReplicaSettings(1, 4, 0.5)
    for text in ("0", "4-1", "a", "1-"):
        if text == "1-":
            assert ReplicaSettings.parse(text, 0) == ReplicaSettings(1, 1)
            continue
        with pytest.raises(SettingsError):
            ReplicaSettings.parse(text, 0)
    with pytest.raises(SettingsError):
        RaySettings(workers=0)
    record = RecordSettings(tmp_path / "record")
    settings = ServeSettings((tmp_path / "line",), record=record, webhook=WebhookSettings("http://x"))
    with pytest.raises(SettingsError, match="--webhook"):
        check(settings)
    refused = sd_edge("inspect", "line", "photos", "--journal", "j", cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert "--journal goes with --ray" in refused.stderr


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalysd_runtime.distributed.ray_start import import_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"anomalysd-edge\[ray\]"):
        import_ray()
