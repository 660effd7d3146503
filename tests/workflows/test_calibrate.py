"""`sd-edge calibrate`: new constants in an old bundle, from good photos alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from anomalysd_edge.bundle.detector_factory import class_models
from anomalysd_edge.bundle.reader import read_bundle
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.errors import DatasetError, SettingsError
from anomalysd_edge.workflows.calibrate import CalibrateRequest, recalibrate
from tests.support.data_sets import good_photos
from tests.support.progress import quiet
from tests.support.small_graphs import small_bundle

FEW = CalibrationSettings(bank_size=200, negatives=4)


def test_the_constants_are_new_and_the_graphs_the_same(tmp_path: Path) -> None:
    old = small_bundle(tmp_path / "OLD")
    digests = {record.path: record.sha256 for record in old.manifest.files}
    asked = CalibrateRequest(
        bundle=tmp_path / "OLD", photos=good_photos(tmp_path / "PHOTOS"), out=tmp_path / "NEW", settings=FEW
    )
    found = recalibrate(asked, quiet)
    new = read_bundle(tmp_path / "NEW")
    changed = {record.path for record in new.manifest.files if digests.get(record.path) != record.sha256}
    assert changed == {"constants.safetensors"}
    assert found.before == {"bottle": 0.75}
    assert found.after == {"bottle": new.manifest.classes["bottle"].calibration["edge"].threshold}
    assert found.after != found.before
    assert new.manifest.classes["bottle"].shots == 5, "every good photo that is there"
    assert new.manifest.classes["bottle"].aspect == 1.0
    assert read_bundle(tmp_path / "OLD").manifest == old.manifest


def test_in_place_the_bundle_is_replaced_and_engines_stay(tmp_path: Path) -> None:
    small_bundle(tmp_path / "B")
    (tmp_path / "B/engines/abc").mkdir(parents=True)
    (tmp_path / "B/engines/abc/unet.plan").write_bytes(b"engine")
    recalibrate(CalibrateRequest(bundle=tmp_path / "B", photos=good_photos(tmp_path / "PHOTOS"), settings=FEW), quiet)
    assert (tmp_path / "B/engines/abc/unet.plan").read_bytes() == b"engine"
    listed = [record.path for record in read_bundle(tmp_path / "B").manifest.files]
    assert not [path for path in listed if path.startswith("engines/")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["B", "B.versions", "PHOTOS"]


def test_choices_are_told_kept_in_the_bundle_and_read_back_with_their_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anomalysd_edge.calibration import holdout_maps, settings_search

    small_bundle(tmp_path / "B")
    taken = {"scales": (2,), "multiscale_weight": 2.5}

    def choose(inspect: object, masks: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], _rounds: object) -> object:
        assert callable(inspect)
        judged = inspect(taken)
        assert masks.any(axis=(1, 2)).sum() == 4, "as many synthetic anomalies as asked for"
        return taken, [settings_search.Trial(taken, *settings_search.merit(judged, masks), 0.1, 0.01, True)]

    monkeypatch.setattr(holdout_maps, "search_settings", choose)
    settings = CalibrationSettings(bank_size=200, negatives=4, synthetic=4)
    found = recalibrate(
        CalibrateRequest(bundle=tmp_path / "B", photos=good_photos(tmp_path / "PHOTOS"), shots=4, settings=settings),
        quiet,
    )
    assert found.choices == {"bottle": taken}
    assert json.loads(json.dumps(found.to_json()))["choices"]["bottle"]["scales"] == [2]
    assert class_models(read_bundle(tmp_path / "B"), "edge")["bottle"].calibration.choices == taken


def test_synthetic_anomalies_choose_for_real_among_what_fits_the_latents(tmp_path: Path) -> None:
    small_bundle(tmp_path / "B")
    settings = CalibrationSettings(bank_size=200, negatives=4, synthetic=8)
    asked = CalibrateRequest(
        bundle=tmp_path / "B", photos=good_photos(tmp_path / "PHOTOS"), out=tmp_path / "NEW", settings=settings
    )
    trials = recalibrate(asked, quiet).trials["bottle"]
    assert trials[0].changes == {}
    assert len(trials) == 1 + 2 + 4, "of round 1 the grids of eight and more cells do not fit on four"
    assert all(0 <= t.image_auroc <= 1 and 0 <= t.pixel_auroc <= 1 for t in trials)
    assert len({(t.image_auroc, t.pixel_auroc) for t in trials}) > 2


def test_a_class_without_photos_is_named(tmp_path: Path) -> None:
    small_bundle(tmp_path / "B")
    with pytest.raises(DatasetError, match="bottle"):
        recalibrate(
            CalibrateRequest(
                bundle=tmp_path / "B",
                photos=good_photos(good_photos(tmp_path / "P", class_name="screw"), class_name="nut"),
            ),
            quiet,
        )
    with pytest.raises(DatasetError, match="4"):
        recalibrate(
            CalibrateRequest(bundle=tmp_path / "B", photos=good_photos(tmp_path / "FEW", 2), shots=4, settings=FEW),
            quiet,
        )


@pytest.mark.parametrize("wrong", [{"false_alarm_rate": 0.0}, {"false_alarm_rate": 0.7}, {"synthetic": -1}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        CalibrationSettings(**wrong)  # type: ignore[arg-type]
