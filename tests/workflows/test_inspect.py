"""inspect and eval read what they need once; which photos and classes the command line's words name."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.bundle import reader
from anomalysd_edge.errors import BundleError, ClassError, DatasetError, ImageError, InputError
from anomalysd_edge.method.detector import Detector
from anomalysd_edge.vision import images
from anomalysd_edge.workflows import evaluate, inspect
from anomalysd_edge.workflows.bench import bench_photos
from anomalysd_edge.workflows.inspect import inspect_photos
from anomalysd_edge.workflows.open_options import InspectOptions
from anomalysd_edge.workflows.photo_sources import chosen_class, good_photos, photo_files, result_folders, samples_of
from tests.support.data_sets import bottle_data_set as data_set
from tests.support.progress import quiet
from tests.support.small_graphs import small_bundle

ONE_THREAD = InspectOptions(threads=1)


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Counter[str]:
    """How often `module.name` is called, by its first argument."""
    calls: Counter[str] = Counter()
    real: Callable[..., Any] = getattr(module, name)

    def call(path: Path, *rest: Any, **more: Any) -> Any:
        calls[path.name] += 1
        return real(path, *rest, **more)

    monkeypatch.setattr(module, name, call)
    return calls


@pytest.mark.parametrize(("kept_bytes", "decodings"), [(1 << 30, 1), (0, 2)])
def test_a_photo_is_decoded_once_as_far_as_memory_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int, decodings: int
) -> None:
    small_bundle(tmp_path / "B")
    folder = data_set(tmp_path / "DATA") / "bottle/test/spot"
    monkeypatch.setattr(inspect, "KEPT_BYTES", kept_bytes)
    calls = counted(monkeypatch, images, "load_rgb")
    results = inspect_photos(tmp_path / "B", [folder], None, tmp_path / "OUT", ONE_THREAD, quiet)
    assert calls == {"0.png": decodings, "1.png": decodings, "2.png": decodings}
    assert [Path(r["photo"]).name for r in results] == ["0.png", "1.png", "2.png"]
    assert {place.name for place in (tmp_path / "OUT").iterdir()} == {"0", "1", "2"}


def test_a_damaged_photo_costs_nothing_but_its_message(tmp_path: Path) -> None:
    small_bundle(tmp_path / "B")
    folder = data_set(tmp_path / "DATA") / "bottle/test/spot"
    (folder / "9.png").write_bytes(b"")
    with pytest.raises(ImageError, match=r"9\.png"):
        inspect_photos(tmp_path / "B", [folder], None, tmp_path / "OUT", ONE_THREAD, quiet)
    assert not (tmp_path / "OUT").exists()


def test_eval_reads_a_bundle_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_bundle(tmp_path / "B")
    calls = counted(monkeypatch, reader, "_read_constants")
    data = data_set(tmp_path / "DATA")
    found = evaluate.evaluate_bundle(tmp_path / "B", data, None, None, ONE_THREAD, quiet)
    assert (found.results[0].good, found.results[0].bad) == (3, 3)
    assert sum(calls.values()) == 1
    (tmp_path / "B/unet/model.onnx").write_bytes(b"another graph")
    with pytest.raises(BundleError, match=r"unet/model\.onnx"):
        evaluate.evaluate_bundle(tmp_path / "B", data, None, None, ONE_THREAD, quiet)


def test_photos_by_file_folder_data_set_and_run(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "B")
    records = bundle.manifest.classes
    data = data_set(tmp_path / "DATA")
    assert [file.name for file in photo_files([data / "bottle/train/good"])] == ["0.png", "1.png", "2.png"]
    with pytest.raises(InputError, match="holds no photos"):
        photo_files([data])
    assert {s.class_name for s in samples_of(data, bundle)} == {"bottle"}
    assert len(good_photos(data, records, 2)["bottle"]) == 2
    with pytest.raises(DatasetError, match="3"):
        good_photos(data, records, 5)
    assert len(good_photos(data, records, 5, partial=True)["bottle"]) == 3
    (data / "bottle").rename(data / "screw")
    with pytest.raises(DatasetError, match="screw"):
        samples_of(data, bundle)  # a class of a published layout keeps its name
    assert {s.class_name for s in samples_of(data / "screw/train/good", bundle)} == {"bottle"}, "a lone folder has none"
    data_set(data)
    assert {s.path.parents[2].name for s in samples_of(data, bundle)} == {"bottle"}, "another class's are not"
    assert [file.parents[2].name for file in good_photos(data, records, 1)["bottle"]] == ["bottle"]


def test_of_a_published_data_set_the_bundles_classes_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = small_bundle(tmp_path / "B")
    data = data_set(tmp_path / "DATA")
    data_set(tmp_path / "MORE").joinpath("bottle").rename(data / "screw")
    assert {s.class_name for s in samples_of(data, bundle, "mvtec-ad")} == {"bottle"}
    assert "not the published photos: 1 of MVTec AD's 15 classes" in capsys.readouterr().err
    assert len(good_photos(data, bundle.manifest.classes, 2, dataset="mvtec-ad")["bottle"]) == 2
    with pytest.raises(DatasetError, match="holds no class of VisA; its classes are bottle"):
        samples_of(data, bundle, "visa")
    with pytest.raises(DatasetError, match="'mvtec' is unknown"):
        samples_of(data, bundle, "mvtec")


def test_a_class_is_found_in_any_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "M\u00fctter") for form in ("NFC", "NFD"))
    assert chosen_class(composed, [decomposed, "nut"]) == decomposed
    bundle = small_bundle(tmp_path / "B")
    with InspectOptions(threads=1).detector(bundle) as detector:
        known = Detector(
            detector.networks, bundle.schedule(), {decomposed: detector.classes["bottle"]}, detector.settings
        )
        (answer,) = known.inspect([images.load_rgb(data_set(tmp_path / "D") / "bottle/test/spot/0.png")], composed)
    assert answer.class_name == decomposed
    with pytest.raises(ClassError, match="class 'screw' is not in this bundle"):
        bench_photos(tmp_path / "B", tmp_path / "D/bottle/test/spot", "screw")
    files = bench_photos(tmp_path / "B", tmp_path / "D/bottle/test/spot", "bottle")
    assert [name for _, name in files] == ["bottle"] * 3


def test_a_photo_that_shows_nothing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_bundle(tmp_path / "B")
    images.save_png(tmp_path / "dark.png", np.zeros((40, 40, 3), np.uint8))
    folder = data_set(tmp_path / "D") / "bottle/test/good"
    results = inspect_photos(tmp_path / "B", [tmp_path / "dark.png", folder], None, None, ONE_THREAD, quiet)
    assert len(results) == 4
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{tmp_path}/dark.png is a poor shot: it is of one colour, (0, 0, 0)"]


def test_classes_and_result_folders() -> None:
    assert chosen_class(None, {"a": 1}) == chosen_class("a", ["a", "b"]) == "a"
    with pytest.raises(ClassError, match="several classes, say which with --class: a, b"):
        chosen_class(None, ["b", "a"])
    with pytest.raises(ClassError, match="class 'c' is not in this bundle; it holds: a, b"):
        chosen_class("c", ["b", "a"])
    assert result_folders(["x/1.png", "y/2.png", "z/1.png"]) == ["x_1_0", "2", "z_1_1"]
