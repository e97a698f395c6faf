"""The noise schedule and the prediction types of the UNet.

Legend: b batch, c channels, h w latent size.
"""

from __future__ import annotations

import torch

TRAIN_TIMESTEPS = 1000


class NoiseSchedule:
    """The shares of signal and noise at each of the 1000 timesteps.

    Args:
        alphas_cumprod: [1000], the share of the signal's variance, falling from about 1 to about 0.
    """

    def __init__(self, alphas_cumprod: torch.Tensor) -> None:
        self.alphas_cumprod = alphas_cumprod.detach().float().clone()
        self.signal = self.alphas_cumprod.sqrt()  # [1000]
        self.spread = (1 - self.alphas_cumprod).sqrt()  # [1000]
        self.sigmas = self.spread / self.signal  # [1000], rising

    @classmethod
    def scaled_linear(cls, start: float = 0.00085, end: float = 0.012) -> NoiseSchedule:
        """Stable Diffusion's schedule: the square root of beta is linear, from `start` to `end`."""
        betas = torch.linspace(start**0.5, end**0.5, TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
        return cls((1 - betas).cumprod(0).float())

    def with_zero_terminal_snr(self, least_signal: float) -> NoiseSchedule:
        """The schedule stretched so that its last timestep is pure noise (arXiv 2305.08891, algorithm 1).

        Args:
            least_signal: the share of the signal's variance that is left there, so that sigma stays finite.
        """
        first, last = self.signal[0], self.signal[-1]
        signal = (self.signal - last) * (first / (first - last))
        return NoiseSchedule(signal.square().clamp(min=least_signal))

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule on another device."""
        return NoiseSchedule(self.alphas_cumprod.to(device))

    def mix(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Noisy latents: latents [b, c, h, w], noise [b, c, h, w], timesteps int64 [b] -> [b, c, h, w] (arXiv 2006.11239, eq. 4)."""
        return _at(self.signal, timesteps) * latents + _at(self.spread, timesteps) * noise

    def timestep_of(self, sigma: torch.Tensor) -> torch.Tensor:
        """The fractional timestep whose noise is `sigma` (any shape), linear in log sigma between timesteps."""
        logs = self.sigmas.log()
        wanted = sigma.log().clamp(logs[0], logs[-1])
        low = (torch.searchsorted(logs, wanted.contiguous(), right=True) - 1).clamp(0, len(logs) - 2)
        share = (wanted - logs[low]) / (logs[low + 1] - logs[low])
        return low + share.clamp(0, 1)

    def sigma_of(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Noise at fractional timesteps (any shape), linear in log sigma between timesteps."""
        logs = self.sigmas.log()
        low = timesteps.floor().long().clamp(0, len(logs) - 2)
        share = timesteps - low
        return (logs[low] * (1 - share) + logs[low + 1] * share).exp()


def _at(values: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    return values[timesteps][:, None, None, None]


class Epsilon:
    """The UNet predicts the noise (arXiv 2006.11239): SD1, SD2-base, SDXL."""

    name = "epsilon"

    def target(self, schedule: NoiseSchedule, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What training asks the UNet for, [b, c, h, w]."""
        return noise

    def denoised(self, x: torch.Tensor, output: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The picture behind x = picture + sigma * noise, given the UNet's output; all [b, c, h, w], sigma a scalar."""
        return x - sigma * output


class VPrediction:
    """The UNet predicts v = signal * noise - spread * picture (arXiv 2202.00512, appendix D): SD2 at 768, some SDXL."""

    name = "v_prediction"

    def target(self, schedule: NoiseSchedule, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What training asks the UNet for, [b, c, h, w]."""
        return _at(schedule.signal, timesteps) * noise - _at(schedule.spread, timesteps) * latents

    def denoised(self, x: torch.Tensor, output: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The picture behind x = picture + sigma * noise, given the UNet's output; all [b, c, h, w], sigma a scalar."""
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()


Prediction = Epsilon | VPrediction
