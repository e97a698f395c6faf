"""Samplers as pure functions over a denoiser; they know nothing of prompts, models and guidance.

Names, noise levels and formulas are those of A1111 1.10 and k-diffusion with their default options. DDIM and UniPC differ in their last
step and the stochastic ones in their random numbers, as their docstrings say.
A name without a schedule has the schedule that A1111 chooses as "Automatic". A sampler takes x [b, c, h, w], which is noise of the first
sigma, and returns the picture [b, c, h, w]. Its sigmas fall; after the last step no noise is left.

Legend: b batch, c channels, h w latent size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from textual_inversion.diffusion.noise import TRAIN_TIMESTEPS, NoiseSchedule

Denoise = Callable[[torch.Tensor, float], torch.Tensor]  # x [b, c, h, w] with noise sigma -> picture [b, c, h, w]
Noise = Callable[[], torch.Tensor]  # fresh standard noise [b, c, h, w]
Progress = Callable[[int], None]  # steps done
Sampler = Callable[[Denoise, torch.Tensor, list[float], Noise, Progress], torch.Tensor]
Sigmas = Callable[[NoiseSchedule, int], list[float]]  # schedule and number of steps -> steps + 1 noise levels, the last one 0
_Move = Callable[[Denoise, torch.Tensor, float, float], torch.Tensor]  # x with noise sigma -> x with the lower noise `target`
_Known = list[tuple[float, torch.Tensor]]  # noise levels of the last steps and their pictures [b, c, h, w], the newest last

_LCM_TIMESTEPS = 50  # latent consistency models are distilled on every 20th timestep


# noise levels


def even_sigmas(schedule: NoiseSchedule, steps: int) -> list[float]:
    """Noise levels at evenly spaced timesteps from the last to the first, and 0 at the end: steps + 1 numbers, falling."""
    timesteps = torch.linspace(len(schedule.sigmas) - 1, 0, steps, device=schedule.sigmas.device)
    return [*schedule.sigma_of(timesteps).tolist(), 0.0]


def karras_sigmas(schedule: NoiseSchedule, steps: int, rho: float = 7.0) -> list[float]:
    """Noise levels of Karras et al. (arXiv 2206.00364, eq. 5), and 0 at the end: steps + 1 numbers, falling."""
    low, high = float(schedule.sigmas[0]) ** (1 / rho), float(schedule.sigmas[-1]) ** (1 / rho)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return [*((high + ramp * (low - high)) ** rho).tolist(), 0.0]


def exponential_sigmas(schedule: NoiseSchedule, steps: int) -> list[float]:
    """Noise levels that are even in log sigma, and 0 at the end: steps + 1 numbers, falling."""
    low, high = math.log(schedule.sigmas[0]), math.log(schedule.sigmas[-1])
    return [*torch.linspace(high, low, steps, dtype=torch.float64).exp().tolist(), 0.0]


def ddim_sigmas(schedule: NoiseSchedule, steps: int) -> list[float]:
    """Noise levels at A1111's timesteps for DDIM, and 0 at the end: steps + 1 numbers, falling.

    The timesteps begin at 1 and are 1000 // steps apart. If they are one more than the steps, the first of them is left out, since no step
    starts there. If they are several more, for A1111 makes more steps than were asked for, they are thinned out evenly.
    """
    if steps == 1:
        return even_sigmas(schedule, 1)
    timesteps = torch.arange(1, TRAIN_TIMESTEPS + 1, TRAIN_TIMESTEPS // steps).clamp(max=TRAIN_TIMESTEPS - 1).flip(0)
    if len(timesteps) > steps:
        timesteps = timesteps[:-1]
    kept = torch.linspace(0, len(timesteps) - 1, steps).round().long()
    return [*schedule.sigma_of(timesteps[kept].to(schedule.sigmas.device)).tolist(), 0.0]


def lcm_sigmas(schedule: NoiseSchedule, steps: int) -> list[float]:
    """Evenly spaced noise levels between those of the 50 timesteps that LCM is distilled on (arXiv 2310.04378), and 0."""
    apart = TRAIN_TIMESTEPS // _LCM_TIMESTEPS
    return even_sigmas(NoiseSchedule(schedule.alphas_cumprod[apart - 1 :: apart]), steps)


def without_smallest(sigmas_for: Sigmas) -> Sigmas:
    """The noise levels of `sigmas_for` for one step more, without the smallest one above 0."""

    def shortened(schedule: NoiseSchedule, steps: int) -> list[float]:
        return [*sigmas_for(schedule, steps + 1)[:-2], 0.0]

    return shortened


# samplers that make each step from nothing but x


def euler(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """Euler's method (arXiv 2206.00364, algorithm 1 without correction)."""
    return _deterministic(_euler_move, denoise, x, sigmas, progress)


