"""Fine-tuning on a tiny base: what is learned, resume to the bit, LoRA, zero shots, interrupts and bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from anomalysd_edge.data.classes import ClassSpec
from anomalysd_edge.errors import DatasetError, ImageError, InputError, NumericError, RunError, SettingsError
from anomalysd_edge.method.inpainting.masks import to_pixels
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule
from anomalysd_edge.training.augmentation import augmented, with_anomaly
from anomalysd_edge.training.checkpoints import partial_folder
from anomalysd_edge.training.data import GRIDS, TrainingData, random_mask
from anomalysd_edge.training.loop import learning_rate
from anomalysd_edge.training.losses import noisy_samples, unet_loss
from anomalysd_edge.training.models.base import load_base
from anomalysd_edge.training.models.hub import quiet
from anomalysd_edge.training.run import Run, read_run
from anomalysd_edge.training.settings import NANO_DEFAULTS, TrainSettings
from anomalysd_edge.training.train import train
from tests.support.progress import Stop
from tests.support.tiny_models import TINY_PX, tiny_base
from tests.support.tiny_training import tiny_settings, weights_of

SPECS = {
    "nut": ClassSpec("nut", "nut", "object", ("thread",), ("rotate90",)),
    "felt": ClassSpec("felt", "felt", "texture", (), ("flip_x", "flip_y")),
}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    found: dict[str, list[Path]] = {"nut": [], "felt": []}
    y, x = np.mgrid[0:48, 0:48]
    for i in range(2):
        nut = np.full((48, 48, 3), 230, np.uint8)
        nut[(y - 24) ** 2 + (x - 24 - i) ** 2 < 250] = (90, 60, 40)
        felt = rng.integers(80, 120, (48, 48, 3)).astype(np.uint8)
        for name, pixels in (("nut", nut), ("felt", felt)):
            path = folder / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(path)
            found[name].append(path)
    return found


def small(base: Path, **changes: Any) -> TrainSettings:
    values = {"shots": 2, "steps": 4, "batch": 2, "warmup": 2, "decoder_steps": 3, "decoder_batch": 1}
    return tiny_settings(base, **{**values, **changes})


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"ema": 0.5}, {"lora_rank": 2, "gradient_checkpointing": True}])
def test_resume_ends_with_the_same_bits(
    tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]], changes: dict[str, Any]
) -> None:
    settings = small(base_folder, **changes)
    unbroken = train(settings, shots, tmp_path / "unbroken", SPECS)
    broken = tmp_path / "broken"
    for phase, step in (("train", 3), ("decoder", 1), ("decoder", 3)):
        with pytest.raises(KeyboardInterrupt):
            train(settings, shots, broken, SPECS, resume=True, progress=Stop(phase, step))
        assert not broken.exists()
        with pytest.raises(RunError, match="unfinished"):
            read_run(broken)
    resumed = train(settings, shots, broken, SPECS, resume=True)
    assert not partial_folder(broken).exists()
    for part in ("unet", "vae"):
        assert same(weights_of(unbroken, part), weights_of(resumed, part))
    trained = weights_of(unbroken, "unet"), load_file(base_folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert not same(*trained), "the training did change the UNet"
    logs = [
        [(line["phase"], line["step"], line["loss"], line["lr"]) for line in map(json.loads, text.splitlines())]
        for text in ((unbroken.path / "log.jsonl").read_text(), (resumed.path / "log.jsonl").read_text())
    ]
    assert logs[0] == logs[1]
    assert [entry[:2] for entry in logs[0]] == [("unet", i) for i in (1, 2, 3, 4)] + [("decoder", i) for i in (1, 2, 3)]


@pytest.mark.slow
def test_run_folder_holds_all_that_export_needs(
    tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]
) -> None:
    seen: list[tuple[str, int, int]] = []
    settings = small(base_folder)
    run = train(settings, shots, tmp_path / "run", SPECS, progress=lambda *told: seen.append(told[:3]))
    assert seen == [("train", i, 4) for i in (1, 2, 3, 4)] + [("decoder", i, 3) for i in (1, 2, 3)]
    again = read_run(run.path)
    assert again.settings == settings
    assert again.specs == SPECS
    assert [path.read_bytes() for path in again.shots["nut"]] == [path.read_bytes() for path in shots["nut"]]
    assert again.record["base"]["sha256"] == load_base(str(base_folder)).sha256
    assert {"torch", "diffusers"} <= again.record["versions"].keys()
    assert again.record["losses"]["unet"]["steps"] == 4
    for file in run.model.rglob("*.json"):
        assert str(base_folder) not in file.read_text(encoding="utf-8"), f"{file} names a place of this machine"
    loaded = again.load()
    assert same(dict(loaded.unet.state_dict()), weights_of(run, "unet"))
    with quiet():
        from diffusers import StableDiffusionInpaintPipeline

        pipeline = StableDiffusionInpaintPipeline.from_pretrained(run.model)
    assert same(dict(pipeline.unet.state_dict()), dict(loaded.unet.state_dict()))
    # A finished run is returned as it is; other settings are refused.
    digest = run.sha256
    assert train(settings, shots, run.path, SPECS, resume=True).sha256 == digest
    with pytest.raises(RunError, match="batch = 2, this call brings 3"):
        train(small(base_folder, batch=3), shots, run.path, SPECS, resume=True)
    (run.model / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(
        (base_folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    with pytest.raises(RunError, match="was changed"):
        read_run(run.path).load()


@pytest.mark.slow
@pytest.mark.parametrize("vae", ["tiny", "kl"])
def test_the_decoder_learns_and_the_encoder_stays(tmp_path: Path, shots: dict[str, list[Path]], vae: Any) -> None:
    folder = tiny_base(tmp_path / "base", vae=vae)
    settings = small(folder, steps=0, decoder_steps=12, decoder_batch=2, decoder_lr=3e-3, copies=1)
    run = train(settings, shots, tmp_path / "run", SPECS)
    before = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    after = weights_of(run, "vae")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == ({"decoder"} if vae == "tiny" else {"decoder", "post_quant_conv"})
    losses = run.record["losses"]
    assert losses["unet"] is None
    assert losses["decoder"]["last"] < 0.8 * losses["decoder"]["first"]


@pytest.mark.slow
def test_the_unet_learns(tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]) -> None:
    """The loss on fixed draws falls by training: an untrained UNet stands near E||eps||^2 = 1 or above."""
    settings = small(base_folder, steps=40, batch=4, lr=2e-3, decoder_steps=0, start_corruption=0.0)
    run = train(settings, shots, tmp_path / "run", SPECS)
    assert run.record["losses"]["unet"]["last"] < 0.9 * run.record["losses"]["unet"]["first"]


@pytest.mark.slow
def test_lora_is_merged_and_saved(tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]) -> None:
    settings = small(base_folder, lora_rank=2, lora_targets=("to_q", "to_v"), lr=1e-2, decoder_steps=0)
    run = train(settings, shots, tmp_path / "run", SPECS)
    before = load_file(base_folder / "unet" / "diffusion_pytorch_model.safetensors")
    after = weights_of(run, "unet")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith(("to_q.weight", "to_v.weight"))}
    for name in changed:
        rank = torch.linalg.matrix_rank((after[name] - before[name]).double(), atol=1e-5, rtol=1e-3)
        assert 1 <= rank <= 2
    with quiet():
        from diffusers import StableDiffusionInpaintPipeline

        pipeline = StableDiffusionInpaintPipeline.from_pretrained(base_folder)
        pipeline.load_lora_weights(run.path / "lora")
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    name = sorted(changed)[0]
    torch.testing.assert_close(dict(pipeline.unet.named_parameters())[name].detach(), after[name])
    with pytest.raises(SettingsError, match="no layer"):
        train(small(base_folder, lora_rank=2, lora_targets=("nothing",)), shots, tmp_path / "none", SPECS)


@pytest.mark.slow
def test_zero_shots_keep_the_base(tmp_path: Path, base_folder: Path) -> None:
    run = train(small(base_folder, shots=0), {"nut": [], "felt": []}, tmp_path / "run", SPECS)
    assert run.shots == {"nut": (), "felt": ()}
    assert not (run.path / "shots").exists()
    for part in ("unet", "vae", "text_encoder"):
        for file in (base_folder / part).iterdir():
            assert (run.model / part / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_interrupt_before_a_checkpoint_leaves_nothing(
    tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(small(base_folder), shots, tmp_path / "run", SPECS, progress=Stop("train", 1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_resume_with_other_settings_or_photos_is_refused(
    tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(small(base_folder), shots, out, SPECS, progress=Stop("train", 3))
    with pytest.raises(RunError, match=r"settings lr = 0\.001, this call brings 0\.002"):
        train(small(base_folder, lr=2e-3), shots, out, SPECS, resume=True)
    swapped = {"nut": shots["nut"][::-1], "felt": shots["felt"]}
    with pytest.raises(RunError, match="photos nut"):
        train(small(base_folder), swapped, out, SPECS, resume=True)
    assert (partial_folder(out) / "checkpoints" / "step-000002").is_dir(), "a refused resume harms nothing"
    train(small(base_folder), shots, out, SPECS, resume=True)


@pytest.mark.slow
def test_bad_input(tmp_path: Path, base_folder: Path, shots: dict[str, list[Path]]) -> None:
    out = tmp_path / "run"

    def attempt(**changes: Any) -> Callable[[dict[str, list[Path]]], Run]:
        return lambda photos: train(small(base_folder, **changes), photos, out, SPECS)

    with pytest.raises(DatasetError, match="'nut' has 2 good photos, 3 were asked for"):
        attempt(shots=3)(shots)
    with pytest.raises(SettingsError, match="brings 2 photos for shots = 1"):
        attempt(shots=1)(shots)
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(ImageError, match=r"empty\.png"):
        attempt(shots=1)({"nut": [empty]})
    with pytest.raises(NumericError, match=r"step 2 of phase unet .* lr below 1e\+30"):
        attempt(lr=1e30, clip_norm=1e30, warmup=0)(shots)
    empty.unlink()
    assert list(tmp_path.iterdir()) == [], "no failed training leaves anything"
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(InputError, match=r"holds no run\.json"):
        attempt()(shots)
    for wrong in ({"batch": 0}, {"lr": float("nan")}, {"autocast": "fp8"}, {"max_timestep": 1.5}, {"typo": 1}):
        with pytest.raises(SettingsError):
            small(base_folder, **wrong)


def test_bases_that_cannot_be_used(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hf download owner/no-such-model --local-dir FOLDER.*name it as the base"):
        load_base("owner/no-such-model")
    with pytest.raises(InputError, match=r"neither nano nor a folder nor a \.safetensors file nor a hub id"):
        load_base("no-such-base")
    with pytest.raises(InputError, match="has no unet"):
        load_base(str(tmp_path))
    four = tiny_base(tmp_path / "four")
    config = json.loads((four / "unet" / "config.json").read_text())
    (four / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 4}))
    weights = load_file(four / "unet" / "diffusion_pytorch_model.safetensors")
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :4].contiguous()
    from safetensors.torch import save_file

    save_file(weights, four / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match="4 input channels, expected 9"):
        load_base(str(four))
    (four / "unet" / "config.json").write_text(json.dumps(config))
    (four / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_base(str(four))


def test_corrupted_targets_lead_back_to_the_clean_latents() -> None:
    """One exact step with the target as the network's answer must land on the clean latents, eps and v alike."""
    noise = torch.Generator().manual_seed(0)
    clean, start, eps = (torch.randn(3, 4, 8, 8, generator=noise, dtype=torch.float64) for _ in range(3))
    start[0] = clean[0]
    abar, corrupted = torch.tensor([0.5, 0.9, 0.2], dtype=torch.float64), torch.tensor([False, True, True])
    signal, spread = abar.sqrt().view(-1, 1, 1, 1), (1 - abar).sqrt().view(-1, 1, 1, 1)
    made = noisy_samples(clean, start, eps, abar, corrupted, "epsilon")
    torch.testing.assert_close((made.noisy - spread * made.target) / signal, clean)
    assert torch.equal(made.target[0], eps[0])
    torch.testing.assert_close(made.weight, torch.tensor([1.0, 1 / 9, 1.0], dtype=torch.float64))
    v = noisy_samples(clean, start, eps, abar, corrupted, "v_prediction")
    torch.testing.assert_close(signal * v.noisy - spread * v.target, clean)
    # At high signal the weighted loss is the squared error of the predicted clean latents, in eps as in v.
    guess = clean + 0.3
    one = slice(1, 2)
    for samples, answer in (
        (made, (made.noisy - signal * guess) / spread),
        (v, (signal * v.noisy - guess) / spread),
    ):
        alone = type(samples)(samples.noisy[one], samples.target[one], samples.weight[one])
        expected = (alone.weight * (answer[one] - alone.target).square().mean()).mean()
        torch.testing.assert_close(expected, torch.tensor(0.09, dtype=torch.float64))
        everywhere = torch.ones(1, 1, 8, 8)
        assert abs(float(unet_loss(answer[one], alone, everywhere, 1.0)) - 0.09) < 1e-5
        assert abs(float(unet_loss(answer[one], alone, 0 * everywhere, 0.5)) - 0.045) < 1e-5


