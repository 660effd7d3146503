"""Options of data sets on the command line: classes with commas, named folders, published data sets."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anomalysd_edge.bundle import versions
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.cli.main import app
from anomalysd_edge.cli.options import class_names, listed, named_folders, time_of_photo
from anomalysd_edge.data.datasets import NamedFolders, open_dataset, open_folders
from anomalysd_edge.demo.dataset import render_part
from anomalysd_edge.errors import ClassError, DatasetError, InputError, SettingsError
from anomalysd_edge.method.score_model import Costs
from anomalysd_edge.training import train as training
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.photo_sources import good_photos, samples_of
from tests.support.data_sets import bottle_data_set, touch
from tests.support.small_graphs import small_bundle


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(app, list(map(str, words)), catch_exceptions=True)


@pytest.fixture
def bottle(tmp_path: Path) -> Path:
    """Photos of one class as a camera's software sorts them: OK, NG, MASK."""
    data, folder = bottle_data_set(tmp_path / "SET") / "bottle", tmp_path / "lot7"
    shutil.copytree(data / "train/good", folder / "OK")
    shutil.copytree(data / "test/good", folder / "OK_test")
    shutil.copytree(data / "test/spot", folder / "NG")
    shutil.copytree(data / "ground_truth/spot", folder / "MASK")
    return folder


NAMED = ("--normal-dir", "OK", "--abnormal-dir", "NG", "--normal-test-dir", "OK_test", "--mask-dir", "MASK")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bolt, M4"], ["bolt, M4"]),
        (["nut,bolt, M4"], ["nut", "bolt, M4"]),
        (["bolt, M4", "nut"], ["bolt, M4", "nut"]),
        (["bolt , M4,", "", "nut,nut"], ["bolt, M4", "nut"]),
        (["M\u00fctter"], [unicodedata.normalize("NFD", "M\u00fctter")]),
        ([" ,"], sorted(["bolt, M4", "nut", unicodedata.normalize("NFD", "M\u00fctter")])),
    ],
)
def test_classes_with_commas_are_chosen(tmp_path: Path, words: list[str], expected: list[str]) -> None:
    for name in ("bolt, M4", "nut", unicodedata.normalize("NFD", "M\u00fctter")):
        touch(tmp_path / name, "0.png")
    assert list(open_dataset(tmp_path, class_names(words)).classes) == expected


def test_a_name_in_pieces_is_put_together_and_pieces_that_are_no_class_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "bolt, M4", "0.png")
    touch(tmp_path / "nut", "0.png")
    assert list(open_dataset(tmp_path, listed("bolt, M4")).classes) == ["bolt, M4"]
    with pytest.raises(ClassError, match="no class 'M4'; it has bolt, M4, nut"):
        open_dataset(tmp_path, class_names(["nut, M4"]))


def test_a_class_in_a_list_is_looked_at_like_one_alone(tmp_path: Path) -> None:
    touch(tmp_path, "bolt/OK/0.png", "bolt/NG/0.png", "nut/0.png")
    for words in (["bolt"], ["nut,bolt"], ["nut", "bolt"]):
        with pytest.raises(DatasetError, match="OK and NG"):
            open_dataset(tmp_path, class_names(words))
    assert list(open_dataset(tmp_path, class_names(["nut"])).classes) == ["nut"]


def test_folders_that_are_named() -> None:
    ok, ng = [Path("OK")], [Path("NG")]
    assert named_folders(None, None, [], None, "visa", ["candle"]) is None
    assert named_folders(ok, ng, None, None, None, [" bolt"]) == NamedFolders(ok, ng, (), (), "bolt")
    for words, expected in (
        ((None, ng, None, None, None, None), "--abnormal-dir goes with --normal-dir"),
        ((None, None, ok, None, None, None), "--normal-test-dir goes with --normal-dir"),
        ((ok, None, None, ng, None, None), "--mask-dir goes with --abnormal-dir"),
        ((ok, ng, None, None, "visa", None), "--dataset visa has its own"),
        ((ok, ng, None, None, None, ["bolt", "nut"]), "--classes names 2"),
    ):
        with pytest.raises(SettingsError, match=expected):
            named_folders(*words)


@pytest.mark.parametrize(
    "folders",
    [
        NamedFolders([Path("OK"), Path("OK")]),
        NamedFolders([Path("OK")], [Path("OK")]),
        NamedFolders([Path("OK")], (), [Path("link")]),
        NamedFolders([Path("OK")], [Path()]),
    ],
)
def test_no_photo_is_good_and_bad_or_counts_twice(tmp_path: Path, folders: NamedFolders) -> None:
    touch(tmp_path / "OK", "0.png", "1.png")
    touch(tmp_path, "2.png")
    (tmp_path / "link").symlink_to("OK")
    with pytest.raises(DatasetError, match=r"OK/\d\.png is named twice"):
        open_folders(tmp_path, folders)


