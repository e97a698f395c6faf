"""Latent moments of pictures, and samples of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from textual_inversion.errors import DatasetError


@dataclass(frozen=True)
class LatentMoments:
    """The VAE's encoding of views of one size: a normal distribution for each latent value, already times the scale factor.

    Attributes:
        mean: fp32 [rows, c, h, w].
        std: fp32 [rows, c, h, w], 0 or more.
        flipped: there are two rows for each of the n views; row i is view i, row n + i its mirror image.

    Raises:
        DatasetError: the shapes differ, or an odd number of rows is said to be flipped.
    """

    mean: torch.Tensor
    std: torch.Tensor
    flipped: bool = False

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape or self.mean.ndim != 4:
            raise DatasetError(
                f"Latent moments have shapes {list(self.mean.shape)} and {list(self.std.shape)}; expected [rows, c, h, w] twice."
            )
        if self.flipped and self.mean.shape[0] % 2:
            raise DatasetError(f"Latent moments have {self.mean.shape[0]} rows; with mirror images the number must be even.")

    @property
    def views(self) -> int:
        """Number of views n; mirror images do not count."""
        return self.mean.shape[0] // (2 if self.flipped else 1)

    def to(self, device: torch.device | str) -> LatentMoments:
        """The same moments on another device."""
        return LatentMoments(self.mean.to(device), self.std.to(device), self.flipped)


@dataclass(frozen=True)
class LatentBucket:
    """The encoded pictures of one size.

    Attributes:
        moments: one row for each view, then one for each view's mirror image if those are wanted.
        pictures: the picture of each view, as an index into the training set; the views of a picture stand together.
        weights: loss weight of each place, fp32 [rows, 1, h, w]; None where all count alike.
    """

    moments: LatentMoments
    pictures: tuple[int, ...]
    weights: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> LatentBucket:
        """The same bucket on another device."""
        weights = None if self.weights is None else self.weights.to(device)
        return LatentBucket(self.moments.to(device), self.pictures, weights)

    def with_weights(self) -> LatentBucket:
        """The same bucket with weights, all 1 where it had none."""
        return self if self.weights is not None else replace(self, weights=torch.ones_like(self.moments.mean[:, :1]))


def sample(moments: LatentMoments, rows: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """Latents of some rows: their mean plus `noise` times their standard deviation.

    Args:
        moments: the rows to choose from.
        rows: int64 [b] on the moments' device, each below the number of rows (`view + moments.views` is its mirror image).
        noise: standard normal [b, c, h, w] on that device, or None for the mean itself.

    Returns:
        fp32 [b, c, h, w], a new tensor.
    """
    mean = moments.mean.index_select(0, rows)  # b c h w
    if noise is None:
        return mean
    return torch.addcmul(mean, moments.std.index_select(0, rows), noise)
