"""The truncated DDIM table against diffusers' own scheduler, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from anomalysd_edge.errors import SettingsError
from anomalysd_edge.method.inpainting.schedule import NoiseSchedule

SD: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
    "clip_sample": False,
}


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("to_one", [True, False])
def test_every_step_equals_diffusers_ddim(prediction: str, spacing: str, to_one: bool) -> None:
    torch = pytest.importorskip("torch")
    from diffusers import DDIMScheduler

    config = {**SD, "prediction_type": prediction, "timestep_spacing": spacing, "set_alpha_to_one": to_one}
    steps, strength = 20, 0.45
    oracle = DDIMScheduler(**config)
    oracle.set_timesteps(steps)
    expected = oracle.timesteps[steps - int(steps * strength) :]
    table = NoiseSchedule.from_config(config).truncated_ddim(steps, strength)
    np.testing.assert_array_equal(table.timesteps, expected.numpy())
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.standard_normal((2, 4, 3, 3)))
    ours = z.numpy()
    for t, (c0, c1) in zip(table.timesteps, table.coefficients.astype(np.float64), strict=True):
        out = rng.standard_normal((2, 4, 3, 3))
        z = oracle.step(torch.from_numpy(out), int(t), z, eta=0.0).prev_sample
        ours = c0 * ours + c1 * out
        np.testing.assert_allclose(ours, z.numpy(), atol=1e-4)  # diffusers keeps abar in float32


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("to_one", [True, False])
def test_every_step_equals_diffusers_dpm_solver(prediction: str, to_one: bool) -> None:
    torch = pytest.importorskip("torch")
    from diffusers import DPMSolverMultistepScheduler

    config = {**SD, "prediction_type": prediction, "set_alpha_to_one": to_one}
    schedule = NoiseSchedule.from_config(config)
    table = schedule.table("dpm2m", 0, 6, 0.4)
    kinds = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "lower_order_final": True}
    known = {k: v for k, v in config.items() if k in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")}
    oracle = DPMSolverMultistepScheduler(prediction_type=prediction, **known, **kinds)
    abar = np.append(schedule.alphas_cumprod[table.timesteps], schedule.final_abar)
    oracle.timesteps = torch.from_numpy(table.timesteps)
    oracle.sigmas = torch.from_numpy(np.sqrt((1 - abar) / abar))
    oracle.num_inference_steps = len(table)
    oracle.model_outputs = [None] * 2
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.standard_normal((2, 4, 3, 3)))
    ours, before = z.numpy(), np.zeros((2, 4, 3, 3))
    assert table.history is not None
    for t, (c0, c1), (h0, h1, h2) in zip(table.timesteps, table.coefficients, table.history, strict=True):
        out = rng.standard_normal((2, 4, 3, 3))
        z = oracle.step(torch.from_numpy(out), torch.tensor(int(t)), z).prev_sample
        ours, before = c0 * ours + c1 * out + h0 * before, h1 * ours + h2 * out
        np.testing.assert_allclose(ours, z.numpy(), atol=1e-4)
    assert np.abs(table.history[:, 0]).max() > 0.01


def test_two_passes_of_dpm_solver_are_ddim() -> None:
    schedule = NoiseSchedule.from_config(SD)
    solver, ddim = schedule.table("dpm2m", 0, 2, 0.4), schedule.table("ddim", 0, 2, 0.4)
    np.testing.assert_array_equal(solver.coefficients, ddim.coefficients)
    assert solver.history is None


def test_noised_equals_diffusers_add_noise() -> None:
    torch = pytest.importorskip("torch")
    from diffusers import DDIMScheduler

    table = NoiseSchedule.from_config(SD).truncated_ddim(50, 0.3)
    rng = np.random.default_rng(1)
    z, noise = (rng.standard_normal((2, 4, 5, 5)).astype(np.float32) for _ in range(2))
    expected = DDIMScheduler(**SD).add_noise(
        torch.from_numpy(z), torch.from_numpy(noise), torch.tensor([int(table.timesteps[0])])
    )
    np.testing.assert_allclose(table.noised(z, noise), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize(("kind", "first", "last"), [("linear", 1e-4, 0.02), ("squaredcos_cap_v2", 1e-4, 0.02)])
def test_other_beta_schedules_equal_diffusers(kind: str, first: float, last: float) -> None:
    pytest.importorskip("torch")
    from diffusers import DDIMScheduler

    config = {"beta_schedule": kind, "beta_start": first, "beta_end": last, "num_train_timesteps": 1000}
    expected = DDIMScheduler(**config).alphas_cumprod.numpy()
    np.testing.assert_allclose(NoiseSchedule.from_config(config).alphas_cumprod, expected, rtol=1e-3, atol=1e-6)


def test_a_perfect_epsilon_brings_the_clean_latents_back() -> None:
    schedule = NoiseSchedule.from_config({**SD, "set_alpha_to_one": True})
    rng = np.random.default_rng(2)
    clean, noise = rng.standard_normal((2, 8)), rng.standard_normal((2, 8))
    for table in (schedule.even_ddim(5, 0.4), schedule.truncated_ddim(50, 0.3)):
        z = np.sqrt(table.start_abar) * clean + np.sqrt(1 - table.start_abar) * noise
        for t, (c0, c1) in zip(table.timesteps, table.coefficients, strict=True):
            abar = schedule.alphas_cumprod[t]
            z = c0 * z + c1 * (z - np.sqrt(abar) * clean) / np.sqrt(1 - abar)
        # The last leading timestep is 1, from where diffusers steps to abar = 1 in one go.
        np.testing.assert_allclose(z, clean, atol=1e-4)


def test_even_grid_has_as_many_passes_as_asked_and_starts_at_lambda() -> None:
    table = NoiseSchedule.from_config(SD).even_ddim(5, 0.4)
    assert table.timesteps.tolist() == [399, 319, 239, 159, 79]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"prediction_type": "score"}, "prediction_type"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_unknown_configs_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        NoiseSchedule.from_config({**SD, **config})


@pytest.mark.parametrize(
    ("steps", "strength", "words"),
    [(0, 0.3, "steps"), (10, 0.0, "lambda"), (10, 1.2, "lambda"), (2, 0.3, "none to run")],
)
def test_grids_without_a_step_are_refused(steps: int, strength: float, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        NoiseSchedule.from_config(SD).truncated_ddim(steps, strength)
