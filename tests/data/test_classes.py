"""Prompts word for word as published, the shipped tables, the group of symmetries, and wrong class files by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anomalysd_edge.data.classes import ClassSpec, apply_view, class_spec, load_classes, shipped_classes, symmetry_group
from anomalysd_edge.errors import ClassError

MVTEC_TEXTURES = {"carpet", "grid", "leather", "tile", "wood"}
MVTEC_OBJECTS = {
    "bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor", "zipper",
}  # fmt: skip
VISA = {
    "candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3", "pcb4",
    "pipe_fryum",
}  # fmt: skip
DEMO = {"demo_weave", "demo_metal", "demo_washer", "demo_capsule", "demo_board"}


def test_prompts_are_the_published_ones() -> None:
    prompts = class_spec("bottle").prompts()
    assert prompts.whole == "A perfect bottle."
    assert prompts.detail == "A bottle with intact neck, body and rim."


def test_the_tables_hold_every_class_with_both_prompts() -> None:
    shipped = shipped_classes()
    assert set(shipped) == MVTEC_TEXTURES | MVTEC_OBJECTS | VISA | DEMO
    textures = {name for name, spec in shipped.items() if spec.kind == "texture"}
    assert textures == MVTEC_TEXTURES | {"demo_weave", "demo_metal"}
    for spec in shipped.values():
        assert spec.prompts().detail is not None
        # CLIP reads 77 tokens; a word is rarely more than three.
        assert len((spec.prompts().detail or "").split()) < 20
    # "flip" is a defect of metal_nut, and prints and threads are not symmetric under a mirror.
    for name in ("metal_nut", "screw", "pill", "capsule", "demo_weave"):
        assert not {"flip_x", "flip_y"} & set(shipped[name].symmetries)


@pytest.mark.parametrize(
    ("noun", "article"),
    [("apple", "An"), ("unit", "A"), ("hourglass", "An"), ("PCB", "A"), ("LED", "An"), ("USB plug", "A"), ("egg", "An"),
     ("European plug", "A"), ("O-ring", "An"), ("underlay", "An"), ("hazelnut", "A"), ("unintended part", "An")],
)  # fmt: skip
def test_articles_go_by_sound(noun: str, article: str) -> None:
    spec = ClassSpec(name="x", noun=noun, parts=("rim",))
    assert spec.prompts().detail == f"{article} {noun} with intact rim."


def test_an_unknown_class_speaks_from_its_name() -> None:
    spec = class_spec("steel_bracket")
    assert (spec.kind, spec.parts, spec.symmetries) == ("object", (), ())
    assert spec.prompts().whole == "A perfect steel bracket."
    assert spec.prompts().detail is None


def test_a_users_file_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "classes.toml"
    path.write_text(
        '[bottle]\nnoun = "vial"\nparts = ["cap"]\nsymmetries = ["flip_x"]\n[steel_bracket]\nkind = "texture"\n'
    )
    user = load_classes(path)
    assert class_spec("bottle", user).prompts().detail == "A vial with intact cap."
    assert class_spec("steel_bracket", user).noun == "steel bracket"
    assert class_spec("steel_bracket", user).kind == "texture"
    assert class_spec("cable", user) is shipped_classes()["cable"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\ncolour = 1", "'a': unknown key 'colour'"),
        ("[a]\nkind = 'thing'", "'a' has the kind 'thing'"),
        ("[a]\nparts = 'rim'", "'a': parts is 'rim'"),
        ("[a]\nparts = ['rim', '']", "'a' has an empty entry in parts"),
        ("[a]\nsymmetries = ['rotate45']", "'a' has the symmetry 'rotate45'"),
        ("[a]\nnoun = 3", "'a': noun is 3"),
        ("[a]\nnoun = ' '", "'a' has an empty noun"),
        ("a = 1", "'a': found a bare value"),
        ("['../x']\n", "cannot name a class"),
        ("[a\n", "not valid TOML"),
    ],
)
def test_wrong_class_files_name_the_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "classes.toml"
    path.write_text(text)
    with pytest.raises(ClassError, match=r"classes\.toml") as raised:
        load_classes(path)
    assert message in str(raised.value)


def test_missing_and_binary_class_files(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ClassError, match="cannot be read"):
        load_classes(tmp_path / "none.toml")
    with pytest.raises(ClassError, match="UTF-8"):
        load_classes(tmp_path / "b.toml")


@pytest.mark.parametrize("name", ["", " ", "..", ".hidden", "a/b", "a\\b", "a\nb", "x" * 101])
def test_names_that_cannot_be_folders_are_refused(name: str) -> None:
    with pytest.raises(ClassError, match="cannot name a class"):
        class_spec(name)


def test_symmetries_generate_their_group() -> None:
    image = np.arange(9).reshape(3, 3)

    def views(*symmetries: str) -> list[bytes]:
        return [apply_view(image, view).tobytes() for view in symmetry_group(symmetries)]

    turned, left_right, top_bottom = np.rot90(image, 2).tobytes(), image[:, ::-1].tobytes(), image[::-1].tobytes()
    assert views() == [image.tobytes()]
    assert views("rotate180") == [image.tobytes(), turned]
    assert views("flip_x") == [image.tobytes(), left_right]
    assert views("flip_y") == [image.tobytes(), top_bottom]
    assert set(views("flip_x", "flip_y")) == {image.tobytes(), turned, left_right, top_bottom}
    assert views("rotate90") == [np.rot90(image, n).tobytes() for n in range(4)]
    assert len(set(views("rotate90", "flip_y"))) == 8
