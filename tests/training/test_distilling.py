"""Distillation: the consistency loss by hand, a student that agrees with its teacher, resume, and what it leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.errors import RunError, SettingsError
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.training.data import TrainingData
from anomalysd_edge.training.distilling import DistillSettings, TeachersWay, distill
from anomalysd_edge.training.run import Run
from anomalysd_edge.training.settings import TrainSettings
from anomalysd_edge.training.train import train
from tests.support.tiny_models import SCHEDULER, tiny_base

SPECS = {"felt": ClassSpec("felt", "felt", "texture")}
HOW: dict[str, Any] = {"steps": 4, "lora_rank": 2, "lr": 1e-2, "strength": 0.4, "grid": 8, "ema": 0.5}


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("distill")
    base = tiny_base(folder / "base", prediction_type=request.param)
    photo = folder / "0.png"
    Image.fromarray(np.random.default_rng(0).integers(60, 160, (40, 40, 3)).astype(np.uint8)).save(photo)
    settings = TrainSettings.for_base(
        str(base), shots=1, steps=2, batch=4, lr=1e-3, decoder_steps=0, copies=1, masks_per_copy=2, context_tokens=1,
        start_corruption=0.5, autocast="none", threads=1, lpips_weight=0.0, checkpoint_every=2, prompt_drop=0.0,
    )  # fmt: skip
    return train(settings, {"felt": [photo]}, folder / "run", SPECS)


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return dict(load_file(run.model / "unet" / "diffusion_pytorch_model.safetensors"))


class Stop:
    def __call__(self, phase: str, done: int, total: int, detail: str) -> None:
        if done == 3:
            raise KeyboardInterrupt


def test_the_distilled_run_is_a_run(tmp_path: Path, run: Run) -> None:
    made = distill(run, tmp_path / "made", DistillSettings(**HOW))
    assert made.few_steps == (0.4, 2)
    assert made.record["distilled"]["run_sha256"] == run.sha256
    assert run.few_steps is None
    before, after = weights_of(run), weights_of(made)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(".attn" in name or ".ff." in name or "proj" in name or ".conv" in name for name in changed)
    for part in ("vae", "text_encoder"):
        for file in (run.model / part).iterdir():
            assert (made.model / part / file.name).read_bytes() == file.read_bytes()
    assert all(torch.equal(made.contexts()[name], vectors) for name, vectors in run.contexts().items())
    with pytest.raises(KeyboardInterrupt):
        distill(run, tmp_path / "broken", DistillSettings(**HOW), progress=Stop())
    resumed = weights_of(distill(run, tmp_path / "broken", DistillSettings(**HOW), resume=True))
    assert all(torch.equal(after[name], resumed[name]) for name in after)


def test_the_student_becomes_consistent(tmp_path: Path, run: Run) -> None:
    """On draws that no training step saw: the student's words at a point and at the one before lie nearer together."""
    how = DistillSettings(**{**HOW, "steps": 48, "lr": 2e-3, "batch": 8, "ema": 0.8, "lora_rank": 8})
    made = distill(run, tmp_path / "made", how)
    base = run.load()
    settings = dataclasses.replace(run.settings, batch=64, max_timestep=how.strength)
    data = TrainingData(run.shots, run.specs, base, settings, 1000)
    draw = data.draw(10**6)
    way = TeachersWay(NoiseSchedule.from_config(base.scheduler), how.strength, how.grid, torch.device("cpu"))
    points = draw.timesteps * how.grid // data.last_timestep + 1
    condition = torch.cat([draw.masks, draw.masked], dim=1)
    z = way.noised(draw.start, draw.noise, points)

    def output(unet: Any, z: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        seen = torch.cat([z, condition], dim=1)
        found: torch.Tensor = unet(seen, way.timesteps[points], encoder_hidden_states=draw.states).sample
        return found

    def gap(unet: Any) -> float:
        with torch.no_grad():
            before = way.stepped(z, output(base.unet, z, points), points)
            target = way.clean(before, output(unet, before, points - 1), points - 1)
            target = torch.where((points == 1).view(-1, 1, 1, 1), before, target)
            return float((way.clean(z, output(unet, z, points), points) - target).square().mean())

    assert gap(made.load().unet) < 0.9 * gap(base.unet)


def test_the_way_is_ddim(run: Run) -> None:
    """Walking the grid point by point with one fixed output equals the schedule's own table of steps."""
    schedule = NoiseSchedule.from_config({**SCHEDULER, "prediction_type": run.load().scheduler["prediction_type"]})
    way, table = TeachersWay(schedule, 0.4, 5, torch.device("cpu")), schedule.even_ddim(5, 0.4)
    z = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    output = torch.full_like(z, 0.3)
    mine, theirs = z, z
    for point, (keep, add) in zip(range(5, 0, -1), table.coefficients.tolist(), strict=True):
        at = torch.tensor([point])
        assert int(way.timesteps[at]) == table.timesteps[5 - point]
        mine = way.stepped(mine, output, at)
        theirs = keep * theirs + add * output
    torch.testing.assert_close(mine, theirs)
    # A true output leads to the clean latents in one prediction, from every point.
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    for point in range(1, 6):
        at = torch.tensor([point])
        abar = float(schedule.alphas_cumprod[int(way.timesteps[at])])
        noisy = way.noised(z, noise, at)
        true = noise if schedule.prediction_type == "epsilon" else abar**0.5 * noise - (1 - abar) ** 0.5 * z
        torch.testing.assert_close(way.clean(noisy, true, at), z, atol=1e-5, rtol=1e-5)


def test_bad_input(tmp_path: Path, run: Run) -> None:
    for wrong in ({"passes": 5}, {"strength": 0.0}, {"grid": 1}, {"steps": 0}):
        with pytest.raises(SettingsError):
            DistillSettings(**{**HOW, **wrong})
    empty = Run(run.path, run.settings, run.specs, {"felt": ()}, run.record)
    with pytest.raises(RunError, match="0 shots"):
        distill(empty, tmp_path / "made", DistillSettings(**HOW))
