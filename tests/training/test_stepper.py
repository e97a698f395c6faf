"""Steps planned ahead and replayed: the same vectors as steps that are done one by one, and several embeddings as each alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from textual_inversion.diffusion.conditioning import VectorTable
from textual_inversion.diffusion.graphs import GraphCache
from textual_inversion.diffusion.model import load_checkpoint
from textual_inversion.embedding import Embedding
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.data.batches import BatchMaker, PromptMaker
from textual_inversion.training.data.latents import LatentBucket, LatentMoments
from textual_inversion.training.step import TrainingStep
from textual_inversion.training.stepper import Rates, Stepper

CAPTIONS = ["red", "(green:1.2), " + "a long caption " * 30, "blue wall"]


class Tape(TorchDispatchMode):
    """Records like a CUDA graph: keeps the operations and the memory that they read and write, and forgets the Python code."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Do every operation again, into the same memory."""
        for func, args, kwargs, before in self.calls:
            for old, new in zip(tree_leaves(before), tree_leaves(func(*args, **kwargs))):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # else a view, or changed in place
                    old.copy_(new)


def taped(_key: Any, work: Callable[[], None], _generators: Any) -> Callable[[], None]:
    """A recorder. Unlike that of CUDA it computes while it records, so the first replay has been done already."""
    tape = Tape()
    with tape:
        work()
    replays = chain([lambda: None], repeat(tape.replay))
    return lambda: next(replays)()


def config(name: str = "thing", **changes: Any) -> TrainingConfig:
    return TrainingConfig(name, "", **{"batch_size": 2, "width": 64, "height": 64, "steps": 100, **changes})


def vectors_of(seed: int) -> torch.Tensor:
    return torch.randn(2, 64, generator=torch.Generator().manual_seed(seed)) * 0.1


def maker(
    model, config: TrainingConfig, vectors: torch.Tensor, first_row: int = 0, sizes: Sequence[int] = (8,), weighted=False
) -> BatchMaker:
    generator = torch.Generator().manual_seed(config.seed + 50)
    table = VectorTable.of({config.name: Embedding(config.name, {"clip_l": vectors})}, {"clip_l": 64}, "cpu", first_row=first_row)
    prompts = PromptMaker(config, ["a photo of [name], [filewords]", "[name]"], CAPTIONS, model.conditioner, table)
    buckets = []
    for index, size in enumerate(sizes):
        mean, std = (torch.randn(6, 4, 8, size, generator=generator) for _ in range(2))
        weights = torch.rand(6, 1, 8, size, generator=generator) if weighted else None
        pictures = (0, 1, 2) if len(sizes) == 1 else ((0, 1, 1), (2, 2, 2))[index]
        buckets.append(LatentBucket(LatentMoments(mean, std.abs(), flipped=True), pictures, weights).to(model.device))
    return BatchMaker(config, buckets, prompts, noise_device=model.device)


def one_by_one(model, config: TrainingConfig, steps: int, **data: Any) -> torch.Tensor:
    """The vectors after steps that know nothing of plans."""
    vectors = vectors_of(4)
    batches = maker(model, config, vectors, **data)
    step = TrainingStep(model, vectors, config)
    for number in range(steps):
        step.run(batches.next, rates(number).learning_rate, rates(number).clip_bound)
    return step.vectors.detach()


def rates(number: int) -> Rates:
    return Rates(0.005 if number < 5 else 0.001, 0.5 + number)


def planned(model, config: TrainingConfig, steps: int, block: int, record: Any = None, **data: Any) -> torch.Tensor:
    vectors = vectors_of(4)
    step = TrainingStep(model, vectors, config)
    stepper = Stepper(step, [maker(model, config, vectors, **data)], graphs=record and GraphCache("cpu", record=record))
    for first in range(0, steps, block):
        plan = stepper.plan([{0: rates(number)} for number in range(first, min(steps, first + block))])
        stepper.load(plan)
        for index in range(len(plan)):
            stepper.run(index)
    return step.vectors.detach()


