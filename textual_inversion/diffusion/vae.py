"""The frozen autoencoder of Stable Diffusion, with the module names of LDM checkpoints.

Architecture: Rombach et al. (arXiv 2112.10752). Legend: b batch, c latent channels, h w latent size, H W picture size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from textual_inversion.diffusion.layers import GroupNorm, attention, map_from_tokens, tokens_from_map

#: Factor of latents in SD1 and SD2: it gives them a variance of about 1.
SD_LATENT_SCALE = 0.18215
SDXL_LATENT_SCALE = 0.13025  # in SDXL


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of a VAE; the defaults are SD1.5's.

    Attributes:
        base_channels: channels of the first level.
        channel_mult: channels of each level, as multiples of `base_channels`; each further level halves the picture.
        num_res_blocks: residual blocks on each level of the encoder (the decoder has one more).
        latent_channels: channels c of the latents.
    """

    base_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    latent_channels: int = 4

    @property
    def downscale(self) -> int:
        """Picture pixels for each latent pixel and side (8 for Stable Diffusion)."""
        return 2 ** (len(self.channel_mult) - 1)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> VAEConfig:
        """Read the sizes from a VAE's tensor shapes (LDM names without prefix). A missing name raises `KeyError` with that name."""
        base = shapes["encoder.conv_in.weight"][0]
        mult: list[int] = []
        while f"encoder.down.{len(mult)}.block.0.conv1.weight" in shapes:
            mult.append(shapes[f"encoder.down.{len(mult)}.block.0.conv1.weight"][0] // base)
        blocks = 0
        while f"encoder.down.0.block.{blocks}.conv1.weight" in shapes:
            blocks += 1
        return cls(base, tuple(mult), blocks, shapes["decoder.conv_in.weight"][1])


class ResnetBlock(nn.Module):
    """Two convolutions around a skip connection."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, in, H, W] -> [b, out, H, W]"""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """One head of attention over all positions of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> [b, c, h, w]"""
        h = self.norm(x)
        q, k, v = (tokens_from_map(layer(h)) for layer in (self.q, self.k, self.v))
        return x + self.proj_out(map_from_tokens(attention(q, k, v, heads=1), x.shape[-2], x.shape[-1]))


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> [b, c, h, w]"""
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Halves the map; the padding is on the right and below only, as LDM has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, H, W] -> [b, c, H/2, W/2]"""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the map, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> [b, c, 2h, 2w]"""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one size, and the change to the next size where there is one."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in zip(channels, channels[1:]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, H, W] -> [b, c', H', W']"""
        for layer in self.children():
            for block in layer if isinstance(layer, nn.ModuleList) else (layer,):
                x = block(x)
        return x


class Encoder(nn.Module):
    """Pictures to the moments of latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * mult for mult in config.channel_mult]
        self.conv_in = nn.Conv2d(3, config.base_channels, 3, padding=1)
        self.down = nn.ModuleList()
        before = config.base_channels
        for index, width in enumerate(widths):
            level = Level([before] + [width] * config.num_res_blocks)
            if index + 1 < len(widths):
                level.downsample = Downsample(width)
            self.down.append(level)
            before = width
        self.mid = Middle(before)
        self.norm_out = GroupNorm(before, eps=1e-6)
        self.conv_out = nn.Conv2d(before, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, 3, H, W] -> [b, 2c, h, w]"""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_channels * mult for mult in config.channel_mult]
        before = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, before, 3, padding=1)
        self.mid = Middle(before)
        levels: list[Level] = []
        for index, width in reversed(list(enumerate(widths))):
            level = Level([before] + [width] * (config.num_res_blocks + 1))
            if index:
                level.upsample = Upsample(width)
            levels.insert(0, level)  # LDM counts the levels from the picture's side
            before = width
        self.up = nn.ModuleList(levels)
        self.norm_out = GroupNorm(before, eps=1e-6)
        self.conv_out = nn.Conv2d(before, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> [b, 3, H, W]"""
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VAE(nn.Module):
    """Pictures to latents and back. Latents that leave and enter here are multiplied by `scale_factor`."""

    def __init__(self, config: VAEConfig, scale_factor: float = SD_LATENT_SCALE) -> None:
        super().__init__()
        self.config = config
        self.scale_factor = scale_factor
        c = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * c, 2 * c, 1)
        self.post_quant_conv = nn.Conv2d(c, c, 1)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.quant_conv.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.quant_conv.weight.dtype

    def encode_moments(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of the latents, not yet scaled.

        Args:
            pixels: [b, 3, H, W] from -1 to 1; H and W are multiples of 8.

        Returns:
            mean [b, c, h, w] and log variance [b, c, h, w], the latter within -30 to 20.
        """
        mean, logvar = self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents [b, c, h, w] -> pictures [b, 3, H, W], about -1 to 1."""
        return self.decoder(self.post_quant_conv(latents / self.scale_factor))
