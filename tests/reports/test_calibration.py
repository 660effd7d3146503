"""What calibrate says of its choice: sentences, table, JSON, page; false alarms on photos that were no shots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from anomalysd_edge.bundle.reader import read_bundle
from anomalysd_edge.calibration.outcome import Calibrated, Seen
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.calibration.settings_search import Trial
from anomalysd_edge.errors import DatasetError, InputError
from anomalysd_edge.method.class_model import Calibration
from anomalysd_edge.reports.calibration import COLUMNS, Report, report_folder, threshold_rows
from anomalysd_edge.reports.reliability import ReliabilityBin
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.calibrate import CalibrateRequest, false_alarms, recalibrate
from anomalysd_edge.workflows.open_options import InspectOptions
from tests.support.command import sd_edge
from tests.support.data_sets import good_photos
from tests.support.detectors import photo
from tests.support.markup import SVG
from tests.support.progress import quiet
from tests.support.small_graphs import THREE_WAY, small_bundle

TAKEN = Trial({"multiscale_weight": 1.0}, 0.9, 0.8, 0.031, 0.01, True)
LOST = Trial({"scales": (2, 4)}, 0.8, 0.7, 0.004, 0.006, False)
PRESET = Trial({}, 0.85, 0.8, 0.0, 0.0, True)


def calibrated(trials: list[Trial], after: float | None = 1.5) -> Calibrated:
    return Calibrated(
        Path("B"), {"bottle": trials}, {"bottle": 1.0}, {"bottle": after}, {}, {"bottle": 12.3}, "edge", 0.02
    )


def test_the_reason_is_a_sentence_with_figures() -> None:
    assert "multiscale_weight 1.0 led by 3.1 ± 1.0 points: more than chance" in Report(
        calibrated([PRESET, TAKEN, LOST])
    ).reason("bottle")
    kept = Report(calibrated([PRESET, LOST])).reason("bottle")
    assert "of 1 others the best (scales 2/4) led by +0.4 ± 0.6 points" in kept
    assert "may be chance" in kept
    assert "none were to be chosen" in Report(calibrated([])).reason("bottle")
    assert "no good photos" in Report(calibrated([], None)).reason("bottle")


def test_the_table_and_the_plots() -> None:
    report = Report(calibrated([PRESET, TAKEN, LOST]), {"bottle": Seen((0.5, 1.4, 1.5, 2.0), 1.5)})
    (row,) = report.rows()
    assert len(row) == len(COLUMNS)
    assert row[1:3] == ("1.000", "1.500")
    assert row[4:] == ("2 %", "50 %", "4", "12")
    bars, dots = map(ElementTree.fromstring, report.plots("bottle"))
    assert len(list(bars.iter(f"{SVG}rect"))) == 1 + 2
    circles = list(dots.iter(f"{SVG}circle"))
    assert len({c.attrib["fill"] for c in circles[:2]}) == 1
    assert circles[1].attrib["fill"] != circles[2].attrib["fill"], "the threshold itself is an alarm"


def test_the_table_says_what_a_threshold_rests_on() -> None:
    classes = {
        "sure": Calibration(0.75, **THREE_WAY),
        "old": Calibration(0.5),
        "bare": Calibration(),
        "absent": None,
    }
    sure, old, *nothing = threshold_rows(classes)
    assert sure == ("sure", "0.750", "0.001", "1000.000", "12.5 %", "25.0 %", "4 shots, 3 synthetic anomalies")
    assert old == ("old", "0.500", "-", "-", "-", "-", "good photos alone")
    assert [row[1:] for row in nothing] == [("none", "-", "-", "-", "-", "no good photos")] * 2
    single = replace(THREE_WAY["evidence"], left_out=(), copies=(0.5, 0.6))
    assert threshold_rows({"one": Calibration(0.5, evidence=single)})[0][-1] == "1 shot, 3 synthetic anomalies"


def test_expected_false_alarms_and_reliability_come_from_the_score_model(tmp_path: Path) -> None:
    bins = (ReliabilityBin(0.3, 0.4, 20),)
    plain = calibrated([])
    two_sided = replace(plain, calibrations={"bottle": Calibration(1.5, **THREE_WAY)})
    assert Report(plain).rows()[0][4] == "2 %", "the wanted rate, where nothing is known of defects"
    assert Report(two_sided).rows()[0][4] == "12 %"
    pages = []
    for number, report in enumerate((Report(two_sided, {}, bins), Report(two_sided), Report(plain, {}, bins))):
        report.write(tmp_path / str(number))
        pages.append((tmp_path / str(number) / "report.html").read_text(encoding="utf-8"))
    assert ["<h2>Reliability</h2>" in page for page in pages] == [True, False, False]
    assert "10.0 points apart" in pages[0]
    assert ["4 shots, 3 synthetic anomalies" in page for page in pages] == [True, True, False]
    told = json.loads((tmp_path / "0/calibration.json").read_text())["calibrations"]["bottle"]
    assert told["decision"] == {"good": 1e-3, "anomalous": 1e3}
    assert told["expected"] == {"false_alarms": 0.125, "missed": 0.25}


@pytest.mark.slow
def test_false_alarms_are_counted_on_photos_that_were_no_shots(tmp_path: Path) -> None:
    small_bundle(tmp_path / "B")
    data = good_photos(tmp_path / "PHOTOS", 7)
    # A copy of a shot under another name is still a shot.
    images.save_png(data / "bottle/test/good/copy.png", photo(0))
    images.save_png(data / "bottle/test/spot/0.png", photo(9, defect=True))
    settings = CalibrationSettings(bank_size=200, negatives=4, synthetic=4)
    found = recalibrate(CalibrateRequest(bundle=tmp_path / "B", photos=data, shots=4, settings=settings), quiet)
    assert list(found.seconds) == ["bottle"]
    seen = false_alarms(found, data, InspectOptions(threads=1), quiet)
    assert len(seen["bottle"].scores) == 3
    assert (
        seen["bottle"].threshold == read_bundle(found.bundle).manifest.classes["bottle"].calibration["edge"].threshold
    )
    folder = report_folder(found.bundle)
    report = Report(found, seen)
    report.write(folder)
    report.write(folder)
    report.show()
    assert folder == tmp_path / "B-calibration"
    values = json.loads((folder / "calibration.json").read_text())
    assert values["checked"]["bottle"]["photos"] == 3
    assert values["reasons"]["bottle"] == report.reason("bottle")
    assert (folder / "report.html").read_text().count("<svg") == 2
    (folder / "calibration.json").unlink()
    with pytest.raises(InputError, match="not replaced"):
        report.write(folder)


def test_nothing_but_shots_tells_no_rate(tmp_path: Path) -> None:
    small_bundle(tmp_path / "B")
    data = good_photos(tmp_path / "PHOTOS", 4)
    found = recalibrate(
        CalibrateRequest(bundle=tmp_path / "B", photos=data, settings=CalibrationSettings(bank_size=200, negatives=4)),
        quiet,
    )
    with pytest.raises(DatasetError, match="no good photos but the shots"):
        false_alarms(found, data, InspectOptions(threads=1), quiet)


@pytest.mark.slow
def test_the_verb_writes_the_report_beside_the_bundle(tmp_path: Path) -> None:
    small_bundle(tmp_path / "B")
    data = good_photos(tmp_path / "PHOTOS", 6)
    done = sd_edge(
        "calibrate",
        "B",
        "--photos",
        data,
        "--check",
        data,
        "--synthetic",
        "0",
        "--shots",
        "4",
        "--threads",
        "1",
        "--quiet",
        cwd=tmp_path,
    )
    assert "B-calibration/report.html" in done.stderr
    assert "the preset's settings: none were to be chosen" in done.stderr
    values = json.loads((tmp_path / "B-calibration/calibration.json").read_text())
    assert values["checked"]["bottle"]["photos"] == 2
    assert values["false_alarm_rate"] == 0.02
    again = sd_edge(
        "calibrate",
        "B",
        "--photos",
        data,
        "--report",
        "R",
        "--synthetic",
        "0",
        "--threads",
        "1",
        "--json",
        cwd=tmp_path,
    )
    assert json.loads(again.stdout)["checked"] == {}
    assert (tmp_path / "R/report.html").is_file()