@pytest.mark.parametrize("classes", [(), ("--classes", "bottle")])
def test_eval_measures_folders_of_any_name(tmp_path: Path, bottle: Path, classes: tuple[str, ...]) -> None:
    small_bundle(tmp_path / "B")
    done = run("eval", tmp_path / "B", "--data", bottle, *NAMED, *classes, "--json", "--quiet", "--threads", "1")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["classes"]["bottle"]["good"], found["classes"]["bottle"]["bad"]) == (3, 3)
    assert found["mean"]["fused"]["pixel_auroc"] is not None
    assert f"{bottle}: folder layout, class {'bottle' if classes else 'lot7'}: 3 good to train with" in done.stderr


def test_eval_takes_no_folder_for_the_bundles_class_that_is_not_named(tmp_path: Path, bottle: Path) -> None:
    small_bundle(tmp_path / "B")
    (bottle / "OK").rename(bottle / "good")
    (bottle / "NG").rename(bottle / "bad")
    for folder in ("MASK", "OK_test"):
        shutil.rmtree(bottle / folder)
    done = run("eval", tmp_path / "B", "--data", bottle, "--quiet")
    assert isinstance(done.exception, ClassError)
    assert "does not hold: lot7" in str(done.exception)


def test_train_takes_folders_of_any_name_and_published_data_sets(
    tmp_path: Path, bottle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[dict[str, list[str]]] = []

    def keep(_settings: Any, shots: dict[str, list[Path]], _out: Path, **_more: Any) -> None:
        taken.append({name: [file.name for file in files] for name, files in shots.items()})

    monkeypatch.setattr(training, "train", keep)
    for words in (
        (bottle, *NAMED),
        (bottle, *NAMED, "--classes", "bottle, clear"),
        (tmp_path / "SET", "--dataset", "mvtec-ad", "--classes", "bottle"),
    ):
        done = run("train", "--data", *words, "--shots", "2", "--out", tmp_path / "run", "--quiet")
        assert done.exit_code == 0, done.output
    assert "not the published photos: 1 of MVTec AD's 15 classes" in done.stderr
    files = ["0.png", "1.png"]
    assert taken == [{"lot7": files}, {"bottle, clear": files}, {"bottle": files}]
    bottle.rename(tmp_path / "train")
    done = run("train", "--data", tmp_path / "train", *NAMED, "--out", tmp_path / "run")
    assert "called 'train'" in str(done.exception)
    assert str(done.exception).endswith("say --classes NAME")
    done = run("train", "--data", tmp_path / "SET", "--dataset", "mvtec", "--out", tmp_path / "run")
    assert "'mvtec' is unknown; known are mvtec-ad, visa" in str(done.exception)


def test_verify_and_calibrate_read_the_bundles_classes_of_a_published_data_set(tmp_path: Path) -> None:
    small_bundle(tmp_path / "B")
    data = bottle_data_set(tmp_path / "SET", train=4)
    shutil.copytree(data / "bottle", data / "screw_of_mine")
    words = ("--photos", data, "--dataset", "mvtec-ad", "--quiet")
    done = run("verify", tmp_path / "B", *words, "--backend", "cpu,cpu")
    assert done.exit_code == 0, done.output
    assert "not the published photos: 1 of MVTec AD's 15 classes" in done.stderr
    done = run("calibrate", tmp_path / "B", *words, "--check", data, "--synthetic", "0", "--out", tmp_path / "C")
    assert done.exit_code == 0, done.output
    done = run("calibrate", tmp_path / "B", "--photos", data, "--dataset", "visa")
    assert "holds no class of VisA" in str(done.exception)


COSTS = ("--missed-cost", "4", "--referral-cost", "0.1", "--defect-rate", "0.02")
COSTLY = {
    "calibrate": ("BUNDLE", "--photos", "PHOTOS"),
    "add-class": ("BUNDLE", "--name", "nut", "--photos", "PHOTOS"),
    "teach": ("BUNDLE", "--class", "nut", "--photos", "PHOTOS"),
    "export": ("RUN", "--out", "BUNDLE"),
}


class Called(Exception):
    """In place of the work."""


@pytest.mark.parametrize("verb", COSTLY)
def test_costs_reach_the_calibration(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalysd_edge.workflows import calibrate, export, teach

    found: list[CalibrationSettings] = []

    def note(*words: Any) -> None:
        found.append(words[-1] if verb == "export" else words[0].settings)
        raise Called

    monkeypatch.setattr(calibrate, "recalibrate", note)
    monkeypatch.setattr(teach, "teach_class", note)
    monkeypatch.setattr(export, "export_to", note)
    assert isinstance(run(verb, *COSTLY[verb], *COSTS, "--quiet").exception, Called)
    assert isinstance(run(verb, *COSTLY[verb], "--quiet").exception, Called)
    assert [each.costs for each in found] == [Costs(4.0, 0.1, 0.02), Costs(1.0, 0.25, 0.5)]


@pytest.mark.parametrize("verb", COSTLY)
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (("--missed-cost", "0"), "the cost of a missed defect is 0.0; expected a number above 0"),
        (("--missed-cost", "inf"), "the cost of a missed defect is inf"),
        (("--referral-cost", "1"), "the cost of a referral is 1.0; expected a number between 0 and 1"),
        (("--defect-rate", "nan"), "the defect rate is nan; expected a number between 0 and 1"),
    ],
)
def test_costs_that_cannot_be_are_refused(verb: str, wrong: tuple[str, str], sentence: str) -> None:
    failed = run(verb, *COSTLY[verb], *wrong)
    assert isinstance(failed.exception, SettingsError)
    assert sentence in str(failed.exception)


