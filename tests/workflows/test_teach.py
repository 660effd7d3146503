"""A class taught to a finished bundle: its prompts by the right text encoder, the other classes untouched."""

from __future__ import annotations

import builtins
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anomalysd_edge.bundle.manifest import PromptPair
from anomalysd_edge.bundle.reader import NEGATIVE_PROMPT, prompt_key, read_bundle
from anomalysd_edge.calibration.settings import CalibrationSettings
from anomalysd_edge.demo.dataset import render_part
from anomalysd_edge.errors import DatasetError, InputError
from anomalysd_edge.training.models.base import load_base, prompt_states
from anomalysd_edge.vision import images
from anomalysd_edge.workflows.teach import TeachRequest, teach_class
from anomalysd_runtime.loading import open_detector
from tests.support.command import Chain, sd_edge
from tests.support.progress import quiet
from tests.support.tiny_models import tiny_base

pytestmark = pytest.mark.slow

QUICK = CalibrationSettings(bank_size=64, negatives=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    for number in range(2):
        images.save_png(folder / f"{number}.png", render_part("demo_capsule", (5, number), 96).photo())
    return folder


def test_a_class_is_added_and_judged(tmp_path: Path, chain: Chain, photos: Path) -> None:
    before = read_bundle(chain.bundle)
    asked = TeachRequest(
        bundle=chain.bundle, name="capsule", photos=photos, out=tmp_path / "more", settings=QUICK, threads=1
    )
    added = teach_class(asked, quiet)
    after = read_bundle(tmp_path / "more")
    assert len(added.photos) == 2
    assert sorted(after.manifest.classes) == ["bracket", "capsule"]
    assert after.manifest.classes["bracket"] == before.manifest.classes["bracket"]
    assert all(np.array_equal(after.constants[name], value) for name, value in before.constants.items())
    spec = after.manifest.classes["capsule"]
    words = prompt_states(load_base("nano"), [spec.prompts.whole])[0].numpy()
    np.testing.assert_allclose(after.constants[prompt_key("capsule", "whole")], words, atol=1e-5)
    limits = spec.calibration["edge"].decision
    assert added.thresholds["edge"] == spec.calibration["edge"].threshold
    assert added.to_json()["limits"] == {"edge": limits and {"good": limits.good, "anomalous": limits.anomalous}}
    assert not list((tmp_path / "more").rglob("*text*")), "the text encoder does not travel"
    with open_detector(tmp_path / "more", threads=1) as detector:
        answer = detector.inspect([images.load_rgb(photos / "0.png")], "capsule")[0]
    assert answer.threshold == added.thresholds["edge"]
    anew = teach_class(TeachRequest(bundle=tmp_path / "more", name="capsule", photos=photos, settings=QUICK), quiet)
    assert anew.anew
    assert anew.before_id == added.after_id
    assert anew.thresholds == added.thresholds, "the same photos teach the same"


def test_the_command_adds_in_place_from_a_run(tmp_path: Path, chain: Chain, photos: Path) -> None:
    bundle = shutil.copytree(chain.bundle, tmp_path / "bundle")
    more = (
        "--name",
        "capsule",
        "--photos",
        photos,
        "--text-encoder",
        chain.folder / "RUN",
        "--shots",
        "1",
        "--threads",
        "1",
    )
    done = sd_edge("add-class", bundle, *more, cwd=tmp_path)
    assert "class 'capsule' added from 1 photo in" in done.stderr
    assert read_bundle(bundle).manifest.classes["capsule"].shots == 1


def test_where_there_is_no_text_encoder(
    tmp_path: Path, chain: Chain, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny_base(tmp_path / "other")
    with pytest.raises(InputError, match=r"is not the one that .* was made with"):
        teach_class(
            TeachRequest(bundle=chain.bundle, name="capsule", photos=photos, text_encoder=other, settings=QUICK),
            quiet,
        )
    with pytest.raises(InputError, match="holds no text_encoder and tokenizer"):
        teach_class(
            TeachRequest(bundle=chain.bundle, name="capsule", photos=photos, text_encoder=photos, settings=QUICK),
            quiet,
        )
    with pytest.raises(DatasetError, match="holds no photos"):
        teach_class(
            TeachRequest(bundle=chain.bundle, name="capsule", photos=tmp_path / "nothing", settings=QUICK), quiet
        )
    real = builtins.__import__

    def without_torch(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("anomalysd_edge.training"):
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    asked = TeachRequest(bundle=chain.bundle, name="capsule", photos=photos, out=tmp_path / "box", settings=QUICK)
    with pytest.raises(InputError, match=r"--text-encoder needs torch: pip install"):
        teach_class(replace(asked, text_encoder=other), quiet)
    taught = teach_class(asked, quiet)
    assert any("repainted by the empty prompt" in note for note in taught.notes)
    made = read_bundle(tmp_path / "box")
    assert made.manifest.classes["capsule"].prompts == PromptPair("", None), "no text is claimed that was not encoded"
    np.testing.assert_array_equal(made.prompts("capsule")["whole"], made.constants[NEGATIVE_PROMPT])
    assert sorted(read_bundle(chain.bundle).manifest.classes) == ["bracket"]
