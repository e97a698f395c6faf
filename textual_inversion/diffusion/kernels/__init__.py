"""What the frozen models do between their large products: in plain PyTorch, or in fused Triton kernels where a CUDA device has Triton.

The kernels know no gradient of weights; a layer whose weights learn takes the plain way.
Legend: b batch, c channels, h w latent size, d width, f hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
import torch.nn.functional as F

_TYPES = (torch.float16, torch.bfloat16, torch.float32)
_forced: ContextVar[bool | None] = ContextVar("forced", default=None)  # of this thread only


def status(device: torch.device | str) -> str:
    """Why `device` has no fused kernels, in one sentence; empty where it has them.

    The first call for a device tests them there, which takes seconds; call it before a CUDA graph is captured.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return f"Fused kernels need a CUDA device, and this is {device.type}."
    return _tested(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _tested(index: int) -> str:
    try:
        from textual_inversion.diffusion.kernels.self_test import difference
    except Exception as error:  # noqa: BLE001 - a broken Triton raises anything
        return f"Triton cannot be used ({error})."
    try:
        return difference(torch.device("cuda", index))
    except Exception as error:  # noqa: BLE001 - the compiler, the driver or a missing C compiler may fail in any way
        return f"The fused kernels fail here ({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__})."


@contextmanager
def force(way: str) -> Iterator[None]:
    """Take `plain` or `triton` on every device, for tests; Triton computes on the CPU with TRITON_INTERPRET=1."""
    token = _forced.set({"plain": False, "triton": True}[way])
    try:
        yield
    finally:
        _forced.reset(token)


def is_fused(x: torch.Tensor, *weights: torch.Tensor | None) -> bool:
    """Whether `x` takes the fused kernels, with weights that do not learn."""
    if any(weight is not None and weight.requires_grad for weight in weights):
        return False
    forced = _forced.get()
    if forced is not None:
        return forced
    return x.is_cuda and x.dtype in _TYPES and not status(x.device)


def group_norm(x: torch.Tensor, norm: torch.nn.GroupNorm, *, silu: bool = False, shift: torch.Tensor | None = None) -> torch.Tensor:
    """Group norm (arXiv 1803.08494) with what stands around it.

    Args:
        x: [b, c, h, w].
        norm: its weights, groups and epsilon.
        silu: apply x·sigmoid(x) after it.
        shift: [b, c], added to x before it.

    Returns:
        [b, c, h, w]; channels_last from the fused kernels.
    """
    if is_fused(x, norm.weight, norm.bias):
        return _fused_group_norm(x, norm, silu, shift)[1]
    if shift is not None:
        x = x + shift[:, :, None, None]
    x = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(x) if silu else x


def group_norm_of_residual(x: torch.Tensor, norm: torch.nn.GroupNorm, *, silu: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(x, group_norm(x)) for a block that adds to x: the fused backward adds both gradients of x in the same kernel."""
    if is_fused(x, norm.weight, norm.bias):
        return _fused_group_norm(x, norm, silu, None)
    return x, group_norm(x, norm, silu=silu)


def _fused_group_norm(
    x: torch.Tensor, norm: torch.nn.GroupNorm, silu: bool, shift: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    from textual_inversion.diffusion.kernels.fused_group_norm import GroupNormFunction

    return GroupNormFunction.apply(x, norm.weight, norm.bias, shift, norm.num_groups, norm.eps, silu)


def add_layer_norm(x: torch.Tensor, delta: torch.Tensor | None, norm: torch.nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual addition and layer norm (arXiv 1607.06450): x [.., d], delta [.., d] or None -> (x + delta, norm(x + delta)).

    The bias of the product before stays in that product, whose epilogue adds it without a kernel of its own.
    """
    if is_fused(x, norm.weight, norm.bias):
        from textual_inversion.diffusion.kernels.fused_layer_norm import AddLayerNormFunction

        return AddLayerNormFunction.apply(x, delta, norm.weight, norm.bias, norm.eps)
    if delta is not None:
        x = x + delta
    return x, F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def geglu(h: torch.Tensor) -> torch.Tensor:
    """[.., 2f] -> [.., f]: the first half times the exact GELU of the second (arXiv 2002.05202)."""
    if is_fused(h):
        from textual_inversion.diffusion.kernels.fused_pointwise import GegluFunction

        return GegluFunction.apply(h)
    value, gate = h.chunk(2, dim=-1)
    return value * F.gelu(gate)


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """CLIP-L's x·sigmoid(1.702 x) (arXiv 1606.08415), any shape."""
    if is_fused(x):
        from textual_inversion.diffusion.kernels.fused_pointwise import ActivationFunction

        return ActivationFunction.apply(x, True)
    return x * torch.sigmoid(1.702 * x)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """OpenCLIP's x·Φ(x), exact, any shape."""
    if is_fused(x):
        from textual_inversion.diffusion.kernels.fused_pointwise import ActivationFunction

        return ActivationFunction.apply(x, False)
    return F.gelu(x)


def add_convolution(x: torch.Tensor, h: torch.Tensor, conv: torch.nn.Conv2d) -> torch.Tensor:
    """x + conv(h): x [b, c, h, w], h [b, c', h, w] -> [b, c, h, w]; the fused addition takes the bias along."""
    if conv.bias is not None and is_fused(x, conv.weight, conv.bias):
        from textual_inversion.diffusion.kernels.fused_pointwise import AddFunction

        delta = F.conv2d(h, conv.weight, None, conv.stride, conv.padding)
        return AddFunction.apply(x, delta, conv.bias)
    return x + conv(h)


def join_channels(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """[b, c, h, w] and [b, c', h, w] -> [b, c + c', h, w]; the fused backward writes dense gradients, which convolutions need."""
    if is_fused(x):
        from textual_inversion.diffusion.kernels.fused_pointwise import JoinFunction

        return JoinFunction.apply(x, y)
    return torch.cat((x, y), dim=1)
