"""Tests the fused kernels on a device against plain PyTorch: values and gradients, in each type that the device computes in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from textual_inversion.diffusion import kernels

Case = tuple[Callable[[list[torch.Tensor]], list[torch.Tensor]], list[torch.Tensor]]
#: Largest difference that is allowed, relative to the largest number; in fp32 a convolution may round to TF32's 10 bits.
_TOLERANCE = {torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def difference(device: torch.device | str) -> str:
    """In which function the kernels give other numbers, in one sentence; empty if they give the same. Errors of Triton are raised."""
    with torch.inference_mode(False), torch.enable_grad():  # a picture may be the first that needs the kernels
        for dtype in _types(torch.device(device)):
            for name, (compute, inputs) in _cases(torch.device(device), dtype).items():
                found = _apart(compute, inputs)
                if not found < _TOLERANCE[dtype]:
                    return f"The fused {name} is off by {found:.1e} in {str(dtype).removeprefix('torch.')} here."
    return ""


def _types(device: torch.device) -> list[torch.dtype]:
    half = torch.float16
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device)[0] >= 8:
        half = torch.bfloat16
    return [torch.float32, half]


def _cases(device: torch.device, dtype: torch.dtype) -> dict[str, Case]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    with torch.device("meta"):  # a module's own initialization would change the random numbers of the run
        group, layer, conv = nn.GroupNorm(4, 40), nn.LayerNorm(40), nn.Conv2d(40, 40, 1)
    for module in (group, layer, conv):
        for name, parameter in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(draw(*parameter.shape), requires_grad=False))
    small, large, tokens = draw(2, 40, 3, 5), draw(1, 40, 96, 64), draw(2, 7, 40)
    return {
        "group norm": (lambda x: [*kernels.group_norm_of_residual(x[0], group, silu=True)], [small]),
        "group norm of a large map": (lambda x: [*kernels.group_norm_of_residual(x[0], group)], [large]),
        "group norm with a shift": (lambda x: [kernels.group_norm(x[0], group, silu=True, shift=x[1])], [large, draw(1, 40)]),
        "layer norm": (lambda x: [*kernels.add_layer_norm(x[0], x[1], layer)], [tokens, draw(2, 7, 40)]),
        "GEGLU": (lambda x: [kernels.geglu(x[0])], [tokens]),
        "quick GELU": (lambda x: [kernels.quick_gelu(x[0])], [tokens]),
        "GELU": (lambda x: [kernels.gelu(x[0])], [tokens]),
        "addition": (lambda x: [kernels.add_convolution(x[0], x[1], conv)], [small, draw(2, 40, 3, 5)]),
        "join": (lambda x: [kernels.join_channels(x[0], x[1])], [small, draw(2, 24, 3, 5)]),
    }


def _apart(compute: Callable[[list[torch.Tensor]], list[torch.Tensor]], inputs: list[torch.Tensor]) -> float:
    """Largest relative difference of the outputs and of the gradients of the inputs."""
    results = []
    for way in ("plain", "triton"):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        with kernels.force(way):
            outputs = compute(leaves)
            weights = [torch.linspace(-1, 2, out.numel(), device=out.device).view(out.shape).to(out.dtype) for out in outputs]
            gradients = torch.autograd.grad(outputs, leaves, weights)
        results.append([tensor.detach().float() for tensor in (*outputs, *gradients)])
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*results))
