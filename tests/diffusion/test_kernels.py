"""The fused kernels against plain PyTorch, values and gradients, in Triton's interpreter on the processor; and compiled for real cards."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.checkpoints import TINY_CLIP, on_meta, random_module
from tests.support.references import apart
from textual_inversion.diffusion import kernels
from textual_inversion.diffusion.clip import TokenBatch
from textual_inversion.diffusion.kernels.launch import Launch, recorded
from textual_inversion.diffusion.unet import UNetConfig

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton") is not None
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that test_in_the_interpreter starts")
SDXL = UNetConfig(
    channel_mult=(1, 2, 4), num_res_blocks=(2, 2, 2), transformer_depth=(0, 2, 10), middle_depth=10, context_dim=2048,
    linear_projection=True, label_channels=2816,
)  # fmt: skip
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_in_the_interpreter() -> None:
    """Triton reads TRITON_INTERPRET when it is imported, so the comparisons run in a process of their own."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(Path(__file__))]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def assert_as_plain(compute: Callable[..., tuple[torch.Tensor, ...]], *inputs: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Values, and gradients of every input, of the fused kernels in `dtype` against plain PyTorch in fp32 with the same numbers."""
    results = []
    for way, kind in (("plain", torch.float32), ("triton", dtype)):
        leaves = [tensor.to(dtype).to(kind).requires_grad_() for tensor in inputs]
        with kernels.force(way):
            outputs = compute(*leaves)
            weights = [torch.linspace(-1, 2, out.numel()).view(out.shape).to(dtype).to(kind) for out in outputs]
            results.append([*outputs, *torch.autograd.grad(outputs, leaves, weights)])
    for theirs, ours in zip(*results):
        assert ours.dtype is dtype
        assert apart(ours, theirs) < TOLERANCE[dtype]


def norm_of(kind: type, *sizes: int, eps: float = 1e-5) -> nn.Module:
    norm = kind(*sizes, eps=eps).requires_grad_(False)
    for seed, parameter in enumerate(norm.parameters()):
        # exact in every type, so that all compare the same weights
        parameter.copy_(torch.randint(-8, 9, parameter.shape, generator=torch.Generator().manual_seed(seed)) / 4)
    return norm


def a_map(b: int, c: int, h: int, w: int, mean: float = 0.0, seed: int = 0) -> torch.Tensor:
    x = torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed)) + mean
    return x.contiguous(memory_format=torch.channels_last)


@pytest.fixture
def two_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the kernels of large maps on small ones, with loops over several tiles."""
    from textual_inversion.diffusion.kernels import fused_group_norm

    monkeypatch.setattr(fused_group_norm, "_WHOLE", 0)
    monkeypatch.setattr(fused_group_norm, "_MOST_BLOCKS", 2)


def assert_group_norm(groups: int, channels: int, h: int, w: int, *, dtype: torch.dtype = torch.float32, b: int = 2) -> None:
    norms = {kind: norm_of(nn.GroupNorm, groups, channels).to(kind) for kind in (torch.float32, dtype)}
    x, shift = a_map(b, channels, h, w), torch.randn(b, channels, generator=torch.Generator().manual_seed(5))
    assert_as_plain(lambda x: kernels.group_norm_of_residual(x, norms[x.dtype], silu=True), x, dtype=dtype)
    assert_as_plain(lambda x, shift: (kernels.group_norm(x, norms[x.dtype], silu=True, shift=shift),), x, shift, dtype=dtype)
    assert_as_plain(lambda x: (kernels.group_norm(x, norms[x.dtype]),), x, dtype=dtype)


@interpreted
@pytest.mark.parametrize(("width", "tile"), [(10, 128), (40, 512)])
def test_group_norm_in_several_rounds(width: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from textual_inversion.diffusion.kernels import fused_group_norm

    monkeypatch.setattr(fused_group_norm, "_WHOLE_TILE", tile)
    assert_group_norm(2, 2 * width, 5, 7)


WIDTHS = (10, 20, 30, 40, 60, 80)  # channels of a group; 32 groups of them are 320, 640, 960, 1280, 1920 and 2560 channels
HALVES = (torch.bfloat16, torch.float16)


@interpreted
@pytest.mark.parametrize("width", WIDTHS)
def test_group_norm_of_small_maps(width: int) -> None:
    assert_group_norm(4, 4 * width, 3, 5)


@interpreted
@pytest.mark.usefixtures("two_kernels")
@pytest.mark.parametrize("width", WIDTHS)
def test_group_norm_of_large_maps(width: int) -> None:
    assert_group_norm(4, 4 * width, 5, 7, b=1)  # 35 rows: two blocks of two tiles, the last one partly outside


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_group_norm_of_32_groups(width: int, large: bool, request: pytest.FixtureRequest) -> None:
    if large:
        request.getfixturevalue("two_kernels")
    assert_group_norm(32, 32 * width, 9, 7)


@interpreted
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("groups", "channels", "h", "w"), [(2, 64, 1, 1), (12, 120, 6, 3), (6, 18, 5, 1)])
def test_group_norm_of_odd_maps(groups: int, channels: int, h: int, w: int, large: bool, request: pytest.FixtureRequest) -> None:
    if large:
        request.getfixturevalue("two_kernels")
    assert_group_norm(groups, channels, h, w, b=1)


@interpreted
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("large", [False, True])
def test_group_norm_in_half_precision(dtype: torch.dtype, large: bool, request: pytest.FixtureRequest) -> None:
    if large:
        request.getfixturevalue("two_kernels")
    assert_group_norm(4, 40, 4, 5, dtype=dtype)


@interpreted
@pytest.mark.parametrize("large", [False, True])
def test_a_mean_far_above_the_deviation_keeps_its_digits(large: bool, request: pytest.FixtureRequest) -> None:
    """A difference of squares would lose all digits here. The reference is fp64, because fp32's own sums are no better."""
    if large:
        request.getfixturevalue("two_kernels")
    norm = norm_of(nn.GroupNorm, 4, 32)
    x = (a_map(1, 32, 9, 11) + 2.0**12).contiguous(memory_format=torch.channels_last)
    with kernels.force("triton"):
        ours = kernels.group_norm(x, norm)
    theirs = torch.nn.functional.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double())
    assert apart(ours, theirs) < 1e-3


