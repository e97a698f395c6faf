"""The samplers against diffusers' schedulers, on the same noise and the same model of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

from tests.support.references import apart
from textual_inversion.diffusion.noise import Epsilon, NoiseSchedule, VPrediction
from textual_inversion.diffusion.samplers import SAMPLERS
from textual_inversion.settings import generation

# diffusers asks numpy for a copy in a way that torch does not know
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

SCHEDULE = NoiseSchedule.scaled_linear()
OPTIONS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 4, 6, 5)
# evenly spaced timesteps are whole for these counts, where diffusers' and k-diffusion's interpolations agree
EVEN_STEPS = (2, 4, 10, 28)


def toy_output(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """What a model would predict for x scaled to unit variance: bounded, bent, and different at each sigma."""
    return torch.tanh(1.3 * x + math.log(sigma + 0.1)) + 0.2 * torch.sin(3 * x.flip(-1))


def unit(x: torch.Tensor, sigma: float) -> torch.Tensor:
    return x / (sigma**2 + 1) ** 0.5


def ours(name: str, steps: int, noises: list[torch.Tensor], prediction: Epsilon | VPrediction) -> tuple[torch.Tensor, list[float]]:
    sample, sigmas_for = SAMPLERS[name]
    sigmas, fresh, seen = sigmas_for(SCHEDULE, steps), iter(noises), []

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return prediction.denoised(x, toy_output(unit(x, sigma), sigma), torch.tensor(sigma))

    picture = sample(denoise, next(fresh) * sigmas[0], sigmas, lambda: next(fresh), seen.append)
    assert seen == list(range(1, steps + 1))
    return picture, sigmas


def noises_of(steps: int, seed: int = 7) -> list[torch.Tensor]:
    """The noise to start from, and `steps` more, as a generator of diffusers' draws them."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(steps + 1)]


def euler_by_diffusers(scheduler: Any, steps: int, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    x = torch.randn(SHAPE, generator=generator) * scheduler.sigmas[0]
    extra = {} if isinstance(scheduler, EulerDiscreteScheduler) else {"generator": generator}
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas):
        output = toy_output(scheduler.scale_model_input(x, timestep), float(sigma))
        x = scheduler.step(output, timestep, x, **extra).prev_sample
    return x


@pytest.mark.parametrize("prediction", [Epsilon(), VPrediction()], ids=lambda p: p.name)
@pytest.mark.parametrize("steps", EVEN_STEPS)
def test_euler_is_that_of_diffusers(steps: int, prediction: Epsilon | VPrediction) -> None:
    scheduler = EulerDiscreteScheduler(**OPTIONS, timestep_spacing="linspace", prediction_type=prediction.name)
    expected = euler_by_diffusers(scheduler, steps)
    picture, sigmas = ours("Euler", steps, noises_of(steps), prediction)
    assert apart(torch.tensor(sigmas), scheduler.sigmas) < 1e-5
    assert apart(picture, expected) < 1e-4


@pytest.mark.parametrize("steps", EVEN_STEPS)
def test_euler_a_is_that_of_diffusers(steps: int) -> None:
    scheduler = EulerAncestralDiscreteScheduler(**OPTIONS, timestep_spacing="linspace")
    expected = euler_by_diffusers(scheduler, steps)
    picture, _ = ours("Euler a", steps, noises_of(steps), Epsilon())
    assert apart(picture, expected) < 1e-4


def dpmpp_by_diffusers(scheduler: Any, steps: int, noise: torch.Tensor) -> torch.Tensor:
    """diffusers keeps x at unit variance here and rounds timesteps, which the toy model does not ask for."""
    scheduler.set_timesteps(steps)
    x = unit(noise * scheduler.sigmas[0], float(scheduler.sigmas[0]))
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas):
        x = scheduler.step(toy_output(x, float(sigma)), timestep, x).prev_sample
    return x


@pytest.mark.parametrize("prediction", [Epsilon(), VPrediction()], ids=lambda p: p.name)
@pytest.mark.parametrize("steps", [4, 10, 20, 37])
def test_dpmpp_2m_karras_is_that_of_diffusers(steps: int, prediction: Epsilon | VPrediction) -> None:
    scheduler = DPMSolverMultistepScheduler(
        **OPTIONS, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", use_karras_sigmas=True,
        final_sigmas_type="zero", timestep_spacing="linspace", prediction_type=prediction.name,
    )  # fmt: skip
    noises = noises_of(steps)
    expected = dpmpp_by_diffusers(scheduler, steps, noises[0])
    picture, sigmas = ours("DPM++ 2M Karras", steps, noises, prediction)
    assert apart(torch.tensor(sigmas), scheduler.sigmas) < 1e-4
    assert apart(picture, expected) < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 33, 150])
@pytest.mark.parametrize("name", SAMPLERS)
def test_sigmas_fall_from_the_noisiest_to_nothing(name: str, steps: int) -> None:
    _, sigmas_for = SAMPLERS[name]
    sigmas = sigmas_for(SCHEDULE, steps)
    assert len(sigmas) == steps + 1
    # A1111's DDIM starts lower: 1000 // steps timesteps, at most, below the last
    lowest = SCHEDULE.sigmas[1000 - 1000 // steps] if name == "DDIM" else SCHEDULE.sigmas[-1]
    assert float(lowest) * (1 - 1e-5) <= sigmas[0] <= float(SCHEDULE.sigmas[-1]) * (1 + 1e-5)
    assert sigmas[-1] == 0
    assert all(a > b for a, b in zip(sigmas, sigmas[1:]))


def test_ddim_makes_as_many_steps_as_were_asked_for() -> None:
    """A1111 has 63 timesteps for 60 steps, 16 apart, from 993 to 1."""
    _, sigmas_for = SAMPLERS["DDIM"]
    sigmas = sigmas_for(SCHEDULE, 60)
    assert [sigmas[0], sigmas[-2]] == pytest.approx([float(SCHEDULE.sigmas[993]), float(SCHEDULE.sigmas[17])])


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_gives_the_models_picture(name: str) -> None:
    noises = noises_of(1)
    picture, sigmas = ours(name, 1, noises, Epsilon())
    # DDIM and UniPC start from the variance of picture and noise together
    x = noises[0] * ((sigmas[0] ** 2 + 1) ** 0.5 if name in ("DDIM", "UniPC") else sigmas[0])
    assert apart(picture, x - sigmas[0] * toy_output(unit(x, sigmas[0]), sigmas[0])) < 1e-5


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_reach_a_picture_that_the_model_knows(name: str) -> None:
    """With a model that always sees the same picture, every sampler ends there."""
    sample, sigmas_for = SAMPLERS[name]
    known, noises = torch.randn(SHAPE), iter(noises_of(24))
    sigmas = sigmas_for(SCHEDULE, 12)
    picture = sample(lambda x, sigma: known, next(noises) * sigmas[0], sigmas, lambda: next(noises), lambda done: None)
    assert apart(picture, known) < 1e-5


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_noise_gives_the_same_picture_whatever_is_drawn_beside_it(name: str) -> None:
    noises = noises_of(24)
    both, _ = ours(name, 12, noises, Epsilon())
    alone, _ = ours(name, 12, [noise[1:] for noise in noises], Epsilon())
    assert apart(both[1:], alone) < 1e-5


def test_the_settings_offer_every_sampler() -> None:
    assert tuple(SAMPLERS) == generation.SAMPLERS
