"""Outputs are whole or absent: errors, Ctrl-C and a full disk leave an older output untouched and nothing beside it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from anomalysd_edge.core import files
from anomalysd_edge.core.exchange import exchange
from anomalysd_edge.core.files import (
    clear_asides,
    folder_aside,
    is_aside,
    printable,
    read_json,
    sha256_bytes,
    sha256_file,
    write_aside,
    write_json,
)
from anomalysd_edge.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stop_halfway(path: Path, error: BaseException) -> None:
    path.write_text("half")
    raise error


def test_digests_agree_with_hashlib_over_more_than_one_piece(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes((1 << 20) + 17)
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == sha256_bytes(data) == hashlib.sha256(data).hexdigest()
    with pytest.raises(InputError, match="missing"):
        sha256_file(tmp_path / "missing")


def test_write_aside_makes_parents_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.npy"
    for text in ("one", "two"):
        with write_aside(path) as aside:
            assert aside.parent == path.parent
            assert aside.suffix == ".npy"
            aside.write_text(text)
        assert path.read_text() == text
    assert names(path.parent) == ["out.npy"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_write_aside_leaves_the_old_file_on_error(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(type(error)), write_aside(path) as aside:
        stop_halfway(aside, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which only Linux has")
def test_a_full_disk_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no space left .*out\.bin"), write_aside(tmp_path / "out.bin") as aside:
        Path("/dev/full").write_bytes(aside.write_text("half") * b"x")
    with pytest.raises(InputError, match=r"no space left .*/run;"), folder_aside(tmp_path / "run"):
        raise RuntimeError("SafetensorError: No space left on device (os error 28)")
    assert names(tmp_path) == []


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_json(tmp_path / "file" / "out.json", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder cannot be written \(Is a directory\)"):
        write_json(tmp_path / "folder", {})
    assert names(tmp_path) == ["file", "folder"]
    with pytest.raises(InputError, match="is a file"), folder_aside(tmp_path / "file"):
        pass


def test_folder_aside_replaces_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "run"
    for name in ("one", "two"):
        with folder_aside(target) as aside:
            (aside / "inner").mkdir()
            (aside / "inner" / name).write_text(name)
        assert names(target / "inner") == [name]
    assert names(tmp_path) == ["run"]


def test_folder_aside_leaves_the_old_folder_on_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), folder_aside(tmp_path / "run") as aside:
        stop_halfway(aside / "half", KeyboardInterrupt())
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["old"]


def test_folder_aside_brings_the_old_folder_back_when_the_last_move_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_text("old")
    real = Path.rename

    def fail_for_the_new_one(self: Path, target: Path) -> Path:
        if (self / "new").exists():
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    monkeypatch.setattr(files, "exchange", lambda *_: False)  # as on a file system that cannot swap in one step
    with pytest.raises(OSError, match="Input/output"), folder_aside(tmp_path / "run") as aside:
        (aside / "new").write_text("new")
    assert names(tmp_path) == ["run"]
    assert names(tmp_path / "run") == ["old"]


def test_two_folders_are_swapped_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    if not exchange(tmp_path / "one", tmp_path / "two"):
        pytest.skip("this system cannot swap two folders in one step")
    assert names(tmp_path / "one") == ["two"]
    assert names(tmp_path / "two") == ["one"]
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "one", tmp_path / "nothing")


def test_folder_aside_with_a_marker_spares_other_peoples_folders(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("")
    with (
        pytest.raises(InputError, match=r"holds no manifest\.json"),
        folder_aside(tmp_path / "photos", "manifest.json"),
    ):
        pass
    assert names(tmp_path / "photos") == ["holiday.jpg"]
    (tmp_path / "photos" / "manifest.json").write_text("{}")
    with folder_aside(tmp_path / "photos", "manifest.json") as aside:
        (aside / "manifest.json").write_text("{}")
    assert names(tmp_path / "photos") == ["manifest.json"]


def test_json_holds_numpy_dataclasses_and_no_nan(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Row:
        score: float
        shape: tuple[int, ...]

    value = {"row": Row(float("nan"), (1, 2)), "f": np.float32(0.5), "a": np.arange(2), "p": Path("x/y"), "é": True}
    write_json(tmp_path / "v.json", value)
    expected = {"row": {"score": None, "shape": [1, 2]}, "f": 0.5, "a": [0, 1], "p": "x/y", "é": True}
    assert read_json(tmp_path / "v.json") == expected == json.loads((tmp_path / "v.json").read_bytes())
    with pytest.raises(TypeError):
        write_json(tmp_path / "w.json", {"x": object()})
    assert names(tmp_path) == ["v.json"]


def test_broken_json_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"a": 1,\n "b": ')
    (tmp_path / "bin.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cut\.json .*line 2"):
        read_json(tmp_path / "cut.json")
    with pytest.raises(InputError, match=r"bin\.json is not UTF-8"):
        read_json(tmp_path / "bin.json")
    with pytest.raises(InputError, match="No such file"):
        read_json(tmp_path / "none.json")


def test_a_link_is_written_through(tmp_path: Path) -> None:
    """current -> releases/1 is how people switch versions: the link stays, and nothing hidden is left beside it."""
    (tmp_path / "releases/1").mkdir(parents=True)
    (tmp_path / "releases/1/manifest.json").write_text("old")
    (tmp_path / "current").symlink_to("releases/1")
    (tmp_path / "file.json").write_text("old")
    (tmp_path / "link.json").symlink_to("file.json")
    with folder_aside(tmp_path / "current", "manifest.json") as folder:
        (folder / "manifest.json").write_text("new")
    with write_aside(tmp_path / "link.json") as aside:
        aside.write_text("new")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "releases/1/manifest.json").read_text() == "new"
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "file.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "1", "current", "file.json", "link.json", "manifest.json", "releases",
    ]  # fmt: skip


def test_a_link_to_nothing_is_written_where_it_points(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("later")
    with folder_aside(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "later/a").read_text() == "x"


def test_links_in_a_circle_get_a_sentence_and_links_to_nothing_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(InputError, match="circle"), write_aside(tmp_path / "a/x.json") as aside:
        aside.write_text("x")
    (tmp_path / "out").symlink_to("later")
    with write_aside(tmp_path / "out/000/x.json") as aside:
        aside.write_text("x")
    assert (tmp_path / "later/000/x.json").read_text() == "x"


def test_a_name_for_people_is_one_line() -> None:
    assert printable("a\nERROR forged\x1b[2J.png") == "a\\nERROR forged\\x1b[2J.png"
    assert printable("teil_\udce4.png") == "teil_\ufffd.png"
    assert printable("Geh\xe4use.png") == "Geh\xe4use.png"


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    code = """
import sys, time
from pathlib import Path
from anomalysd_edge.core.files import folder_aside
with folder_aside(Path(sys.argv[1])) as aside:
    (aside / "part").write_text("half")
    print(aside.name, flush=True)
    time.sleep(60)