def euler_ancestral(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """Euler's method with fresh noise after each step, scaled as ancestral sampling has it (eta 1)."""
    return _ancestral(_euler_move, denoise, x, sigmas, noise, progress)


def heun(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """Heun's method (arXiv 2206.00364, algorithm 1)."""
    return _deterministic(_heun_move, denoise, x, sigmas, progress)


def dpm2(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """The midpoint method with the midpoint of DPM-Solver-2 (arXiv 2206.00927, algorithm 1)."""
    return _deterministic(_dpm2_move, denoise, x, sigmas, progress)


def dpm2_ancestral(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """`dpm2` with fresh noise after each step, scaled as ancestral sampling has it (eta 1)."""
    return _ancestral(_dpm2_move, denoise, x, sigmas, noise, progress)


def dpmpp_2s_ancestral(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1) with fresh noise after each step (eta 1)."""
    return _ancestral(_dpmpp_2s_move, denoise, x, sigmas, noise, progress)


def ddim(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """DDIM with eta 0 (arXiv 2010.02502, eq. 12 and 13), which is Euler's method in sigma.

    A1111 leaves out the last step of most step counts, and with it the noise of timestep 1 in the picture; here that noise is removed too.
    """
    return euler(denoise, _from_unit_variance(x, sigmas[0]), sigmas, noise, progress)


def lcm(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """Multistep sampling of latent consistency models (arXiv 2310.04378): each step adds fresh noise to the picture itself."""
    for sigma, following in _steps(sigmas, progress):
        x = _noised(denoise(x, sigma), following, noise)
    return x


def dpmpp_sde(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """DPM-Solver++(2S) for the stochastic equation (arXiv 2211.01095), with the midpoint in log sigma, as k-diffusion has it.

    The noise of a whole step and that of its first half come from one Brownian motion in sigma, so they are correlated.
    """
    for sigma, following in _steps(sigmas, progress):
        picture = denoise(x, sigma)
        if following == 0:
            x = picture
            continue
        middle = math.sqrt(sigma * following)
        down, up = _ancestral_levels(sigma, middle)
        first, second = noise() * math.sqrt(sigma - middle), noise() * math.sqrt(middle - following)  # increments of the motion
        half = _towards(x, picture, sigma, down) + first * (up / math.sqrt(sigma - middle))
        down, up = _ancestral_levels(sigma, following)
        x = _towards(x, denoise(half, middle), sigma, down) + (first + second) * (up / math.sqrt(sigma - following))
    return x


# samplers that remember the pictures of earlier steps


def dpmpp_2m(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2) in the variable sigma."""
    known: _Known = []
    for sigma, following in _steps(sigmas, progress):
        known = [*known[-1:], (sigma, denoise(x, sigma))]
        x = _towards(x, _extrapolated(known, following), sigma, following)
    return x


def dpmpp_2m_sde(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """DPM-Solver++(2M) for the stochastic equation (arXiv 2211.01095), of the midpoint type."""
    known: _Known = []
    for sigma, following in _steps(sigmas, progress):
        known = [*known[-1:], (sigma, denoise(x, sigma))]
        down, up = _ancestral_levels(sigma, following)
        x = _noised(_towards(x, _extrapolated(known, following), sigma, down), up, noise)
    return x


def dpmpp_3m_sde(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """k-diffusion's SDE sampler of third order: an exponential integrator, as in arXiv 2211.01095, over the last three pictures."""
    known: _Known = []
    for sigma, following in _steps(sigmas, progress):
        known = [*known[-2:], (sigma, denoise(x, sigma))]
        down, up = _ancestral_levels(sigma, following)
        x = _towards(x, known[-1][1], sigma, down)
        if following > 0 and len(known) > 1:
            x = x + _higher_terms(known, following)
        x = _noised(x, up, noise)
    return x


def unipc(denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    """UniPC of order 3 with B1(h) (arXiv 2302.04867), with lower orders in the first and the last steps.

    The picture that a step asks for also corrects the x that the step before has predicted. A1111 leaves the noise of timestep 0 in the
    picture; here that noise is removed too.
    """
    x = corrected = _from_unit_variance(x, sigmas[0])
    known: _Known = []
    order = 1
    for step, (sigma, following) in enumerate(_steps(sigmas, progress), start=1):
        newest = (sigma, denoise(x, sigma))
        if known:
            corrected = _unified_move(corrected, known[-order:], sigma, [newest])
        known = [*known[-2:], newest]
        order = min(3, step, len(sigmas) - step)
        x = _unified_move(corrected, known[-order:], following, [])
    return x


# what the samplers share


def _steps(sigmas: list[float], progress: Progress) -> Iterator[tuple[float, float]]:
    """Yield the noise levels before and after each step, and report each step once the caller has made it."""
    for step, levels in enumerate(zip(sigmas, sigmas[1:]), start=1):
        yield levels
        progress(step)


def _log(a: float, b: float) -> float:
    """Step in -log sigma from noise a to noise b."""
    return math.log(a / b)


def _ancestral_levels(sigma: float, following: float) -> tuple[float, float]:
    """The noise level to go down to, and the level of the fresh noise that leads back up to `following` (arXiv 2006.11239, eq. 7)."""
    down = following**2 / sigma
    return down, math.sqrt(following**2 - down**2)


def _noised(x: torch.Tensor, level: float, noise: Noise) -> torch.Tensor:
    """x with fresh noise of a level; for level 0 no noise is drawn."""
    return x + noise() * level if level > 0 else x


def _from_unit_variance(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """x = noise * sigma -> noise * sqrt(sigma**2 + 1): for DDIM and UniPC, A1111 starts from the variance of picture plus noise."""
    return x * (math.sqrt(sigma**2 + 1) / sigma)


def _towards(x: torch.Tensor, picture: torch.Tensor, sigma: float, target: float) -> torch.Tensor:
    """x with noise sigma moved to noise `target` along the line to the picture: Euler's step, and DPM-Solver++'s of first order."""
    share = target / sigma
    return share * x + (1 - share) * picture


def _deterministic(move: _Move, denoise: Denoise, x: torch.Tensor, sigmas: list[float], progress: Progress) -> torch.Tensor:
    for sigma, following in _steps(sigmas, progress):
        x = move(denoise, x, sigma, following)
    return x


def _ancestral(move: _Move, denoise: Denoise, x: torch.Tensor, sigmas: list[float], noise: Noise, progress: Progress) -> torch.Tensor:
    for sigma, following in _steps(sigmas, progress):
        down, up = _ancestral_levels(sigma, following)
        x = _noised(move(denoise, x, sigma, down), up, noise)
    return x


def _euler_move(denoise: Denoise, x: torch.Tensor, sigma: float, target: float) -> torch.Tensor:
    return _towards(x, denoise(x, sigma), sigma, target)


def _heun_move(denoise: Denoise, x: torch.Tensor, sigma: float, target: float) -> torch.Tensor:
    picture = denoise(x, sigma)
    trial = _towards(x, picture, sigma, target)
    if target == 0:
        return trial
    slopes = (x - picture) / sigma + (trial - denoise(trial, target)) / target
    return x + slopes * ((target - sigma) / 2)


def _dpm2_move(denoise: Denoise, x: torch.Tensor, sigma: float, target: float) -> torch.Tensor:
    picture = denoise(x, sigma)
    if target == 0:
        return picture
    middle = math.sqrt(sigma * target)
    half = _towards(x, picture, sigma, middle)
    return x + (half - denoise(half, middle)) * ((target - sigma) / middle)


def _dpmpp_2s_move(denoise: Denoise, x: torch.Tensor, sigma: float, target: float) -> torch.Tensor:
    picture = denoise(x, sigma)
    if target == 0:
        return picture
    middle = math.sqrt(sigma * target)
    half = _towards(x, picture, sigma, middle)
    return _towards(x, denoise(half, middle), sigma, target)


def _extrapolated(known: _Known, following: float) -> torch.Tensor:
    """The picture in the middle of the step to `following`, on the line through the last two; the newest in the first and last steps."""
    sigma, picture = known[-1]
    if len(known) == 1 or following == 0:
        return picture
    level, before = known[-2]
    return picture + (picture - before) * (_log(sigma, following) / (2 * _log(level, sigma)))


def _higher_terms(known: _Known, following: float) -> torch.Tensor:
    """Terms of second and, with three known pictures, third order of the step to `following` in `dpmpp_3m_sde`."""
    sigma = known[-1][0]
    step = _log(sigma, following)
    phi_2 = 1 + math.expm1(-2 * step) / (2 * step)
    phi_3 = phi_2 / (2 * step) - 0.5
    lengths = [_log(a, b) / step for (a, _), (b, _) in zip(known, known[1:])]
    slopes = [(after - before) / length for (_, before), (_, after), length in zip(known, known[1:], lengths)]
    if len(slopes) == 1:
        return phi_2 * slopes[0]
    bend = (slopes[1] - slopes[0]) / (lengths[0] + lengths[1])
    return phi_2 * (slopes[1] + bend * lengths[1]) - phi_3 * bend


def _unified_move(x: torch.Tensor, known: _Known, target: float, ahead: _Known) -> torch.Tensor:
    """x moved from the newest level of `known` to `target`: predicted with `ahead` empty, corrected with the picture at `target` in it."""
    sigma, newest = known[-1]
    moved = _towards(x, newest, sigma, target)
    others = [*known[:-1], *ahead]
    if not others:
        return moved
    step = _log(sigma, target)
    ratios = [_log(sigma, level) / step for level, _ in others]
    for (_, picture), ratio, weight in zip(others, ratios, _unified_weights(ratios, step)):
        moved = moved + (picture - newest) * (step * weight / ratio)
    return moved


def _unified_weights(ratios: list[float], step: float) -> list[float]:
    """The weights of the other pictures, for which all terms up to the order agree (arXiv 2302.04867); one half where there is one weight.

    Args:
        ratios: distances of the other levels from the newest one in -log sigma, as shares of `step`.
        step: h, the length of the step.
    """
    if len(ratios) == 1:
        return [0.5]
    values, factorial = [], 1.0
    phi = math.expm1(-step) / -step - 1
    for power in range(1, len(ratios) + 1):
        values.append(phi * factorial / -step)
        factorial *= power + 1
        phi = phi / -step - 1 / factorial
    places = torch.tensor(ratios, dtype=torch.float64)
    powers = torch.stack([places**power for power in range(len(ratios))])
    return torch.linalg.solve(powers, torch.tensor(values, dtype=torch.float64)).tolist()


SAMPLERS: dict[str, tuple[Sampler, Sigmas]] = {
    "DPM++ 2M": (dpmpp_2m, karras_sigmas),
    "DPM++ 2M Karras": (dpmpp_2m, karras_sigmas),
    "DPM++ SDE": (dpmpp_sde, karras_sigmas),
    "DPM++ SDE Karras": (dpmpp_sde, karras_sigmas),
    "DPM++ 2M SDE": (dpmpp_2m_sde, exponential_sigmas),
    "DPM++ 2M SDE Karras": (dpmpp_2m_sde, karras_sigmas),
    "DPM++ 2S a": (dpmpp_2s_ancestral, karras_sigmas),
    "DPM++ 3M SDE": (dpmpp_3m_sde, without_smallest(exponential_sigmas)),
    "DPM++ 3M SDE Karras": (dpmpp_3m_sde, without_smallest(karras_sigmas)),
    "Euler a": (euler_ancestral, even_sigmas),
    "Euler": (euler, even_sigmas),
    "Heun": (heun, even_sigmas),
    "DPM2": (dpm2, without_smallest(karras_sigmas)),
    "DPM2 a": (dpm2_ancestral, without_smallest(karras_sigmas)),
    "DDIM": (ddim, ddim_sigmas),
    "UniPC": (unipc, without_smallest(even_sigmas)),
    "LCM": (lcm, lcm_sigmas),
}
#: Samplers that ask twice in a step. A1111 counts these calls as the steps of `[a:b:10]`.
TWO_CALLS = ("DPM++ SDE", "DPM++ SDE Karras", "DPM++ 2S a", "Heun", "DPM2", "DPM2 a")
