"""Signatures: only the holder of the key can change a bundle that others must trust."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalysd_edge.bundle.reader import MANIFEST, check_engines, read_bundle
from anomalysd_edge.bundle.signing import new_key, sign
from anomalysd_edge.errors import BundleError, InputError
from tests.conftest import sd_edge
from tests.support.small_graphs import small_bundle

pytest.importorskip("cryptography", reason="the package cryptography is not installed: the extra sign brings it")


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A signed bundle, the private key, the public key."""
    path = small_bundle(tmp_path / "bundle").path
    public = new_key(tmp_path / "key.pem")
    sign(path / MANIFEST, tmp_path / "key.pem")
    return path, tmp_path / "key.pem", public


def test_a_signed_bundle_is_read(signed: tuple[Path, Path, Path]) -> None:
    path, key, public = signed
    assert read_bundle(path, public_key=public).manifest.classes.keys() == {"bottle"}
    assert key.stat().st_mode & 0o077 == 0, "others may read the private key"


def test_any_change_is_refused(signed: tuple[Path, Path, Path]) -> None:
    path, key, public = signed
    manifest = path / MANIFEST
    text = manifest.read_text()
    manifest.write_text(text.replace('"threshold": 0.75', '"threshold": 9.75'))
    assert manifest.read_text() != text
    with pytest.raises(BundleError, match="does not fit its manifest"):
        read_bundle(path, public_key=public)
    read_bundle(path)
    sign(manifest, key)
    read_bundle(path, public_key=public)
    model = path / "unet/model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with pytest.raises(BundleError, match=r"unet/model\.onnx was changed"):
        read_bundle(path, verify=False, public_key=public)


def test_another_key_and_no_signature_are_refused(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, key, public = signed
    other = new_key(tmp_path / "other.pem")
    with pytest.raises(BundleError, match="was signed with the key"):
        read_bundle(path, public_key=other)
    (path / "manifest.sig").unlink()
    with pytest.raises(BundleError, match=r"is not signed \(manifest.sig is missing\)"):
        read_bundle(path, public_key=public)
    with pytest.raises(InputError, match="is no public key in PEM"):
        read_bundle(path, public_key=key)
    with pytest.raises(InputError, match="is no unencrypted private key"):
        sign(path / MANIFEST, public)
    with pytest.raises(InputError, match="is not overwritten"):
        new_key(key)
    with pytest.raises(InputError, match=r"absent\.pem cannot be read \(No such file"):
        sign(path / MANIFEST, tmp_path / "absent.pem")


def test_the_verbs(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    path, _, public = signed
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "new.png")
    asked = ("inspect", path, "new.png", "--json", "--require-signature")
    assert '"pred_score"' in sd_edge(*asked, public, cwd=tmp_path).stdout
    done = sd_edge("sign", path, "--key", "mine.pem", "--new-key", cwd=tmp_path)
    assert "mine.pem.pub" in done.stderr
    refused = sd_edge(*asked, public, cwd=tmp_path, check=False)
    assert refused.returncode == 2
    assert "was signed with the key" in refused.stderr
    sd_edge(*asked, "mine.pem.pub", cwd=tmp_path)


def test_a_broken_engine_is_not_signed(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from tests.runtime.test_engine_files import with_engine

    path, _, _ = signed
    with pytest.raises(BundleError, match="is missing or was changed since it was built"):
        check_engines(with_engine(read_bundle(path)))
    shutil.rmtree(path)
