"""What version 0.1.0 wrote opens today.

tests/data/version_0_1_0 holds files as that version wrote them; they are never written anew:

- bundle/: the bundle of tests/support/small_graphs.py, and in expected.json its verdict on the run's photo.
- run/: two steps of the UNet and one of the decoder on one photo of the class "nut", with a learned prompt context of
  one token, of a base like tests/support/tiny_models.py's with eight channels.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anomalysd_edge.bundle.reader import read_bundle
from anomalysd_edge.method.settings import InspectSettings
from anomalysd_edge.training.run import read_run
from anomalysd_edge.vision.images import load_rgb
from anomalysd_runtime.loading import open_detector
from tests.support.command import ROOT, sd_edge

OLD = ROOT / "tests/data/version_0_1_0"
PHOTO = OLD / "run/shots/nut/0.png"


def test_a_bundle_gives_the_scores_that_it_gave() -> None:
    expected = json.loads((OLD / "expected.json").read_text())
    with open_detector(OLD / "bundle", threads=1) as detector:
        (found,) = detector.inspect([load_rgb(PHOTO)], "bottle")
    assert found.pred_score == pytest.approx(expected["score"], abs=1e-5)
    assert found.pred_label == expected["label"]
    # It has no limits and no score model: the threshold alone decides.
    assert found.verdict == ("good", "anomalous")[expected["label"]]
    assert (found.limits, found.pred_probability) == (None, None)
    assert found.mode == expected["mode"]
    assert found.scores == {name: pytest.approx(score, abs=1e-5) for name, score in expected["scores"].items()}


@pytest.mark.slow
def test_a_bundle_is_inspected_by_the_command(tmp_path: Path) -> None:
    (found,) = json.loads(sd_edge("inspect", OLD / "bundle", PHOTO, "--json", cwd=tmp_path).stdout)
    expected = json.loads((OLD / "expected.json").read_text())
    assert found["pred_score"] == pytest.approx(expected["score"], abs=1e-5)
    assert found["verdict"] == ("good", "anomalous")[expected["label"]]
    assert (found["limits"], found["pred_probability"]) == (None, None)


def test_a_run_is_read() -> None:
    run = read_run(OLD / "run")
    assert run.specs["nut"].parts == ("thread",)
    assert run.settings.context_tokens == 1
    assert run.contexts()["nut"].shape == (1, 8)
    assert run.size_px == 32
    assert run.load().unet.config.in_channels == 9


@pytest.mark.slow
def test_a_run_is_exported_and_its_bundle_inspects(tmp_path: Path) -> None:
    from anomalysd_export.export_source import trained_of
    from anomalysd_export.exporting import export_trained

    # The shipped presets repaint a 16 x 16 grid, and this run's latents have 8 x 8 cells.
    fitting = {"edge": InspectSettings(scales=(2, 4))}
    export_trained(trained_of(read_run(OLD / "run")), tmp_path / "bundle", presets=fitting, threads=1)
    assert read_bundle(tmp_path / "bundle").manifest.classes["nut"].shots == 1
    with open_detector(tmp_path / "bundle", threads=1) as detector:
        (found,) = detector.inspect([load_rgb(PHOTO)], "nut")
    assert found.pred_label == 0, "its own shot"
