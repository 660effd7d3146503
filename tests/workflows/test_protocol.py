"""The protocol over shots and seeds: what it runs, keeps, refuses and reports. Training is real and tiny."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.bundle.reader import MANIFEST, Bundle
from anomalysd_edge.cli.measuring import numbers
from anomalysd_edge.core.files import json_ready, read_json, sha256_file, write_json
from anomalysd_edge.core.types import Progress
from anomalysd_edge.errors import DatasetError, RunError, SettingsError
from anomalysd_edge.reports import protocol as protocol_report
from anomalysd_edge.vision import images
from anomalysd_edge.workflows import protocol
from anomalysd_edge.workflows import train as train_workflow
from anomalysd_edge.workflows.open_options import Opening
from anomalysd_edge.workflows.protocol import ProtocolRequest, run_protocol
from tests.method.test_detector import photo
from tests.support.small_graphs import small_bundle
from tests.support.tiny_models import tiny_base


def data_set(root: Path, train: int = 3) -> Path:
    for number in range(train):
        images.save_png(root / "bottle/train/good" / f"{number}.png", photo(number))
    mask = np.zeros((40, 40), np.uint8)
    mask[8:14, 24:30] = 255
    for number in range(3):
        images.save_png(root / "bottle/test/good" / f"{number}.png", photo(10 + number))
        images.save_png(root / "bottle/test/spot" / f"{number}.png", photo(20 + number, defect=True))
        images.save_png(root / "bottle/ground_truth/spot" / f"{number}_mask.png", mask)
    return root


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProtocolRequest:
    """Two numbers of shots and two seeds; the export is a bundle of five small graphs."""

    def export(run: Path, out: Path, _classes: Path | None, _threads: int | None, progress: Progress) -> Bundle:
        progress("export", 1, 1, "done")
        bundle = small_bundle(out)
        manifest = read_json(out / MANIFEST)
        write_json(out / MANIFEST, {**manifest, "training": {"run_sha256": sha256_file(run / "run.json")}})
        return bundle

    def train(data: Path, out: Path, base: str, chosen: dict[str, Any], *rest: Any) -> Any:
        return train_workflow.train_on(data, out, base, {**chosen, "decoder_steps": 0, "copies": 1}, *rest)

    monkeypatch.setattr(protocol, "export_to", export)
    monkeypatch.setattr(protocol, "train_on", train)
    return ProtocolRequest(
        data_set(tmp_path / "DATA"),
        tmp_path / "OUT",
        dataset="mvtec-ad",
        classes=("bottle",),
        shots=(1, 0),
        seeds=("first", "5"),
        base=str(tiny_base(tmp_path / "base")),
        steps=1,
        opening=Opening(threads=1),
    )


class Seen:
    """Counts the finished phases; raises when `stop` says so."""

    def __init__(self, stop: Callable[[str, int], bool] = lambda _phase, _done: False) -> None:
        self.finished: Counter[str] = Counter()
        self.stop = stop

    def __call__(self, phase: str, done: int, total: int, _detail: str) -> None:
        if self.stop(phase, done):
            raise KeyboardInterrupt
        if done >= total:
            self.finished[phase] += 1


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
        ProtocolRequest(tmp_path, tmp_path, **wrong)
    with pytest.raises(SettingsError, match="0,1,2,4"):
        numbers("1,x")
