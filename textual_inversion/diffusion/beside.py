"""What some UNets see beside the noisy latents: for inpainting a mask and a picture, for instruct-pix2pix the picture to change.

A word is learned and drawn from nothing but text. Such a UNet then sees what it was trained to see where there is no picture.
Legend: b batch, c channels, h w latent size.
"""

from __future__ import annotations

from typing import Protocol

import torch

from textual_inversion.diffusion.vae import VAE

LATENTS = 4  # channels of the noisy latents
#: Channels of a UNet -> what kind of checkpoint it is of.
INPUT_KINDS = {4: "", 9: "an inpainting checkpoint", 8: "an instruct-pix2pix checkpoint"}
_PREPARED = {
    9: "it learns and draws with the whole picture masked, as a WebUI's txt2img does",
    8: "it learns and draws without a picture to change, so zeros stand in its place",
}


def note_on_inputs(name: str, channels: int) -> str:
    """A sentence on what stands for the missing picture; empty for a UNet that sees none.

    Args:
        name: of the checkpoint's file.
        channels: of the UNet's input.
    """
    return f"{name} is {INPUT_KINDS[channels]}: {_PREPARED[channels]}." if INPUT_KINDS.get(channels) else ""


class Beside(Protocol):
    """Adds to noisy latents what the UNet sees beside them."""

    def __call__(self, noisy: torch.Tensor) -> torch.Tensor:
        """[b, 4, h, w] -> [b, channels of the UNet, h, w]"""


def beside_of(channels: int, vae: VAE) -> Beside:
    """What a UNet of so many channels sees beside the noisy latents.

    Args:
        channels: a key of `INPUT_KINDS`.
        vae: encodes the masked picture; it may move to another device meanwhile.
    """
    if channels == 9:
        return WholeMask(vae)
    return NoPicture() if channels == 8 else _nothing


def _nothing(noisy: torch.Tensor) -> torch.Tensor:
    return noisy


class NoPicture:
    """instruct-pix2pix without a picture: zeros, which it saw for a part of its training (arXiv 2211.09800, section 3.2.1)."""

    def __call__(self, noisy: torch.Tensor) -> torch.Tensor:
        """[b, 4, h, w] -> [b, 8, h, w]"""
        return torch.cat((noisy, torch.zeros_like(noisy)), dim=1)


class WholeMask:
    """Inpainting where everything is masked: ones, then the latents of a picture that is masked to mid-grey everywhere.

    The latents are the mean that the VAE gives. They are not the same at the picture's edges, so each size is encoded, once.
    """

    def __init__(self, vae: VAE) -> None:
        self.vae = vae
        self._known: dict[tuple[int, int], torch.Tensor] = {}  # size (h, w) -> fp32 [1, 5, h, w]

    def __call__(self, noisy: torch.Tensor) -> torch.Tensor:
        """[b, 4, h, w] -> [b, 9, h, w]"""
        height, width = noisy.shape[-2:]
        known = self._known.get((height, width))
        if known is None or known.device != noisy.device:
            known = self._known[height, width] = self._encoded(height, width).to(noisy.device)
        return torch.cat((noisy, known.to(noisy.dtype).expand(len(noisy), -1, -1, -1)), dim=1)

    @torch.no_grad()
    def _encoded(self, height: int, width: int) -> torch.Tensor:
        scale, like = self.vae.config.downscale, self.vae.quant_conv.weight
        grey = like.new_zeros(1, 3, height * scale, width * scale)  # the pixels run from -1 to 1
        mean = self.vae.encode_moments(grey)[0].float() * self.vae.scale_factor
        return torch.cat((torch.ones_like(mean[:, :1]), mean), dim=1)