@interpreted
@pytest.mark.slow
def test_sums_of_several_tiles_in_sequence_and_of_many_blocks() -> None:
    """A map of 2,400 rows: 50 blocks of 3 tiles, as large pictures have them."""
    norm = norm_of(nn.GroupNorm, 2, 32)
    assert_as_plain(lambda x: kernels.group_norm_of_residual(x, norm, silu=True), a_map(1, 32, 48, 50, mean=3.0))


@interpreted
@pytest.mark.parametrize("width", [320, 640, 768, 1280, 2048, 50])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_add_layer_norm(width: int, dtype: torch.dtype) -> None:
    norms = {kind: norm_of(nn.LayerNorm, width).to(kind) for kind in (torch.float32, dtype)}
    x, delta = torch.randn(2, 5, width) * 3 + 10, torch.randn(2, 5, width)
    assert_as_plain(lambda x, delta: kernels.add_layer_norm(x, delta, norms[x.dtype]), x, delta, dtype=dtype)
    assert_as_plain(lambda x: kernels.add_layer_norm(x, None, norms[x.dtype]), x, dtype=dtype)
    assert_as_plain(lambda x, delta: (kernels.add_layer_norm(x, delta, norms[x.dtype])[1],), x, delta, dtype=dtype)


@interpreted
@pytest.mark.parametrize("width", [1280, 2560, 5120, 37])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_geglu(width: int, dtype: torch.dtype) -> None:
    assert_as_plain(lambda h: (kernels.geglu(h),), torch.randn(2, 5, 2 * width) * 2, dtype=dtype)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_activations(dtype: torch.dtype) -> None:
    x = torch.cat((torch.randn(2000) * 3, torch.tensor([0.0, -90.0, 90.0])))
    assert_as_plain(lambda x: (kernels.quick_gelu(x), kernels.gelu(x)), x, dtype=dtype)


@interpreted
@pytest.mark.parametrize("channels", [32, 320, 70])
def test_additions_and_joins(channels: int) -> None:
    conv = nn.Conv2d(channels, channels, 1).requires_grad_(False)
    x, y = a_map(2, channels, 5, 7), a_map(2, channels, 5, 7, seed=1)
    assert_as_plain(lambda x, y: (kernels.add_convolution(x, y, conv),), x, y)
    assert_as_plain(lambda x, y: (kernels.join_channels(x, y),), x, a_map(2, 96, 5, 7))


@interpreted
def test_only_what_is_needed_gets_a_gradient() -> None:
    norm, group = norm_of(nn.LayerNorm, 32), norm_of(nn.GroupNorm, 4, 32)
    x, delta = torch.randn(2, 3, 32), torch.randn(2, 3, 32, requires_grad=True)
    plane, shift = a_map(2, 32, 3, 3), torch.randn(2, 32, requires_grad=True)
    with kernels.force("triton"):
        assert not any(out.requires_grad for out in kernels.add_layer_norm(x, None, norm))
        assert not kernels.group_norm(plane, group).requires_grad
        assert kernels.add_layer_norm(x, delta, norm)[1].sum().backward() is None
        kernels.group_norm(plane, group, shift=shift).square().sum().backward()
        kernels.join_channels(plane, shift[:, :, None, None].expand(2, 32, 3, 3)).sum().backward()
    assert x.grad is None
    assert plane.grad is None
    assert delta.grad is not None
    assert shift.grad is not None


