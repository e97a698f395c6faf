"""Attention and normalisation shared by the UNet, the VAE and the text encoders.

Legend: b batch, c channels, h w latent size, l tokens, d width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, *, causal: bool = False) -> torch.Tensor:
    """Multi-head scaled dot-product attention.

    Args:
        q: [b, l, d]; k, v: [b, m, d].
        heads: number of heads; d is a multiple of it.
        causal: each token sees itself and the tokens before; a flag instead of a mask, because fused kernels take no mask.

    Returns:
        [b, l, d]
    """
    b, l, d = q.shape
    q, k, v = (x.view(b, -1, heads, d // heads).transpose(1, 2) for x in (q, k, v))  # b heads l d/heads
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).reshape(b, l, d)


class GroupNorm(nn.GroupNorm):
    """32 groups, as every layer of Stable Diffusion has."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(32, channels, eps=eps)


def tokens_from_map(x: torch.Tensor) -> torch.Tensor:
    """[b, c, h, w] -> [b, h*w, c]"""
    return x.flatten(2).transpose(1, 2)


def map_from_tokens(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[b, h*w, c] -> [b, c, h, w]"""
    return x.transpose(1, 2).unflatten(2, (height, width))
