from __future__ import annotations

import pytest
import torch

from textual_inversion.errors import DatasetError
from textual_inversion.training.data.latents import LatentBucket, LatentMoments, sample


def test_sampling_is_mean_plus_noise_times_deviation() -> None:
    moments = LatentMoments(torch.randn(4, 4, 2, 2), torch.rand(4, 4, 2, 2), flipped=True)
    rows, noise = torch.tensor([3, 0, 3]), torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(sample(moments, rows, noise), moments.mean[rows] + noise * moments.std[rows])
    fixed = sample(moments, rows, None)
    assert torch.equal(fixed, moments.mean[rows])
    fixed.zero_()
    assert moments.mean.abs().max() > 0


def test_samples_have_the_moments_they_were_drawn_from() -> None:
    moments = LatentMoments(torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 0.5))
    noise = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    drawn = sample(moments, torch.zeros(20_000, dtype=torch.int64), noise)
    assert abs(drawn.mean().item() - 2) < 0.02
    assert abs(drawn.std().item() - 0.5) < 0.02


def test_moments_that_do_not_belong_together() -> None:
    with pytest.raises(DatasetError):
        LatentMoments(torch.zeros(2, 4, 2, 2), torch.zeros(1, 4, 2, 2))
    with pytest.raises(DatasetError):
        LatentMoments(torch.zeros(3, 4, 2, 2), torch.zeros(3, 4, 2, 2), flipped=True)
    moved = LatentMoments(torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 2, 2), flipped=True).to("cpu")
    assert moved.views == 1
    assert LatentBucket(moved, (0,), torch.ones(2, 1, 2, 2)).to("cpu").weights is not None
