"""`sd-edge calibrate --unlabelled --known-bad`: thresholds that the line itself confirms."""

from __future__ import annotations

import html
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.bundle import detector_factory
from anomalysd_edge.bundle.reader import read_bundle
from anomalysd_edge.calibration.outcome import Calibrated
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.calibration.threshold_model import Regression, ThresholdPrior
from anomalysd_edge.cli import main as command
from anomalysd_edge.method.class_model import Calibration
from anomalysd_edge.reports.calibration import Report
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.calibrate import CalibrateRequest, recalibrate
from tests.support.data_sets import good_photos
from tests.support.detectors import photo
from tests.support.progress import quiet
from tests.support.small_graphs import small_bundle

FEW = CalibrationSettings(bank_size=200, negatives=4)


def stream(root: Path, good: int, bad: int) -> Path:
    """A plain folder of photos, as a camera leaves them."""
    for number in range(good + bad):
        images.save_png(root / f"{number:03}.png", photo(50 + number, defect=number >= good))
    return root


@pytest.fixture(autouse=True)
def prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small graphs: good photos score as the left-out shots do, a red spot some 8 in the logarithm above them."""
    offset = np.array([0.0, np.log(0.9), 7.5, np.log(0.3)])
    residual = np.array([0.4, 0.3, 0.5, 0.3])
    one = Regression(np.zeros(3), np.ones(3), offset, np.zeros((3, 4)), residual)
    monkeypatch.setattr(detector_factory, "shipped_prior", lambda _: ThresholdPrior({1: one, 4: one}))


def calibrated(tmp_path: Path, **changes: Any) -> Calibrated:
    if not (tmp_path / "B").exists():
        small_bundle(tmp_path / "B")
        good_photos(tmp_path / "GOOD")
    asked = CalibrateRequest(
        bundle=tmp_path / "B", photos=tmp_path / "GOOD", out=tmp_path / "NEW", settings=FEW, **changes
    )
    return recalibrate(asked, quiet)


def stored(tmp_path: Path) -> Calibration:
    return read_bundle(tmp_path / "NEW").manifest.classes["bottle"].calibration["edge"]


def test_the_bundle_gets_what_the_stream_says_and_the_report_both(tmp_path: Path) -> None:
    bare = calibrated(tmp_path).after["bottle"]
    found = calibrated(tmp_path, unlabelled=stream(tmp_path / "LINE", 18, 2))
    finding = found.line["bottle"]
    assert finding.commissioned.before.threshold == pytest.approx(bare)
    assert finding.commissioned.model is not None
    kept = stored(tmp_path)
    assert kept.threshold == finding.commissioned.after.threshold == found.after["bottle"]
    assert kept.threshold != bare
    assert kept.score_model == finding.commissioned.model
    assert kept.decision is not None
    assert kept.decision.good <= kept.threshold <= kept.decision.anomalous
    report = Report(found)
    (old, new) = report.line_rows()
    assert (old[:2], old[3], new[3]) == (("bottle", "20"), "before", "now")
    assert old[4] == f"{bare:.3f}"
    assert new[4] == f"{kept.threshold:.3f}"
    names = [photo for _, photo, _ in report.question_rows()]
    assert names
    assert all(Path(name).is_file() for name in names)
    report.write(tmp_path / "REPORT")
    page = (tmp_path / "REPORT/report.html").read_text()
    assert "Worth an answer" in page
    assert html.escape(finding.commissioned.reason) in page
    told = json.loads((tmp_path / "REPORT/calibration.json").read_text())["line"]["bottle"]
    assert told["commissioned"]["share"]["high"] < 0.5


def test_known_bad_photos_are_evidence_of_defects(tmp_path: Path) -> None:
    line, bad = stream(tmp_path / "LINE", 20, 0), stream(tmp_path / "BAD", 0, 4)
    alone = calibrated(tmp_path, unlabelled=line).line["bottle"].commissioned
    both = calibrated(tmp_path, unlabelled=line, known_bad=bad).line["bottle"].commissioned
    assert both.model is not None
    assert alone.model is not None
    assert abs(both.model.defect_mean - math.log(0.75)) < 0.5 * abs(alone.model.defect_mean - math.log(0.75))
    assert both.model.defect_sd < alone.model.defect_sd
    assert both.share.mean == pytest.approx(alone.share.mean, abs=0.1), "they are not of the stream"


def test_a_stream_half_of_defects_leaves_the_threshold_and_says_so(tmp_path: Path) -> None:
    bare = calibrated(tmp_path).after["bottle"]
    found = calibrated(tmp_path, unlabelled=stream(tmp_path / "LINE", 10, 10))
    assert found.line["bottle"].commissioned.model is None
    assert found.after["bottle"] == stored(tmp_path).threshold == bare
    (sentence,) = Report(found).line_sentences()
    assert sentence.startswith("bottle: nothing is proposed")


def test_photos_that_do_not_show_the_class_are_set_aside_and_named(tmp_path: Path) -> None:
    line = stream(tmp_path / "LINE", 20, 0)
    without = calibrated(tmp_path, unlabelled=line)
    images.save_png(line / "lamp_off.png", np.zeros((40, 40, 3), np.uint8))
    found = calibrated(tmp_path, unlabelled=line)
    if stored(tmp_path).limits is None:
        assert found.line["bottle"].foreign == ()
        return
    assert found.line["bottle"].foreign == (str(line / "lamp_off.png"),)
    assert found.after == without.after


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """The sentence with which the command ends."""
    monkeypatch.setattr("sys.argv", ["sd-edge", "calibrate", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sd-edge: ")]
    assert len(told) == 1
    return told[0]


def test_bad_input_ends_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_bundle(tmp_path / "B")
    good, line = good_photos(tmp_path / "GOOD"), stream(tmp_path / "LINE", 10, 0)
    asked = (tmp_path / "B", "--photos", good, "--synthetic", 0, "--quiet")
    before = read_bundle(tmp_path / "B").manifest

    def sentence(*words: object) -> str:
        return refused(capsys, monkeypatch, *asked, *words)

    assert "give --unlabelled too" in sentence("--known-bad", line)
    assert "7 unlabelled photos of bottle" in sentence("--unlabelled", stream(tmp_path / "SMALL", 7, 0))
    other = stream(tmp_path / "OTHER/screw", 10, 0)
    stream(tmp_path / "OTHER/nut", 10, 0)
    assert "no photos of bottle" in sentence("--unlabelled", other.parent)
    assert "no photos of bottle" in sentence("--unlabelled", line, "--known-bad", other.parent)
    shutil.copy(line / "003.png", tmp_path / "copy.png")
    (tmp_path / "BAD").mkdir()
    shutil.move(tmp_path / "copy.png", tmp_path / "BAD/scratch.png")
    twice = sentence("--unlabelled", line, "--known-bad", tmp_path / "BAD")
    assert "scratch.png" in twice
    assert "as unlabelled" in twice
    shutil.copy(good / "bottle/train/good/0.png", line / "shot.png")
    assert "shot.png of bottle is given as unlabelled" in sentence("--unlabelled", line)
    (line / "shot.png").unlink()
    monkeypatch.setattr(detector_factory, "shipped_prior", lambda _: None)
    assert "rests on good photos alone" in sentence("--unlabelled", line)
    assert read_bundle(tmp_path / "B").manifest == before, "nothing was written"
