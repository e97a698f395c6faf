"""The frozen denoiser of Stable Diffusion, with the module names of LDM checkpoints.

Architecture: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models (arXiv 2112.10752), with SDXL's additions
(arXiv 2307.01952).
Legend: b batch, c channels, h w latent size, l tokens, d width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from textual_inversion.diffusion import kernels
from textual_inversion.diffusion.layers import FusedModule, GroupNorm, Joined
from textual_inversion.diffusion.unet_blocks import Block, Downsample, Inputs, ResBlock, SpatialTransformer, TransformerBlock, Upsample

Shapes = Mapping[str, tuple[int, ...]]
_NO_ATTENTION, _NO_MIDDLE = -1, -2  # values of `middle_depth`


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of a UNet; the defaults are SD1.5's.

    Attributes:
        in_channels: 4; 9 for inpainting and 8 for instruct-pix2pix checkpoints.
        out_channels: channels of the prediction.
        model_channels: channels of the first level.
        channel_mult: channels of each level, as multiples of `model_channels`.
        num_res_blocks: residual blocks on each level (the way up has one more).
        transformer_depth: transformer blocks after each residual block, level by level (0 = no attention there).
        middle_depth: transformer blocks in the middle; -1 = a residual block alone, -2 = nothing.
        context_dim: width d of the conditioning.
        linear_projection: SD2 and SDXL project with linear layers and have heads 64 wide; SD1 has convolutions and 8 heads.
        label_channels: width of SDXL's pooled vector with size conditioning (0 = none).
        depths_in, depths_out: transformer blocks after each residual block on the way down and up, where blocks of a level differ, as in
            smaller versions of SDXL (arXiv 2401.02677); empty = as `transformer_depth` says.
    """

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: tuple[int, ...] = (2, 2, 2, 2)
    transformer_depth: tuple[int, ...] = (1, 1, 1, 0)
    middle_depth: int = 1
    context_dim: int = 768
    linear_projection: bool = False
    label_channels: int = 0
    depths_in: tuple[int, ...] = ()
    depths_out: tuple[int, ...] = ()

    def heads(self, channels: int) -> int:
        """Attention heads of a transformer with `channels` channels."""
        return channels // 64 if self.linear_projection else 8

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> UNetConfig:
        """Read the sizes from a UNet's tensor shapes (LDM names without prefix). A missing name raises `KeyError` with that name."""
        base = shapes["input_blocks.0.0.weight"]
        levels: list[list[tuple[int, int]]] = [[]]  # level -> (channels, depth) of each residual block
        index = 1
        while f"input_blocks.{index}.0.op.weight" in shapes or f"input_blocks.{index}.0.in_layers.2.weight" in shapes:
            block = f"input_blocks.{index}"
            if f"{block}.0.op.weight" in shapes:
                levels.append([])
            else:
                levels[-1].append((shapes[f"{block}.0.out_layers.3.weight"][0], _depth(shapes, f"{block}.1")))
            index += 1
        depth = tuple(blocks[0][1] for blocks in levels)
        down = tuple(block[1] for blocks in levels for block in blocks)
        up = tuple(_depth(shapes, f"output_blocks.{number}.1") for number in range(len(down) + len(levels)))
        by_level = [[level] * len(blocks) for level, blocks in zip(depth, levels)]
        is_regular = down == tuple(_flat(by_level)) and up == tuple(_flat([[*each, each[0]] for each in reversed(by_level)]))
        first = next(name for name in sorted(shapes) if name.endswith(".transformer_blocks.0.attn2.to_k.weight"))
        return cls(
            in_channels=base[1],
            out_channels=shapes["out.2.weight"][0],
            model_channels=base[0],
            channel_mult=tuple(blocks[0][0] // base[0] for blocks in levels),
            num_res_blocks=tuple(len(blocks) for blocks in levels),
            transformer_depth=depth,
            middle_depth=_middle_depth(shapes),
            context_dim=shapes[first][1],
            linear_projection=len(shapes[first.replace("transformer_blocks.0.attn2.to_k", "proj_in")]) == 2,
            label_channels=shapes["label_emb.0.0.weight"][1] if "label_emb.0.0.weight" in shapes else 0,
            depths_in=() if is_regular else down,
            depths_out=() if is_regular else up,
        )


def _flat(lists: Sequence[Sequence[int]]) -> Iterator[int]:
    return (value for each in lists for value in each)


def _middle_depth(shapes: Shapes) -> int:
    if any(name.startswith("middle_block.1.") for name in shapes):
        if (projection := "middle_block.1.proj_in.weight") not in shapes:
            raise KeyError(projection)  # a damaged middle is no missing one
        return _depth(shapes, "middle_block.1")
    return _NO_ATTENTION if "middle_block.0.in_layers.2.weight" in shapes else _NO_MIDDLE


def _depth(shapes: Shapes, prefix: str) -> int:
    depth = 0
    while f"{prefix}.transformer_blocks.{depth}.norm1.weight" in shapes:
        depth += 1
    return depth


def timestep_embedding(timesteps: torch.Tensor, channels: int, dtype: torch.dtype) -> torch.Tensor:
    """Cosines then sines of the timestep at `channels / 2` frequencies from 1 to 1/10000.

    Args:
        timesteps: [b], any number type, 0 to 999.
        channels: an even number.

    Returns:
        [b, channels] of `dtype`
    """
    half = channels // 2
    frequencies = torch.exp(torch.arange(half, device=timesteps.device, dtype=torch.float32) * (-math.log(10000.0) / half))
    angles = timesteps.float()[:, None] * frequencies[None]  # b c/2
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)


