"""The speed benchmark's two sides: this project's own judging process, and a stand-in for the peer's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from anomalysd_edge.data.datasets import open_dataset
from anomalysd_edge.errors import InputError
from benchmarks import peer_speed
from tests.support.data_sets import bottle_data_set
from tests.support.small_graphs import small_bundle

STAND_IN = """#!{python}
import json, sys
from pathlib import Path
what, job, out = sys.argv[2:]
job = json.loads(Path(job).read_text())
if what == "prepare":
    assert len(job["shots"]) == 1 and Path(job["weights"]).is_file()
else:
    scores = [2.0 if "/good/" not in path else 1.0 for path in job["photos"]]
    answer = {{"scores": scores, "seconds": [0.02] * (len(scores) - 1), "first_s": 3.0, "peak_bytes": 2**20}}
    Path(out).write_text(json.dumps(answer))
"""


@pytest.mark.slow
def test_both_sides_judge_the_same_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = small_bundle(tmp_path / "BUNDLE").path
    data = open_dataset(bottle_data_set(tmp_path / "DATA"))
    peer = tmp_path / "peer-python"
    peer.write_text(STAND_IN.format(python=sys.executable))
    peer.chmod(0o755)
    asked = peer_speed.Asked(bundle, peer, threads=1)
    shots = {"bottle": data.classes["bottle"].train[:2]}
    lines = peer_speed.measure(asked, data, shots, tmp_path)
    tests = len(data.classes["bottle"].test)
    for name, line in lines.items():
        found = line.summary()
        assert len(line.seconds) == tests, name
        assert found["median_ms"] <= found["p95_ms"]
        assert found["start_s"] > 0
        assert ("image_auroc" in found) == ("EfficientAD" not in name)
    of_peer = lines["anomalib PatchCore, torch"].summary()
    assert of_peer["median_ms"] == pytest.approx(20)
    assert (of_peer["image_auroc"], of_peer["balanced_error"]) == (1.0, 0.0), "good photos at its threshold pass"
    samples = {name: len(lines[name].seconds) for name in peer_speed.OWN}
    assert set(samples.values()) == {tests}


def test_a_side_that_fails_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho no such module >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(InputError, match=r"broken ended with 3: no such module"):
        peer_speed.judged([str(broken)], {"photos": []}, tmp_path)
    assert json.loads((tmp_path / "job.json").read_text())["photos"] == []


def test_a_size_is_that_of_what_is_installed() -> None:
    assert peer_speed.installed_mib(Path(sys.executable)) > 50
