"""One training step: splice, text encoder, UNet, loss, backward, and the update of the vectors.

A step learns the vectors of one embedding or of several at once; their pictures are rows of the same batches. Nothing here waits for
the device, and everything that changes lives in tensors that stay where they are, so that a step can be recorded as a CUDA graph.
Legend: b batch, c channels, h w latent size, n vectors, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from textual_inversion.diffusion.model import StableDiffusion, WordSize
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.data.batches import Batch
from textual_inversion.training.methods import optimizer_of
from textual_inversion.training.optimizer import LossScale, clip_gradient

LEAST_LOSS = 1e-12  # a loss of 0 has no logarithm
KEPT_STEPS = 16  # steps whose numbers stay on the device until they are read


class Reading(NamedTuple):
    """The numbers of one step, as the device computed them.

    Attributes:
        loss: mean squared error.
        gradient: norm of the unscaled, unclipped gradient.
        vector_norm: mean norm of the vectors after the step.
    """

    loss: float
    gradient: float
    vector_norm: float


class TrainedVectors:
    """The vectors of one embedding, and everything that moves them.

    Args:
        vectors: fp32 [n, d]; changed in place.
        config: the settings of the update (accumulation, clipping, weight decay).
        dtype: compute type of the model.
        words: how long the checkpoint's own words are, for each text encoder.

    Attributes:
        loss: mean loss of the step under way, scalar.
        gradient: unscaled gradient of the step under way, [n, d].
        learning_rate, clip_bound: of the step under way, scalars.
        readings: the numbers of the last steps, in the order of `Reading`, fp32 [KEPT_STEPS, 3].
        history: the vectors before each of these steps, [KEPT_STEPS, n, d].
    """

    def __init__(self, vectors: torch.Tensor, config: TrainingConfig, dtype: torch.dtype, words: Sequence[WordSize]) -> None:
        device = vectors.device
        self.vectors, self.config = vectors, config
        self.optimizer = optimizer_of(vectors, config, words)
        self.scale = LossScale(dtype, device)
        self.loss, self.clip_bound = torch.zeros((), device=device), torch.ones((), device=device)
        self.gradient = torch.zeros_like(vectors)
        self.readings = torch.zeros(KEPT_STEPS, len(Reading._fields), device=device)
        self.history = torch.zeros(KEPT_STEPS, *vectors.shape, device=device)

    @property
    def learning_rate(self) -> torch.Tensor:
        """The rate of the step under way, a scalar."""
        return self.optimizer.learning_rate

    def objective(self, losses: torch.Tensor) -> torch.Tensor:
        """What is minimised, a scalar, by the mean squared error of each row [b]: its mean, or the mean of its logarithm.

        The logarithm counts every row by the share of its error that goes away. The mean counts little but the rows with little noise,
        whose errors and gradients are up to a hundred times larger.
        """
        if self.config.loss_type == "log" and self.config.method != "classic":
            return losses.clamp(min=LEAST_LOSS).log().mean()
        return losses.mean()

    @torch.no_grad()
    def add(self, loss: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add one pass: its loss, and its gradient [n, d] times the loss scale."""
        passes = self.config.gradient_accumulation_steps
        self.loss.add_(loss.detach() / passes)
        self.gradient.add_(gradient / (passes * self.scale.factor))

    @torch.no_grad()
    def update(self, slot: torch.Tensor) -> None:
        """Move the vectors along the gradient of all passes, and note the numbers.

        Args:
            slot: int64 [1], the place in `readings` and `history`.
        """
        self.history.index_copy_(0, slot, self.vectors[None])
        self.scale.update(self.gradient)
        norm = torch.linalg.vector_norm(self.gradient)
        self.optimizer.step(clip_gradient(self.gradient, self.config.clip_mode, self.clip_bound))
        vector_norm = torch.linalg.vector_norm(self.vectors, dim=1).mean()
        self.readings.index_copy_(0, slot, torch.stack((self.loss, norm, vector_norm))[None])
        self.loss.zero_()
        self.gradient.zero_()

    def read(self, count: int) -> list[Reading]:
        """The numbers of the first `count` slots. Waits for the device."""
        return [Reading(*row) for row in self.readings[:count].tolist()]

    def before(self, slot: int) -> torch.Tensor:
        """A copy of the vectors [n, d] before the step in `slot`, on the CPU."""
        return self.history[slot].to("cpu", copy=True)


