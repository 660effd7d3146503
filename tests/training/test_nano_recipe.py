"""The recipe of the embedded base: seeded draws, real masks, resuming, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from anomalysd_edge.errors import InputError
from anomalysd_edge.vision.images import save_png

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file  # noqa: E402

from anomalysd_edge.training.models.base import NANO_FOLDER, load_base  # noqa: E402
from anomalysd_edge.training.nano import recipe as nano_recipe  # noqa: E402
from anomalysd_edge.training.nano.autoencoder import autoencoder_batch  # noqa: E402
from anomalysd_edge.training.nano.common import RecipeContext, set_rate  # noqa: E402
from anomalysd_edge.training.nano.images import FAMILIES, PictureSet, family_of, render  # noqa: E402
from anomalysd_edge.training.nano.marks import hairline, random_marks, speck  # noqa: E402
from anomalysd_edge.training.nano.models import LATENT_SIDE, autoencoder  # noqa: E402
from anomalysd_edge.training.nano.pairs import Pairs, pair_of, random_mask  # noqa: E402
from anomalysd_edge.training.nano.textures import cropped, split_photos  # noqa: E402
from anomalysd_edge.training.nano.unet import blob, draw_timestep, unet_batch  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty small photos with names as collections give them."""
    for number in range(30):
        rng = np.random.default_rng(number)
        photo = rng.integers(0, 256, (140, 150, 3), dtype=np.uint8)
        save_png(tmp_path / "photos" / f"tex_RoofingTiles{number:03d}.png", photo)
    return tmp_path / "photos"


@pytest.fixture
def pictures() -> PictureSet:
    """Eight drawn scenes."""
    drawn = [render(1, number, 128) for number in range(8)]
    return PictureSet(np.stack([picture for _, picture in drawn]), [noun for noun, _ in drawn])


def run(textures: Path | None, checkpoints: Path, out: Path, *more: str) -> None:
    """A recipe of a few steps."""
    photos = ["--textures", str(textures)] if textures else []
    small = ["--scenes", "6", "--crops", "6", "--pairs", "12", "--unet-batch", "2"]
    nano_recipe.main([*photos, "--out", str(out), "--checkpoints", str(checkpoints), *small, *more])


def test_drawn_images_are_seeded() -> None:
    for number in range(12):
        name, image = render(3, number, 64)
        again = render(3, number, 64)
        assert name == again[0] == family_of(3, number)
        np.testing.assert_array_equal(image, again[1])
    assert not np.array_equal(render(3, 0, 64)[1], render(4, 0, 64)[1])


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_draws_a_picture(name: str) -> None:
    canvas = FAMILIES[name](np.random.default_rng(0), 48)
    assert canvas.shape == (48, 48, 3)
    assert np.isfinite(canvas).all()
    assert canvas.std() > 0.005


def test_a_fifth_of_the_photos_is_held_out_whatever_they_are_called(folder: Path) -> None:
    taught, held_out = split_photos(folder)
    assert len(taught) + len(held_out) == 30
    assert 1 <= len(held_out) <= 14
    hashes = {photo.sha256 for photo in held_out}
    for photo in (*taught, *held_out):
        photo.path.rename(photo.path.with_name(f"renamed_{photo.path.name}"))
    assert {photo.sha256 for photo in split_photos(folder)[1]} == hashes
    assert taught[0].noun == "roofing tiles"


def test_a_folder_too_small_to_leave_photos_out_is_refused(tmp_path: Path) -> None:
    save_png(tmp_path / "one.png", np.full((64, 64, 3), 9, np.uint8))
    with pytest.raises(InputError, match="leave a fifth out"):
        split_photos(tmp_path)


def test_crops_are_named_by_their_number_alone(folder: Path) -> None:
    taught = split_photos(folder)[0]
    every = cropped(taught, range(10), 64, (5,))
    some = cropped(taught, [7, 3], 64, (5,))
    assert sorted(every) == list(range(10))
    for number, crop in some.items():
        assert crop.shape == (64, 64, 3)
        np.testing.assert_array_equal(crop, every[number])
    assert not np.array_equal(every[0], cropped(taught, [0], 64, (6,))[0])


