"""The base model: UNet, VAE, text encoder, tokenizer and scheduler of a diffusers folder, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from anomalysd_edge.core.files import read_json, sha256_bytes, sha256_file, write_json
from anomalysd_edge.errors import InputError, SettingsError
from anomalysd_edge.training.models.hub import from_hub, loading, quiet
from anomalysd_edge.training.settings import NANO

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
"""The folders of diffusers' layout that an inpainting model needs."""
NANO_FOLDER = Path(__file__).parents[2] / "assets/nano"
"""Folder of the embedded base, in diffusers' layout."""
_HUB_FILES = ["model_index.json", *(f"{part}/*{end}" for part in PARTS for end in (".json", ".txt", ".safetensors"))]


@dataclass
class Base:
    """A loaded model. Networks are in eval mode and float32; `folder` is where it came from."""

    unet: Any
    """UNet2DConditionModel with 9 input channels: z_t (4), mask (1), z_o (4)."""
    vae: Any
    """AutoencoderKL or AutoencoderTiny."""
    text_encoder: Any
    """CLIPTextModel."""
    tokenizer: Any
    """CLIPTokenizer."""
    scheduler: dict[str, Any]
    """The diffusers scheduler's config, as NoiseSchedule.from_config reads it."""
    name: str
    """"nano", the name of a folder, or a hub id."""
    sha256: str
    """Digest over every file of the model: equal digests, equal weights."""
    folder: Path
    vae_swap: dict[str, str] | None = None
    """Name and SHA-256 of the AutoencoderTiny that replaces the model's own VAE (tiny_vae.py); None = its own VAE."""

    @property
    def latent_factor(self) -> int:
        """Pixels per latent cell along one side."""
        return latent_factor(self.vae)

    @property
    def size_px(self) -> int:
        """Side of the square photo that the UNet was trained at, in px."""
        return int(self.unet.config.sample_size) * self.latent_factor


def load_base(name_or_path: str | Path) -> Base:
    """Load "nano", a local folder in diffusers' layout, one .safetensors checkpoint, or a hub id.

    Raises InputError if it is not there, incomplete, no inpainting model, or of a kind that is not supported.
    """
    folder = find_base(str(name_or_path))
    _check_layout(folder)
    channels = read_json(folder / "unet" / "config.json").get("in_channels")
    if channels != 9:  # before gigabytes of weights are read
        raise InputError(
            f"the base {name_or_path} has a UNet of {channels} input channels, expected 9 (z_t, mask, masked photo): "
            "only an inpainting model can be told what to keep; use for instance "
            "stable-diffusion-v1-5/stable-diffusion-inpainting"
        )
    with loading("base", folder):
        unet, vae = load_unet(folder), load_vae(folder)
        text_encoder, tokenizer = load_text_encoder(folder)
    if getattr(vae.config, "shift_factor", None):
        raise InputError(
            f"the VAE of {name_or_path} has a shift_factor, expected none; use a Stable Diffusion 1.x or 2.x VAE"
        )
    name = str(name_or_path)
    return Base(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=dict(read_json(folder / "scheduler" / "scheduler_config.json")),
        name=Path(name).name if Path(name).exists() and name != NANO else name,
        sha256=folder_sha256(folder),
        folder=folder,
    )


def load_unet(folder: Path) -> Any:
    """The UNet of a folder in diffusers' layout, float32, frozen, in eval mode."""
    with quiet():
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **_options(folder / "unet"))
    return unet.requires_grad_(False).eval()


def load_vae(folder: Path) -> Any:
    """The VAE of a folder in diffusers' layout, float32, frozen, in eval mode."""
    with quiet():
        vae = _autoencoder_class(folder).from_pretrained(folder, subfolder="vae", **_options(folder / "vae"))
    return vae.requires_grad_(False).eval()


def load_text_encoder(folder: Path) -> tuple[Any, Any]:
    """(CLIPTextModel, CLIPTokenizer) of a folder in diffusers' layout, the encoder float32, frozen, in eval mode."""
    encoder = folder / "text_encoder"
    text: Any = CLIPTextModel.from_pretrained(encoder, dtype=torch.float32, **_variant(encoder))
    return text.requires_grad_(False).eval(), CLIPTokenizer.from_pretrained(folder / "tokenizer")


def check_size(base: Base, size_px: int) -> None:
    """Raise SettingsError unless the networks accept square photos of `size_px`.

    Stable Diffusion: 256 to 768 px in steps of 64. Other bases: multiples of the UNet's total downsampling factor.
    """
    cell = base.latent_factor * 2 ** (len(base.unet.config.block_out_channels) - 1)
    large = base.latent_factor == 8
    if size_px % cell or (large and not 256 <= size_px <= 768) or size_px < cell:
        wanted = f"256 to 768 in steps of {cell}" if large else f"a multiple of {cell}"
        raise SettingsError(f"the size is {size_px} px, expected {wanted}: the base's networks halve it that often")


