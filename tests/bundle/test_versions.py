"""Versions of a bundle: kept when it is rewritten, put back exactly, whole whatever happens in the middle."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from anomalysd_edge.bundle import versions as v
from anomalysd_edge.bundle.reader import CONSTANTS, MANIFEST, read_bundle
from anomalysd_edge.bundle.signing import SIGNATURE, new_key, sign
from anomalysd_edge.bundle.update import write_manifest
from anomalysd_edge.bundle.writer import rewrite_bundle
from anomalysd_edge.errors import BundleError, InputError
from tests.support.small_graphs import small_bundle


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small_bundle(tmp_path / "line").path


def rewritten(path: Path, shots: int, key: Path | None = None) -> str:
    """Rewrite the bundle with another number of shots in its class; its new id."""
    bundle = read_bundle(path)
    classes = {name: replace(record, shots=shots) for name, record in bundle.manifest.classes.items()}
    rewrite_bundle(bundle, path, classes, bundle.constants, f"now of {shots} shots", key)
    return v.bundle_id(path)


def test_what_is_replaced_becomes_a_version_and_comes_back_to_the_byte(path: Path) -> None:
    first, before = v.bundle_id(path), (path / MANIFEST).read_bytes()
    second = rewritten(path, 7)
    assert second != first
    listed = v.versions(path)
    assert [(each.bundle_id, each.current, each.change) for each in listed] == [
        (second, True, "now of 7 shots"),
        (first, False, ""),
    ]
    kept = v.version_folder(path, first)
    assert kept is not None
    assert read_bundle(kept).manifest.classes["bottle"].shots == 4
    assert (kept / "unet/model.onnx").samefile(path / "unet/model.onnx"), "unchanged files are links"
    assert not (kept / CONSTANTS).samefile(path / CONSTANTS)
    back = v.restore(path, first[:6])
    assert back.bundle_id == first == v.bundle_id(path)
    assert (path / MANIFEST).read_bytes() == before
    assert [each.bundle_id for each in v.versions(path)] == [first, second], "and this, too, kept what it replaced"
    assert read_bundle(v.restore(path, second).path).manifest.classes["bottle"].shots == 7


def test_the_last_five_are_kept(path: Path) -> None:
    ids = [v.bundle_id(path)] + [rewritten(path, shots) for shots in range(5, 12)]
    assert [each.bundle_id for each in v.versions(path)] == ids[:1:-1]
    with pytest.raises(BundleError, match=rf"has no version '{ids[0]}'; there are: {ids[-2]}, "):
        v.restore(path, ids[0])
    v.restore(path, ids[2])
    assert [each.bundle_id for each in v.versions(path)] == [ids[2], ids[7], ids[6], ids[5], ids[4]]


def test_a_damaged_version_is_not_put_back(path: Path) -> None:
    first = v.bundle_id(path)
    second = rewritten(path, 7)
    kept = v.version_folder(path, first)
    assert kept is not None
    data = bytearray((kept / CONSTANTS).read_bytes())
    data[-1] ^= 1
    (kept / CONSTANTS).write_bytes(data)
    with pytest.raises(BundleError, match="was changed since the export"):
        v.restore(path, first)
    assert v.bundle_id(path) == second


def test_a_second_teacher_is_told(path: Path) -> None:
    with (
        v.changing(path),
        pytest.raises(v.BundleBusy, match=rf"being changed by another process \(process {os.getpid()}"),
    ):
        v.restore(path, "0")
    bundle = read_bundle(path)
    rewritten(path, 7)
    after = v.bundle_id(path)
    with pytest.raises(BundleError, match="was changed by another process meanwhile"):
        rewrite_bundle(bundle, path, bundle.manifest.classes, bundle.constants, "of an older one")
    assert v.bundle_id(path) == after


def test_a_full_disk_leaves_the_bundle_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = v.bundle_id(path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place, name in ((os, "link"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            if name == "link":
                patch.setattr(shutil, "copyfile", full)
            with pytest.raises(InputError, match="no space left on the disk while writing"):
                rewritten(path, 7)
        assert v.bundle_id(path) == first
        read_bundle(path)
        assert sorted(p.name for p in path.parent.iterdir() if p.name != "line.versions") == ["line"]


KILLED = """
import os, signal, sys
from pathlib import Path
from anomalysd_edge.bundle import writer
from anomalysd_edge.core import files
from tests.bundle.test_versions import rewritten
place, real = sys.argv[2], getattr(files, sys.argv[2], None)
calls = 0
def dies(*given, **named):
    global calls
    calls += 1
    if calls == int(sys.argv[3]):
        if sys.argv[4] == "after":
            real(*given, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*given, **named)
setattr(files, place, dies)
rewritten(Path(sys.argv[1]), 7)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "call", "when", "new"),
    [("_flush_to_disk", 3, "before", False), ("exchange", 1, "before", False), ("exchange", 1, "after", True)],
)
def test_killed_in_the_middle_it_is_the_old_or_the_new_one(
    path: Path, place: str, call: int, when: str, new: bool
) -> None:
    first = v.bundle_id(path)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path, place, str(call), when], check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_bundle(path).manifest.classes["bottle"].shots == (7 if new else 4)
    if new:
        assert v.restore(path, first).bundle_id == first
    assert rewritten(path, 8) != first, "and it can be rewritten at once"


def test_a_signed_bundle_is_signed_again_only_with_a_key(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    public = new_key(tmp_path / "line.pem")
    sign(path / MANIFEST, tmp_path / "line.pem")
    first = v.bundle_id(path)
    rewritten(path, 7)
    assert not (path / SIGNATURE).exists()
    assert [each.signed for each in v.versions(path)] == [False, True]
    v.restore(path, first, public_key=public)
    read_bundle(path, public_key=public)
    rewritten(path, 8, tmp_path / "line.pem")
    read_bundle(path, public_key=public)
    unsigned = next(each for each in v.versions(path) if not each.signed)
    with pytest.raises(BundleError, match="is not signed"):
        v.restore(path, unsigned.bundle_id, public_key=public)


def test_versions_need_a_bundle(tmp_path: Path, path: Path) -> None:
    for call in (lambda: v.versions(tmp_path), lambda: v.restore(tmp_path, "0")):
        with pytest.raises(BundleError, match="expected a bundle"):
            call()
    with pytest.raises(BundleError, match="has no version '0'; there are: none yet"):
        v.restore(path, "0")
    write_manifest(path, replace(read_bundle(path).manifest, product="another"))
    with pytest.raises(BundleError):
        v.versions(path)
