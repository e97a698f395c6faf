"""Runs the steps of one embedding or of several: plans them on the processor, sends the plans in one copy, starts the kernels.

The processor is slow beside a large card. So it plans several steps ahead while the device computes, and between two steps it only
starts graphs: where each step finds its rows, prompts and rates is counted on the device.
Legend: b rows of a pass, k chunks, l tokens of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch

from textual_inversion.diffusion.clip import TokenBatch
from textual_inversion.diffusion.conditioning import TokenizedPrompts
from textual_inversion.diffusion.graphs import GraphCache
from textual_inversion.prompts.chunks import CHUNK_TOKENS
from textual_inversion.training.data.batches import Batch, BatchMaker, NoiseDraw, PlannedBatch, together
from textual_inversion.training.step import KEPT_STEPS, TrainingStep

CHUNK_LENGTH = CHUNK_TOKENS + 2  # with the start and the end token
_MOST_PASSES = 64  # planned ahead


class Members(NamedTuple):
    """The form of a pass: with the same form, the kernels are the same.

    Attributes:
        parts: (embedding, bucket) of the rows, one after the other; all latents have one shape.
        chunks: k of every prompt.
        emphasised: whether prompts have weights.
    """

    parts: tuple[tuple[int, int], ...]
    chunks: int
    emphasised: bool


@dataclass(frozen=True)
class PlannedPass:
    """One pass, as it is sent to the device."""

    members: Members
    rows: list[int]
    timesteps: list[int]  # 0 where the device draws them
    prompts: TokenizedPrompts


@dataclass(frozen=True)
class Rates:
    """What may change from step to step, for one embedding."""

    learning_rate: float
    clip_bound: float


@dataclass
class Plan:
    """Several steps, planned but not yet sent.

    Attributes:
        steps: the passes of each step.
        rates: of each step, embedding -> its rates; an embedding that is not there takes no part in the step.
        layout: of `packed`.
        packed: all of it as one tensor on the CPU.
    """

    steps: list[list[PlannedPass]]
    rates: list[dict[int, Rates]]
    layout: _Layout = field(init=False)
    packed: torch.Tensor = field(init=False)

    def __len__(self) -> int:
        return len(self.steps)


class Stepper:
    """Does the steps of a run.

    Args:
        step: the model and the vectors.
        makers: the batches of each embedding.
        report: receives a sentence where CUDA graphs cannot be used.
        graphs: records the passes; tests give their own.

    Attributes:
        most_steps: steps that a plan may have; for longer ones the buffers move.
    """

    def __init__(
        self,
        step: TrainingStep,
        makers: Sequence[BatchMaker],
        report: Callable[[str], None] = lambda sentence: None,
        graphs: GraphCache | None = None,
    ) -> None:
        self.step, self.makers = step, makers
        self.device = step.vectors.device
        self.graphs = graphs or GraphCache(self.device, report)
        self._drawn: dict[tuple[int, int], NoiseDraw] = {}
        rows = sum(maker.config.batch_size for maker in makers)
        chunks = max(maker.prompts.chunks for maker in makers)
        # room for the longest block, so that the buffers, which graphs read, need not move later
        self.most_steps = max(1, min(KEPT_STEPS, _MOST_PASSES // step.passes))
        passes = self.most_steps * step.passes * len(makers)
        self._layout = _Layout(passes, rows, rows * chunks * CHUNK_LENGTH, self.most_steps, len(makers))
        self._sent = torch.zeros(0, dtype=torch.int64, device=self.device)
        self._next_pass, self._next_step = (torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(2))
        self._plan = Plan([], [])

    def plan(self, rates: Sequence[dict[int, Rates]]) -> Plan:
        """Plan one step for each element of `rates`: embedding -> its rates in that step."""
        steps = [[each for _ in range(self.step.passes) for each in self._plan_pass(list(active))] for active in rates]
        plan = Plan(steps, list(rates))
        self._layout = plan.layout = self._layout.widened(_Layout.of(plan, len(self.makers)))
        packed = plan.layout.pack(plan)
        plan.packed = packed.pin_memory() if self.device.type == "cuda" else packed
        return plan

    def _plan_pass(self, active: list[int]) -> list[PlannedPass]:
        """The next batch of every embedding. Those whose latents have one shape and whose prompts are of one length share a pass:
        chunks that only fill a prompt up would change what it means.
        """
        batches = {number: self.makers[number].plan() for number in active}
        shapes: dict[tuple[int, ...], list[int]] = {}
        for number, batch in batches.items():
            shape = (*self.makers[number].shape(batch.bucket)[1:], batch.prompts.chunks)
            shapes.setdefault(shape, []).append(number)
        return [_as_pass([(number, batches[number]) for number in numbers]) for numbers in shapes.values()]

    def load(self, plan: Plan) -> None:
        """Send a plan to the device in one copy; the next `run` does its first step."""
        if plan.packed.shape != self._sent.shape or plan.layout != self._plan.layout:
            self._sent = torch.zeros_like(plan.packed, device=self.device)
            self._passes, self._rates = plan.layout.parts(self._sent)
            self.graphs.clear()  # they read the old buffers
        self._sent.copy_(plan.packed, non_blocking=True)
        self._next_pass.zero_()
        self._next_step.zero_()
        self._plan = plan

    def run(self, number: int) -> None:
        """Do step `number` of the loaded plan; they are done in order, from 0."""
        for each in self._plan.steps[number]:
            members = each.members
            if not self.graphs.draws_inside:
                self._draw(members)
            drawn_from = [self.makers[part[0]].generator for part in members.parts] if self.graphs.draws_inside else []
            self.graphs.run(members, partial(self._pass, members), drawn_from)
        active = tuple(self._plan.rates[number])
        self.graphs.run(active, partial(self._update, active))

    def _draw(self, members: Members) -> None:
        """Draw the random numbers of a pass into tensors that stay where they are."""
        for part in members.parts:
            drawn = self.makers[part[0]].draw(part[1])
            kept = self._drawn.setdefault(part, drawn)
            for old, new in zip(kept, drawn):
                if old is not None and new is not None and old is not new:
                    old.copy_(new)

    def _pass(self, members: Members) -> None:
        drawn = self._drawn
        if self.graphs.draws_inside:
            drawn = {part: self.makers[part[0]].draw(part[1]) for part in members.parts}
        counts = [self.makers[number].config.batch_size for number, _ in members.parts]
        rows, timesteps, prompts = self._plan.layout.unpack(self._passes.index_select(0, self._next_pass)[0], sum(counts), members)
        batches = [
            self.makers[number].assemble(bucket, chosen, times, drawn[number, bucket], prompts)
            for (number, bucket), chosen, times in zip(members.parts, rows.split(counts), timesteps.split(counts))
        ]
        batch = batches[0] if len(batches) == 1 else _joined(batches, prompts)
        self.step.accumulate(batch, [(number, count) for (number, _), count in zip(members.parts, counts)])
        self._next_pass.add_(1)

    def _update(self, active: Sequence[int]) -> None:
        rates = _fractions(self._rates.index_select(0, self._next_step)[0])  # embeddings 2
        for number in active:
            trained = self.step.trained[number]
            trained.learning_rate.copy_(rates[number, 0])
            trained.clip_bound.copy_(rates[number, 1])
            trained.update(self._next_step)
        self._next_step.add_(1)


def _as_pass(batches: Sequence[tuple[int, PlannedBatch]]) -> PlannedPass:
    prompts = together([batch.prompts for _, batch in batches])
    parts = tuple((number, batch.bucket) for number, batch in batches)
    members = Members(parts, prompts.chunks, prompts.weights is not None)
    rows = [row for _, batch in batches for row in batch.rows]
    timesteps = [time for _, batch in batches for time in batch.timesteps or [0] * len(batch.rows)]
    return PlannedPass(members, rows, timesteps, prompts)


def _joined(batches: Sequence[Batch], prompts: TokenizedPrompts) -> Batch:
    """Batches of one latent shape as a single one."""
    latents, noise, timesteps = (torch.cat([getattr(each, name) for each in batches]) for name in ("latents", "noise", "timesteps"))
    weights = None
    if any(each.weights is not None for each in batches):
        weights = torch.cat([torch.ones_like(each.latents[:, :1]) if each.weights is None else each.weights for each in batches])
    sizes = [each.sizes for each in batches if each.sizes is not None]
    return Batch(latents, noise, timesteps, prompts, weights, torch.cat(sizes) if sizes else None)


@dataclass(frozen=True)
class _Layout:
    """Where the parts of a plan lie in one int64 tensor: all passes, then the rates of all steps.

    A pass is its rows [b], its timesteps [b], then the token ids, the rows of the vectors (-1 = none) and the emphasis of its prompts,
    each [b * k, l]. A fraction lies there as the bits of an fp32 number.

    Attributes:
        passes: in all steps together.
        rows: b of the largest pass.
        tokens: b * k * l of the longest pass.
        steps: of the plan.
        embeddings: that are trained.
    """

    passes: int = 0
    rows: int = 0
    tokens: int = 0
    steps: int = 0
    embeddings: int = 0

    @classmethod
    def of(cls, plan: Plan, embeddings: int) -> _Layout:
        passes = [each for step in plan.steps for each in step]
        tokens = max((each.prompts.tokens.ids.numel() for each in passes), default=0)
        return cls(len(passes), max((len(each.rows) for each in passes), default=0), tokens, len(plan), embeddings)

    def widened(self, other: _Layout) -> _Layout:
        """The smallest layout that has room for both."""
        return _Layout(*map(max, vars(self).values(), vars(other).values()))

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the passes and of the rates."""
        return (self.passes, 2 * self.rows + 3 * self.tokens), (self.steps, self.embeddings, 2)

    def empty(self, device: torch.device | str) -> torch.Tensor:
        """Room for a plan, [size]."""
        return torch.zeros(sum(math.prod(shape) for shape in self.shapes), dtype=torch.int64, device=device)

    def parts(self, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The passes and the rates in a packed plan, as views."""
        passes, rates = self.shapes
        border = math.prod(passes)
        return packed[:border].view(passes), packed[border:].view(rates)

    def pack(self, plan: Plan) -> torch.Tensor:
        """The plan as one tensor on the CPU."""
        packed = self.empty("cpu")
        passes, rates = self.parts(packed)
        for row, each in zip(passes, (each for step in plan.steps for each in step)):
            self._pack_pass(row, each)
        for row, embeddings in zip(rates, plan.rates):
            for number, chosen in embeddings.items():
                row[number] = _bits(torch.tensor([chosen.learning_rate, chosen.clip_bound]))
        return packed

    def _pack_pass(self, row: torch.Tensor, planned: PlannedPass) -> None:
        row[: len(planned.rows)] = torch.tensor(planned.rows)
        row[self.rows : self.rows + len(planned.timesteps)] = torch.tensor(planned.timesteps)
        tokens, weights = planned.prompts.tokens, planned.prompts.weights
        spliced = torch.where(tokens.mask, tokens.index, -1)
        parts = [tokens.ids, spliced] if weights is None else [tokens.ids, spliced, _bits(weights)]
        for number, part in enumerate(parts):
            begin = 2 * self.rows + number * self.tokens
            row[begin : begin + part.numel()] = part.flatten()

    def unpack(self, row: torch.Tensor, rows: int, members: Members) -> tuple[torch.Tensor, torch.Tensor, TokenizedPrompts]:
        """A pass of `rows` rows: the rows of the moments [b], the timesteps [b] and the prompts."""
        count = rows * members.chunks

        def part(number: int) -> torch.Tensor:
            begin = 2 * self.rows + number * self.tokens
            return row[begin : begin + count * CHUNK_LENGTH].view(count, CHUNK_LENGTH)

        spliced = part(1)
        tokens = TokenBatch(part(0), spliced.clamp(min=0), spliced >= 0)
        return (
            row[:rows],
            row[self.rows : self.rows + rows],
            TokenizedPrompts(tokens, _fractions(part(2)) if members.emphasised else None, members.chunks),
        )


def _bits(values: torch.Tensor) -> torch.Tensor:
    """fp32 numbers as whole numbers with the same bits."""
    return values.view(torch.int32).long()


def _fractions(bits: torch.Tensor) -> torch.Tensor:
    """The reverse of `_bits`."""
    return bits.to(torch.int32).view(torch.float32)
