"""Which type the frozen model computes in."""

from __future__ import annotations

import time

import pytest
import torch

from textual_inversion.diffusion import model
from textual_inversion.diffusion.model import check_device, check_half, compute_dtype
from textual_inversion.errors import ConfigError


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((6, 1), torch.float16), ((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)],
)
def test_cards_that_only_emulate_bf16_get_fp16(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert compute_dtype("auto", "cuda:1") is dtype


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_elsewhere_it_is_fp32(device):
    assert compute_dtype("auto", device) is torch.float32


def test_what_is_asked_for_is_taken():
    assert [compute_dtype(word, "cpu") for word in ("fp32", "bf16", "fp16")] == [torch.float32, torch.bfloat16, torch.float16]
    with pytest.raises(ConfigError) as error:
        compute_dtype("fp8", "cpu")
    assert error.value.setting == "precision"


def test_fp16_on_an_old_pytorch_without_a_card_is_one_sentence(monkeypatch):
    def refuses(*_):
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "conv2d", refuses)
    with pytest.raises(ConfigError, match="cannot compute in fp16 on the processor"):
        check_half(torch.float16, "cpu")
    check_half(torch.float16, "cuda")
    check_half(torch.bfloat16, "cpu")


def test_devices_are_tried():
    check_device("cpu")
    check_device("")
    with pytest.raises(ConfigError) as error:
        check_device("gpu")
    assert error.value.setting == "device"


@pytest.mark.parametrize(
    ("faster", "large", "dtype"), [(True, True, torch.bfloat16), (True, False, torch.float32), (False, True, torch.float32)]
)
def test_a_processor_takes_bf16_for_large_models_where_it_is_faster(monkeypatch, faster, large, dtype):
    monkeypatch.setattr(model, "cpu_is_faster_in_bf16", lambda: faster)
    assert compute_dtype("auto", "cpu", large=large) is dtype
    assert compute_dtype("fp32", "cpu", large=large) is torch.float32


def test_the_processor_is_measured_in_a_moment():
    begun = time.monotonic()
    assert model.cpu_is_faster_in_bf16() in (True, False)
    assert time.monotonic() - begun < 20
