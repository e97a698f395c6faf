# mypy: ignore-errors
# ruff: noqa: PLR0913
"""Fused element-wise work: Triton kernels and their place in autograd.

Legend: b batch, c channels, h w latent size, f hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from textual_inversion.diffusion.kernels.language import cdiv, jit, tl
from textual_inversion.diffusion.kernels.launch import launch

_FLAT = 1024  # numbers of a program: 8 a thread at 4 warps, so that 77 * 3072 of a text encoder's are 231 programs
_GATES = {"ROWS": 8, "COLUMNS": 256}  # the hidden widths of these models are multiples of 256; 64 tokens of 5120 are 160 programs
_MAP = {"ROWS": 32, "COLUMNS": 64}  # channels are multiples of 64; a row of 64 is one cache line in half precision


@jit()
def gelu(z):
    """z · Φ(z), exact."""
    return 0.5 * z * (1 + tl.math.erf(z * 0.7071067811865476))


@jit()
def gelu_slope(z):
    """Derivative of `gelu`: Φ(z) + z · φ(z)."""
    return 0.5 * (1 + tl.math.erf(z * 0.7071067811865476)) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)


@jit("size")
def activation_forward(x, y, size, QUICK: tl.constexpr, BLOCK: tl.constexpr):
    """y = act(x): z · sigmoid(1.702 z), or GELU."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(x + at, mask=at < size, other=0.0).to(tl.float32)
    value = z / (1 + tl.exp(-1.702 * z)) if QUICK else gelu(z)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=at < size)


@jit("size")
def activation_backward(x, dy, dx, size, QUICK: tl.constexpr, BLOCK: tl.constexpr):
    """dx = dy · act'(x)"""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(x + at, mask=at < size, other=0.0).to(tl.float32)
    if QUICK:
        gate = 1 / (1 + tl.exp(-1.702 * z))
        slope = gate * (1 + 1.702 * z * (1 - gate))
    else:
        slope = gelu_slope(z)
    value = tl.load(dy + at, mask=at < size, other=0.0).to(tl.float32) * slope
    tl.store(dx + at, value.to(dx.dtype.element_ty), mask=at < size)


@jit("rows")
def geglu_forward(h, y, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """y [rows, width] = first half · gelu(second half) of h [rows, 2 width]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (col < width)
    value = tl.load(h + row * 2 * width + col, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(h + row * 2 * width + width + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * width + col, (value * gelu(gate)).to(y.dtype.element_ty), mask=inside)


@jit("rows")
def geglu_backward(h, dy, dh, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Gradient of both halves of h [rows, 2 width]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (col < width)
    at = row * 2 * width + col
    value = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(h + at + width, mask=inside, other=0.0).to(tl.float32)
    slope = tl.load(dy + row * width + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(dh + at, (slope * gelu(gate)).to(dh.dtype.element_ty), mask=inside)
    tl.store(dh + at + width, (slope * value * gelu_slope(gate)).to(dh.dtype.element_ty), mask=inside)


@jit("rows")
def add_kernel(x, delta, bias, y, rows, channels, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """y = x + delta + bias over [rows, channels]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (col < channels)
    value = tl.load(x + row * channels + col, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(delta + row * channels + col, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + col, mask=col < channels, other=0.0).to(tl.float32)
    tl.store(y + row * channels + col, value.to(y.dtype.element_ty), mask=inside)


@jit("rows")
def parts_kernel(joined, first, second, rows, left, right, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Cut [rows, left + right] into [rows, left] and [rows, right]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    col = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    value = tl.load(joined + row * (left + right) + col, mask=(row < rows) & (col < left + right), other=0.0)
    tl.store(first + row * left + col, value, mask=(row < rows) & (col < left))
    tl.store(second + row * right + col - left, value, mask=(row < rows) & (col >= left) & (col < left + right))


def _grid(rows: int, columns: int, tile: dict[str, int]) -> tuple[int, int]:
    return cdiv(rows, tile["ROWS"]), cdiv(columns, tile["COLUMNS"])


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class ActivationFunction(torch.autograd.Function):
    """CLIP's activation of x, any shape: the quick GELU or the exact one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, quick: bool) -> torch.Tensor:
        """x -> act(x)"""
        x = x.contiguous()
        y = torch.empty_like(x)
        launch(activation_forward, (cdiv(x.numel(), _FLAT),), x, y, x.numel(), QUICK=quick, BLOCK=_FLAT)
        ctx.save_for_backward(x)
        ctx.quick = quick
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Gradient of x."""
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x)
        launch(activation_backward, (cdiv(x.numel(), _FLAT),), x, dy.contiguous(), dx, x.numel(), QUICK=ctx.quick, BLOCK=_FLAT)
        return dx, None


class GegluFunction(torch.autograd.Function):
    """h [.., 2f] -> [.., f]"""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor) -> torch.Tensor:
        """First half times GELU of the second."""
        h = h.contiguous()
        width = h.shape[-1] // 2
        rows, y = h.numel() // (2 * width), h.new_empty((*h.shape[:-1], width))
        launch(geglu_forward, _grid(rows, width, _GATES), h, y, rows, width, **_GATES)
        ctx.save_for_backward(h)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        """Gradient of h."""
        (h,) = ctx.saved_tensors
        width, dh = h.shape[-1] // 2, torch.empty_like(h)
        rows = h.numel() // (2 * width)
        launch(geglu_backward, _grid(rows, width, _GATES), h, dy.contiguous(), dh, rows, width, **_GATES)
        return dh


class AddFunction(torch.autograd.Function):
    """x + delta + bias of maps [b, c, h, w] with a frozen bias [c]; the gradient of both maps is the one that comes in."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, delta: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The sum."""
        x, delta = _channels_last(x), _channels_last(delta)
        b, c, h, w = x.shape
        y = torch.empty_like(x)
        launch(add_kernel, _grid(b * h * w, c, _MAP), x, delta, bias, y, b * h * w, c, **_MAP)
        return y

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        """The same for both."""
        for_x, for_delta = ctx.needs_input_grad[:2]
        return dy if for_x else None, dy if for_delta else None, None


class JoinFunction(torch.autograd.Function):
    """Two maps [b, c, h, w] and [b, c', h, w] -> [b, c + c', h, w]; the backward writes two dense gradients in one kernel."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Join the channels."""
        ctx.widths = x.shape[1], y.shape[1]
        return torch.cat((x, y), dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Cut the gradient."""
        if not all(ctx.needs_input_grad):
            parts = gradient.split(ctx.widths, dim=1)
            return tuple(part if needed else None for part, needed in zip(parts, ctx.needs_input_grad))
        gradient, (left, right) = _channels_last(gradient), ctx.widths
        b, _, h, w = gradient.shape
        first, second = (
            torch.empty((b, width, h, w), dtype=gradient.dtype, device=gradient.device, memory_format=torch.channels_last)
            for width in ctx.widths
        )
        grid = _grid(b * h * w, left + right, _MAP)
        launch(parts_kernel, grid, gradient, first, second, b * h * w, left, right, **_MAP)
        return first, second