"""
    with folder_aside(target) as made:
        (made / "whole").write_text("1")

    def writer() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, tmp_path / process.stdout.readline().strip()

    killed, left = writer()
    living, kept = writer()
    try:
        assert left.is_dir()
        killed.kill()
        killed.wait()
        old, new = target / ".manifest-0123abcd.aside.json", target / ".manifest-0123abce.aside.json"
        old.touch()
        new.touch()
        os.utime(old, (1.0, 1.0))
        other = tmp_path / ".other-0123abcd.aside"
        other.mkdir()
        clear_asides(target)
        assert [path.exists() for path in (left, kept, other, old, new, target / "whole")] == [
            False,
            True,
            True,
            False,
            True,
            True,
        ]
        clear_asides(tmp_path / "other")
        assert other.is_dir(), "without the folder itself, what lies aside may be all that there is"
    finally:
        living.kill()
        living.wait()
        for process in (killed, living):
            if process.stdout is not None:
                process.stdout.close()
    with folder_aside(target) as again:
        assert not kept.exists()
        (again / "whole").write_text("2")
    assert (target / "whole").read_text() == "2"
    assert [is_aside(name) for name in (left.name, old.name, "whole", ".lock", "a-0123abcd.aside")] == [
        True,
        True,
        False,
        False,
        False,
    ]