@pytest.mark.parametrize("width", [0.7, 1.0, 2.0])
def test_a_hairline_covers_its_width_times_its_length(width: float) -> None:
    areas = [float(hairline(np.random.default_rng(n), 128, width, 20.0).sum()) for n in range(20)]
    assert np.mean(areas) == pytest.approx(20 * width, rel=0.1)
    assert speck(np.random.default_rng(0), 64, 3.0).sum() == pytest.approx(np.pi * 1.5**2, rel=0.2)


def test_marks_change_the_picture_where_they_say() -> None:
    grey = np.zeros((64, 64, 3), np.float32)
    seen = 0
    for number in range(20):
        marked, cover = random_marks(np.random.default_rng(number), grey)
        assert (marked[cover == 0] == 0).all()
        seen += bool(cover.any())
    assert 10 <= seen < 20
    assert all(random_marks(np.random.default_rng(n), grey, least=1)[1].any() for n in range(20))


def test_masks_are_those_that_an_inspection_repaints() -> None:
    masks = [random_mask(np.random.default_rng(n), LATENT_SIDE) for n in range(300)]
    assert all(mask.shape == (LATENT_SIDE, LATENT_SIDE) and mask.any() for mask in masks)
    for k in (4, 8, 16):
        cell = np.arange(LATENT_SIDE) * k // LATENT_SIDE % 2
        slots = [np.logical_and.outer(cell == a, cell == b) for a in (0, 1) for b in (0, 1)]
        assert any(np.array_equal(mask, slot) for mask in masks for slot in slots), k
    assert 3 <= sum(bool(mask.all()) for mask in masks) <= 40


def test_a_pair_hides_the_masked_pixels_and_harms_no_others(pictures: PictureSet) -> None:
    harmed = 0
    for number in range(16):
        (clean, hidden, anomaly), mask = pair_of(pictures, number)
        inside = mask.repeat(4, axis=0).repeat(4, axis=1)
        assert (hidden[:, inside] == 0).all()
        np.testing.assert_array_equal(hidden[:, ~inside], clean[:, ~inside])
        np.testing.assert_array_equal(anomaly[:, ~inside], clean[:, ~inside])
        harmed += bool((anomaly != clean).any())
    assert harmed >= 8


def test_rows_of_a_step_are_those_of_the_whole_step(pictures: PictureSet, tmp_path: Path) -> None:
    """Several processes share a step: what each draws must not depend on which rows are its own."""
    whole, part = autoencoder_batch(pictures, 3, slice(0, 6)), autoencoder_batch(pictures, 3, slice(4, 6))
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[4:6], b)
    context = RecipeContext(tmp_path)
    pairs = Pairs(context, pictures, autoencoder(), 8)
    latents, masks = pairs.take(range(8))
    assert float(latents[:, 0].std()) == pytest.approx(1, abs=0.2)
    assert (latents[:, 2] == latents[:, 0]).all(axis=1)[masks == 0].mean() > 0.4  # harm stays near its mask
    again = Pairs(RecipeContext(tmp_path), pictures, autoencoder(), 8)  # other weights: what is encoded stays
    np.testing.assert_array_equal(again.take([3, 3, 1])[0], latents[[3, 3, 1]])
    every, few = unet_batch(context, pairs, 5, slice(0, 8)), unet_batch(context, pairs, 5, slice(2, 4))
    for name in ("clean", "start", "known", "masks", "corrupted", "timesteps", "noise"):
        torch.testing.assert_close(getattr(every, name)[2:4], getattr(few, name))
    assert every.prompts[2:4] == few.prompts
    outside = (every.masks == 0).expand_as(every.clean)
    torch.testing.assert_close(every.start[outside], every.clean[outside])
    torch.testing.assert_close(every.start[~every.corrupted], every.clean[~every.corrupted])


