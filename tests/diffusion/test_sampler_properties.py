"""The samplers on a Gaussian, where the exact answer is known: mean and spread of what they draw, and how fast their errors fall."""

from __future__ import annotations

import math

import pytest
import torch

from textual_inversion.diffusion.noise import NoiseSchedule
from textual_inversion.diffusion.samplers import SAMPLERS

SCHEDULE = NoiseSchedule.scaled_linear()
MEAN, SPREAD = 0.5, 0.4
DETERMINISTIC = {"DPM++ 2M": 2, "DPM++ 2M Karras": 2, "Euler": 1, "Heun": 2, "DPM2": 2, "DDIM": 1, "UniPC": 2}  # name -> order
TIMESTEP_SAMPLERS = ("DDIM", "UniPC")  # they start from the variance of picture and noise together
ROUGH = ("Euler", "Euler a", "DDIM", "UniPC")  # first order, at least in the last steps


def expected_picture(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """The mean of the pictures behind x, where pictures are Gaussian."""
    return MEAN + SPREAD**2 / (SPREAD**2 + sigma**2) * (x - MEAN)


def end_of_path(x: torch.Tensor, sigma: float, target: float = 0.0) -> torch.Tensor:
    """The point at noise `target` on the path of the probability flow through x."""
    return MEAN + math.sqrt((SPREAD**2 + target**2) / (SPREAD**2 + sigma**2)) * (x - MEAN)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_draw_a_gaussian(name: str) -> None:
    generator = torch.Generator().manual_seed(3)

    def noise() -> torch.Tensor:
        return torch.randn((1, 1, 200, 200), generator=generator)

    sample, sigmas_for = SAMPLERS[name]
    sigmas = sigmas_for(SCHEDULE, 100)
    # LCM asks a model that is distilled to give the end of the path, not the mean
    denoise = end_of_path if name == "LCM" else expected_picture
    drawn = sample(denoise, noise() * sigmas[0], sigmas, noise, lambda done: None)
    # deterministic samplers keep the share SPREAD / sigmas[0] of the picture that the first x lacks
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.02 if name in DETERMINISTIC else 0.01)
    assert float(drawn.std()) == pytest.approx(SPREAD, rel=0.08 if name in ROUGH else 0.015)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_errors_fall_with_the_order_of_the_sampler(name: str) -> None:
    sample, _ = SAMPLERS[name]
    start = torch.tensor([3.0, -2.0, 7.0, 11.0], dtype=torch.float64).reshape(1, 1, 2, 2)
    scale = math.sqrt(10**2 + 1) / 10 if name in TIMESTEP_SAMPLERS else 1.0
    exact, errors = end_of_path(start * scale, 10.0, 0.1), []
    for steps in (40, 80, 160):
        sigmas = torch.linspace(math.log(10), math.log(0.1), steps + 1, dtype=torch.float64).exp().tolist()
        reached = sample(expected_picture, start, sigmas, torch.Tensor, lambda done: None)
        errors.append(float((reached - exact).abs().max()))
    for coarse, fine in zip(errors, errors[1:]):
        assert math.log2(coarse / fine) == pytest.approx(DETERMINISTIC[name], abs=0.15)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - set(DETERMINISTIC)))
def test_the_other_samplers_draw_fresh_noise(name: str) -> None:
    asked: list[int] = []
    sample, sigmas_for = SAMPLERS[name]

    def noise() -> torch.Tensor:
        asked.append(1)
        return torch.ones(1, 1, 1, 1)

    sample(expected_picture, torch.ones(1, 1, 1, 1), sigmas_for(SCHEDULE, 6), noise, lambda done: None)
    assert len(asked) == 5 * (2 if name.startswith("DPM++ SDE") else 1)  # the last step draws none


def test_the_two_noises_of_a_dpmpp_sde_step_are_one_brownian_motion() -> None:
    """The noise of the whole step and of its first half have the right variances, and the correlation of one motion."""
    generator, halves = torch.Generator().manual_seed(5), []

    def remember(x: torch.Tensor, sigma: float) -> torch.Tensor:
        halves.append(x)
        return torch.zeros_like(x)

    def noise() -> torch.Tensor:
        return torch.randn((1, 1, 300, 300), generator=generator)

    sample, _ = SAMPLERS["DPM++ SDE"]
    sigma, following = 4.0, 1.0
    whole = sample(remember, torch.zeros(1, 1, 300, 300), [sigma, following], noise, lambda done: None)
    half = halves[1]  # at noise 2, halfway in log sigma
    assert float(half.std()) == pytest.approx(math.sqrt(2**2 - (2**2 / 4) ** 2), rel=0.01)
    assert float(whole.std()) == pytest.approx(math.sqrt(1 - (1 / 4) ** 2), rel=0.01)
    correlation = float((half * whole).mean() / (half.std() * whole.std()))
    assert correlation == pytest.approx(math.sqrt((sigma - 2) / (sigma - following)), abs=0.01)
