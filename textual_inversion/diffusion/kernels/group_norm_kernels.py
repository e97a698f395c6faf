# mypy: ignore-errors
# ruff: noqa: PLR0913
"""Triton kernels of the group norm over channels_last maps, with SiLU and the time embedding's addition.

A map is read as [b, rows, channels] with rows = h*w; a group has `width` = channels / groups neighbouring channels. Sums are fp32.
Small maps take one kernel, a program for each group, which reads the group twice: its registers could not hold it. Large maps take two:
partial sums of blocks of rows, then the element-wise half, in which every program combines the partial sums for itself. There are no
atomics, so the result is the same in each run. Tiles of large maps are [ROWS, GROUPS, WIDTH]: several groups, so that neighbouring threads
read neighbouring channels.
"""

from __future__ import annotations

from textual_inversion.diffusion.kernels.language import jit, tl


@jit()
def silu(z):
    """z · sigmoid(z)"""
    return z / (1 + tl.exp(-z))


@jit()
def silu_slope(z):
    """Derivative of `silu`."""
    gate = 1 / (1 + tl.exp(-z))
    return gate * (1 + z * (1 - gate))


@jit()
def combined_moments(means, squares, at, known, count, total):
    """Mean and variance of the whole from those of its parts (Chan, Golub and LeVeque 1983): exact, without a difference of squares."""
    part = tl.load(means + at, mask=known, other=0.0)  # blocks groups
    mean = tl.sum(part * count, axis=0) / total
    away = part - mean[None, :]
    spread = tl.sum(tl.load(squares + at, mask=known, other=0.0) + count * away * away, axis=0)
    return mean, spread / total


