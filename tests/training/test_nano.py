"""The embedded base: diffusers loads it, it is small, it repaints, and its recipe is seeded."""

from __future__ import annotations

import numpy as np
import pytest

from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.method.networks import InpaintJob
from anomalysd_edge.vision.images import to_array

torch = pytest.importorskip("torch")

from anomalysd_edge.training.models.base import NANO_FOLDER as NANO  # noqa: E402
from anomalysd_edge.training.models.base import load_base, prompt_states  # noqa: E402
from anomalysd_edge.training.models.perceptual import load_perceptual  # noqa: E402
from anomalysd_edge.training.models.torch_networks import TorchNetworks  # noqa: E402
from anomalysd_edge.training.nano import images  # noqa: E402


def test_it_is_small_and_in_diffusers_layout() -> None:
    assert sum(f.stat().st_size for f in NANO.rglob("*.safetensors")) <= 25e6
    assert not list(NANO.rglob("*.bin"))
    assert not list(NANO.rglob("*.pt"))
    for part in ("model_index.json", "unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert (NANO / part).exists()
    for config in NANO.rglob("*.json"):
        assert "_name_or_path" not in config.read_text(encoding="utf-8"), "no place of the machine that made it"


@pytest.mark.slow
def test_diffusers_own_pipeline_loads_and_runs_it() -> None:
    from diffusers import StableDiffusionInpaintPipeline
    from diffusers.utils import logging
    from PIL import Image

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(NANO)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.config.in_channels == 9
    photo = Image.fromarray(images.render(1, 0, 128)[1])
    mask = Image.fromarray(np.pad(np.full((64, 64), 255, np.uint8), 32))
    painted = pipeline(
        "A perfect gear.", image=photo, mask_image=mask, height=128, width=128, strength=0.4, num_inference_steps=5,
        guidance_scale=1.0, generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    assert painted.size == (128, 128)


@pytest.mark.slow
def test_it_repaints_a_stain_away() -> None:
    """A dark square on a drawn leather: the repaint must come nearer to the clean image than the stained one is."""
    clean = images.FAMILIES["leather"](np.random.default_rng(5), 128)
    x = to_array((np.clip(clean, 0, 1) * 255).astype(np.uint8))
    stained = x.copy()
    stained[..., 56:72, 56:72] = -0.9
    base = load_base("nano")
    networks = TorchNetworks(base.unet, base.vae, load_perceptual("auto")[0], None)
    mask = np.zeros((1, 1, 32, 32), np.float32)
    mask[..., 12:20, 12:20] = 1
    hidden = mask.repeat(4, axis=2).repeat(4, axis=3) > 0
    table = NoiseSchedule.from_config(base.scheduler).even_ddim(5, 0.5)
    z = networks.encode(stained)
    noise = np.random.default_rng(0).standard_normal(z.shape).astype(np.float32)
    painted = networks.decode(
        networks.inpaint(
            InpaintJob(
                start_latents=table.noised(z, noise),
                masks=mask,
                masked_latents=networks.encode(np.where(hidden, np.float32(0), stained)),
                prompt_states=prompt_states(base, ["A perfect leather."]).numpy(),
                prompt_of=np.zeros(1, np.int64),
                timesteps=table.timesteps,
                coefficients=table.coefficients,
            )
        )
    )
    inside = (slice(None), slice(None), slice(56, 72), slice(56, 72))
    before = float(np.abs(stained[inside] - x[inside]).mean())
    after = float(np.abs(painted[inside] - x[inside]).mean())
    assert after < 0.6 * before
