"""The UNet against diffusers' on the same random weights, and its sizes read off the shapes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.support.checkpoints import TINY_UNET, random_module, shapes_of
from tests.support.references import apart, diffusers_unet, epsilons
from textual_inversion.diffusion.unet import UNetConfig

SMALL = {
    "tiny": TINY_UNET,
    "SD1": UNetConfig(model_channels=64, context_dim=48),
    "inpainting": dataclasses.replace(TINY_UNET, in_channels=9),
    "SD2": UNetConfig(model_channels=64, context_dim=96, linear_projection=True),
    "SDXL": UNetConfig(
        model_channels=64, channel_mult=(1, 2, 4), num_res_blocks=(2, 2, 2), transformer_depth=(0, 2, 3), middle_depth=3, context_dim=80,
        linear_projection=True, label_channels=112,
    ),
}  # fmt: skip
FULL = {
    "SD1.5": UNetConfig(),
    "SD1.5 inpainting": UNetConfig(in_channels=9),
    "SD2": UNetConfig(context_dim=1024, linear_projection=True),
    "SDXL": UNetConfig(
        channel_mult=(1, 2, 4), num_res_blocks=(2, 2, 2), transformer_depth=(0, 2, 10), middle_depth=10, context_dim=2048,
        linear_projection=True, label_channels=2816,
    ),
    "SDXL refiner": UNetConfig(
        model_channels=384, channel_mult=(1, 2, 4, 4), transformer_depth=(0, 4, 4, 0), middle_depth=4, context_dim=1280,
        linear_projection=True, label_channels=2560,
    ),
    "tiny": TINY_UNET,
}  # fmt: skip


def compare(config: UNetConfig, height: int, width: int) -> tuple[float, float]:
    """Distance of the outputs and of the gradients with respect to the conditioning."""
    ours = random_module(config)
    theirs = diffusers_unet(config, ours.state_dict())
    torch.manual_seed(1)
    x = torch.randn(2, config.in_channels, height, width)
    label = torch.randn(2, config.label_channels) if config.label_channels else None
    timesteps = torch.tensor([981, 3])
    contexts = [torch.randn(2, 7, config.context_dim).requires_grad_()]
    contexts.append(contexts[0].detach().clone().requires_grad_())
    a = ours(x, timesteps, contexts[0], label)
    b = theirs(x, timesteps, contexts[1], class_labels=label).sample
    target = torch.randn_like(b)
    (grad_a,) = torch.autograd.grad((a - target).square().mean(), contexts[0])
    (grad_b,) = torch.autograd.grad((b - target).square().mean(), contexts[1])
    return apart(a, b), apart(grad_a, grad_b)


@pytest.mark.parametrize("name", SMALL)
def test_prediction_and_gradient_are_those_of_diffusers(name: str) -> None:
    output, gradient = compare(SMALL[name], 16, 16)
    assert output < 1e-4
    assert gradient < 1e-4


@pytest.mark.parametrize(("height", "width"), [(16, 24), (9, 13), (7, 8), (5, 30)])
def test_odd_sizes_of_latents_fit(height: int, width: int) -> None:
    output, gradient = compare(SMALL["SD1"], height, width)
    assert output < 1e-4
    assert gradient < 1e-4


def test_norms_add_the_same_to_the_variance() -> None:
    ours = random_module(SMALL["SDXL"])
    assert epsilons(ours) == epsilons(diffusers_unet(SMALL["SDXL"], ours.state_dict()))


@pytest.mark.slow
def test_a_full_sd15_is_that_of_diffusers() -> None:
    output, gradient = compare(UNetConfig(), 24, 17)
    assert output < 1e-4
    assert gradient < 1e-4


@pytest.mark.parametrize("name", FULL)
def test_sizes_are_read_off_the_shapes(name: str) -> None:
    assert UNetConfig.from_shapes(shapes_of(FULL[name])) == FULL[name]


@pytest.mark.parametrize("missing", ["input_blocks.0.0.weight", "out.2.weight", "middle_block.1.proj_in.weight"])
def test_a_missing_name_is_named(missing: str) -> None:
    shapes = shapes_of(TINY_UNET)
    del shapes[missing]
    with pytest.raises(KeyError, match=missing):
        UNetConfig.from_shapes(shapes)


def test_one_row_of_a_batch_does_not_change_another() -> None:
    unet = random_module(TINY_UNET)
    x, context, timesteps = torch.randn(3, 4, 16, 16), torch.randn(3, 77, 64), torch.tensor([1, 500, 999])
    together = unet(x, timesteps, context)
    alone = torch.cat([unet(x[i : i + 1], timesteps[i : i + 1], context[i : i + 1]) for i in range(3)])
    assert apart(together, alone) < 1e-5


def test_fractions_of_timesteps_are_told_apart() -> None:
    unet = random_module(TINY_UNET)
    x, context = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 64)
    at = {t: unet(x, torch.tensor([t]), context) for t in (10.0, 10.4, 11.0)}
    assert not torch.equal(at[10.0], at[10.4])
    assert not torch.equal(at[11.0], at[10.4])


def test_weights_take_no_gradient() -> None:
    unet = random_module(TINY_UNET)
    context = torch.randn(1, 77, 64, requires_grad=True)
    unet(torch.randn(1, 4, 16, 16), torch.tensor([5]), context).sum().backward()
    assert context.grad is not None
    assert all(weight.grad is None and not weight.requires_grad for weight in unet.parameters())