@jit("rows", "width")
def whole_forward(
    x, shift, weight, bias, y, means, rstds, rows, channels, width, eps,
    SILU: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """y = act(norm(x + shift)) of one group: reads it for the moments, then again for y."""
    group, batch = tl.program_id(0), tl.program_id(1)
    col = tl.arange(0, WIDTH)[None, :]
    here, channel = col < width, group * width + col
    base = batch.to(tl.int64) * rows * channels
    added = tl.zeros((1, WIDTH), tl.float32)
    if SHIFT:
        added = tl.load(shift + batch * channels + channel, mask=here, other=0.0).to(tl.float32)
    count, mean, square = 0.0, 0.0, 0.0
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & here
        value = tl.where(inside, tl.load(x + base + row * channels + channel, mask=inside, other=0.0).to(tl.float32) + added, 0.0)
        more = (tl.minimum(rows - start, ROWS) * width).to(tl.float32)
        part = tl.sum(tl.sum(value, axis=1), axis=0) / more
        away = tl.where(inside, value - part, 0.0)
        apart = part - mean
        mean += apart * (more / (count + more))
        square += tl.sum(tl.sum(away * away, axis=1), axis=0) + apart * apart * (count * more / (count + more))
        count += more
    rstd = 1 / tl.sqrt(square / count + eps)
    groups = tl.num_programs(0)
    tl.store(means + batch * groups + group, mean)
    tl.store(rstds + batch * groups + group, rstd)
    factor = tl.load(weight + channel, mask=here, other=0.0).to(tl.float32) * rstd
    offset = tl.load(bias + channel, mask=here, other=0.0).to(tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        inside = (row < rows) & here
        value = tl.load(x + base + row * channels + channel, mask=inside, other=0.0).to(tl.float32) + added
        z = (value - mean) * factor + offset
        if SILU:
            z = silu(z)
        tl.store(y + base + row * channels + channel, z.to(y.dtype.element_ty), mask=inside)


@jit()
def slope_of_rows(x, dy, at, inside, added, mean, rstd, factor, offset, SILU: tl.constexpr):
    """Normalised x and the gradient that reaches it, [ROWS, WIDTH] of one group."""
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) + added
    normed = tl.where(inside, (value - mean) * rstd, 0.0)
    slope = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        slope *= silu_slope(normed * factor + offset)
    return normed, slope * factor


@jit("rows", "width")
def whole_backward(
    x, shift, weight, bias, means, rstds, dy, residual, dx, rows, channels, width,
    SILU: tl.constexpr, SHIFT: tl.constexpr, RESIDUAL: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradient of one group's x, plus the gradient `residual` that reaches x on another way."""
    group, batch = tl.program_id(0), tl.program_id(1)
    groups = tl.num_programs(0)
    col = tl.arange(0, WIDTH)[None, :]
    here, channel = col < width, group * width + col
    base = batch.to(tl.int64) * rows * channels
    added = tl.zeros((1, WIDTH), tl.float32)
    if SHIFT:
        added = tl.load(shift + batch * channels + channel, mask=here, other=0.0).to(tl.float32)
    mean, rstd = tl.load(means + batch * groups + group), tl.load(rstds + batch * groups + group)
    factor = tl.load(weight + channel, mask=here, other=0.0).to(tl.float32)
    offset = tl.load(bias + channel, mask=here, other=0.0).to(tl.float32)
    first, second = 0.0, 0.0
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        inside, at = (row < rows) & here, base + row * channels + channel
        normed, slope = slope_of_rows(x, dy, at, inside, added, mean, rstd, factor, offset, SILU)
        first += tl.sum(tl.sum(slope, axis=1), axis=0)
        second += tl.sum(tl.sum(slope * normed, axis=1), axis=0)
    first, second = first / (rows * width), second / (rows * width)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        inside, at = (row < rows) & here, base + row * channels + channel
        normed, slope = slope_of_rows(x, dy, at, inside, added, mean, rstd, factor, offset, SILU)
        result = rstd * (slope - first - normed * second)
        if RESIDUAL:
            result += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + at, result.to(dx.dtype.element_ty), mask=inside)


@jit("rows", "width", "groups", "steps")
def partial_moments(
    x, shift, means, squares, rows, channels, width, groups, steps,
    SHIFT: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared distances of `steps` * ROWS rows for each group of the tile -> [b, blocks, groups]."""
    block, tile, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group = tile * GROUPS + tl.arange(0, GROUPS)
    col = tl.arange(0, WIDTH)[None, None, :]
    here = (group[None, :, None] < groups) & (col < width)
    channel = group[None, :, None] * width + col  # 1 g w
    x += batch.to(tl.int64) * rows * channels
    if SHIFT:
        added = tl.load(shift + batch * channels + channel, mask=here, other=0.0).to(tl.float32)
    count = 0.0
    mean, square = tl.zeros((GROUPS,), tl.float32), tl.zeros((GROUPS,), tl.float32)
    for step in range(steps):
        start = (block * steps + step) * ROWS
        row = start + tl.arange(0, ROWS)[:, None, None]
        inside = (row < rows) & here
        value = tl.load(x + row * channels + channel, mask=inside, other=0.0).to(tl.float32)
        if SHIFT:
            value = tl.where(inside, value + added, 0.0)
        more = (tl.maximum(tl.minimum(rows - start, ROWS), 0) * width).to(tl.float32)
        part = tl.sum(tl.sum(value, axis=2), axis=0) / tl.maximum(more, 1.0)
        away = tl.where(inside, value - part[None, :, None], 0.0)
        both = tl.maximum(count + more, 1.0)
        apart = part - mean
        mean += apart * (more / both)
        square += tl.sum(tl.sum(away * away, axis=2), axis=0) + apart * apart * (count * more / both)
        count += more
    at = (batch * tl.num_programs(0) + block) * groups + group
    tl.store(means + at, mean, mask=group < groups)
    tl.store(squares + at, square, mask=group < groups)


@jit("rows", "width", "groups", "blocks", "block_rows")
def normalise(
    x, shift, weight, bias, part_means, part_squares, y, means, rstds, rows, channels, width, groups, blocks, block_rows, eps,
    SILU: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """y = act(norm(x + shift)) of ROWS rows; the first program of each tile also writes mean and rstd for the backward."""
    first, tile, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group = tile * GROUPS + tl.arange(0, GROUPS)
    block = tl.arange(0, BLOCKS)[:, None]
    known = (block < blocks) & (group[None, :] < groups)
    count = tl.where(block < blocks, tl.minimum(rows - block * block_rows, block_rows) * width, 0).to(tl.float32)
    total = (rows * width).to(tl.float32)
    mean, variance = combined_moments(part_means, part_squares, (batch * blocks + block) * groups + group[None, :], known, count, total)
    rstd = 1 / tl.sqrt(variance + eps)
    if first == 0:
        tl.store(means + batch * groups + group, mean, mask=group < groups)
        tl.store(rstds + batch * groups + group, rstd, mask=group < groups)
    row, col = first * ROWS + tl.arange(0, ROWS)[:, None, None], tl.arange(0, WIDTH)[None, None, :]
    here, channel = (group[None, :, None] < groups) & (col < width), group[None, :, None] * width + col
    inside = (row < rows) & here
    at = batch.to(tl.int64) * rows * channels + row * channels + channel
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if SHIFT:
        value += tl.load(shift + batch * channels + channel, mask=here, other=0.0).to(tl.float32)
    factor = tl.load(weight + channel, mask=here, other=0.0).to(tl.float32)
    z = (value - mean[None, :, None]) * rstd[None, :, None] * factor
    z += tl.load(bias + channel, mask=here, other=0.0).to(tl.float32)
    if SILU:
        z = silu(z)
    tl.store(y + at, z.to(y.dtype.element_ty), mask=inside)


@jit()
def slope_of_normed(
    x, shift, weight, bias, means, rstds, dy, at, stat, channel, shift_at, inside, here, known, SILU: tl.constexpr, SHIFT: tl.constexpr
):
    """Normalised x, the gradient that reaches it (both [ROWS, GROUPS, WIDTH]) and rstd [GROUPS]."""
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if SHIFT:
        value += tl.load(shift + shift_at, mask=here, other=0.0).to(tl.float32)
    mean = tl.load(means + stat, mask=known, other=0.0)
    rstd = tl.load(rstds + stat, mask=known, other=0.0)
    normed = tl.where(inside, (value - mean[None, :, None]) * rstd[None, :, None], 0.0)
    factor = tl.load(weight + channel, mask=here, other=0.0).to(tl.float32)
    slope = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        slope *= silu_slope(normed * factor + tl.load(bias + channel, mask=here, other=0.0).to(tl.float32))
    return normed, slope * factor, rstd


@jit("rows", "width", "groups", "steps")
def partial_slopes(
    x, shift, weight, bias, means, rstds, dy, firsts, seconds, rows, channels, width, groups, steps,
    SILU: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Sums over `steps` * ROWS rows of the gradient at the normalised x, and of its product with it -> [b, blocks, groups]."""
    block, tile, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group = tile * GROUPS + tl.arange(0, GROUPS)
    known, stat = group < groups, batch * groups + group
    col = tl.arange(0, WIDTH)[None, None, :]
    here, channel = (group[None, :, None] < groups) & (col < width), group[None, :, None] * width + col
    first, second = tl.zeros((GROUPS,), tl.float32), tl.zeros((GROUPS,), tl.float32)
    for step in range(steps):
        row = (block * steps + step) * ROWS + tl.arange(0, ROWS)[:, None, None]
        inside = (row < rows) & here
        at = batch.to(tl.int64) * rows * channels + row * channels + channel
        normed, slope, _ = slope_of_normed(
            x, shift, weight, bias, means, rstds, dy, at, stat, channel, batch * channels + channel, inside, here, known, SILU, SHIFT
        )
        first += tl.sum(tl.sum(slope, axis=2), axis=0)
        second += tl.sum(tl.sum(slope * normed, axis=2), axis=0)
    at_part = (batch * tl.num_programs(0) + block) * groups + group
    tl.store(firsts + at_part, first, mask=known)
    tl.store(seconds + at_part, second, mask=known)


@jit("rows", "width", "groups", "blocks")
def normalise_backward(
    x, shift, weight, bias, means, rstds, dy, firsts, seconds, residual, dx, rows, channels, width, groups, blocks,
    SILU: tl.constexpr, SHIFT: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Gradient of ROWS rows of x, plus the gradient `residual` that reaches x on another way."""
    start, tile, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group = tile * GROUPS + tl.arange(0, GROUPS)
    known, stat = group < groups, batch * groups + group
    block = tl.arange(0, BLOCKS)[:, None]
    part, used = (batch * blocks + block) * groups + group[None, :], (block < blocks) & (group[None, :] < groups)
    total = (rows * width).to(tl.float32)
    first = tl.sum(tl.load(firsts + part, mask=used, other=0.0), axis=0) / total
    second = tl.sum(tl.load(seconds + part, mask=used, other=0.0), axis=0) / total
    row, col = start * ROWS + tl.arange(0, ROWS)[:, None, None], tl.arange(0, WIDTH)[None, None, :]
    here, channel = (group[None, :, None] < groups) & (col < width), group[None, :, None] * width + col
    inside = (row < rows) & here
    at = batch.to(tl.int64) * rows * channels + row * channels + channel
    normed, slope, rstd = slope_of_normed(
        x, shift, weight, bias, means, rstds, dy, at, stat, channel, batch * channels + channel, inside, here, known, SILU, SHIFT
    )
    result = rstd[None, :, None] * (slope - first[None, :, None] - normed * second[None, :, None])
    if RESIDUAL:
        result += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + at, result.to(dx.dtype.element_ty), mask=inside)
