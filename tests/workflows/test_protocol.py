"""The protocol over shots and seeds: what it runs, keeps, refuses and reports. Training is real and tiny."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anomalysd_edge.cli.options import numbers
from anomalysd_edge.core.files import json_ready, read_json
from anomalysd_edge.errors import DatasetError, RunError, SettingsError
from anomalysd_edge.reports import protocol as protocol_report
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.protocol import ProtocolRequest, run_protocol
from tests.support.detectors import photo
from tests.support.progress import Seen
from tests.support.protocol import small_protocol

pytestmark = pytest.mark.slow


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProtocolRequest:
    return small_protocol(tmp_path, monkeypatch)


def test_every_cell_is_trained_once_and_reported(asked: ProtocolRequest) -> None:
    seen = Seen()
    found = run_protocol(asked, seen)
    # Without shots nothing depends on the seed: one cell.
    assert [(c.shots, c.seed) for c in found.cells] == [(1, "first"), (1, "5"), (0, "first")]
    assert seen.finished["K1 s5 train"] == 1
    assert found.shot_names[next(iter(found.cells))] == {"bottle": ["bottle/train/good/0.png"]}
    assert read_json(asked.out / "1-shot/seed-5/run/run.json")["settings"]["seed"] == 5
    values = found.to_json()
    assert values["published_split"] is False
    assert values["notes"] == [
        "1 of MVTec AD's 15 classes",
        "bottle: 3 good to train with in place of 209, 3 good to test on in place of 20, 3 bad to test on in place "
        "of 63",
    ]
    assert len(values["summary"]["1"]["mean"]["fused"]["image_auroc"]["values"]) == 2
    kept = read_json(asked.out / "1-shot/seed-5/classes/bottle.json")
    assert [p["label"] for p in kept["photos"]] == [0, 0, 0, 1, 1, 1]

    protocol_report.write(found.report(), found.to_json(), asked.out)
    assert json.loads((asked.out / "results.json").read_text()) == json_ready(values)
    page = (asked.out / "report.html").read_text()
    assert page.count("<svg") == 2
    assert "209" in page
    assert {f.name for f in (asked.out / "plots").iterdir()} == {"class-bottle.svg", "mean.svg"}


def test_it_goes_on_where_it_was_stopped(asked: ProtocolRequest) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_protocol(asked, Seen(lambda phase, _done: phase == "K1 s5 inspect"))
    again = Seen()
    whole = run_protocol(asked, again)
    assert "K1 sfirst inspect" not in again.finished
    assert "K1 s5 train" not in again.finished
    assert "K1 s5 export" not in again.finished
    assert again.finished["K1 s5 inspect"] == 1
    once_more = Seen()
    assert run_protocol(asked, once_more).to_json() == whole.to_json()
    assert not once_more.finished, "nothing was left to do"


def test_a_changed_bundle_or_photo_is_not_taken_for_the_old_one(asked: ProtocolRequest) -> None:
    asked = replace(asked, shots=(1,), seeds=("first",))
    run_protocol(asked, Seen())
    shutil.rmtree(asked.out / "1-shot/seed-first/bundle")
    seen = Seen()
    run_protocol(asked, seen)
    assert seen.finished["K1 sfirst export"] == 1
    images.save_png(asked.data / "bottle/train/good/0.png", photo(77))
    with pytest.raises(RunError, match="other photos of bottle"):
        run_protocol(asked, Seen())


def test_another_protocol_needs_another_folder(asked: ProtocolRequest) -> None:
    asked = replace(asked, shots=(0,))
    run_protocol(asked, Seen())
    with pytest.raises(SettingsError, match="steps = 1, this one has 2"):
        run_protocol(replace(asked, steps=2), Seen())


def test_data_that_will_not_do_is_refused_before_anything_is_trained(asked: ProtocolRequest) -> None:
    with pytest.raises(DatasetError, match="3 good photos to train with, 4 shots"):
        run_protocol(replace(asked, shots=(1, 4)), Seen())
    shutil.rmtree(asked.data / "bottle/test")
    with pytest.raises(DatasetError, match="no test photos of bottle"):
        run_protocol(replace(asked, dataset=None), Seen())
    assert not asked.out.exists()


@pytest.mark.parametrize("wrong", [{"shots": ()}, {"shots": (1, 1)}, {"seeds": ("a",)}, {"seeds": ()}])
def test_wrong_lists_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        ProtocolRequest(data=tmp_path, out=tmp_path, **wrong)
    with pytest.raises(SettingsError, match="--shots is '1,x'"):
        numbers("1,x", "--shots")