def _level_block(config: UNetConfig, level: int, in_channels: int, time: int, depth: int) -> Block:
    """A residual block of a level, with `depth` transformer blocks behind it."""
    channels = config.channel_mult[level] * config.model_channels
    block = Block([ResBlock(in_channels, channels, time)])
    if depth:
        block.append(SpatialTransformer(channels, config, depth))
    return block


def _middle_block(config: UNetConfig, channels: int, time: int) -> Block:
    if config.middle_depth == _NO_MIDDLE:
        return Block()
    blocks: list[nn.Module] = [ResBlock(channels, channels, time)]
    if config.middle_depth != _NO_ATTENTION:
        blocks += [SpatialTransformer(channels, config, config.middle_depth), ResBlock(channels, channels, time)]
    return Block(blocks)


class UNet(FusedModule):
    """Predicts the noise (or v) in noisy latents, given the timestep and the conditioning."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False  # compute blocks again in the backward pass: less memory, two fifths more work
        base, time = config.model_channels, config.model_channels * 4
        self.time_embed = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time))
        if config.label_channels:
            label = nn.Sequential(nn.Linear(config.label_channels, time), nn.SiLU(), nn.Linear(time, time))
            self.label_emb = nn.Sequential(label)
        skips = self._build_input(config, base, time)
        channels = skips[-1]
        self.middle_block = _middle_block(config, channels, time)
        channels = self._build_output(config, channels, time, skips)
        self.out = nn.Sequential(GroupNorm(channels), nn.SiLU(), nn.Conv2d(channels, config.out_channels, 3, padding=1))
        self._join()

    def _join(self) -> None:
        """Name the weights that are applied together, in the order in which the blocks run."""
        blocks = [module for module in self.modules() if isinstance(module, ResBlock)]
        time = [block.emb_layers[1] for block in blocks]
        self._time_weights, self._time_biases = Joined(time), Joined(time, "bias")
        self._first_biases = Joined((block.in_layers[2] for block in blocks), "bias")
        attentions = [module.attn2 for module in self.modules() if isinstance(module, TransformerBlock)]
        self._context_weights = Joined(layer for attention in attentions for layer in (attention.to_k, attention.to_v))

    def _build_input(self, config: UNetConfig, channels: int, time: int) -> list[int]:
        """Build the input blocks; return the channels of each map for the skip connections."""
        blocks, skips, depths = [Block([nn.Conv2d(config.in_channels, channels, 3, padding=1)])], [channels], iter(config.depths_in)
        for level, mult in enumerate(config.channel_mult):
            for _ in range(config.num_res_blocks[level]):
                depth = next(depths) if config.depths_in else config.transformer_depth[level]
                blocks.append(_level_block(config, level, channels, time, depth))
                channels = mult * config.model_channels
                skips.append(channels)
            if level + 1 < len(config.channel_mult):
                blocks.append(Block([Downsample(channels)]))
                skips.append(channels)
        self.input_blocks = nn.ModuleList(blocks)
        return skips

    def _build_output(self, config: UNetConfig, channels: int, time: int, skips: list[int]) -> int:
        blocks, skips, depths = [], list(skips), iter(config.depths_out)
        for level in reversed(range(len(config.channel_mult))):
            for index in range(config.num_res_blocks[level] + 1):
                depth = next(depths) if config.depths_out else config.transformer_depth[level]
                block = _level_block(config, level, channels + skips.pop(), time, depth)
                channels = config.channel_mult[level] * config.model_channels
                if level and index == config.num_res_blocks[level]:
                    block.append(Upsample(channels))
                blocks.append(block)
        self.output_blocks = nn.ModuleList(blocks)
        return channels

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Predict.

        Args:
            x: noisy latents [b, in_channels, h, w].
            timesteps: [b], 0 to 999; fractions are allowed.
            context: conditioning [b, l, d].
            label: SDXL's pooled vector with size conditioning [b, label_channels]; None for SD1 and SD2.

        Returns:
            [b, out_channels, h, w]
        """
        time = self.time_embed(timestep_embedding(timesteps, self.config.model_channels, x.dtype))  # b t
        if label is not None:
            time = time + self.label_emb(label)
        inputs = self._project(time, context)
        skips = []
        for block in self.input_blocks:
            x = self._run(block, x, inputs)
            skips.append(x)
        x = self._run(self.middle_block, x, inputs)
        for block in self.output_blocks:
            x = kernels.join_channels(x, skips.pop())
            size = (skips[-1].shape[-2], skips[-1].shape[-1]) if skips else (0, 0)
            x = self._run(block, x, inputs, size)
        norm: Any = self.out[0]
        return self.out[2](kernels.group_norm(x, norm, silu=True))

    def _run(self, block: Any, x: torch.Tensor, inputs: Inputs, size: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Run a block; with checkpointing only its inputs are kept for the backward pass, which computes the rest again."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return block(x, inputs, size)
        from torch.utils.checkpoint import checkpoint

        own = inputs.take(block)
        # no random numbers in here; asking for their state would make the processor wait
        return checkpoint(lambda x: block(x, Inputs(iter(own[0]), iter(own[1])), size), x, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-untyped-call]

    def _project(self, time: torch.Tensor, context: torch.Tensor) -> Inputs:
        """time [b, t], context [b, l, d] -> what the blocks take from them."""
        weights, biases = self._time_weights(), self._time_biases()
        shifts = F.linear(F.silu(time), weights, biases) + self._first_biases()  # b channels of all blocks
        parts = F.linear(context, self._context_weights()).split(self._context_weights.sizes, dim=-1)  # b l c each
        return Inputs(iter(shifts.split(self._time_weights.sizes, dim=-1)), zip(parts[::2], parts[1::2]))
