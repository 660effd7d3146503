"""diffusers' own inpainting pipeline as the oracle of our loop: same photo, mask, prompt and starting noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline

from anomalysd_edge.core.types import F32
from anomalysd_edge.errors import NumericError, ShapeError
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.networks import InpaintJob, Networks
from anomalysd_edge.training.models.base import Base, load_base, prompt_states
from anomalysd_edge.training.models.hub import quiet
from anomalysd_edge.training.models.perceptual import AlexPerceptual
from anomalysd_edge.training.models.torch_networks import TorchNetworks
from tests.support.tiny_models import TINY_PX, tiny_base

PROMPTS = ["A perfect bottle.", "A bottle with intact neck, body and rim."]
STEPS, STRENGTH = 20, 0.4


def networks_of(base: Base, max_batch: int = 16) -> TorchNetworks:
    return TorchNetworks(base.unet, base.vae, AlexPerceptual("lpips_alex"), None, max_batch=max_batch)


def job_for(base: Base, photo: F32, masks: F32, noise: F32, guidance: float) -> InpaintJob:
    """Slot n repaints masks[n] (N,1,8,8) of one photo (1,3,32,32), with PROMPTS taken in turn."""
    networks = networks_of(base)
    table = NoiseSchedule.from_config(base.scheduler).truncated_ddim(STEPS, STRENGTH)
    z = networks.encode(photo)
    start = np.sqrt(table.start_abar) * z + np.sqrt(1 - table.start_abar) * noise
    pixels = masks.repeat(4, axis=2).repeat(4, axis=3)
    return InpaintJob(
        start_latents=start.astype(np.float32),
        masks=masks,
        masked_latents=networks.encode(photo * (1 - pixels)),
        prompt_states=prompt_states(base, PROMPTS).numpy(),
        prompt_of=np.arange(len(masks), dtype=np.int64) % 2,
        timesteps=table.timesteps,
        coefficients=table.coefficients,
        guidance_scale=guidance,
        negative_states=prompt_states(base, [""])[0].numpy(),
    )


def scene(count: int) -> tuple[F32, F32, F32]:
    rng = np.random.default_rng(0)
    photo = rng.uniform(-1, 1, (1, 3, TINY_PX, TINY_PX)).astype(np.float32)
    masks = np.zeros((count, 1, 8, 8), np.float32)
    for i in range(count):
        masks[i, 0, i : i + 3, 2 : 4 + i] = 1
    return photo, masks, rng.standard_normal((count, 4, 8, 8)).astype(np.float32)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_repaint_equals_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prediction_type: Any, guidance: float
) -> None:
    folder = tiny_base(tmp_path / "base", prediction_type=prediction_type)
    base = load_base(folder)
    photo, masks, noise = scene(2)
    ours = networks_of(base).inpaint(job_for(base, photo, masks, noise, guidance))

    with quiet():
        pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint.randn_tensor"
    for i in range(2):
        mine = torch.from_numpy(noise[i : i + 1])
        monkeypatch.setattr(module, lambda *args, mine=mine, **kwargs: mine)
        theirs = pipeline(
            prompt=PROMPTS[i],
            image=torch.from_numpy((photo + 1) / 2),  # the pipeline takes [0,1] and makes it [-1,1]
            mask_image=torch.from_numpy(masks[i : i + 1].repeat(4, axis=2).repeat(4, axis=3)),
            height=TINY_PX,
            width=TINY_PX,
            strength=STRENGTH,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            output_type="latent",
        ).images
        assert np.abs(ours[i] - theirs[0].numpy()).max() <= 1e-3
        assert np.abs(ours[i] - noise[i]).max() > 0.1, "the loop did move the latents"


def test_batch_equals_single_runs(tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "base"))
    photo, masks, noise = scene(5)
    for guidance in (1.0, 7.5):
        job = job_for(base, photo, masks, noise, guidance)
        together, in_twos = networks_of(base).inpaint(job), networks_of(base, max_batch=2).inpaint(job)
        for i in range(5):
            one = InpaintJob(
                start_latents=job.start_latents[i : i + 1],
                masks=job.masks[i : i + 1],
                masked_latents=job.masked_latents[i : i + 1],
                prompt_states=job.prompt_states,
                prompt_of=job.prompt_of[i : i + 1],
                timesteps=job.timesteps,
                coefficients=job.coefficients,
                guidance_scale=guidance,
                negative_states=job.negative_states,
            )
            single = networks_of(base).inpaint(one)[0]
            assert np.abs(together[i] - single).max() <= 1e-5
            assert np.abs(in_twos[i] - single).max() <= 1e-5


@pytest.mark.parametrize("vae", ["tiny", "kl"])
def test_encode_and_decode_are_the_scaled_vae(tmp_path: Path, vae: Any) -> None:
    folder = tiny_base(tmp_path / "base", vae=vae)
    base = load_base(folder)
    networks: Networks = networks_of(base)
    assert (networks.sizes.latent_factor, networks.sizes.size_px, networks.sizes.latent_side) == (4, TINY_PX, 8)
    photo = scene(1)[0]
    with torch.no_grad():
        code = base.vae.encode(torch.from_numpy(photo))
        raw = code.latents if vae == "tiny" else code.latent_dist.mode()
        image = base.vae.decode(raw).sample.clamp(-1, 1)
    latents = networks.encode(photo)
    np.testing.assert_allclose(latents, raw.numpy() * base.vae.config.scaling_factor, atol=1e-6)
    np.testing.assert_allclose(networks.decode(latents), image.numpy(), atol=1e-5)


def test_prompt_states_are_the_pipelines(tmp_path: Path) -> None:
    folder = tiny_base(tmp_path / "base")
    base = load_base(folder)
    with quiet():
        pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder)
    theirs, negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    torch.testing.assert_close(prompt_states(base, PROMPTS), theirs)
    torch.testing.assert_close(prompt_states(base, [""])[0], negative[0])


def test_distance_uses_each_reference(tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "base"))
    rng = np.random.default_rng(1)
    photos = rng.uniform(-1, 1, (3, 3, TINY_PX, TINY_PX)).astype(np.float32)
    networks = networks_of(base, max_batch=2)
    found = networks.distance(photos, photos[[2, 0, 1, 1]], np.array([2, 0, 1, 0], np.int64))
    assert found.shape == (4, TINY_PX, TINY_PX)
    assert found[:3].max() < 1e-9
    assert found[3].min() > 1e-6


def test_wrong_shapes_and_nan_are_refused(tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "base"))
    networks = networks_of(base)
    photo = scene(1)[0]
    with pytest.raises(ShapeError, match="expected float32"):
        networks.encode(photo.astype(np.float64))
    with pytest.raises(ShapeError, match="expected float32"):
        networks.encode(photo[:, :, :16])
    with pytest.raises(ShapeError, match="numbers below 1"):
        networks.distance(photo, photo, np.array([1], np.int64))
    with pytest.raises(NumericError, match="VAE decoder"):
        networks.decode(np.full((1, 4, 8, 8), np.nan, np.float32))