def latent_factor(vae: Any) -> int:
    """Downsampling factor of the VAE, in px per latent cell: each block but one halves the side."""
    blocks = getattr(vae.config, "block_out_channels", None) or vae.config.decoder_block_out_channels
    return int(2 ** (len(blocks) - 1))


def encode_mode(vae: Any, images: Tensor) -> Tensor:
    """(N,3,H,W) in [-1,1] -> (N,C,h,w) scaled latents: the posterior's mode (AutoencoderKL), or the code (Tiny)."""
    encoded = vae.encode(images)
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    return cast(Tensor, latents * vae.config.scaling_factor)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """(N,C,h,w) scaled latents -> (N,3,H,W), not clipped."""
    return cast(Tensor, vae.decode(latents / vae.config.scaling_factor).sample)


def tokenize(base: Base, prompts: Sequence[str]) -> Any:
    """Prompts -> `input_ids` and `attention_mask`, (P,77) int64 each, padded and truncated as diffusers does."""
    length = base.tokenizer.model_max_length
    return base.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def prompt_states(base: Base, prompts: Sequence[str]) -> Tensor:
    """Prompts -> (P,77,D) float32 text encoder states, padded and truncated as diffusers does."""
    tokens = tokenize(base, prompts)
    wants_mask = getattr(base.text_encoder.config, "use_attention_mask", False)
    device = next(base.text_encoder.parameters()).device
    with torch.no_grad():
        states = base.text_encoder(
            tokens.input_ids.to(device), attention_mask=tokens.attention_mask.to(device) if wants_mask else None
        )[0]
    return cast(Tensor, states.float())


def decoder_parameters(vae: Any) -> dict[str, torch.nn.Parameter]:
    """Parameters trained by L_D, by name: the decoder's, and post_quant_conv's in an AutoencoderKL."""
    return {
        name: parameter
        for name, parameter in vae.named_parameters()
        if name.startswith(("decoder.", "post_quant_conv."))
    }


def folder_sha256(folder: Path) -> str:
    """SHA-256 over paths and contents of the files in the model's folders and of model_index.json."""
    files = [folder / "model_index.json", *(file for part in PARTS for file in (folder / part).rglob("*"))]
    lines = [
        f"{sha256_file(file)}  {file.relative_to(folder).as_posix()}"
        for file in sorted(files)
        if file.is_file() and not file.name.startswith(".")
    ]
    return sha256_bytes("\n".join(lines).encode())


def forget_origin(part: Path) -> None:
    """Take the place that weights were loaded from, a path of this machine, out of a part's configuration.

    diffusers and transformers write it wherever they save.
    """
    config = read_json(part / "config.json")
    if config.pop("_name_or_path", None) is not None:
        write_json(part / "config.json", config)


def find_base(name: str) -> Path:
    """The diffusers folder of a base's name, downloaded or converted if necessary. Raises InputError."""
    if name == NANO:
        if not (NANO_FOLDER / "model_index.json").is_file():
            raise InputError(f"the embedded base nano is missing from {NANO_FOLDER}; install anomalysd-edge again")
        return NANO_FOLDER
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        if Path(name).suffix != ".safetensors":
            raise InputError(
                f"the base {name} is a {Path(name).suffix or 'nameless'} file, expected .safetensors: others may run "
                "code when they are opened; convert it elsewhere, or use a folder in diffusers' layout"
            )
        from anomalysd_edge.training.models.single_file import converted

        with quiet():
            return converted(Path(name))
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or name.startswith((".", "~")) or name.endswith(".safetensors"):
        raise InputError(
            f"the base {name!r} is neither nano nor a folder nor a .safetensors file nor a hub id (OWNER/NAME); check "
            "the name"
        )
    return from_hub(name, _HUB_FILES, [f"{part}/*" for part in PARTS], "base")


def _check_layout(folder: Path) -> None:
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing or not (folder / "model_index.json").is_file():
        what = ", ".join(missing) if missing else "model_index.json"
        raise InputError(f"the base folder {folder} has no {what}; expected diffusers' layout ({', '.join(PARTS)})")


def _autoencoder_class(folder: Path) -> Any:
    name = read_json(folder / "vae" / "config.json").get("_class_name")
    classes = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    if name not in classes:
        raise InputError(f"the VAE of {folder} is {name!r}; expected one of {', '.join(classes)}")
    return classes[name]


def _options(folder: Path) -> dict[str, Any]:
    return {"torch_dtype": torch.float32, "use_safetensors": True, **_variant(folder)}


def _variant(folder: Path) -> dict[str, str]:
    """Models published in float16 alone carry it in their file names."""
    plain = [file for file in folder.glob("*.safetensors") if ".fp16." not in file.name]
    return {} if plain or not list(folder.glob("*.fp16.safetensors")) else {"variant": "fp16"}
