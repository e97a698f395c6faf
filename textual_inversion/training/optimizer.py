"""AdamW, Adam on the sphere, loss scaling and clipping for the one small tensor that learns.

Everything that changes lives in tensors on the vectors' device, and a step with a non-finite gradient is skipped there, so that the
processor never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), on one tensor.

    Args:
        vectors: fp32 [n, d], changed in place.
        weight_decay: 0 or more.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
    """

    def __init__(
        self, vectors: torch.Tensor, weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.vectors = vectors
        self.weight_decay, self.betas, self.eps = weight_decay, betas, eps
        self.learning_rate = torch.zeros((), device=vectors.device)
        self.steps = torch.zeros((), device=vectors.device)  # steps that were not skipped
        self.mean = torch.zeros_like(vectors)
        self.square = torch.zeros_like(vectors)

    @torch.no_grad()
    def step(self, gradient: torch.Tensor) -> None:
        """Move the vectors along `gradient` [n, d]; a gradient with NaN or infinity changes nothing."""
        beta1, beta2 = self.betas
        usable = torch.isfinite(gradient).all()
        self.steps.add_(usable)
        mean = self.mean.lerp(gradient, 1 - beta1)
        square = self.square.lerp(gradient.square(), 1 - beta2)
        # torch.pow, because `beta ** tensor` copies the number to the device in PyTorch 2.1
        corrected = mean / (1 - torch.pow(beta1, self.steps))
        spread = (square / (1 - torch.pow(beta2, self.steps))).sqrt().add_(self.eps)
        moved = self.vectors * (1 - self.learning_rate * self.weight_decay) - self.learning_rate * corrected / spread
        for tensor, new in ((self.mean, mean), (self.square, square), (self.vectors, moved)):
            tensor.copy_(torch.where(usable, new, tensor))

    @torch.no_grad()
    def forget(self, rows: list[int]) -> None:
        """Take the momentum from rows that were replaced. The second moment stays: the gradient is about as large as before."""
        self.mean[rows] = 0

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of the steps and of the two moments."""
        return {key: getattr(self, key).detach().clone() for key in ("steps", "mean", "square")}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a state that `state_dict` returned."""
        for key, value in state.items():
            getattr(self, key).copy_(value)


class PulledAdamW(AdamW):
    """AdamW that pulls the vectors towards a length after each step: times (length / norm) to the power 0.1.

    Plain training lets the vectors grow to several times the length of real words, and prompts are followed less. The pull is that of
    diffusers' advanced DreamBooth script, which applies it to the spread of the values.
    """

    PULL = 0.1

    def __init__(self, vectors: torch.Tensor, lengths: torch.Tensor, weight_decay: float = 0.0) -> None:
        super().__init__(vectors, weight_decay)
        self.lengths = lengths  # n 1

    @torch.no_grad()
    def step(self, gradient: torch.Tensor) -> None:
        """Move the vectors along `gradient` [n, d], and pull them back; a gradient with NaN or infinity changes nothing."""
        super().step(gradient)
        norms = torch.linalg.vector_norm(self.vectors, dim=1, keepdim=True)
        pulled = self.vectors * (self.lengths / norms) ** self.PULL
        # a length that overflows is left, so that the loss shows it; its pull would be to zero
        usable = torch.isfinite(gradient).all() & torch.isfinite(norms)
        self.vectors.copy_(torch.where(usable, pulled, self.vectors))


class SphericalAdam:
    """Adam on the directions of the vectors; their norms stay as they are.

    A step follows Riemannian Adam on a product of spheres (Bécigneul and Ganea, arXiv 1810.00760): the gradient is projected onto the
    tangent plane, each row has a single second moment, and the result is brought back to the sphere. Directional Textual Inversion
    (arXiv 2512.13672) trains directions at a fixed norm, and adds the prior: a pull towards the first directions, the gradient of a von
    Mises-Fisher distribution's negative logarithm.

    Args:
        vectors: fp32 [n, d], rows above 0, changed in place.
        prior: concentration of the prior, 0 or more, in units of the loss.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.

    Attributes:
        learning_rate: the angle of a step in radians, for a gradient that points the same way all the time.
        steps: steps that were not skipped.
        mean: first moment, tangent to the vectors, [n, d].
        square: second moment, [n, 1].
    """

    def __init__(self, vectors: torch.Tensor, prior: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-12) -> None:
        self.vectors, self.prior, self.betas, self.eps = vectors, prior, betas, eps
        self.weight_decay = 0.0
        self.norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)  # n 1
        self.first = vectors / self.norms  # n d
        self.learning_rate = torch.zeros((), device=vectors.device)
        self.steps = torch.zeros((), device=vectors.device)
        self.mean = torch.zeros_like(vectors)
        self.square = torch.zeros_like(self.norms)

    @torch.no_grad()
    def step(self, gradient: torch.Tensor) -> None:
        """Turn the vectors against `gradient` [n, d], that of the loss by the vectors; NaN or infinity in it changes nothing."""
        beta1, beta2 = self.betas
        usable = torch.isfinite(gradient).all()
        self.steps.add_(usable)
        directions = self.vectors / self.norms
        by_direction = gradient * self.norms - self.prior * self.first
        tangent = _tangent(by_direction, directions)
        # a row without a gradient, which no prompt of the batch named, keeps its moments
        seen = usable & (gradient != 0).any(dim=1, keepdim=True)
        mean = self.mean.lerp(tangent, 1 - beta1)
        square = self.square.lerp(tangent.square().sum(dim=1, keepdim=True), 1 - beta2)
        corrected = mean / (1 - torch.pow(beta1, self.steps))
        spread = (square / (1 - torch.pow(beta2, self.steps))).sqrt().add_(self.eps)
        turned = F.normalize(directions - self.learning_rate * corrected / spread, dim=1)
        for tensor, new in ((self.mean, _tangent(mean, turned)), (self.square, square), (self.vectors, turned * self.norms)):
            tensor.copy_(torch.where(seen, new, tensor))

    @torch.no_grad()
    def forget(self, rows: list[int]) -> None:
        """Take the momentum from rows that were replaced; the prior pulls towards their new directions."""
        self.mean[rows] = 0
        self.first[rows] = F.normalize(self.vectors[rows], dim=1)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copies of the steps and of the two moments as AdamW has them, by the vectors [n, d], so that either can go on from it."""
        square = self.square / self.norms.square() / self.vectors.shape[1]
        return {"steps": self.steps.clone(), "mean": self.mean / self.norms, "square": square.expand_as(self.mean).clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a state that `state_dict` returned, AdamW's or ours."""
        directions = self.vectors / self.norms
        self.steps.copy_(state["steps"])
        self.mean.copy_(_tangent(state["mean"].to(self.mean.device) * self.norms, directions))
        self.square.copy_(state["square"].to(self.mean.device).sum(dim=1, keepdim=True) * self.norms.square())


