"""The networks that subcommand large runs: Stable Diffusion 1.5's sizes, random weights, fp16; or small ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from anomalysd_edge.core.types import F32, Array
from anomalysd_edge.method.inpainting.mask_plan import make_plan
from anomalysd_edge.method.inpainting.masks import to_pixels
from anomalysd_edge.method.networks import Networks, NetworkSizes
from anomalysd_edge.method.settings import InspectSettings
from anomalysd_edge.training.models.features import DenseFeatures
from anomalysd_edge.training.models.perceptual import AlexPerceptual
from benchmarks.gpu.claims import Kit
from benchmarks.large import networks as sd15
from benchmarks.large import plans

SIDE, REHEARSAL_SIDE = 512, 64


@dataclass
class Large:
    """The networks, half precision on a GPU, and what is asked of them."""

    device: str
    sizes: NetworkSizes
    unet: Any
    vae: Any
    unet_flops: int
    """Operations of one sample."""

    def feeds(self, batch: int) -> dict[str, Array]:
        """Inputs of the UNet's graph; a larger batch begins with a smaller one's rows."""
        rng = np.random.default_rng(0)
        side = self.sizes.latent_side
        return {
            "sample": rng.standard_normal((16, 9, side, side)).astype(np.float32)[:batch],
            "timestep": np.full(batch, 200, np.int64),
            "encoder_hidden_states": rng.standard_normal((16, 77, sd15.PROMPT_WIDTH)).astype(np.float32)[:batch],
        }

    def unet_call(self, batch: int) -> Callable[[], Any]:
        """One pass of the UNet over `batch` samples that lie on the device."""
        given = {name: torch.from_numpy(value).to(self.device) for name, value in self.feeds(batch).items()}
        given = {name: value if name == "timestep" else value.to(self.unet.dtype) for name, value in given.items()}

        def call() -> Any:
            with torch.no_grad():
                return self.unet(**given).sample

        return call

    def answer(self, batch: int) -> F32:
        """(N,4,h,w): the UNet's output for `feeds`."""
        return np.asarray(self.unet_call(batch)().float().cpu().numpy())

    def networks(self) -> Networks:
        """All five as the algorithm's networks. Their arrays are float32 and are cast where the halves begin."""
        from anomalysd_edge.training.models.torch_networks import TorchNetworks

        torch.manual_seed(0)
        perceptual, features = AlexPerceptual("lpips_alex"), DenseFeatures()
        return TorchNetworks(
            self.unet, self.vae, perceptual, features, size_px=self.sizes.size_px,
            features_px=self.sizes.features_px, device=self.device,
        )  # fmt: skip

    def known(self, opened: Networks) -> Any:
        """A class's constants that fit these networks."""
        side = self.sizes.features_px
        depth = opened.features(np.zeros((1, 3, side, side), np.float32)).shape[1]
        return plans.constants(np.random.default_rng(0), depth)

    def plans(self, edge: InspectSettings, paper: InspectSettings) -> dict[str, InspectSettings]:
        """Both presets; of small networks, with as many masks as their latents have room for."""
        if self.sizes.size_px == SIDE:
            return {"edge": edge, "paper": paper}
        return {"edge": replace(edge, scales=(2, 4)), "paper": replace(paper, scales=(1, 2), grid_steps=10)}

    def naive(self, masks: int, settings: InspectSettings) -> tuple[int, float]:
        """diffusers' pipeline for the first `masks` masks of the plan, then LPIPS of each pair: masks done, seconds."""
        from diffusers import DDIMScheduler, StableDiffusionInpaintPipeline

        pipeline = StableDiffusionInpaintPipeline(
            vae=self.vae, text_encoder=None, tokenizer=None, unet=self.unet,
            scheduler=DDIMScheduler(num_train_timesteps=1000, clip_sample=False, **plans.SCHEDULE),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        perceptual = AlexPerceptual("lpips_alex").to(self.device).eval()
        side, dtype = self.sizes.size_px, self.unet.dtype
        photo = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        original = photo.to(self.device) * 2 - 1
        states = torch.from_numpy(self.feeds(1)["encoder_hidden_states"]).to(self.device, dtype)
        slots = make_plan(settings.plan, self.sizes.latent_side, settings.scales).slots[:masks]

        def one(slot: Any) -> float:
            mask = to_pixels(slot.mask, self.sizes.latent_factor)[None, None].astype(np.float32)
            with torch.no_grad():
                done = pipeline(
                    prompt_embeds=states, image=photo, mask_image=torch.from_numpy(mask), height=side, width=side,
                    strength=settings.strength, num_inference_steps=settings.grid_steps, guidance_scale=1.0,
                    output_type="pt",
                )  # fmt: skip
                first = torch.zeros(1, dtype=torch.int64, device=self.device)
                return float(perceptual(original, done.images.float() * 2 - 1, first).mean())

        one(slots[0])  # warm-up
        began = time.perf_counter()
        for slot in slots:
            one(slot)
        return len(slots), time.perf_counter() - began

    def export_unet(self, file: Path) -> None:
        """Write the UNet's graph in fp16 to `file`, as `sd-edge build` makes it."""
        from anomalysd_export.graphs import graph_specs
        from anomalysd_export.onnx_export import export_graph
        from benchmarks.large.build import convert

        file.parent.mkdir(parents=True, exist_ok=True)
        raw = file.with_name("unet-fp32.onnx")
        fresh = (
            unet(self.sizes.size_px != SIDE).to(torch.float16).float()
        )  # the weights as they were rounded for the GPU
        export_graph(graph_specs(self.sizes, sd15.PROMPT_WIDTH)["unet"], fresh, raw)
        convert(raw, "unet", "fp16", file.with_name("unet.partial.onnx"))
        for part in (raw, raw.with_name(f"{raw.name}.data")):
            part.unlink(missing_ok=True)
        _rename_graph(file.with_name("unet.partial.onnx"), file)

    def free(self) -> None:
        """Let go of the networks."""
        self.unet = self.vae = None


def _rename_graph(source: Path, target: Path) -> None:
    """Write a graph under its last name; its weights' file is named inside it, so that it is written, not moved."""
    import onnx

    from anomalysd_export.engines.precisions import save_graph

    save_graph(onnx.load(str(source)), target)
    for part in (source, source.with_name(f"{source.name}.data")):
        part.unlink(missing_ok=True)


def large(kit: Kit) -> Large:
    """The networks on the kit's device; always the same weights."""
    from torch.utils.flop_counter import FlopCounterMode

    painter, vae = unet(kit.rehearsal), autoencoder(kit.rehearsal)
    side = REHEARSAL_SIDE if kit.rehearsal else SIDE
    sizes = replace(plans.sizes_of(side), features_px=64) if kit.rehearsal else plans.sizes_of(side)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(kit.rehearsal)(
            torch.empty(1, 9, sizes.latent_side, sizes.latent_side), 10,
            encoder_hidden_states=torch.empty(1, 77, sd15.PROMPT_WIDTH),
        )  # fmt: skip
    if not kit.rehearsal:
        for entry in (painter, vae.encoder, vae.post_quant_conv):
            entry.register_forward_pre_hook(_cast, with_kwargs=True)
        painter, vae = painter.half(), vae.half()
    for network in (painter, vae):
        network.to(kit.device).eval().requires_grad_(False)
    return Large(kit.device, sizes, painter, vae, counter.get_total_flops())


def _cast(
    _module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """float32 tensors as float16, wherever a half network is entered."""

    def half(value: Any) -> Any:
        return value.half() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return tuple(map(half, arguments)), {name: half(value) for name, value in named.items()}


def unet(small: bool) -> Any:
    """The UNet in float32 on the CPU, or on the device of the context; always the same weights."""
    torch.manual_seed(0)
    if not small:
        return sd15.unet()
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=9, out_channels=4, cross_attention_dim=sd15.PROMPT_WIDTH, attention_head_dim=2,
        block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), layers_per_block=1,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=8,
    ).eval()  # fmt: skip


def autoencoder(small: bool) -> Any:
    """The autoencoder, likewise."""
    torch.manual_seed(0)
    if not small:
        return sd15.autoencoder()
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 4, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=4, sample_size=64,
    ).eval()  # fmt: skip
