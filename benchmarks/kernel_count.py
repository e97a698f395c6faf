"""Counts the CUDA kernels of a training step's model, without a card: `python -m benchmarks.kernel_count`.

The models run on the meta device, which computes shapes only. The sum has two parts:

- Launches of the fused kernels are counted where they are launched, exactly.
- PyTorch's own operations count as the kernels that PyTorch starts for them on CUDA: 0 for a view or an allocation, 1 for most, and
  the number in `_KERNELS` for the others. A convolution counts 1, one more for its bias, and one more for each tensor that must be
  copied to channels_last first. An attention counts 1 forward and 3 backward, which is what flash attention needs.

What it cannot see: kernels that cuDNN and cuBLAS start inside one convolution or product (padding of narrow channels, split-K sums),
and the bias of a product, which cuBLASLt adds in the product's own kernel. It counts the model and the loss, without the mixing of
latents and noise, gradient clipping and the optimizer, which are about 60 kernels more.

The step of 8e7531b, before there were fused kernels, had 2,679 CUDA kernels on an H200 by the profiler; `BEFORE` is this count of it.

Legend: b batch, l tokens, d width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.table import table
from textual_inversion.diffusion import kernels
from textual_inversion.diffusion.clip import CLIPConfig, CLIPTextEncoder, TokenBatch
from textual_inversion.diffusion.kernels.launch import Launch, recorded
from textual_inversion.diffusion.unet import UNet, UNetConfig

SDXL = UNetConfig(
    channel_mult=(1, 2, 4), num_res_blocks=(2, 2, 2), transformer_depth=(0, 2, 10), middle_depth=10, context_dim=2048,
    linear_projection=True, label_channels=2816,
)  # fmt: skip
#: Kernels on CUDA of operations that need another number than one.
_KERNELS = {
    "aten.native_group_norm": 3,  # moments, factors of each channel, the element-wise half
    "aten.native_group_norm_backward": 4,  # sums, factors twice, the element-wise half
    "aten.embedding_dense_backward": 2,  # zeros, sums
    "aten.index_put": 8,  # a sort
    "aten._index_put_impl_": 8,
    "aten.mse_loss": 2,  # squares, mean
}
_ALLOCATIONS = ("aten.empty", "aten.new_empty", "aten.detach", "aten._unsafe_view", "aten._reshape_alias", "aten.lift_fresh")
Counts = dict[str, int]
#: Kernels of 8e7531b by this count.
BEFORE: dict[str, Counts] = {
    "SD1.5, 512²": {
        "text encoder forward": 174,
        "text encoder backward": 253,
        "UNet forward": 998,
        "loss": 3,
        "UNet backward": 983,
    },
    "SDXL's UNet, 1024²": {"UNet forward": 1896, "loss": 3, "UNet backward": 2564},
}


class _Attention(torch.autograd.Function):
    """The shapes and the layout of fused attention."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.empty_like(tensor.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2) for tensor in ctx.saved_tensors
        )


class _AttentionOf(TorchFunctionMode):
    """Replaces attention, which the meta device would take apart."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        out = _Attention.apply(*args[:3])
        self.found["attention"] += 1
        if out.requires_grad:
            out.register_hook(lambda _: self.found.update({"attention backward": 3}))
        return out


class _Operations(TorchDispatchMode):
    """Counts the kernels of PyTorch's operations, and gives convolutions the layout that they have on CUDA."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func).rpartition(".")[0]
        if name == "aten.convolution":
            self.found["convolution"] += 1 + (args[2] is not None) + _copied(args[0])
            return _channels_last(result)
        if name == "aten.convolution_backward":
            self.found["convolution backward"] += 1 + _copied(args[0])
            return tuple(None if part is None else _channels_last(part) for part in result)
        if not func.is_view and not name.startswith(_ALLOCATIONS):
            self.found[name.removeprefix("aten.")] += _KERNELS.get(name, 1)
        return result


def _copied(x: torch.Tensor) -> bool:
    return not x.is_contiguous(memory_format=torch.channels_last)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


class _Count:
    """Kernels so far, by kind."""

    def __init__(self, launches: list[Launch]) -> None:
        self.found: Counter[str] = Counter()
        self._launches = launches

    def taken(self) -> Counter[str]:
        """The kernels since the last call."""
        for launch in self._launches:
            self.found[f"fused {getattr(launch.kernel, '__name__', launch.kernel)}"] += 1
        found = Counter(self.found)
        self._launches.clear()
        self.found.clear()
        return found


@contextmanager
def counting() -> Iterator[_Count]:
    """Count every kernel, with the fused ones taken but not started."""
    with kernels.force("triton"), recorded() as launches:
        count = _Count(launches)
        with _AttentionOf(count.found), _Operations(count.found):
            yield count


def unet_kernels(config: UNetConfig, side: int) -> dict[str, Counter[str]]:
    """Kernels of a UNet and the loss for one picture with latents of `side`, in bf16: forward, loss, backward to the conditioning."""
    dtype = torch.bfloat16
    with torch.device("meta"):
        unet: Any = UNet(config).to(dtype).requires_grad_(False)
        unet = unet.to(memory_format=torch.channels_last)
        context = torch.zeros(1, 77, config.context_dim, dtype=dtype, requires_grad=True)  # b l d
        label = torch.zeros(1, config.label_channels, dtype=dtype, requires_grad=True) if config.label_channels else None
        noisy, noise = torch.zeros(1, 4, side, side, dtype=dtype), torch.zeros(1, 4, side, side)
        timesteps = torch.zeros(1, dtype=torch.int64)
    found = {}
    with counting() as count:
        predicted = unet(noisy, timesteps, context, label)
        found["UNet forward"] = count.taken()
        loss = F.mse_loss(predicted.float(), noise)
        found["loss"] = count.taken()
        torch.autograd.grad(loss, [context] if label is None else [context, label])
        found["UNet backward"] = count.taken()
    return found


def text_kernels(config: CLIPConfig) -> dict[str, Counter[str]]:
    """Kernels of a text encoder for one prompt, in bf16: forward, and backward to the vectors."""
    with torch.device("meta"):
        text = CLIPTextEncoder(config).to(torch.bfloat16).requires_grad_(False)
        ids = torch.zeros(1, config.max_tokens, dtype=torch.int64)
        vectors = torch.zeros(4, config.width, requires_grad=True)
        tokens = TokenBatch(ids, ids, ids.bool())
    found = {}
    with counting() as count:
        hidden = text(tokens, vectors).hidden
        found["text encoder forward"] = count.taken()
        torch.autograd.grad(hidden, vectors, torch.empty_like(hidden))
        found["text encoder backward"] = count.taken()
    return found


def count_all() -> dict[str, dict[str, Counter[str]]]:
    """Model -> part -> kernels by kind."""
    return {
        "SD1.5, 512²": {**text_kernels(CLIPConfig()), **unet_kernels(UNetConfig(), 64)},
        "SDXL's UNet, 1024²": unet_kernels(SDXL, 128),
    }


def main() -> None:
    rows = []
    for model, parts in count_all().items():
        before = BEFORE.get(model, {})
        sums = {part: found.total() for part, found in parts.items()}
        rows += [[model, part, str(before.get(part, "")), str(number)] for part, number in sums.items()]
        rows.append([model, "all", str(sum(before.values())), str(sum(sums.values()))])
    print(table(("model", "part", "before", "now"), rows))


if __name__ == "__main__":
    main()
