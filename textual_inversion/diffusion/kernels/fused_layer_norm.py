# mypy: ignore-errors
# ruff: noqa: PLR0913
"""The fused residual addition and layer norm: Triton kernels and their place in autograd.

Legend: l rows, d width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from textual_inversion.diffusion.kernels.language import jit, power_of_two, tl
from textual_inversion.diffusion.kernels.launch import launch

# One row a program: a row of 320 to 2048 fits 4 warps (at most 16 numbers a thread), and even 77 rows keep most of a card's
# multiprocessors busy.


@jit("width")
def forward_kernel(
    x, delta, weight, bias, total, y, means, rstds, width, eps, ADD: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """total = x + delta and y = norm(total) of one row."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, WIDTH)
    inside = col < width
    at = row * width + col
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        # rounded before the sums, because the backward reads the stored numbers
        rounded = (value + tl.load(delta + at, mask=inside, other=0.0).to(tl.float32)).to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    mean = tl.sum(value, axis=0) / width
    away = tl.where(inside, value - mean, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(away * away, axis=0) / width + eps)
    factor = tl.load(weight + col, mask=inside, other=0.0).to(tl.float32)
    result = away * rstd * factor + tl.load(bias + col, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + at, result.to(y.dtype.element_ty), mask=inside)
    tl.store(means + row, mean)
    tl.store(rstds + row, rstd)


@jit("width")
def backward_kernel(
    total, weight, means, rstds, dy, residual, dx, width, RESIDUAL: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Gradient of one row of `total`, plus the gradient `residual` that reaches it on another way."""
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, WIDTH)
    inside = col < width
    at = row * width + col
    rstd = tl.load(rstds + row)
    value = tl.load(total + at, mask=inside, other=0.0).to(tl.float32)
    normed = tl.where(inside, (value - tl.load(means + row)) * rstd, 0.0)
    slope = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    slope *= tl.load(weight + col, mask=inside, other=0.0).to(tl.float32)
    first, second = tl.sum(slope, axis=0) / width, tl.sum(slope * normed, axis=0) / width
    result = rstd * (slope - first - normed * second)
    if RESIDUAL:
        result += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + at, result.to(dx.dtype.element_ty), mask=inside)


class AddLayerNormFunction(torch.autograd.Function):
    """(total, y) from x and delta [.., d]: total = x + delta, y = norm(total). The gradient of both summands is the same tensor."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """x, delta or None, weight, bias, eps -> (total, y)"""
        x, delta, weight, bias, eps = inputs
        x = x.contiguous()
        total = x if delta is None else torch.empty_like(x)
        y, width = torch.empty_like(x), x.shape[-1]
        rows = x.numel() // width
        mean, rstd = x.new_empty((2, rows), dtype=torch.float32).unbind(0)
        arguments = (x, x if delta is None else delta.contiguous(), weight, bias, total, y, mean, rstd, width, eps)
        launch(forward_kernel, (rows,), *arguments, ADD=delta is not None, WIDTH=power_of_two(width))
        ctx.save_for_backward(total, weight, mean, rstd)
        ctx.set_materialize_grads(False)
        return total, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, residual: torch.Tensor | None, dy: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x and delta; the weights are frozen."""
        total, weight, mean, rstd = ctx.saved_tensors
        dx = residual
        if dy is not None:
            dx, more = torch.empty_like(total), total if residual is None else residual.contiguous()
            constants = {"RESIDUAL": residual is not None, "WIDTH": power_of_two(total.shape[-1])}
            arguments = (total, weight, mean, rstd, dy.contiguous(), more, dx, total.shape[-1])
            launch(backward_kernel, (len(mean),), *arguments, **constants)
        for_x, for_delta = ctx.needs_input_grad[:2]
        return dx if for_x else None, dx if for_delta else None, None, None, None
