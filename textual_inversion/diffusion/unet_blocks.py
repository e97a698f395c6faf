"""The layers of the frozen denoiser, with the module names of LDM checkpoints; `unet` builds the denoiser of them.

Legend: b batch, c channels, h w latent size, l tokens, d width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from textual_inversion.diffusion import kernels
from textual_inversion.diffusion.layers import GroupNorm, Joined, attention, map_from_tokens, pointwise, tokens_from_map

if TYPE_CHECKING:
    from textual_inversion.diffusion.unet import UNetConfig


@dataclass(frozen=True)
class Inputs:
    """Projections of what all blocks share, made at once; each block takes the next one.

    Attributes:
        shifts: for each residual block, its projected time embedding with the bias of its first convolution, [b, out].
        pairs: for each transformer block, keys and values [b, l, c] of the conditioning.
    """

    shifts: Iterator[torch.Tensor]
    pairs: Iterator[tuple[torch.Tensor, torch.Tensor]]

    def take(self, block: nn.Module) -> tuple[list[torch.Tensor], list[tuple[torch.Tensor, torch.Tensor]]]:
        """What `block` takes of both."""
        layers = list(block.modules())
        shifts = [next(self.shifts) for layer in layers if isinstance(layer, ResBlock)]
        return shifts, [next(self.pairs) for layer in layers if isinstance(layer, TransformerBlock)]


class ResBlock(nn.Module):
    """Two convolutions with the time embedding added in between."""

    def __init__(self, in_channels: int, out_channels: int, time_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, out_channels))
        # index 2 is LDM's dropout, which never acts on a frozen model; it keeps the convolution's name at 3
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels), nn.SiLU(), nn.Identity(), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """x [b, in, h, w] -> [b, out, h, w]"""
        first_norm: Any = self.in_layers[0]
        norm: Any = self.out_layers[0]
        first: Any = self.in_layers[2]
        last: Any = self.out_layers[3]
        x, h = kernels.group_norm_of_residual(x, first_norm, silu=True)
        h = F.conv2d(h, first.weight, None, padding=1)  # its bias is in the shift
        h = kernels.group_norm(h, norm, silu=True, shift=next(inputs.shifts))
        skip = pointwise(self.skip_connection, x) if isinstance(self.skip_connection, nn.Conv2d) else x
        return kernels.add_convolution(skip, h, last)


class Attention(nn.Module):
    """The products around an attention, by their LDM names."""

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels), nn.Identity())


class CrossAttention(Attention):
    """Attention of picture tokens to the conditioning."""

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """x [b, h*w, c], keys and values of the conditioning [b, l, c] -> [b, h*w, c]"""
        return self.to_out(attention(self.to_q(x), keys, values, self.heads))


class SelfAttention(Attention):
    """Attention of picture tokens to themselves."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, channels, heads)
        self.weights = Joined((self.to_q, self.to_k, self.to_v))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, h*w, c] -> [b, h*w, c]"""
        q, k, v = F.linear(x, self.weights()).chunk(3, dim=-1)  # b h*w c each
        return self.to_out(attention(q, k, v, self.heads))


class GEGLU(nn.Module):
    """A linear layer gated by the GELU of another (arXiv 2002.05202)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, hidden * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, l, c] -> [b, l, hidden]"""
        return kernels.geglu(self.proj(x))


class FeedForward(nn.Module):
    """GEGLU, then a linear layer back to the input channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, channels * 4), nn.Identity(), nn.Linear(channels * 4, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, l, c] -> [b, l, c]"""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the conditioning, feed-forward."""

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.attn1 = SelfAttention(channels, heads)
        self.ff = FeedForward(channels)
        self.attn2 = CrossAttention(channels, context_dim, heads)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(channels), nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(self, x: torch.Tensor, delta: torch.Tensor | None, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """x [b, h*w, c] and what is still to be added to it -> the same two; whoever comes next adds them in the kernel of its norm."""
        x, normed = kernels.add_layer_norm(x, delta, self.norm1)
        x, normed = kernels.add_layer_norm(x, self.attn1(normed), self.norm2)
        x, normed = kernels.add_layer_norm(x, self.attn2(normed, *next(inputs.pairs)), self.norm3)
        return x, self.ff(normed)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a map, between two projections."""

    def __init__(self, channels: int, config: UNetConfig, depth: int) -> None:
        super().__init__()
        self.linear = config.linear_projection
        self.norm = GroupNorm(channels, eps=1e-6)
        self.proj_in = self._projection(channels)
        heads = config.heads(channels)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, config.context_dim, heads) for _ in range(depth))
        self.proj_out = self._projection(channels)

    def _projection(self, channels: int) -> Any:
        return nn.Linear(channels, channels) if self.linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        """x [b, c, h, w] -> [b, c, h, w]"""
        height, width = x.shape[-2:]
        x, h = kernels.group_norm_of_residual(x, self.norm)
        h = self.proj_in(tokens_from_map(h)) if self.linear else tokens_from_map(pointwise(self.proj_in, h))  # b h*w c
        delta = None
        for block in self.transformer_blocks:
            h, delta = block(h, delta, inputs)
        h = h if delta is None else h + delta
        if self.linear:
            return x + map_from_tokens(self.proj_out(h), height, width)
        return x + pointwise(self.proj_out, map_from_tokens(h, height, width))


class Downsample(nn.Module):
    """Halves the map with a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, c, h, w] -> [b, c, ceil(h/2), ceil(w/2)]"""
        return self.op(x)


class Upsample(nn.Module):
    """Doubles the map, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """[b, c, h, w] -> [b, c, *size]; `size` is the map that joins next, so odd sizes fit too."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class Block(nn.ModuleList):
    """A sequence of layers; each gets the arguments for its type."""

    def forward(self, x: torch.Tensor, inputs: Inputs, size: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """x [b, c, h, w] -> [b, c', h', w']"""
        for layer in self:
            if isinstance(layer, (ResBlock, SpatialTransformer)):
                x = layer(x, inputs)
            elif isinstance(layer, Upsample):
                x = layer(x, size)
            else:
                x = layer(x)
        return x