CASES = {
    "pulled": ({}, {}),
    "directional": ({"method": "directional"}, {}),
    "classic": ({"method": "classic"}, {}),
    "one picture": ({"batch_size": 1}, {}),
    "accumulation": ({"gradient_accumulation_steps": 2, "flip": True}, {}),
    "clipped by norm": ({"clip_mode": "norm"}, {}),
    "clipped by value": ({"clip_mode": "value", "latent_sampling": "random"}, {}),
    "two sizes": ({}, {"sizes": (8, 16)}),
    "weights": ({"method": "classic", "weight_decay": 0.1}, {"weighted": True}),
    "shuffled captions": ({"shuffle_tags": True, "caption_dropout": 0.3}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_planned_steps_are_the_steps_one_by_one(model, case):
    settings, data = CASES[case]
    expected = one_by_one(model, config(**settings), 8, **data)
    assert not torch.equal(expected, vectors_of(4))
    assert torch.equal(planned(model, config(**settings), 8, block=3, **data), expected)


@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_are_the_steps_one_by_one(model, case):
    """A replay knows tensors and operations only, as a CUDA graph does: nothing may depend on what Python does in between."""
    settings, data = CASES[case]
    expected = one_by_one(model, config(**settings), 8, **data)
    recorded = []

    def record(key, work, generators):
        recorded.append(key)
        return taped(key, work, generators)

    assert torch.equal(planned(model, config(**settings), 8, block=4, record=record, **data), expected)
    assert len(recorded) >= 2  # a pass and the update


@pytest.mark.slow
@pytest.mark.parametrize("case", ["directional", "classic", "two sizes", "accumulation"])
def test_fifty_replayed_steps_are_the_steps_one_by_one(model, case):
    settings, data = CASES[case]
    expected = one_by_one(model, config(**settings), 50, **data)
    assert torch.equal(planned(model, config(**settings), 50, block=10, record=taped, **data), expected)


@pytest.mark.parametrize("sizes", [(8,), (8, 16)])
def test_embeddings_trained_together_learn_as_each_alone(model, sizes):
    """Same seeds, fp32: the difference is that of sums over batches of another size."""
    configs = [config("one", seed=1, batch_size=1), config("two", seed=2, batch_size=3), config("three", seed=3, clip_mode="norm")]
    starts = [vectors_of(seed) for seed in (4, 5, 6)]
    alone = []
    for each, start in zip(configs, starts):
        step = TrainingStep(model, start, each)
        batches = maker(model, each, start, sizes=sizes)
        for number in range(6):
            step.run(batches.next, rates(number).learning_rate, rates(number).clip_bound)
        alone.append(step.vectors.detach())
    makers = [maker(model, each, start, 2 * row, sizes) for row, (each, start) in enumerate(zip(configs, starts))]
    step = TrainingStep(model, starts, configs)
    stepper = Stepper(step, makers)
    plan = stepper.plan([dict.fromkeys(range(3), rates(number)) for number in range(6)])
    stepper.load(plan)
    for index in range(len(plan)):
        stepper.run(index)
    for trained, expected, start in zip(step.trained, alone, starts):
        assert (trained.vectors - expected).abs().max() < 1e-6 * max(1.0, float((expected - start).abs().max()) * 1000)
        assert not torch.equal(trained.vectors, start)


def test_prompts_of_another_length_do_not_share_a_pass(model):
    """Chunks that only fill a prompt up would change what it means."""
    configs = [config("one"), config("two", seed=2)]
    makers = [maker(model, each, vectors_of(4), 2 * row) for row, each in enumerate(configs)]
    makers[1].prompts.chunks += 1
    step = TrainingStep(model, [vectors_of(4)] * 2, configs)
    (passes,) = Stepper(step, makers).plan([{0: rates(0), 1: rates(0)}]).steps
    assert sorted(each.members.chunks for each in passes) == [makers[0].prompts.chunks, makers[1].prompts.chunks]


def test_an_embedding_that_has_ended_stays_as_it_is(model):
    configs = [config("one"), config("two", seed=2)]
    starts = [vectors_of(4), vectors_of(5)]
    step = TrainingStep(model, starts, configs)
    stepper = Stepper(step, [maker(model, each, start, 2 * row) for row, (each, start) in enumerate(zip(configs, starts))])
    plan = stepper.plan([{0: rates(0), 1: rates(0)}, {1: rates(1)}])
    stepper.load(plan)
    stepper.run(0)
    ended = step.trained[0].vectors.clone()
    stepper.run(1)
    assert torch.equal(step.trained[0].vectors, ended)
    assert not torch.equal(step.trained[1].vectors, starts[1])


def test_numbers_of_a_block_are_read_at_once(model):
    settings = config(seed=9)
    vectors = vectors_of(4)
    step = TrainingStep(model, vectors, settings)
    stepper = Stepper(step, [maker(model, settings, vectors)])
    stepper.load(stepper.plan([{0: rates(number)} for number in range(3)]))
    seen = []
    for index in range(3):
        seen.append(step.vectors.detach().clone())
        stepper.run(index)
    (trained,) = step.trained
    readings = trained.read(3)
    assert all(reading.loss > 0 and reading.gradient > 0 for reading in readings)
    assert all(torch.equal(trained.before(slot), before) for slot, before in enumerate(seen))
    assert readings[2].vector_norm == pytest.approx(float(trained.vectors.norm(dim=1).mean()))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_cuda_graphs_give_what_single_steps_give(checkpoint, case, precision):
    """In fp32 the same bytes; in bf16 libraries may choose other kernels for a graph, so within its noise."""
    model = load_checkpoint(checkpoint, device="cuda", precision=precision)
    settings, data = CASES[case]
    with torch.backends.cudnn.flags(deterministic=True):
        expected = one_by_one(model, config(**settings), 50, **data).cpu()
        result = planned(model, config(**settings), 50, block=10, **data).cpu()
    if precision == "fp32":
        assert torch.equal(result, expected)
    else:
        assert torch.nn.functional.cosine_similarity(result.flatten(), expected.flatten(), dim=0) > 0.999
