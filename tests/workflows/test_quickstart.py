"""`sd-edge quickstart`: the chain on one's own photos, what it refuses, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomalysd_edge.errors import DatasetError, InputError, SDEdgeError
from anomalysd_edge.training.run import read_run
from anomalysd_edge.workflows import quickstart as chain
from tests.support.command import sd_edge
from tests.support.data_sets import bottle_data_set


def test_it_begins_in_no_folder_that_something_else_wrote(tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    out.mkdir()
    (out / "letter.txt").write_text("dear all", encoding="utf-8")
    with pytest.raises(InputError, match="was not begun by this command"):
        chain.begin(out, chain.MARKER, {"photos": "a"})
    assert [file.name for file in out.iterdir()] == ["letter.txt"]


def test_it_goes_on_with_the_same_photos_and_settings_alone(tmp_path: Path) -> None:
    out = tmp_path / "OUT"
    chain.begin(out, chain.MARKER, {"photos": "a", "settings": {"shots": 4}})
    chain.begin(out, chain.MARKER, {"photos": "a", "settings": {"shots": 4}})
    with pytest.raises(InputError, match="begun with other settings"):
        chain.begin(out, chain.MARKER, {"photos": "a", "settings": {"shots": 1}})
    (out / chain.MARKER).write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="damaged"):
        chain.begin(out, chain.MARKER, {"photos": "a", "settings": {"shots": 4}})


def test_a_folder_without_photos_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "PHOTOS").mkdir()
    with pytest.raises((DatasetError, InputError)):
        chain.quickstart(tmp_path / "PHOTOS", tmp_path / "OUT", {"shots": 4}, None, None, lambda *_: None)
    assert not (tmp_path / "OUT").exists()


@pytest.mark.parametrize(
    ("wrong", "classes"), [({"shots": 50}, None), ({"steps": -3}, None), ({"device": "tpu"}, None), ({}, ["typo"])]
)
def test_what_is_refused_leaves_nothing(tmp_path: Path, wrong: dict[str, object], classes: list[str] | None) -> None:
    data, out = bottle_data_set(tmp_path / "PHOTOS", train=4), tmp_path / "OUT"
    with pytest.raises(SDEdgeError):
        chain.quickstart(data, out, {"shots": 4, "seed": 0, **wrong}, classes, None, lambda *_: None)
    assert not out.exists(), "so that the corrected call may use the folder"


@pytest.mark.slow
def test_the_chain_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = bottle_data_set(tmp_path / "PHOTOS", train=4), tmp_path / "OUT"
    asked = [str(data), "--out", str(out), "--steps", "2", "--decoder-steps", "1", "--quiet"]
    chosen = {"shots": 4, "seed": 0, "steps": 2, "decoder_steps": 1, "device": "cpu"}

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(chain, "export_to", stop)
        with pytest.raises(KeyboardInterrupt):
            chain.quickstart(data, out, chosen, None, None, lambda *_: None)
    assert not json.loads((out / chain.MARKER).read_text(encoding="utf-8"))["finished"]
    trained = read_run(out / "run").record
    said = sd_edge("quickstart", *asked, cwd=tmp_path)
    assert read_run(out / "run").record == trained, "a finished training is not done again"
    assert f"next: sd-edge serve {out / 'bundle'}" in said.stderr
    assert "verdict flips 0" in said.stderr
    assert (out / "report/report.html").is_file()
    found = json.loads((out / chain.MARKER).read_text(encoding="utf-8"))
    assert found["finished"]
    assert set(found["seconds"]) == {"train", "export", "verify", "inspect"}
    assert found["results"]["classes"].keys() == {"bottle"}
