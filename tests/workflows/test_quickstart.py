"""`sd-edge quickstart`: the chain on one's own photos, what it refuses, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomalysd_edge.errors import DatasetError, InputError, SDEdgeError
from anomalysd_edge.training import run as run_module
from anomalysd_edge.training.checkpoints import read_log
from anomalysd_edge.training.run import read_run
from anomalysd_edge.workflows import quickstart as chain
from tests.support.command import sd_edge
from tests.support.data_sets import bottle_data_set
from tests.support.progress import Seen, Stop
from tests.support.tiny_models import tiny_base


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
    # All is there: nothing is done again, and the same is said.
    again = sd_edge("quickstart", *asked, cwd=tmp_path)
    assert json.loads((out / chain.MARKER).read_text(encoding="utf-8")) == found
    assert again.stdout == said.stdout
    assert [line for line in again.stderr.splitlines() if line in said.stderr][-1].startswith("bundle: ")


def finished(run: chain.ChainResult) -> tuple[object, ...]:
    return run.verified, run.measured and run.measured.rows, run.seconds


@pytest.mark.slow
def test_a_stop_within_training_goes_on_from_the_checkpoint_and_finished_parts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a base of one's own; then: what was calibrated, or which photos changed, decides what is done again."""
    monkeypatch.chdir(tmp_path)
    base = tiny_base(tmp_path / "models/tiny")
    data, out = bottle_data_set(tmp_path / "PHOTOS", train=4), tmp_path / "OUT"
    chosen = {"shots": 4, "seed": 0, "steps": 4, "decoder_steps": 1, "checkpoint_every": 2, "size_px": 64}

    def call(progress: Seen | Stop, base: str | Path = base) -> chain.ChainResult:
        return chain.quickstart(data, out, chosen, None, None, progress, str(base))

    with pytest.raises(KeyboardInterrupt):
        call(Stop("train", 3))
    assert not (out / "run").exists()
    with pytest.raises(InputError, match="begun with other base"):
        call(Seen(), "nano")
    steps: list[int] = []

    def watched(phase: str, done: int, total: int, detail: str) -> None:
        if phase == "train":
            steps.append(done)

    first = chain.quickstart(data, out, chosen, None, None, watched, "models/tiny")
    assert [step for step in steps if step <= 4][-2:] == [3, 4]
    assert 1 not in steps, "the first two steps were in the checkpoint"
    assert [line["total"] for line in read_log(out / "run/log.jsonl")] == [1, 2, 3, 4, 5]
    assert read_run(out / "run").record["base"]["name"] == "tiny"

    seen = Seen()
    assert finished(call(seen)) == finished(first)
    assert not {"verify", "inspect", "train", "export"} & seen.finished.keys(), "everything was there"
    (out / "report/report.html").unlink()
    seen = Seen()
    call(seen)
    assert "inspect" in seen.finished, "a report that was lost is written again"
    test = next(iter((data / "bottle/test/good").iterdir()))
    test.with_name("another.png").write_bytes(test.read_bytes())
    seen = Seen()
    more = call(seen)
    assert more.measured is not None
    assert first.measured is not None
    assert more.measured.results[0].good == first.measured.results[0].good + 1, "another photo lies there"


def test_the_marker_of_a_run_is_what_training_calls_it() -> None:
    assert chain.RUN_MARKER == run_module.MARKER