def _tangent(rows: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """The part of each row [n, d] that is at a right angle to its direction [n, d]."""
    return rows - (rows * directions).sum(dim=1, keepdim=True) * directions


class LossScale:
    """The factor that keeps fp16 gradients from vanishing: halved after an overflow, doubled after 200 good steps. 1 for other types.

    Mixed precision after Micikevicius et al. (arXiv 1710.03740), with its state on the device.
    """

    GROW_AFTER = 200

    def __init__(self, dtype: torch.dtype, device: torch.device | str) -> None:
        self.active = dtype is torch.float16
        self.factor = torch.full((), 1024.0 if self.active else 1.0, device=device)
        self.good = torch.zeros((), device=device)

    @torch.no_grad()
    def update(self, gradient: torch.Tensor) -> None:
        """Choose the factor of the next step by an unscaled gradient."""
        if not self.active:
            return
        usable = torch.isfinite(gradient).all()
        self.good.copy_(torch.where(usable, self.good + 1, 0.0))
        grow = self.good >= self.GROW_AFTER
        self.good.copy_(torch.where(grow, 0.0, self.good))
        self.factor.copy_(torch.where(usable, torch.where(grow, self.factor * 2, self.factor), self.factor / 2).clamp(1.0, 65536.0))


@torch.no_grad()
def clip_gradient(gradient: torch.Tensor, mode: str, bound: torch.Tensor) -> torch.Tensor:
    """Clip an unscaled gradient [n, d] by `value`, by `norm`, or not (`off`); `bound` is a scalar on its device.

    A value that is not finite stays so: the optimizer must see an overflow.
    """
    if mode == "value":
        return torch.where(torch.isfinite(gradient), torch.minimum(torch.maximum(gradient, -bound), bound), gradient)
    if mode == "norm":
        return gradient * (bound / (torch.linalg.vector_norm(gradient) + 1e-6)).clamp(max=1.0)
    return gradient


OptimizerOfColumns = AdamW | SphericalAdam


class SplitOptimizer:
    """An optimizer for the columns of each text encoder, because their words have lengths of their own.

    Args:
        vectors: fp32 [n, d].
        parts: optimizers of their columns, which stand side by side.
        shares: rate of each part as a share of `learning_rate`; 0 = its columns stay as they are.

    Attributes:
        learning_rate: of the first part where its share is 1, a scalar.
    """

    def __init__(self, vectors: torch.Tensor, parts: Sequence[OptimizerOfColumns], shares: Sequence[float]) -> None:
        self.vectors, self.parts, self.shares = vectors, list(parts), list(shares)
        self.weight_decay, self.betas, self.eps = parts[0].weight_decay, parts[0].betas, parts[0].eps
        self.widths = [part.vectors.shape[1] for part in parts]
        self.learning_rate = torch.zeros_like(parts[0].learning_rate)

    @torch.no_grad()
    def step(self, gradient: torch.Tensor) -> None:
        """Move all columns along `gradient` [n, d]; those whose gradient has NaN or infinity stay."""
        for part, share, columns in zip(self.parts, self.shares, gradient.split(self.widths, dim=1)):
            if share:
                part.learning_rate.copy_(self.learning_rate * share)
                part.step(columns)

    def forget(self, rows: list[int]) -> None:
        """Take the momentum from rows that were replaced."""
        for part in self.parts:
            part.forget(rows)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The states of all parts; moments [n, d] stand side by side."""
        states = [part.state_dict() for part in self.parts]
        moments = {key: torch.cat([state[key] for state in states], dim=1) for key in ("mean", "square")}
        return {"steps": torch.stack([state["steps"] for state in states]).max(), **moments}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from a state that `state_dict` returned."""
        split = {key: state[key].split(self.widths, dim=1) for key in ("mean", "square")}
        for number, part in enumerate(self.parts):
            own = {key: columns[number] for key, columns in split.items()}
            has_learned = own["square"].any()  # columns that stayed as they were have no steps behind them
            part.load_state_dict({"steps": torch.where(has_learned, state["steps"].to(has_learned.device), 0.0), **own})


Optimizer = OptimizerOfColumns | SplitOptimizer
