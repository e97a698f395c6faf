"""Estimates what a step costs: operations and memory are counted on a model without weights, speed is measured on the device."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from textual_inversion.diffusion import kernels
from textual_inversion.diffusion.checkpoint import (
    TEXT_ENCODERS,
    TOKENS,
    UNET,
    VAE,
    CheckpointFile,
    check_family,
    check_widths,
)
from textual_inversion.diffusion.clip import CLIPTextEncoder, TokenBatch
from textual_inversion.diffusion.conditioning import TextConditioner, TokenizedPrompts, size_label
from textual_inversion.diffusion.kernels.launch import skipped
from textual_inversion.diffusion.layers import product_attention
from textual_inversion.diffusion.parts import part_on_meta
from textual_inversion.diffusion.unet import UNet, UNetConfig
from textual_inversion.diffusion.vae import VAE as AutoEncoder
from textual_inversion.diffusion.vae import VAEConfig
from textual_inversion.errors import CheckpointError
from textual_inversion.prompts.tokenizer import default_tokenizer

_CPU_SIDE, _DEVICE_SIDE = 1024, 4096  # sides of the matrices whose product is timed
#: Share of a plain matrix product's speed that a step reaches.
_REACHED = 0.5
#: Peaks measured on an H200 (SDXL's UNet at 1024², bf16, 2026-11-27: 10.5 GiB at batch 1, 25.9 at batch 4) over those that are counted.
_MEASURED_OVER_COUNTED = 1.07
ENCODING_WORKSPACE = _WORKSPACE = 0.25 * 2**30  # of cuBLAS and cuDNN, by the same measurement
_ENCODER_COPIES = 4  # maps of its first level that the VAE's encoder holds at its peak


@dataclass(frozen=True)
class MemoryCost:
    """What a run needs of its device's memory, in bytes.

    Attributes:
        activations: at the peak of a forward and backward pass of one picture, without weights.
        weights: of the frozen UNet and text encoders.
        vae: of the VAE's weights.
        encoding: that the VAE needs to encode one picture.
        unet: of the UNet's weights, a part of `weights`; it may wait elsewhere while pictures are encoded.
    """

    activations: float
    weights: float
    vae: float
    encoding: float
    unet: float = 0.0

    def training(self, batch_size: int, *, vae_stays: bool = True) -> float:
        """Bytes at the peak of a step.

        Args:
            batch_size: pictures in one pass.
            vae_stays: the VAE is on the device while it trains.
        """
        return _WORKSPACE + self.weights + vae_stays * self.vae + batch_size * _MEASURED_OVER_COUNTED * self.activations

    def peak(self, batch_size: int, encoded_together: int = 1) -> float:
        """Bytes at the peak, while pictures are encoded or trained; arguments as for `training` and `encoding_peak`."""
        return max(self.training(batch_size), self.encoding_peak(encoded_together))

    def encoding_peak(self, encoded_together: int = 1, *, unet_stays: bool = True) -> float:
        """Bytes at the peak while pictures are encoded.

        Args:
            encoded_together: pictures in one pass of the VAE, which is made smaller where pictures are large.
            unet_stays: the UNet is on the device meanwhile.
        """
        return _WORKSPACE + self.weights - (not unet_stays) * self.unet + self.vae + encoded_together * self.encoding


@dataclass(frozen=True)
class StepCost:
    """One forward and backward pass of one picture.

    Attributes:
        flops: floating-point operations.
        calls: operations that the processor starts; they do not grow with the batch.
        memory: what the run needs of the device's memory.
    """

    flops: float
    calls: int
    memory: MemoryCost


@dataclass(frozen=True)
class DeviceSpeed:
    """How fast a device is: `flops` of a large matrix product in a second, `call` seconds to start one small operation."""

    flops: float
    call: float

    def seconds(self, cost: StepCost, batch_size: int) -> float:
        """About how long one pass takes; the true time may be half or twice as long."""
        return cost.flops * batch_size / (_REACHED * self.flops) + cost.calls * self.call


def step_cost(
    file: CheckpointFile, size: tuple[int, int], dtype: torch.dtype, chunks: int = 1, *, fused: bool = False, checkpointing: bool = False
) -> StepCost:
    """Count what one picture of `size` (width, height) costs on a checkpoint, from its header alone, in seconds.

    Args:
        chunks: of its prompt.
        fused: the device has fused kernels, which keep less.
        checkpointing: blocks are computed again in the backward pass.

    Raises:
        CheckpointError: not a checkpoint, or tensors missing.
        UnsupportedCheckpointError: a family that is not handled.
    """
    unet, text = _on_meta(file, dtype, checkpointing)
    calls = _Calls()
    with FlopCounterMode(display=False) as counter, calls:
        _pass(unet, text, size, dtype, chunks)
    memory = memory_cost(file, size, dtype, chunks, fused=fused, checkpointing=checkpointing)
    return StepCost(float(counter.get_total_flops()), calls.count, memory)


def memory_cost(
    file: CheckpointFile, size: tuple[int, int], dtype: torch.dtype, chunks: int = 1, *, fused: bool = False, checkpointing: bool = False
) -> MemoryCost:
    """The part of `step_cost` that says what memory a run needs, in half the time; arguments and errors are the same."""
    unet, text = _on_meta(file, dtype, checkpointing)
    live = LiveBytes()
    with kernels.force("triton" if fused else "plain"), skipped(), attention_without_computing(), live:
        _pass(unet, text, size, dtype, chunks)
    vae = file.under(VAE)
    return MemoryCost(
        activations=float(live.peak),
        weights=float(sum(each.numel() * each.element_size() for part in (unet, *text.encoders.values()) for each in part.parameters())),
        vae=sum(4.0 * math.prod(shape) for shape in vae.values()),
        encoding=encoding_bytes(VAEConfig.from_shapes(vae).base_channels, size),
        unet=float(sum(each.numel() * each.element_size() for each in unet.parameters())),
    )


def encoding_bytes(base_channels: int, size: tuple[int, int]) -> float:
    """Bytes that the VAE, in fp32, needs to encode one picture of `size` (width, height)."""
    return _ENCODER_COPIES * 4.0 * base_channels * size[0] * size[1]


def _on_meta(file: CheckpointFile, dtype: torch.dtype, checkpointing: bool) -> tuple[UNet, TextConditioner]:
    """The models of a checkpoint without their weights."""
    family, encoders = check_family(file), {}
    unet = part_on_meta(file, UNET, lambda shapes: UNet(UNetConfig.from_shapes(shapes))).to(dtype).requires_grad_(False)
    for name, prefix in TEXT_ENCODERS[family].items():
        encoder = part_on_meta(file, prefix, partial(CLIPTextEncoder.from_shapes, family, name)).to(dtype).requires_grad_(False)
        encoders[name] = encoder
    part_on_meta(file, VAE, lambda shapes: AutoEncoder(VAEConfig.from_shapes(shapes)))  # to see whether it fits
    rows, sizes = min(each.config.vocab_size for each in encoders.values()), [each.config.width for each in encoders.values()]
    if rows < TOKENS:
        raise CheckpointError(f"{file.path.name} has a token table of {rows} rows; expected {TOKENS}. Take another.", path=file.path)
    pooled = max(each.config.projection for each in encoders.values())
    check_widths(file, unet.config.context_dim, unet.config.label_channels, sizes, pooled)
    unet.checkpointing = checkpointing
    return unet, TextConditioner(encoders, default_tokenizer())


def free_memory(device: torch.device | str) -> float | None:
    """Bytes that are free on a CUDA device; None elsewhere."""
    return float(torch.cuda.mem_get_info(device)[0]) if torch.device(device).type == "cuda" else None


def device_speed(device: torch.device | str, dtype: torch.dtype) -> DeviceSpeed:
    """Measure a device for a few tenths of a second."""
    device = torch.device(device)
    side = _CPU_SIDE if device.type == "cpu" else _DEVICE_SIDE
    matrix, small = torch.randn(side, side, device=device).to(dtype), torch.zeros(64, device=device)
    times = 2 if device.type == "cpu" else 20
    product = _seconds(lambda: matrix @ matrix, times, device)
    return DeviceSpeed(2 * side**3 / product, _seconds(lambda: small + 1, 300, device))


def _seconds(work: Callable[[], torch.Tensor], times: int, device: torch.device) -> float:
    """Seconds that `work` takes, the fastest of three rounds of `times`, after one warm-up round."""
    rounds = []
    for _ in range(4):
        begun = time.perf_counter()
        for _ in range(times):
            result = work()
        if device.type != "cpu":
            result.flatten()[0].item()  # waits until all of it is done
        rounds.append((time.perf_counter() - begun) / times)
    return max(min(rounds[1:]), 1e-9)


def _pass(unet: UNet, text: TextConditioner, size: tuple[int, int], dtype: torch.dtype, chunks: int) -> None:
    """Forward and backward as in a training step, with shapes instead of values."""
    ids = torch.zeros(chunks, 77, dtype=torch.int64, device="meta")
    vectors = torch.zeros(1, sum(text.widths.values()), device="meta", requires_grad=True)
    prompts = text.encode(TokenizedPrompts(TokenBatch(ids, ids, ids.bool()), None, chunks), vectors)
    label = None if prompts.pooled is None else size_label(prompts.pooled, torch.zeros(1, 6, device="meta"))
    noisy = torch.zeros(1, unet.config.in_channels, size[1] // 8, size[0] // 8, device="meta", dtype=dtype)  # 1 c h w
    predicted = unet(noisy, torch.zeros(1, dtype=torch.int64, device="meta"), prompts.context, label)
    predicted.float().square().mean().backward()


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all tensors that are created inside and still alive.

    Attributes:
        peak: the most bytes at any moment.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = {tensor.untyped_storage()._cdata for tensor in tree_flatten((args, kwargs))[0] if isinstance(tensor, torch.Tensor)}
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage(), inputs)
        return result

    def _add(self, storage: torch.UntypedStorage, inputs: set[int]) -> None:
        key = storage._cdata
        if key in inputs or key in self._known:  # a view, or changed in place
            return
        self._known.add(key)
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


@contextmanager
def attention_without_computing() -> Iterator[None]:
    """Attention only allocates what its fused kernels allocate."""
    token = product_attention.set(lambda q, k, v, is_causal: _AttentionTensors.apply(q, k, v))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        product_attention.reset(token)


class _AttentionTensors(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        q, k, v = inputs  # b heads l d/heads
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, *_ = ctx.saved_tensors
        sums = q.new_empty(q.shape, dtype=torch.float32)  # the kernel adds up the gradient of q in fp32
        return sums.to(q.dtype), torch.empty_like(k), torch.empty_like(v)


class _Calls(TorchDispatchMode):
    """Counts operations that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not getattr(func, "is_view", False)
        return func(*args, **(kwargs or {}))