def test_teach_names_poor_photos_and_versions_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalysd_edge.workflows import teach

    monkeypatch.setattr(teach, "_encoder", lambda *_: None)
    bundle, good = small_bundle(tmp_path / "B").path, tmp_path / "good"
    good.mkdir()
    for number in range(3):
        images.save_png(good / f"{number}.png", render_part("demo_washer", (3, number), 96).photo())
    shutil.copy(good / "0.png", good / "copy.png")
    (good / "torn.png").write_bytes(b"\x89PNG torn")
    first = versions.bundle_id(bundle)
    done = run("teach", bundle, "--class", "washer", "--photos", good, "--quiet")
    assert done.exit_code == 0, done.output
    assert "copy.png is the same photo as 0.png: left out" in done.stderr
    assert "torn.png" in done.stderr
    assert "the class is repainted by the empty prompt" in done.stderr
    assert "class 'washer' added from 3 photos" in done.stderr
    assert "false alarms" in done.stdout
    listed = json.loads(run("versions", bundle, "--json").stdout)
    assert [each["bundle_id"] for each in listed] == [versions.bundle_id(bundle), first]
    assert run("versions", bundle, "--restore", first).exit_code == 0
    assert versions.bundle_id(bundle) == first
    for file in good.glob("[0-9c]*.png"):
        file.unlink()
    refused = run("add-class", bundle, "--name", "washer", "--photos", good, "--quiet")
    assert "no photo can be used to teach 'washer': " in str(refused.exception)
    assert isinstance(refused.exception, InputError), "the command ends with exit code 2"
    assert versions.bundle_id(bundle) == first


def test_calibrate_and_verify_take_named_folders_as_eval_does(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "bundle")
    records = bundle.manifest.classes
    touch(tmp_path / "line", "OK/0.png", "OK/1.png", "OK_test/2.png", "NG/3.png")
    named = named_folders([Path("OK")], [Path("NG")], [Path("OK_test")], None, None, None)
    found = good_photos(tmp_path / "line", records, None, every=True, named=named)
    assert {name: [file.name for file in files] for name, files in found.items()} == {"bottle": ["0.png", "1.png"]}
    samples = samples_of(tmp_path / "line", bundle, named=named)
    assert sorted((sample.path.name, sample.label) for sample in samples) == [("2.png", 0), ("3.png", 1)]
    with pytest.raises(DatasetError, match="OK"):
        good_photos(tmp_path / "line", records, None, every=True)
    wrong = run("calibrate", bundle.path, "--photos", tmp_path / "line", "--normal-dir", "missing", "--quiet")
    assert "missing is no folder" in str(wrong.exception)
    images.save_png(tmp_path / "parts/OK/0.png", render_part("demo_washer", (3, 0), 96).photo())
    (tmp_path / "parts/OK/1.png").write_bytes((tmp_path / "parts/OK/0.png").read_bytes())
    words = ("verify", bundle.path, "--backend", "cpu,cpu", "--photos", tmp_path / "parts", "--json", "--quiet")
    done = run(*words, "--normal-dir", "OK")
    assert done.exit_code == 0, done.output
    assert [one["name"] for one in json.loads(done.stdout)["photos"]] == ["bottle/good/0.png", "bottle/good/1.png"]


def test_a_rate_is_a_time_for_each_photo() -> None:
    assert time_of_photo(None, 4.0) == 250.0
    assert time_of_photo(80.0, None) == 80.0
    assert time_of_photo(None, None) is None
    with pytest.raises(SettingsError, match="give one of them"):
        time_of_photo(80.0, 4.0)
    with pytest.raises(SettingsError, match="must be above 0"):
        time_of_photo(None, 0.0)