def test_draws_are_functions_of_seed_and_step(base_folder: Path, shots: dict[str, list[Path]]) -> None:
    base, settings = load_base(str(base_folder)), small(base_folder, batch=8, max_timestep=0.5)
    schedule = NoiseSchedule.from_config(base.scheduler)
    one, two = (TrainingData(shots, SPECS, base, settings, schedule.train_steps) for _ in range(2))
    two.unet_batch(0)
    a, b, later = one.unet_batch(5), two.unet_batch(5), one.unet_batch(6)
    for name in ("clean", "start", "masked", "masks", "states", "timesteps", "noise"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert not torch.equal(a.noise, later.noise)
    assert int(a.timesteps.max()) < 500
    assert a.corrupted.any()
    assert not a.corrupted.all()
    moved = (a.start != a.clean).flatten(1).any(1)
    assert not (moved & ~a.corrupted).any(), "only corrupted samples start elsewhere"
    assert moved.any()
    assert ((a.masks == 0) | (a.masks == 1)).all()
    assert (a.masks.sum((1, 2, 3)) > 0).all()


def test_grid_masks_are_every_other_cell() -> None:
    """The slots of the grids that fit an 8 x 8 latent, and no other mask, while the foreground is whole."""
    settings, whole = TrainSettings(grid_masks=1.0), np.ones((8, 8), bool)
    slots = set()
    for k in (k for k in GRIDS if k <= 8):
        for row in (0, 1):
            for column in (0, 1):
                cells = np.zeros((k, k), bool)
                cells[row::2, column::2] = True
                slots.add(np.kron(cells, np.ones((8 // k, 8 // k), bool)).tobytes())
    drawn = {random_mask(np.random.default_rng(i), 8, whole, settings).tobytes() for i in range(200)}
    assert drawn == slots
    corner = np.zeros((8, 8), bool)
    corner[:3, :3] = True
    for i in range(40):
        mask = random_mask(np.random.default_rng(i), 8, corner, settings)
        assert mask.any()
        assert not (mask & ~corner).any()


def test_copies_and_anomalies() -> None:
    rng, settings = np.random.default_rng(0), TrainSettings(zoom=0.0, shift=0.0, tilt_degrees=0.0, jitter=0.0)
    pixels = rng.integers(0, 256, (TINY_PX, TINY_PX, 3)).astype(np.uint8)
    shown = np.zeros((TINY_PX, TINY_PX), bool)
    shown[4:9, 20:30] = True
    still, seen = augmented(pixels, shown, [(0, False)], settings, rng)
    assert np.array_equal(still, pixels)
    assert np.array_equal(seen, shown)
    turned, seen = augmented(pixels, shown, [(1, False)], settings, rng)
    assert np.array_equal(turned, np.rot90(pixels))
    assert np.array_equal(seen, np.rot90(shown))
    cells = np.zeros((8, 8), bool)
    cells[2:5, 3:7] = True
    mask = to_pixels(cells, 4)
    changes = 0
    for _ in range(30):
        anomalous = with_anomaly(pixels, pixels[::-1], mask, rng)
        assert np.array_equal(anomalous[~mask], pixels[~mask]), "an anomaly stays inside the mask"
        changes += bool((anomalous != pixels).any())
    assert changes >= 28
    assert np.array_equal(with_anomaly(pixels, pixels, np.zeros_like(mask), rng), pixels)


def test_learning_rate_rises_then_falls() -> None:
    settings = TrainSettings(warmup=4, lr_floor=0.1)
    rates = [learning_rate(step, 24, 2.0, settings) for step in range(24)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[14] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert 0.2 < rates[-1] < 0.25


def test_settings_travel_as_json() -> None:
    settings = TrainSettings.for_base("nano", shots=1, lora_targets=("to_k",))
    assert TrainSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert settings.max_timestep == NANO_DEFAULTS["max_timestep"]
    assert TrainSettings.for_base("folder").max_timestep == 1.0, "the paper's"