def test_timesteps_crowd_where_inspections_start() -> None:
    drawn = [draw_timestep(np.random.default_rng(n)) for n in range(2000)]
    assert 0.8 < np.mean([t < 450 for t in drawn]) < 0.92
    assert max(drawn) > 900
    region = blob(np.random.default_rng(0), 32)
    assert region.shape == (1, 32, 32)
    assert 0 <= float(region.min()) <= float(region.max()) <= 1


def test_the_rate_rises_holds_and_falls() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = [set_rate(optimizer, step, 100, 2.0, warm=10, hold=0.6) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[10:60] == [2.0] * 50
    assert rates[-1] == pytest.approx(0.05)
    assert optimizer.param_groups[0]["lr"] == rates[-1]


def test_a_stopped_recipe_ends_where_a_straight_one_does(folder: Path, tmp_path: Path) -> None:
    """Stopped in the autoencoder and again in the UNet, by a step count reached early; then gone on with."""
    run(folder, tmp_path / "a", tmp_path / "straight", "--autoencoder-steps", "2", "--unet-steps", "2")
    recipe = nano_recipe.Recipe(folder, None, 6, 6, 2, 12, 2, 2)
    context = RecipeContext(tmp_path / "b", save_seconds=0)
    nano_recipe.open_checkpoints(recipe, context, resume=False)

    class Stop(Exception):
        pass

    def stopping(name: str) -> None:
        save = RecipeContext.save

        def stop(self: RecipeContext, named: str, state: dict[str, object]) -> None:
            save(self, named, state)
            if named == name and state["step"] == 1:
                raise Stop

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RecipeContext, "save", stop)
            with pytest.raises(Stop):
                nano_recipe.run_stages(recipe, context)

    stopping("autoencoder")
    stopping("unet")
    run(folder, tmp_path / "b", tmp_path / "stopped", "--autoencoder-steps", "2", "--unet-steps", "2", "--resume")
    for part in ("unet", "vae"):
        files = [tmp_path / name / part / "diffusion_pytorch_model.safetensors" for name in ("straight", "stopped")]
        first, second = (load_file(file) for file in files)
        for name, weights in first.items():
            # Sums over several threads round differently: the same recipe, not the same bits.
            np.testing.assert_allclose(weights, second[name], atol=2e-3, err_msg=name)
    written = json.loads((tmp_path / "stopped" / "recipe.json").read_text())
    assert written["photos"] == {photo.path.name: photo.sha256 for photo in split_photos(folder)[0]}
    assert written["unet_steps_done"] == 2
    base = load_base(tmp_path / "stopped")
    assert base.size_px == 128
    assert base.unet.config.in_channels == 9


def test_it_goes_on_from_an_earlier_base_in_bfloat16(tmp_path: Path) -> None:
    few = ("--autoencoder-steps", "1", "--unet-steps", "1", "--precision", "bf16")
    start = NANO_FOLDER
    run(None, tmp_path / "c", tmp_path / "out", *few, "--from-base", str(start))
    before, after = (
        load_file(place / "vae/diffusion_pytorch_model.safetensors") for place in (start, tmp_path / "out")
    )
    assert before.keys() == after.keys()
    apart = max(float(np.abs(before[name].astype(np.float32) - after[name]).max()) for name in before)
    assert 0 < apart < 0.05
    with pytest.raises(InputError, match="--resume"):
        run(None, tmp_path / "c", tmp_path / "out", *few, "--from-base", str(start))
    with pytest.raises(InputError, match="other start"):
        run(None, tmp_path / "c", tmp_path / "out", *few, "--resume")
    run(None, tmp_path / "c", tmp_path / "again", *few, "--from-base", str(start), "--export")
    assert (tmp_path / "again" / "unet" / "config.json").is_file()


def test_nothing_is_exported_before_there_is_something(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no UNet's checkpoint"):
        run(None, tmp_path / "empty", tmp_path / "out", "--export")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_gpu_that_is_not_there_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="torch sees none"):
        run(None, tmp_path / "c", tmp_path / "out", "--device", "cuda")