@interpreted
def test_results_are_the_same_in_each_run(two_kernels: None) -> None:
    norm, x = norm_of(nn.GroupNorm, 32, 64), a_map(2, 64, 9, 8)
    with kernels.force("triton"):
        assert torch.equal(kernels.group_norm(x, norm, silu=True), kernels.group_norm(x, norm, silu=True))


@interpreted
def test_the_self_test_passes_and_sees_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from textual_inversion.diffusion.kernels import fused_pointwise, self_test

    cases = self_test._cases

    def without_large(device: torch.device, dtype: torch.dtype) -> dict[str, self_test.Case]:
        return {name: case for name, case in cases(device, dtype).items() if case[1][0].shape[-1] != 64}  # slow in the interpreter

    monkeypatch.setattr(self_test, "_cases", without_large)
    random = torch.get_rng_state()
    with torch.inference_mode():
        assert self_test.difference("cpu") == ""
    assert torch.equal(torch.get_rng_state(), random)
    monkeypatch.setattr(fused_pointwise, "_FLAT", 64)
    monkeypatch.setattr(fused_pointwise, "cdiv", lambda a, b: a // b)  # leaves the last numbers unwritten
    assert "is off by" in self_test.difference("cpu")


SMALL_UNETS = {
    "one level": UNetConfig(4, 4, 32, (1,), (1,), (1,), 1, 24),
    "SD1": UNetConfig(4, 4, 32, (1, 2), (1, 1), (1, 0), 1, 24),
    "SDXL": UNetConfig(4, 4, 64, (1, 2), (1, 1), (0, 2), 1, 24, True, 16),
}


@interpreted
@pytest.mark.parametrize("name", ["one level", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SD1", "SDXL"))])
def test_a_unet_is_the_same_with_the_fused_kernels(name: str) -> None:
    config = SMALL_UNETS[name]
    unet = random_module(config).to(memory_format=torch.channels_last)
    for part in unet.modules():
        if isinstance(part, nn.GroupNorm):
            part.num_groups = 4  # the interpreter takes long for each program
    x, context = torch.randn(1, config.in_channels, 4, 3), torch.randn(1, 7, config.context_dim)
    label = torch.randn(1, config.label_channels) if config.label_channels else None
    results = []
    for way in ("plain", "triton"):
        leaves = [tensor.clone().requires_grad_() for tensor in (context, label) if tensor is not None]
        with kernels.force(way):
            out = unet(x, torch.tensor([30]), *leaves)
            results.append([out, *torch.autograd.grad(out.square().mean(), leaves)])
    assert all(apart(ours, theirs) < 1e-4 for theirs, ours in zip(*results))


@interpreted
@pytest.mark.parametrize("quick", [True, False])
def test_a_text_encoder_is_the_same_with_the_fused_kernels(quick: bool) -> None:
    encoder = random_module(dataclasses.replace(TINY_CLIP, vocab_size=100, layers=2, quick_gelu=quick))
    ids = torch.arange(20).view(2, 10)
    tokens = TokenBatch(ids, ids % 2, ids % 3 == 0)
    results = []
    for way in ("plain", "triton"):
        vectors = torch.randn(2, 64, generator=torch.Generator().manual_seed(2)).requires_grad_()
        with kernels.force(way):
            states = encoder(tokens, vectors).hidden
            results.append([states, *torch.autograd.grad((states * torch.linspace(0, 1, 64)).sum(), vectors)])
    assert all(apart(ours, theirs) < 1e-4 for theirs, ours in zip(*results))


def test_without_a_cuda_device_there_is_a_reason() -> None:
    assert "CUDA" in kernels.status("cpu")
    assert not kernels.is_fused(torch.zeros(1))


def test_weights_that_learn_take_the_plain_way() -> None:
    norm = nn.LayerNorm(8)
    with kernels.force("triton"):
        assert kernels.is_fused(torch.zeros(1))
        assert not kernels.is_fused(torch.zeros(1), norm.weight)
        kernels.add_layer_norm(torch.randn(2, 8), None, norm)[1].sum().backward()
    assert norm.bias.grad is not None


@pytest.mark.parametrize("failure", [RuntimeError("no compiler"), AssertionError()])
def test_a_failing_kernel_leaves_the_plain_way_and_its_reason(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    from textual_inversion.diffusion.kernels import self_test

    def fails(_: object) -> str:
        raise failure

    monkeypatch.setattr(self_test, "difference", fails)
    kernels._tested.cache_clear()
    try:
        assert (str(failure) or "AssertionError") in kernels.status("cuda:0")
        monkeypatch.setattr(self_test, "difference", lambda _: "")
        assert kernels.status("cuda:0") != ""  # for good
    finally:
        kernels._tested.cache_clear()


def launches_of(config: UNetConfig, side: int, dtype: torch.dtype, batch: int = 1) -> list[Launch]:
    """All fused launches of a forward and backward of a UNet and of a text encoder, on the meta device."""
    unet = on_meta(config).to(dtype).requires_grad_(False).to(memory_format=torch.channels_last)
    with torch.device("meta"), kernels.force("triton"), recorded() as launches:
        context = torch.zeros(batch, 77, config.context_dim, dtype=dtype, requires_grad=True)
        label = torch.zeros(batch, config.label_channels, dtype=dtype, requires_grad=True) if config.label_channels else None
        unet(torch.zeros(batch, 4, side, side, dtype=dtype), torch.zeros(batch), context, label).float().mean().backward()
        for quick in (True, False):
            kernels.quick_gelu(context).sum().backward() if quick else kernels.gelu(context).sum().backward()
    return launches


def variants(launches: list[Launch]) -> dict[tuple[object, ...], Launch]:
    return {(launch.kernel.__name__, *launch.constants.items(), launch.num_warps): launch for launch in launches}


def one_of_each(launches: list[Launch]) -> dict[tuple[object, ...], Launch]:
    """One launch for every kernel: the one that has most of its optional parts."""
    by_parts = sorted(launches, key=lambda launch: sum(value is True for value in launch.constants.values()))
    return {(launch.kernel.__name__,): launch for launch in by_parts}


# Compiles without a card, in a process of its own, because this one may interpret.
COMPILE = """
import json, sys
from tests.diffusion.test_kernels import UNetConfig, compiled, launches_of, one_of_each, variants, SDXL, torch
model, side, dtype, capability, every = json.loads(sys.argv[1])
chosen = (variants if every else one_of_each)(launches_of(SDXL if model == "SDXL" else UNetConfig(), side, getattr(torch, dtype)))
print(json.dumps({" ".join(map(str, key)): compiled(launch, capability) for key, launch in chosen.items()}))
"""
_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def compiled(launch: Launch, capability: int) -> list[int]:
    """Bytes of the machine code and of shared memory of one launch, compiled for a card that need not be here."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [name for name in launch.kernel.arg_names if name not in launch.constants]
    signature, attributes = {}, {}
    for name, value in zip(names, launch.arguments):
        kinds = {int: "i32", float: "fp32"}
        signature[name] = _TYPES[value.dtype] if isinstance(value, torch.Tensor) else kinds[type(value)]
        place = launch.kernel.arg_names.index(name)
        aligned = isinstance(value, torch.Tensor) or (value % 16 == 0 and not launch.kernel.params[place].do_not_specialize)
        if aligned and not isinstance(value, float):  # as the launch itself tells Triton
            attributes[(place,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(launch.constants, "constexpr")
    constants = {(launch.kernel.arg_names.index(name),): value for name, value in launch.constants.items()}
    source = ASTSource(launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    done = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": launch.num_warps})
    return [len(done.asm["cubin"]), done.metadata.shared]


def compile_all(model: str, side: int, dtype: str, capability: int, every: bool) -> dict[str, list[int]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    arguments = json.dumps([model, side, dtype, capability, every])
    command = [sys.executable, "-c", COMPILE, arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this process cannot compile")
def test_every_kernel_compiles_for_a_card() -> None:
    found = compile_all("SD1.5", 64, "bfloat16", 90, every=False)
    assert all(code > 0 and shared < 48 * 1024 for code, shared in found.values())
    assert len(found) == 14


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(2000)
@pytest.mark.skipif(INTERPRETED, reason="this process cannot compile")
@pytest.mark.parametrize(("capability", "dtype"), [(75, "float16"), (80, "bfloat16"), (90, "bfloat16"), (90, "float32")])
@pytest.mark.parametrize(("model", "side"), [("SD1.5", 64), ("SDXL", 128)])
def test_every_variant_compiles(model: str, side: int, dtype: str, capability: int) -> None:
    found = compile_all(model, side, dtype, capability, every=True)
    print(len(found), max(found.values()))
    assert all(code > 0 and shared < 48 * 1024 for code, shared in found.values())
