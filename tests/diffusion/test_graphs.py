"""When a function is recorded, replayed, forgotten, and what happens where it cannot be recorded. No CUDA device is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from textual_inversion.diffusion import graphs
from textual_inversion.diffusion.graphs import WARM_UP, GraphCache


class Recorder:
    """Records by name: a replay does the work and notes it."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, _key: Any, work: Callable[[], None], _generators: Any) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def test_a_function_is_recorded_after_its_warm_up_and_every_call_counts() -> None:
    recorder, calls = Recorder(), []
    cache = GraphCache("cpu", record=recorder)
    for number in range(6):
        cache.run("a", lambda number=number: calls.append(number))
    assert len(calls) == 6
    assert (recorder.recorded, recorder.replayed) == (1, 6 - WARM_UP)


def test_each_key_has_its_own_graph_and_one_that_was_not_used_for_long_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    monkeypatch.setattr(graphs, "_UNUSED", 8)
    recorder = Recorder()
    cache = GraphCache("cpu", record=recorder)

    def use(key: str, times: int = WARM_UP + 1) -> None:
        for _ in range(times):
            cache.run(key, lambda: None)

    use("a")
    use("b")
    assert recorder.recorded == 2
    use("c")  # both others are in use
    assert recorder.recorded == 2
    use("a", 10)
    use("c", 1)  # b gives way
    assert recorder.recorded == 3
    use("a", 1)
    use("c", 1)
    assert recorder.recorded == 3


def test_forms_that_take_turns_are_not_recorded_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    cache = GraphCache("cpu", record=recorder)
    for _ in range(20):
        for key in range(graphs.MOST_GRAPHS + 4):
            cache.run(key, lambda: None)
    assert recorder.recorded == graphs.MOST_GRAPHS


def test_what_cannot_be_recorded_runs_as_it_is_and_is_told_once() -> None:
    told: list[str] = []
    done: list[int] = []

    def refuse(_key: Any, _work: Callable[[], None], _generators: Any) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with TORCH_USE_CUDA_DSA")

    cache = GraphCache("cpu", report=told.append, record=refuse)
    for number in range(6):
        cache.run("a", lambda number=number: done.append(number))
    assert done == list(range(6))
    assert len(told) == 1
    assert "operation not permitted when stream is capturing." in told[0]
    assert "\n" not in told[0]
    assert not cache.active


def test_a_graph_for_which_there_is_no_memory_leaves_the_others() -> None:
    told: list[str] = []

    def record(key: Any, work: Callable[[], None], _generators: Any) -> Callable[[], None]:
        if key == "large":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return work

    cache = GraphCache("cpu", report=told.append, record=record)
    done: list[str] = []
    for _ in range(6):
        for key in ("small", "large"):
            cache.run(key, lambda key=key: done.append(key))
    assert len(done) == 12
    assert cache.active
    assert told == []


def test_nothing_is_recorded_off_cuda() -> None:
    cache = GraphCache("cpu")
    assert not cache.active
    assert cache.draws_inside
    done: list[int] = []
    for _ in range(5):
        cache.run("a", lambda: done.append(1))
    assert len(done) == 5


def test_cleared_graphs_are_recorded_again() -> None:
    recorder = Recorder()
    cache = GraphCache("cpu", record=recorder)
    for _ in range(2):
        for _ in range(WARM_UP + 1):
            cache.run("a", lambda: None)
        cache.clear()
    assert recorder.recorded == 2


@pytest.mark.gpu
def test_replays_draw_the_numbers_that_the_function_itself_would_draw() -> None:
    results = []
    for record in (True, False):
        generator = torch.Generator("cuda").manual_seed(3)
        sums = torch.zeros(4, device="cuda")

        def work(sums: torch.Tensor = sums, generator: torch.Generator = generator) -> None:
            sums.add_(torch.randn(4, generator=generator, device="cuda"))

        cache = GraphCache("cuda")
        for _ in range(7):
            cache.run("a", work, [generator]) if record and cache.draws_inside else work()
        results.append(sums.cpu())
    assert torch.equal(*results)
