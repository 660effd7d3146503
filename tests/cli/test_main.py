"""The command as a user meets it: results, exit codes, one sentence for bad input, nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomalysd_edge.vision import images
from tests.support.command import Chain, sd_edge, verbs

pytestmark = pytest.mark.slow


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one sentence that holds `words`, without a traceback."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("sd-edge: ")]
    assert len(said) == 1, done.stderr
    for word in words:
        assert word in said[0], said[0]


def test_inspect_prints_json_and_twice_the_same_score(chain: Chain) -> None:
    first, second = (
        json.loads(sd_edge("inspect", chain.bundle, "new.png", "--json", cwd=chain.folder).stdout)[0] for _ in range(2)
    )
    assert first["pred_score"] == second["pred_score"]
    assert 0 <= first["pred_probability"] <= 1
    low, high = first["limits"]["good"], first["limits"]["anomalous"]
    assert low <= first["threshold"] <= high
    assert first["verdict"] == (
        "good" if first["pred_score"] < low else "uncertain" if first["pred_score"] < high else "anomalous"
    )
    assert first["pred_label"] == int(first["pred_score"] >= first["threshold"])
    single = json.loads(
        sd_edge("inspect", chain.bundle, "new.png", "--json", "--max-batch", "1", cwd=chain.folder).stdout
    )
    assert single[0]["pred_label"] == first["pred_label"]
    assert single[0]["pred_score"] == pytest.approx(first["pred_score"], abs=1e-4)


def test_eval_writes_a_table_and_a_report(chain: Chain, tmp_path: Path) -> None:
    done = sd_edge("eval", chain.bundle, "--data", chain.photos, "--out", tmp_path / "report", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["classes"]["bracket"]["good"] == 3
    assert set(found["mean"]) == {"prototypes", "multiscale", "guided", "fused", "verdicts"}
    assert found["mean"]["verdicts"]["balanced_error"] is not None
    page = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert "bracket/colour/0.png" in page


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_photos_of_every_common_kind_are_inspected(chain: Chain, tmp_path: Path, mode: str) -> None:
    source = Image.open(chain.folder / "new.png")
    name = "photo.tif" if mode == "CMYK" else "photo.png"
    if mode == "I;16":
        Image.fromarray(np.asarray(source.convert("L"), np.uint16) * 257).save(tmp_path / name)
    else:
        source.convert(mode).save(tmp_path / name)
    done = sd_edge("inspect", chain.bundle, name, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)[0]["pred_score"] > 0


def test_bad_photos_cost_nothing_that_was_there(chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    data = (chain.folder / "new.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    shutil.copy(chain.folder / "new.png", tmp_path / "fine.png")
    for bad in ("empty.png", "cut.png", "absent.png"):
        refused(sd_edge("inspect", chain.bundle, "fine.png", bad, "--out", "results", cwd=tmp_path, check=False), bad)
        assert not (tmp_path / "results").exists()
    (tmp_path / "nothing").mkdir()
    refused(sd_edge("inspect", chain.bundle, "nothing", cwd=tmp_path, check=False), "nothing")


def test_a_photo_of_fifty_megapixels_works_and_showing_nothing_is_no_good_part(chain: Chain, tmp_path: Path) -> None:
    Image.new("RGB", (8000, 6250), (120, 120, 120)).save(tmp_path / "large.jpg", quality=50)
    found = json.loads(sd_edge("inspect", chain.bundle, "large.jpg", "--json", cwd=tmp_path).stdout)
    assert found[0]["pred_label"] == 1
    assert found[0]["evidence"]["kind"] == "photo"


def test_an_exif_turned_photo_is_judged_as_a_person_sees_it(chain: Chain, tmp_path: Path) -> None:
    upright = Image.open(chain.folder / "new.png")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    found = json.loads(sd_edge("inspect", chain.bundle, "upright.png", "turned.png", "--json", cwd=tmp_path).stdout)
    assert found[0]["pred_score"] == pytest.approx(found[1]["pred_score"], abs=1e-5)


def test_unknown_names_are_refused_with_those_there_are(chain: Chain) -> None:
    here = chain.folder
    refused(sd_edge("inspect", chain.bundle, "new.png", "--class", "screw", cwd=here, check=False), "screw", "bracket")
    refused(
        sd_edge("inspect", chain.bundle, "new.png", "--preset", "fast", cwd=here, check=False), "fast", "edge", "paper"
    )
    refused(sd_edge("inspect", chain.bundle, "new.png", "--backend", "cuda", cwd=here, check=False), "CUDA")


def test_a_damaged_bundle_is_refused_by_the_name_of_the_file(chain: Chain, tmp_path: Path) -> None:
    copy = tmp_path / "BUNDLE"
    shutil.copytree(chain.bundle, copy)
    model = copy / "vae_decoder/model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    refused(sd_edge("inspect", copy, chain.folder / "new.png", cwd=tmp_path, check=False), "vae_decoder/model.onnx")
    model.unlink()
    refused(sd_edge("inspect", copy, chain.folder / "new.png", cwd=tmp_path, check=False), "vae_decoder/model.onnx")
    shutil.rmtree(copy)
    shutil.copytree(chain.bundle, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["schema_version"] = 99
    (copy / "manifest.json").write_text(json.dumps(manifest))
    refused(sd_edge("inspect", copy, chain.folder / "new.png", cwd=tmp_path, check=False), "99")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: None, ["photos"]),
        (lambda p: (p / "photos").mkdir(), ["photos"]),
        (lambda p: (p / "photos/part/train/good").mkdir(parents=True), ["photos"]),
        (
            lambda p: images.save_png(p / "photos/part/train/good/0.png", np.zeros((64, 64, 3), np.uint8)),
            ["part", "1", "4"],
        ),
    ],
    ids=["missing", "empty", "no good photos", "fewer than K"],
)
def test_training_data_that_will_not_do_is_refused(tmp_path: Path, make: object, words: list[str]) -> None:
    assert callable(make)
    make(tmp_path)
    done = sd_edge("train", "--data", "photos", "--out", "run", "--shots", "4", cwd=tmp_path, check=False)
    refused(done, *words)
    assert not list(tmp_path.glob("run*"))


def test_ctrl_c_leaves_nothing_half_written(chain: Chain, tmp_path: Path) -> None:
    shutil.copytree(chain.photos, tmp_path / "photos")
    good = tmp_path / "photos/bracket/test/good"
    for number in range(400):  # minutes of work: the command cannot have ended by itself
        shutil.copy(good / "0.png", good / f"copy{number}.png")
    command = [sys.executable, "-m", "anomalysd_edge.cli", "eval", str(chain.bundle), "--data", "photos"]
    # A program started in the background inherits that SIGINT is ignored, and hands it on to what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen([*command, "--out", "report"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        said = ""
        for line in running.stderr:  # progress: the photos are being inspected
            said += line
            if re.search(r"\d/406 after", line):
                running.send_signal(signal.SIGINT)
                break
        said += running.communicate(timeout=120)[1]
    assert running.returncode == 130, said
    assert "Traceback" not in said
    assert not (tmp_path / "report/report.html").exists()
    assert not [p for p in tmp_path.rglob("*") if ".aside" in p.name or p.name.endswith(".tmp")]


def test_help_names_every_verb_and_the_exit_codes(tmp_path: Path) -> None:
    text = sd_edge("--help", cwd=tmp_path).stdout
    for word in (*verbs(), "Exit codes"):
        assert word in text
