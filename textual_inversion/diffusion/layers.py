"""Attention, normalisation and joined weights, shared by the UNet, the VAE and the text encoders.

Legend: b batch, c channels, h w latent size, l tokens, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

#: The function behind `attention`; an estimate of memory puts one in its place that only allocates. Of this thread only.
product_attention: ContextVar[Callable[..., torch.Tensor]] = ContextVar("product_attention", default=F.scaled_dot_product_attention)


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
    out = product_attention.get()(q, k, v, is_causal=causal)
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


def pointwise(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution of x [b, in, h, w] -> [b, out, h, w].

    On a channels_last map it is a matrix product of the tokens, which adds the bias in its own kernel. Elsewhere it stays a convolution,
    because the tokens of such a map would have to be copied.
    """
    if not x.is_contiguous(memory_format=torch.channels_last):
        return layer(x)
    tokens = F.linear(tokens_from_map(x), layer.weight.flatten(1), layer.bias)  # b h*w out
    return map_from_tokens(tokens, x.shape[-2], x.shape[-1])


class Joined:
    """Parameters of several layers one under the other, for one product instead of many.

    The parameters become views of the joined tensor, so it takes no memory of its own. They can be replaced or moved at any time; the
    next call then joins them anew. Parameters that learn are joined in each call, so that each gets its gradient.

    Args:
        layers: the layers, in order; their parameters agree in all sizes but the first.
        name: which of their parameters.
    """

    def __init__(self, layers: Iterable[nn.Module], name: str = "weight") -> None:
        self.layers, self.name = list(layers), name
        self._joined: torch.Tensor | None = None

    @property
    def sizes(self) -> list[int]:
        """Rows of each parameter."""
        return [len(part) for part in self._parts()]

    def __call__(self) -> torch.Tensor:
        """The joined tensor [rows of all, ..]."""
        parts = self._parts()
        if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
            return torch.cat(parts)
        if self._joined is None or not self._holds(self._joined, parts):
            self._joined = self._join(parts)
        return self._joined

    def _parts(self) -> list[torch.Tensor]:
        return [getattr(layer, self.name) for layer in self.layers]

    @staticmethod
    def _holds(joined: torch.Tensor, parts: list[torch.Tensor]) -> bool:
        """Whether the parameters are still views of `joined`; not by address, because on the meta device every address is 0."""
        storage, start = joined.untyped_storage()._cdata, 0
        for part in parts:
            if part.untyped_storage()._cdata != storage or part.storage_offset() != start or part.dtype != joined.dtype:
                return False
            start += part.numel()
        return True

    @staticmethod
    def _join(parts: list[torch.Tensor]) -> torch.Tensor:
        # tensors made in inference mode could never be used in training
        with torch.inference_mode(False), torch.no_grad():
            joined = torch.cat([part.detach() for part in parts])
            for part, view in zip(parts, joined.split([len(part) for part in parts])):
                part.data = view
        return joined


class FusedModule(nn.Module):
    """A module that joins its weights whenever they are loaded, moved or converted, before a step needs them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(_fuse_loaded)

    def fuse(self) -> None:
        """Join the weights now, layer by layer; the weights of one group are held twice for that moment."""
        for module in self.modules():
            for part in vars(module).values():
                if isinstance(part, Joined):
                    with torch.no_grad():
                        part()

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        module = super()._apply(fn, *args, **kwargs)
        self.fuse()
        return module


def _fuse_loaded(module: FusedModule, _: object) -> None:
    module.fuse()
