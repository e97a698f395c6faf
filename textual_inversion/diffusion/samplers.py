"""Samplers as pure functions over a denoiser.

Names and steps follow k-diffusion, so that pictures match what A1111 draws. Legend: b batch, c channels, h w latent size.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from textual_inversion.diffusion.noise import NoiseSchedule

Denoise = Callable[[torch.Tensor, float], torch.Tensor]  # x [b, c, h, w] with noise sigma -> picture [b, c, h, w]
Noise = Callable[[], torch.Tensor]  # fresh standard noise [b, c, h, w]
Progress = Callable[[int], None]  # steps done


def even_sigmas(schedule: NoiseSchedule, steps: int) -> list[float]:
    """Noise levels at evenly spaced timesteps from the last to the first, and 0 at the end: steps + 1 numbers, falling."""
    timesteps = torch.linspace(len(schedule.sigmas) - 1, 0, steps, device=schedule.sigmas.device)
    return [*schedule.sigma_of(timesteps).tolist(), 0.0]


def karras_sigmas(schedule: NoiseSchedule, steps: int, rho: float = 7.0) -> list[float]:
    """Noise levels of Karras et al. (arXiv 2206.00364, eq. 5), and 0 at the end: steps + 1 numbers, falling."""
    low, high = float(schedule.sigmas[0]) ** (1 / rho), float(schedule.sigmas[-1]) ** (1 / rho)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return [*((high + ramp * (low - high)) ** rho).tolist(), 0.0]


def euler(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """Euler's method (arXiv 2206.00364, algorithm 1 without correction): x [b, c, h, w] -> picture [b, c, h, w]."""
    for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:]), start=1):
        slope = (x - denoise(x, sigma)) / sigma
        x = x + slope * (following - sigma)
        progress(step)
    return x


def euler_ancestral(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """Euler's method with fresh noise after each step, scaled as ancestral sampling has it (eta 1)."""
    for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:]), start=1):
        picture = denoise(x, sigma)
        up = min(following, (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5)
        down = (following**2 - up**2) ** 0.5
        x = x + (x - picture) / sigma * (down - sigma)
        if following > 0:
            x = x + noise() * up
        progress(step)
    return x


def dpmpp_2m(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2) in the variable sigma."""
    before: torch.Tensor | None = None
    for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:]), start=1):
        picture = denoise(x, sigma)
        if following == 0:
            x = picture
        else:
            guess = picture
            if before is not None:
                ratio = _log(sigmas[step - 2], sigma) / _log(sigma, following)
                guess = picture + (picture - before) / (2 * ratio)
            share = following / sigma
            x = share * x + (1 - share) * guess
        before = picture
        progress(step)
    return x


def _log(a: float, b: float) -> float:
    """Step in -log sigma from noise a to noise b."""
    return math.log(a / b)


SAMPLERS = {
    "Euler": (euler, even_sigmas),
    "Euler a": (euler_ancestral, even_sigmas),
    "DPM++ 2M Karras": (dpmpp_2m, karras_sigmas),
}
