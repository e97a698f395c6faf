"""Joined weights: one memory, the same names, and right after whatever may happen to a module."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.checkpoints import TINY_CLIP, TINY_UNET, on_meta, random_module, random_state
from tests.support.references import apart
from textual_inversion.diffusion.layers import Joined


def three_layers() -> list[nn.Linear]:
    return [nn.Linear(4, rows).requires_grad_(False) for rows in (3, 5, 2)]


def is_joined(joined: Joined) -> bool:
    whole = joined()
    expected = torch.cat([getattr(layer, joined.name) for layer in joined.layers])
    parts = {getattr(layer, joined.name).untyped_storage().data_ptr() for layer in joined.layers}
    return torch.equal(whole, expected) and parts == {whole.untyped_storage().data_ptr()}


def test_parameters_become_views_of_the_joined_tensor() -> None:
    layers = three_layers()
    before = [layer.weight.clone() for layer in layers]
    joined = Joined(layers)
    assert is_joined(joined)
    assert joined() is joined()
    assert joined.sizes == [3, 5, 2]
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(layers, before))
    layers[1].weight.fill_(7.0)
    assert torch.equal(joined()[3:8], layers[1].weight)


@pytest.mark.parametrize("change", ["replaced", "assigned", "data", "converted", "biases"])
def test_a_changed_parameter_is_joined_anew(change: str) -> None:
    layers = three_layers()
    joined = Joined(layers, "bias" if change == "biases" else "weight")
    joined()
    if change == "replaced":
        layers[2].weight = nn.Parameter(torch.ones(2, 4), requires_grad=False)
    elif change == "assigned":
        layers[0].load_state_dict({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, assign=True)
    elif change == "data":
        layers[1].weight.data = torch.ones(5, 4)
    elif change == "converted":
        for layer in layers:
            layer.double()
    else:
        layers[1].bias = nn.Parameter(torch.ones(5), requires_grad=False)
    assert is_joined(joined)


def test_weights_that_learn_get_their_gradients() -> None:
    layers = three_layers()
    layers[1].weight.requires_grad_(True)
    torch.nn.functional.linear(torch.ones(1, 4), Joined(layers)()).sum().backward()
    assert torch.equal(layers[1].weight.grad, torch.ones(5, 4))
    assert layers[0].weight.grad is None


def test_weights_first_used_in_inference_mode_can_be_trained_through() -> None:
    joined = Joined(three_layers())
    with torch.inference_mode():
        joined()
    x = torch.ones(1, 4, requires_grad=True)
    torch.nn.functional.linear(x, joined()).sum().backward()
    assert x.grad is not None


def joined_of(module: nn.Module) -> list[Joined]:
    return [value for part in module.modules() for value in vars(part).values() if isinstance(value, Joined)]


@pytest.mark.parametrize("config", [TINY_UNET, TINY_CLIP])
def test_a_module_is_joined_when_it_is_loaded_moved_or_copied(config: object, tmp_path: Path) -> None:
    module = random_module(config)
    state = random_state(config)
    assert list(module.state_dict()) == list(state)
    for _ in range(2):
        assert joined_of(module)
        parts = {id(joined._joined) for joined in joined_of(module)}
        assert all(is_joined(joined) for joined in joined_of(module))
        assert parts == {id(joined._joined) for joined in joined_of(module)}  # they had been joined before a step came
        module = copy.deepcopy(module.double().float())
        module.fuse()
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in load_file(tmp_path / "weights.safetensors").items())


@pytest.mark.parametrize("config", [TINY_UNET, TINY_CLIP])
def test_joined_weights_take_no_memory_of_their_own(config: object) -> None:
    module = random_module(config)
    storages = {weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes() for weight in module.parameters()}
    for joined in joined_of(module):
        storages[joined().untyped_storage().data_ptr()] = joined().untyped_storage().nbytes()
    assert sum(storages.values()) == sum(weight.nbytes for weight in module.parameters())


def test_on_the_meta_device_they_are_joined_before_anything_runs() -> None:
    """The estimate of memory tells weights from what is kept by their storage."""
    unet = on_meta(TINY_UNET).to(torch.bfloat16).requires_grad_(False)
    known = {weight.untyped_storage()._cdata for weight in unet.parameters()}
    assert {joined().untyped_storage()._cdata for joined in joined_of(unet)} <= known


def test_a_unet_in_training_mode_gives_all_its_weights_gradients() -> None:
    frozen, learning = random_module(TINY_UNET), random_module(TINY_UNET).requires_grad_(True)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 64)
    out = learning(*inputs)
    assert apart(out, frozen(*inputs)) < 1e-6
    out.square().sum().backward()
    assert all(weight.grad is not None for weight in learning.parameters())
