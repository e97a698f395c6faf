"""The kernels of a training step, counted without a card."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.kernel_count import BEFORE, count_all

Counts = dict[str, dict[str, "Counter[str]"]]


@pytest.fixture(scope="module")
def counts() -> Counts:
    return count_all()


def test_a_step_has_half_of_the_kernels_it_had(counts: Counts) -> None:
    for model, parts in counts.items():
        assert list(parts) == list(BEFORE[model])
        assert all(0 < found.total() <= BEFORE[model][part] for part, found in parts.items())
    assert sum(found.total() for found in counts["SD1.5, 512²"].values()) <= 1190  # versions of PyTorch differ by a few


def test_the_backward_stops_at_the_first_conditioning(counts: Counts) -> None:
    """The first convolution, one residual block and one self-attention stand before it."""
    forward, backward = counts["SD1.5, 512²"]["UNet forward"], counts["SD1.5, 512²"]["UNet backward"]
    assert forward["attention"] == 32
    assert backward["attention backward"] == 3 * 31
    assert forward["fused add_kernel"] == 22
    assert backward["convolution backward"] == 52 - 3
