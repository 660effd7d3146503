"""The other detector's side of the accuracy benchmark, with a stand-in for its Python: what is asked, kept and told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from anomalysd_edge.data.datasets import open_dataset
from anomalysd_edge.errors import InputError
from anomalysd_edge.workflows.protocol import ProtocolRequest
from anomalysd_edge.workflows.train import choose_shots
from benchmarks import accuracy
from benchmarks.peers import MAP, PatchcoreSettings, patchcore
from tests.support.data_sets import bottle_data_set
from tests.support.protocol import small_protocol

STAND_IN = """#!{python}
import json, sys
from pathlib import Path
import numpy as np
script, job, out = sys.argv[1:]
assert script.endswith("patchcore_peer.py")
job = json.loads(Path(job).read_text())
probe = np.load(job["probe"])
assert probe["input"].shape == (1, 3, 256, 256), probe["input"].shape
assert {{k: probe[k].shape[1:] for k in job["layers"]}} == {{"blocks.2": (48, 32, 32), "blocks.4": (120, 16, 16)}}
assert Path(job["weights"]).is_file()
for name, photos in job["classes"].items():
    bad = ["/good/" not in path for path in photos["test"]]
    maps = np.zeros((len(bad), 256, 256), np.float32)
    maps[bad, 50:90, 150:195] = 1
    scores = np.array(bad, np.float32)
    np.savez(Path(out) / (photos["file"] + ".npz"), scores=scores, maps=maps, seconds=6.0, bank=9,
             thresholds=np.array([0.0 if photos["labels"] == bad else 1.0, 1.0]))
(Path(out) / "peer.json").write_text(json.dumps({{"shots": len(photos["shots"])}}))
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProtocolRequest:
    return small_protocol(tmp_path, monkeypatch)


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    file = tmp_path / "peer-python"
    file.write_text(STAND_IN.format(python=sys.executable))
    file.chmod(0o755)
    return file


def test_scores_and_maps_are_judged_here_and_kept(tmp_path: Path, peer: Path) -> None:
    data = open_dataset(bottle_data_set(tmp_path / "DATA"))
    shots = choose_shots(data, 2, None)
    (found,), facts = patchcore(PatchcoreSettings(peer), data, shots, tmp_path / "OUT")
    assert (found.good, found.bad, found.ms_per_photo) == (3, 3, 1000.0)
    assert found.figures[MAP]["image_auroc"] == 1.0
    assert 0.95 < found.figures[MAP]["pixel_auroc"] < 1.0
    assert found.verdicts == {"balanced_error": 0.0, "balanced_error_test_labels": 0.5, "best_balanced_error": 0.0}
    assert facts["shots"] == 2
    peer.write_text("#!/bin/sh\nexit 1\n")
    assert patchcore(PatchcoreSettings(peer), data, shots, tmp_path / "OUT") == ([found], facts), "kept"
    with pytest.raises(InputError, match="ended with 1: it said nothing"):
        patchcore(PatchcoreSettings(peer), data, choose_shots(data, 1, None), tmp_path / "OUT")


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    data = open_dataset(bottle_data_set(tmp_path / "DATA"))
    with pytest.raises(InputError, match=r"absent cannot be run .*peers-requirements\.txt"):
        patchcore(PatchcoreSettings(tmp_path / "absent"), data, choose_shots(data, 1, None), tmp_path / "OUT")


def test_timm_names_get_the_files_tensors_by_order_and_shape() -> None:
    import torch
    from torch import nn

    from benchmarks.patchcore_peer import give_weights

    conv = nn.Conv2d(3, 4, 3, bias=False)
    network = nn.Sequential(conv, nn.BatchNorm2d(4))
    other = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    given = {f"_file{i}.{k.split('.')[-1]}": v for i, (k, v) in enumerate(other.state_dict().items())}
    give_weights(network, given)
    assert torch.equal(conv.weight, other.state_dict()["0.weight"])
    with pytest.raises(SystemExit, match="ended before"):
        give_weights(nn.Sequential(network, other[2], nn.Conv2d(4, 4, 1)), given)
    with pytest.raises(SystemExit, match=r"is \(4, 3, 3, 3\)"):
        give_weights(nn.Conv2d(3, 5, 3), given)


@pytest.mark.slow
def test_side_by_side(asked: ProtocolRequest, peer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        "--data", asked.data, "--out", asked.out, "--shots", "1", "--seeds", "0,1", "--steps", 1, "--base", asked.base,
        "--peer-python", peer, "--peer-coreset", "0.1", "--paper", 2,
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["accuracy", *map(str, arguments)])
    accuracy.main()
    found = json.loads((asked.out / "accuracy.json").read_text())
    assert found["patchcore"]["0.1"]["summary"]["1"]["mean"]["image_auroc"]["values"] == [1.0, 1.0]
    assert len(found["summary"]["1"]["bottle"]["fused"]["aupro"]["values"]) == 2
    assert set(found["presets"]) == {"photos_per_class", "edge", "paper"}
    assert found["presets"]["paper"]["photos"]["bottle"] == {"train_good": 3, "test_good": 1, "test_bad": 1}
    assert len(found["presets"]["paper"]["cells"]) == 1, "the first seed"
    assert str(asked.data) not in (asked.out / "accuracy.json").read_text()
    assert np.isfinite(found["summary"]["1"]["mean"]["fused"]["image_auroc"]["mean"])
