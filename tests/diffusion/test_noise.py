"""The noise schedule and the training targets against diffusers' DDPMScheduler, and the way between sigma and timestep."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from tests.support.references import apart
from textual_inversion.diffusion.noise import TRAIN_TIMESTEPS, Epsilon, NoiseSchedule, VPrediction

SCHEDULE = NoiseSchedule.scaled_linear()
REFERENCE = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=TRAIN_TIMESTEPS)
TIMESTEPS = torch.tensor([0, 1, 499, 999])


def latents_and_noise() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 4, 6, 5, generator=generator), torch.randn(4, 4, 6, 5, generator=generator)


def test_the_schedule_is_scaled_linear() -> None:
    assert apart(SCHEDULE.alphas_cumprod, REFERENCE.alphas_cumprod) < 1e-5
    relative = SCHEDULE.alphas_cumprod / REFERENCE.alphas_cumprod - 1
    assert relative.abs().max() < 1e-4


def test_mixing_is_ddpms() -> None:
    latents, noise = latents_and_noise()
    assert apart(SCHEDULE.mix(latents, noise, TIMESTEPS), REFERENCE.add_noise(latents, noise, TIMESTEPS)) < 1e-5


def test_targets_are_noise_and_velocity() -> None:
    latents, noise = latents_and_noise()
    assert torch.equal(Epsilon().target(SCHEDULE, latents, noise, TIMESTEPS), noise)
    velocity = REFERENCE.get_velocity(latents, noise, TIMESTEPS)
    assert apart(VPrediction().target(SCHEDULE, latents, noise, TIMESTEPS), velocity) < 1e-5


@pytest.mark.parametrize("prediction", [Epsilon(), VPrediction()], ids=["epsilon", "v_prediction"])
@pytest.mark.parametrize("timestep", [0, 20, 500, 980])
def test_a_perfect_prediction_gives_the_picture_back(prediction: Epsilon | VPrediction, timestep: int) -> None:
    """Training's target and the samplers' `denoised` are each other's inverse."""
    latents, noise = latents_and_noise()
    timesteps = torch.full((4,), timestep)
    sigma = SCHEDULE.sigmas[timestep]
    output = prediction.target(SCHEDULE, latents, noise, timesteps)
    # fp32 loses digits where the noise is over ten times the picture
    assert apart(prediction.denoised(latents + sigma * noise, output, sigma), latents) < 1e-4


def test_sigma_is_spread_over_signal() -> None:
    alphas = REFERENCE.alphas_cumprod.double()
    assert apart(SCHEDULE.sigmas, ((1 - alphas) / alphas).sqrt()) < 1e-4


@given(st.floats(0, TRAIN_TIMESTEPS - 1, width=32))
def test_timestep_of_undoes_sigma_of(timestep: float) -> None:
    sigma = SCHEDULE.sigma_of(torch.tensor(timestep))
    assert float(SCHEDULE.timestep_of(sigma)) == pytest.approx(timestep, abs=2e-3)


@given(st.integers(0, TRAIN_TIMESTEPS - 1))
def test_whole_timesteps_have_the_tables_sigma(timestep: int) -> None:
    assert float(SCHEDULE.sigma_of(torch.tensor(timestep))) == pytest.approx(float(SCHEDULE.sigmas[timestep]), rel=1e-5)


@given(st.floats(2**-10, 2**10, width=32))
def test_sigmas_outside_the_table_stop_at_its_ends(sigma: float) -> None:
    timestep = float(SCHEDULE.timestep_of(torch.tensor(sigma)))
    assert 0 <= timestep <= TRAIN_TIMESTEPS - 1
    if sigma <= SCHEDULE.sigmas[0]:
        assert timestep == 0
    if sigma >= SCHEDULE.sigmas[-1]:
        assert timestep == TRAIN_TIMESTEPS - 1


def test_any_shape_of_sigma_is_taken() -> None:
    timesteps = torch.tensor([[0.0, 10.5], [500.25, 999.0]])
    assert torch.allclose(SCHEDULE.timestep_of(SCHEDULE.sigma_of(timesteps)), timesteps, atol=2e-3)


def test_a_schedule_moves_whole() -> None:
    moved = SCHEDULE.to("meta")
    assert {tensor.device.type for tensor in (moved.alphas_cumprod, moved.signal, moved.spread, moved.sigmas)} == {"meta"}
