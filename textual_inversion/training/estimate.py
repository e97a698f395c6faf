"""Estimates what a step costs: operations and memory are counted on a model without weights, speed is measured on the device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from textual_inversion.diffusion.checkpoint import TEXT, UNET, VAE, CheckpointFile, check_family
from textual_inversion.diffusion.clip import CLIPConfig, CLIPTextEncoder, TokenBatch
from textual_inversion.diffusion.unet import UNet, UNetConfig
from textual_inversion.diffusion.vae import VAEConfig

_CPU_SIDE, _DEVICE_SIDE = 1024, 4096  # sides of the matrices whose product is timed
#: Share of a plain matrix product's speed that a step reaches.
_REACHED = 0.5
_SOFTMAX = ("aten._softmax.default", "aten._safe_softmax.default")
_ENCODER_COPIES = 4  # maps of its first level that the VAE's encoder holds at its peak


@dataclass(frozen=True)
class StepCost:
    """One forward and backward pass of one picture.

    Attributes:
        flops: floating-point operations.
        calls: operations that the processor starts; they do not grow with the batch.
        activations: bytes kept for the backward pass.
        weights: bytes of the frozen model, the VAE included.
        encoding: bytes that the VAE needs to encode one picture.
    """

    flops: float
    calls: int
    activations: float
    weights: float
    encoding: float

    def memory(self, batch_size: int, encoded_together: int = 4) -> float:
        """Bytes needed at the peak, while pictures are encoded or trained, plus a tenth for memory that is not counted."""
        return 1.1 * (self.weights + max(batch_size * self.activations, encoded_together * self.encoding))


@dataclass(frozen=True)
class DeviceSpeed:
    """How fast a device is: `flops` of a large matrix product in a second, `call` seconds to start one small operation."""

    flops: float
    call: float

    def seconds(self, cost: StepCost, batch_size: int) -> float:
        """About how long one pass takes; the true time may be half or twice as long."""
        return cost.flops * batch_size / (_REACHED * self.flops) + cost.calls * self.call


def step_cost(file: CheckpointFile, size: tuple[int, int], dtype: torch.dtype, chunks: int = 1) -> StepCost:
    """Count what one picture of `size` (width, height) costs on a checkpoint, from its header alone, in about a second.

    Raises:
        CheckpointError: not a checkpoint, or tensors missing.
        UnsupportedCheckpointError: a family that is not handled.
    """
    check_family(file)
    with torch.device("meta"):
        unet = UNet(UNetConfig.from_shapes(file.under(UNET))).to(dtype).requires_grad_(False)
        text = CLIPTextEncoder(CLIPConfig.from_shapes(file.under(TEXT))).to(dtype).requires_grad_(False)
    kept = _KeptStorages(unet, text)
    calls = _Calls(kept)
    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor), calls:
        _pass(unet, text, size, dtype, chunks)
    vae_file = file.under(VAE)
    vae = sum(4 * math.prod(shape) for shape in vae_file.values())
    encoding = _ENCODER_COPIES * 4.0 * VAEConfig.from_shapes(vae_file).base_channels * size[0] * size[1]
    return StepCost(float(counter.get_total_flops()), calls.count, kept.bytes(), kept.weights + vae, encoding)


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


def _pass(unet: UNet, text: CLIPTextEncoder, size: tuple[int, int], dtype: torch.dtype, chunks: int) -> None:
    """Forward and backward as in a training step, with shapes instead of values."""
    ids = torch.zeros(chunks, 77, dtype=torch.int64, device="meta")
    vectors = torch.zeros(1, text.config.width, device="meta", requires_grad=True)
    hidden = text(TokenBatch(ids, ids, ids.bool()), vectors, 1)  # k 77 d
    context = hidden.flatten(0, 1)[None]  # 1 77k d
    noisy = torch.zeros(1, unet.config.in_channels, size[1] // 8, size[0] // 8, device="meta", dtype=dtype)  # 1 c h w
    predicted = unet(noisy, torch.zeros(1, dtype=torch.int64, device="meta"), context)
    predicted.float().square().mean().backward()


class _KeptStorages:
    """Storages that autograd keeps for the backward pass, each once, without the weights of the modules."""

    def __init__(self, *modules: torch.nn.Module) -> None:
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        self.weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self._ignored = {tensor.untyped_storage()._cdata for tensor in tensors}
        self._storages: dict[int, torch.Tensor] = {}  # kept alive, so that no address is used twice

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        self._storages[tensor.untyped_storage()._cdata] = tensor
        return tensor

    def ignore(self, tensor: torch.Tensor) -> None:
        """Do not count an attention's table, which fused kernels never store."""
        key = tensor.untyped_storage()._cdata
        self._ignored.add(key)
        self._storages[key] = tensor

    def bytes(self) -> float:
        return float(sum(tensor.untyped_storage().nbytes() for key, tensor in self._storages.items() if key not in self._ignored))


class _Calls(TorchDispatchMode):
    """Counts operations that compute, and has the outputs of softmax, which are the tables of attentions, ignored."""

    def __init__(self, kept: _KeptStorages) -> None:
        super().__init__()
        self.count, self._kept = 0, kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += not getattr(func, "is_view", False)
        if str(func) in _SOFTMAX:
            self._kept.ignore(result)
        return result
