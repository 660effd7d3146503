"""anomalib's configuration of its Folder in place of a folder of photos: what is read, and what is refused."""

from __future__ import annotations

import ast
import dataclasses
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from anomalysd_edge.data.datasets import open_dataset
from anomalysd_edge.data.layouts import anomalib_folder
from anomalysd_edge.errors import ClassError, DatasetError, MissingExtra, SettingsError
from anomalysd_edge.method.result import Inspection
from tests.support.command import sd_edge
from tests.support.data_sets import touch

FOLDER = """\
class_path: anomalib.data.Folder
init_args:
  name: bracket
  root: {root}
  normal_dir: ok
  abnormal_dir: [ng, worse]
  normal_test_dir: ok_test
  mask_dir: masks
"""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "PHOTOS"
    touch(root, "ok/0.png", "ok/monday/1.png", "ok_test/2.png", "ng/3.png", "worse/4.png", "masks/3.png", "masks/4.png")
    return root


def config(folder: Path, text: str) -> Path:
    """`text` as a file in `folder`."""
    file = folder / "folder.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_folders_of_a_configuration_are_read(photos: Path, tmp_path: Path) -> None:
    data = open_dataset(config(tmp_path, FOLDER.format(root=photos)))
    assert (data.root, data.layout, list(data.classes), data.lone) == (photos, "folder", ["bracket"], False)
    part = data.classes["bracket"]
    assert part.train == (photos / "ok/0.png", photos / "ok/monday/1.png"), "with what lies below, as anomalib reads"
    assert [(s.path, s.label, s.mask_path) for s in part.test] == [
        (photos / "ok_test/2.png", 0, None),
        (photos / "ng/3.png", 1, photos / "masks/3.png"),
        (photos / "worse/4.png", 1, photos / "masks/4.png"),
    ]
    assert data.described() == [
        f"{photos}: folder layout, class bracket: 2 good to train with, 1 good and 2 bad to test on, 2 masks"
    ]


def test_a_whole_configuration_a_relative_root_and_unused_arguments(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    file = config(tmp_path / "elsewhere", """
seed_everything: 1
model: {class_path: anomalib.models.Patchcore}
data:
  class_path: anomalib.data.datamodules.image.folder.Folder
  init_args: {name: nut, root: PHOTOS, normal_dir: ok, abnormal_dir: null, num_workers: 8, val_split_ratio: 0.5}
""")  # fmt: skip
    data = open_dataset(file)
    assert data.classes["nut"].train == (Path("PHOTOS/ok/0.png"), Path("PHOTOS/ok/monday/1.png"))
    assert data.described()[1:] == ["  of folder.yaml, not used here: num_workers, val_split_ratio"]
    with pytest.raises(ClassError, match="bolt"):
        open_dataset(file, ["bolt"])
    with pytest.raises(SettingsError, match="visa has its own"):
        open_dataset(file, None, "visa")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is no YAML"),
        ("- 1", "has no class_path"),
        ("class_path: anomalib.data.MVTecAD\ninit_args: {root: x}", "the class_path anomalib.data.MVTecAD"),
        ("class_path: mine.Folder\ninit_args: {name: x}", "the class_path mine.Folder"),
        ("class_path: anomalib.data.Folder", "has no init_args"),
        (FOLDER + "  task: segmentation", "task is no argument of anomalib 2.7's Folder"),
        (FOLDER + "  extensions: [.png]", "extensions is not supported"),
        (FOLDER + "  test_split_mode: synthetic", "test_split_mode synthetic is not supported"),
        (FOLDER.replace("ok\n", "3\n", 1), "normal_dir is 3, expected a folder"),
        (FOLDER.replace("name: bracket", "name: 3"), "name is 3, expected a text"),
        (FOLDER.replace("normal_dir: ok\n", "normal_dir: []\n"), "has no normal_dir"),
        (FOLDER.replace("normal_dir: ok\n", "normal_dir: okay\n"), "okay is no folder"),
    ],
)
def test_what_would_be_read_otherwise_is_refused_in_a_sentence(
    text: str, message: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match=message) as raised:
        open_dataset(config(tmp_path, text.replace("{root}", str(photos))))
    assert "\n" not in str(raised.value)


def test_without_pyyaml_the_extra_is_named(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtra, match=r"anomalysd-edge\[anomalib\]"):
        open_dataset(config(tmp_path, FOLDER.format(root=photos)))


@pytest.mark.slow
def test_verbs_take_it_where_they_take_a_folder(bundle: object, photos: Path, tmp_path: Path) -> None:
    """The data set is told back before the empty photos stop the verb; a wrong one ends with exit code 2."""
    file = config(tmp_path, FOLDER.format(root=photos).replace("bracket", "bottle"))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(FOLDER + "  extensions: [.png]", encoding="utf-8")
    said = f"{photos}: folder layout, class bottle: 2 good to train with"
    for verb in (
        ("train", "--shots", "2", "--out", "RUN", "--data"),
        ("eval", "bundle", "--data"),
        ("protocol", "--shots", "1", "--out", "PROTOCOL", "--data"),
        ("quickstart", "--out", "OUT"),
        ("verify", "bundle", "--backend", "cpu,cpu", "--photos"),
        ("calibrate", "bundle", "--photos"),
    ):
        done = sd_edge(*verb, file, cwd=tmp_path, check=False)
        assert said in done.stderr, (verb, done.stderr)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        done = sd_edge(*verb, wrong, cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert f"sd-edge: {wrong}: extensions is not supported" in done.stderr


def anomalib_class(file: str, name: str) -> ast.ClassDef:
    """A class of the installed anomalib, read from its source and not imported."""
    found = find_spec("anomalib")
    if found is None or found.origin is None:
        pytest.skip("anomalib is not installed")
    tree = ast.parse((Path(found.origin).parent / file).read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def test_the_arguments_are_those_of_anomalib() -> None:
    folder = anomalib_class("data/datamodules/image/folder.py", "Folder")
    made = next(node for node in folder.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    names = {argument.arg for argument in made.args.args} - {"self"}
    assert names == {"name", "root", "extensions", "test_split_mode", *anomalib_folder.FOLDERS, *anomalib_folder.UNUSED}


RESULT = {"pred_score", "pred_label", "anomaly_map", "pred_mask"}
"""What anomalib's InferenceBatch calls the parts of an answer."""


def test_results_are_called_as_anomalibs() -> None:
    assert {entry.name for entry in dataclasses.fields(Inspection)} >= RESULT


def test_anomalib_still_calls_them_so() -> None:
    batch = anomalib_class("data/dataclasses/torch/base.py", "InferenceBatch")
    assert {
        n.target.id for n in batch.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    } == RESULT
