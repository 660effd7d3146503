"""One checkpoint file as a base: every weight at its place, 1.x and 2.x, and clear words for what cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from anomalysd_edge.errors import InputError
from anomalysd_edge.training.models.base import load_base, prompt_states
from anomalysd_edge.training.models.single_file import prediction_type
from tests.support.ldm_names import clip_names, open_clip_names, save_checkpoint, unet_names, vae_names
from tests.support.tiny_models import tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def networks(second: bool) -> tuple[Any, Any, Any]:
    """Stable Diffusion's shape, thin: four levels of two blocks, an eightfold VAE, a CLIP text encoder."""
    torch.manual_seed(0)
    # 2.x: heads of 64 channels and linear projections; 1.x: eight heads and convolutions.
    widths = (64, 128, 128, 128) if second else (32, 64, 64, 64)
    words = tiny_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=9,
        out_channels=4,
        block_out_channels=widths,
        cross_attention_dim=64,
        attention_head_dim=tuple(width // 64 for width in widths) if second else 8,
        use_linear_projection=second,
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=1,
            hidden_act="gelu" if second else "quick_gelu",
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    return unet.eval(), vae.eval(), text.eval()


def write(folder: Path, second: bool, **changes: Any) -> tuple[Path, tuple[Any, Any, Any]]:
    folder.mkdir(exist_ok=True)
    made = unet, vae, text = networks(second)
    parts = [unet_names(unet), vae_names(vae), (open_clip_names if second else clip_names)(text)]
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    return save_checkpoint(folder / "base.safetensors", *parts, **changes), made


@pytest.mark.parametrize("second", [False, True], ids=["1.x", "2.x"])
def test_every_weight_comes_to_its_place(tmp_path: Path, cache: Path, second: bool) -> None:
    file, (unet, vae, text) = write(tmp_path / "made", second)
    base = load_base(str(file))
    for mine, theirs in ((base.unet, unet), (base.vae, vae), (base.text_encoder, text)):
        state, wanted = mine.state_dict(), theirs.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    with torch.no_grad():
        sample, states = torch.randn(1, 9, 16, 16), torch.randn(1, 77, 64)
        torch.testing.assert_close(base.unet(sample, 7, states).sample, unet(sample, 7, states).sample)
        ids = base.tokenizer("a nut", padding="max_length", max_length=77, return_tensors="pt").input_ids
        torch.testing.assert_close(prompt_states(base, ["a nut"])[0], text(ids)[0][0])
    assert base.scheduler["prediction_type"] == "epsilon"
    assert (base.name, base.latent_factor, base.size_px) == ("base.safetensors", 8, 512)
    assert base.folder.is_relative_to(cache)
    before = {path: path.stat().st_mtime_ns for path in base.folder.rglob("*")}
    assert load_base(str(file)).sha256 == base.sha256
    assert before == {path: path.stat().st_mtime_ns for path in base.folder.rglob("*")}, "converted once"


def test_v_prediction_is_what_the_file_says(tmp_path: Path) -> None:
    file, _ = write(tmp_path / "v", True, metadata={"modelspec.prediction_type": "v"})
    assert load_base(str(file)).scheduler["prediction_type"] == "v_prediction"
    assert prediction_type({"v_pred": torch.zeros(0)}, {}) == "v_prediction"
    assert prediction_type({}, {"modelspec.prediction_type": "epsilon"}) == "epsilon"


def test_files_that_cannot_be_a_base(tmp_path: Path, cache: Path) -> None:
    file, _ = write(tmp_path / "made", False)
    weights = load_file(file)

    def refused(words: str, weights: dict[str, torch.Tensor], name: str = "made/other.safetensors") -> None:
        save_file(weights, tmp_path / name)
        with pytest.raises(InputError, match=words):
            load_base(str(tmp_path / name))

    first = "model.diffusion_model.input_blocks.0.0.weight"
    four = {**weights, first: weights[first][:, :4].contiguous()}
    refused("4 input channels, expected 9.*only an inpainting model", four)
    refused("has no VAE", {k: v for k, v in weights.items() if not k.startswith("first_stage")})
    refused("has no text encoder", {k: v for k, v in weights.items() if not k.startswith("cond_stage")})
    refused("expected Stable Diffusion's own names", {"lora.up": torch.zeros(1)})
    refused("lacks .* of the UNet", {k: v for k, v in weights.items() if ".output_blocks.3.1." not in k})
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"is no \.safetensors file"):
        load_base(str(tmp_path / "broken.safetensors"))
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"expected \.safetensors: others may run code"):
        load_base(str(tmp_path / "model.ckpt"))
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "base.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"hf download openai/clip-vit-large-patch14 vocab\.json merges\.txt"):
        load_base(str(alone / "base.safetensors"))
    assert not list(cache.rglob("model_index.json")), "nothing half-made stays in the cache"
