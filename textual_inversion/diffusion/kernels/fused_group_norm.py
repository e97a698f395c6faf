"""The fused group norm: choice of kernels and block sizes, and its place in autograd.

Legend: b batch, c channels, h w latent size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from textual_inversion.diffusion.kernels import group_norm_kernels as kernels
from textual_inversion.diffusion.kernels.language import cdiv, power_of_two
from textual_inversion.diffusion.kernels.launch import launch

# A group of at most this many (padded) elements takes one program of 16 warps, in tiles of 16 elements a thread: four rounds of loads for
# the sums and four more, from the cache, for the rest. That takes as long as two kernels with many programs each, and one launch less.
# A tile that holds the whole group spills its registers: 64 of them and 1,100 bytes of stack a thread, by ptxas for sm_90.
_WHOLE, _WHOLE_TILE = 32768, 8192
# Tiles of 128 padded channels and 16 rows are 16 elements a thread at 4 warps. At batch 1 the smallest map that needs two kernels
# (32² by 640 channels) is 64 * 8 tiles, four for each of an H200's 132 multiprocessors.
_TILE_CHANNELS, _TILE_ROWS = 128, 16
# Every program of the second kernel reads all partial sums of its groups; 64 blocks of them are less than its tile of the map.
_MOST_BLOCKS = 64


class _Tiles(NamedTuple):
    """How a large map is cut: `blocks` of `steps` tiles of rows for the sums, tiles of rows for the element-wise half."""

    steps: int
    blocks: int
    sums: tuple[int, int, int]
    elements: tuple[int, int, int]
    constants: dict[str, int]

    @classmethod
    def of(cls, batch: int, rows: int, width: int, groups: int) -> _Tiles:
        padded = power_of_two(width)
        together = max(1, min(_TILE_CHANNELS // padded, power_of_two(groups)))
        tiles = cdiv(rows, _TILE_ROWS)
        steps = cdiv(tiles, _MOST_BLOCKS)
        blocks, columns = cdiv(tiles, steps), cdiv(groups, together)
        constants = {"ROWS": _TILE_ROWS, "GROUPS": together, "WIDTH": padded}
        return cls(steps, blocks, (blocks, columns, batch), (tiles, columns, batch), constants)


def _whole(rows: int, width: int) -> tuple[dict[str, int], int] | None:
    """Block sizes and warps of the one-kernel form, None where a group is too large for it."""
    padded = power_of_two(width)
    if rows * padded > _WHOLE:
        return None
    together = max(1, min(power_of_two(rows), _WHOLE_TILE // padded))
    return {"ROWS": together, "WIDTH": padded}, min(16, max(4, together * padded // 512))


def _forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, shift: torch.Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y [b, c, h, w], and mean and rstd [b, groups] in fp32."""
    b, c, h, w = x.shape
    rows, width, y = h * w, c // groups, torch.empty_like(x)
    mean, rstd = x.new_empty((2, b, groups), dtype=torch.float32).unbind(0)
    flags, added = {"SILU": silu, "SHIFT": shift is not None}, x if shift is None else shift
    arguments: tuple[Any, ...]
    if whole := _whole(rows, width):
        arguments = (x, added, weight, bias, y, mean, rstd, rows, c, width, eps)
        launch(kernels.whole_forward, (groups, b), *arguments, num_warps=whole[1], **flags, **whole[0])
        return y, mean, rstd
    tiles = _Tiles.of(b, rows, width, groups)
    means, squares = x.new_empty((2, b, tiles.blocks, groups), dtype=torch.float32).unbind(0)
    arguments = (x, added, means, squares, rows, c, width, groups, tiles.steps)
    launch(kernels.partial_moments, tiles.sums, *arguments, SHIFT=shift is not None, **tiles.constants)
    block_rows = tiles.steps * _TILE_ROWS
    arguments = (x, added, weight, bias, means, squares, y, mean, rstd, rows, c, width, groups, tiles.blocks, block_rows, eps)
    launch(kernels.normalise, tiles.elements, *arguments, **flags, **tiles.constants, BLOCKS=_MOST_BLOCKS)
    return y, mean, rstd


def _backward(
    saved: tuple[torch.Tensor, ...], shift: torch.Tensor | None, dy: torch.Tensor, residual: torch.Tensor | None, silu: bool
) -> torch.Tensor:
    """Gradient of x [b, c, h, w], with `residual` added."""
    x, weight, bias, mean, rstd = saved
    b, c, h, w = x.shape
    groups, dx = mean.shape[1], torch.empty_like(x)
    rows, width = h * w, c // groups
    flags = {"SILU": silu, "SHIFT": shift is not None, "RESIDUAL": residual is not None}
    added, more = x if shift is None else shift, x if residual is None else residual
    arguments: tuple[Any, ...]
    if whole := _whole(rows, width):
        arguments = (x, added, weight, bias, mean, rstd, dy, more, dx, rows, c, width)
        launch(kernels.whole_backward, (groups, b), *arguments, num_warps=whole[1], **flags, **whole[0])
        return dx
    tiles = _Tiles.of(b, rows, width, groups)
    firsts, seconds = x.new_empty((2, b, tiles.blocks, groups), dtype=torch.float32).unbind(0)
    shared = (x, added, weight, bias, mean, rstd, dy, firsts, seconds)
    arguments = (*shared, rows, c, width, groups, tiles.steps)
    launch(kernels.partial_slopes, tiles.sums, *arguments, SILU=silu, SHIFT=shift is not None, **tiles.constants)
    arguments = (*shared, more, dx, rows, c, width, groups, tiles.blocks)
    launch(kernels.normalise_backward, tiles.elements, *arguments, **flags, **tiles.constants, BLOCKS=_MOST_BLOCKS)
    return dx


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class GroupNormFunction(torch.autograd.Function):
    """(x, y) from x [b, c, h, w]: x itself, so that its gradient from elsewhere comes in here, and y = act(norm(x + shift))."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """x, weight, bias, shift or None, groups, eps, silu -> (x, y)"""
        x, weight, bias, shift, groups, eps, silu = inputs
        x = _channels_last(x)
        shift = None if shift is None else shift.contiguous()
        y, mean, rstd = _forward(x, weight, bias, shift, groups, eps, silu)
        ctx.save_for_backward(x, weight, bias, mean, rstd, shift)
        ctx.silu = silu
        ctx.set_materialize_grads(False)
        return x, y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, residual: torch.Tensor | None, dy: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x and of shift; the weights are frozen."""
        *saved, shift = ctx.saved_tensors
        nothing = (None, None, None)
        if dy is None:
            return residual, None, None, None, *nothing
        residual = None if residual is None else _channels_last(residual)
        if not ctx.needs_input_grad[3]:
            return _backward(tuple(saved), shift, _channels_last(dy), residual, ctx.silu), None, None, None, *nothing
        # the shift's gradient has no share of what reaches x elsewhere; both at once do not happen in these models
        dx = _backward(tuple(saved), shift, _channels_last(dy), None, ctx.silu)
        return dx if residual is None else dx + residual, None, None, dx.sum(dim=(2, 3)), *nothing