def row_errors(model: StableDiffusion, batch: Batch, vectors: torch.Tensor, clip_skip: int) -> torch.Tensor:
    """The mean squared error of the prediction for each row (arXiv 2112.10752, eq. 2), weighted by place, fp32 [b].

    Args:
        vectors: fp32 [n, d]; the result is differentiable in them.
    """
    noisy = model.schedule.mix(batch.latents, batch.noise, batch.timesteps)
    prompts = model.conditioner.encode(batch.prompts, vectors, clip_skip)
    predicted = model.predict(noisy, batch.timesteps, prompts, batch.sizes)
    target = model.prediction.target(model.schedule, batch.latents, batch.noise, batch.timesteps)
    errors = (predicted.float() - target).square()  # b c h w
    return (errors if batch.weights is None else errors * batch.weights).mean(dim=(1, 2, 3))


class TrainingStep:
    """The frozen model and the vectors that learn.

    Args:
        model: frozen; nothing in it changes.
        vectors: where training starts, [n, d]; copied to fp32 on the model's device. For several embeddings, one tensor for each.
        config: the settings that the step needs; for several embeddings, one for each. They agree on clip skip and on the
            number of passes.

    Attributes:
        vectors: all rows, fp32 [n, d]; the leaf of the gradient.
        trained: the vectors of each embedding, as parts of `vectors`.
    """

    def __init__(
        self,
        model: StableDiffusion,
        vectors: torch.Tensor | Sequence[torch.Tensor],
        config: TrainingConfig | Sequence[TrainingConfig],
    ) -> None:
        starts = [vectors] if isinstance(vectors, torch.Tensor) else list(vectors)
        configs = [config] if isinstance(config, TrainingConfig) else list(config)
        self.model, self.clip_skip = model, configs[0].clip_skip
        self.passes = configs[0].gradient_accumulation_steps
        rows = torch.cat([start.detach().to(model.device, torch.float32, copy=True) for start in starts])
        self.vectors = rows.requires_grad_(True)
        parts = self.vectors.detach().split([len(start) for start in starts])
        self.trained = [TrainedVectors(part, each, model.dtype, model.words) for part, each in zip(parts, configs, strict=True)]
        self._first_slot = torch.zeros(1, dtype=torch.int64, device=model.device)

    def losses(self, batch: Batch) -> torch.Tensor:
        """The mean squared error of each row, fp32 [b]."""
        return row_errors(self.model, batch, self.vectors, self.clip_skip)

    def loss(self, batch: Batch) -> torch.Tensor:
        """The mean squared error of a batch, a scalar."""
        return self.losses(batch).mean()

    def accumulate(self, batch: Batch, rows: Sequence[tuple[int, int]] = ()) -> None:
        """Do one pass: forward and backward of a batch.

        Args:
            batch: rows of one embedding, or of several.
            rows: (embedding, number of rows) of the batch's rows in their order; empty = all are the first embedding's.
        """
        rows = rows or [(0, len(batch.latents))]
        losses = self.losses(batch).split([count for _, count in rows])
        scaled = [self.trained[number].objective(loss) * self.trained[number].scale.factor for (number, _), loss in zip(rows, losses)]
        (gradient,) = torch.autograd.grad(scaled, self.vectors)
        gradients = gradient.split([len(each.vectors) for each in self.trained])
        for (number, _), loss in zip(rows, losses):
            self.trained[number].add(loss.mean(), gradients[number])

    def run(self, next_batch: Callable[[], Batch], learning_rate: float, clip_bound: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Do one whole step of a single embedding, with batches that are there already.

        Returns:
            The mean loss and the norm of the unscaled, unclipped gradient: fp32 scalars on the device.
        """
        (trained,) = self.trained
        trained.learning_rate.fill_(learning_rate)
        trained.clip_bound.fill_(clip_bound)
        for _ in range(self.passes):
            self.accumulate(next_batch())
        trained.update(self._first_slot)
        return trained.readings[0, 0].clone(), trained.readings[0, 1].clone()
