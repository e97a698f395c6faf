"""CUDA graphs: the kernels of a function, recorded once and started again with a single call.

A step of a large model starts thousands of small kernels. Starting each from Python takes longer than the kernels themselves; a
graph starts all of them at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

Work = Callable[[], None]
Record = Callable[[Work], Work]  # a function -> its replay
WARM_UP = 2  # calls before a function is recorded; they set up cuDNN, cuBLAS and Triton, and are calls like any other
MOST_GRAPHS = 32
_SHARE = 0.5  # of the memory that is free at the start, for the buffers of all graphs together


class GraphCache:
    """Runs functions, each from a CUDA graph once it has run a few times.

    A function that is recorded must read and write the same tensors in every call, and must not let the processor wait for the
    device: a replay repeats the kernels, not the Python code. Where a function cannot be recorded, it and all others run as they
    are, and `report` receives the reason once.

    Args:
        device: where the functions compute; nothing is recorded anywhere but on CUDA.
        generators: the functions draw from these. PyTorch versions that cannot register them leave `draws_inside` False; then a
            recorded function must not draw.
        report: receives one sentence where recording fails.
        record: records a function; tests give their own.

    Attributes:
        draws_inside: whether recorded functions may draw random numbers.
        failed: why nothing is recorded any more; empty while recording works.
    """

    def __init__(
        self,
        device: torch.device | str,
        generators: Sequence[torch.Generator] = (),
        report: Callable[[str], None] = lambda sentence: None,
        record: Record | None = None,
    ) -> None:
        self.device, self.report = torch.device(device), report
        self.failed = ""
        on_cuda = self.device.type == "cuda"
        self.draws_inside = record is None and (not on_cuda or hasattr(torch.cuda.CUDAGraph, "register_generator_state"))
        self._generators = tuple(generators) if self.draws_inside and on_cuda else ()
        self._recorder = CudaRecorder(self.device, self._generators) if on_cuda else None
        self._record = record or self._recorder
        self._replays: OrderedDict[Hashable, Work] = OrderedDict()
        self._calls: dict[Hashable, int] = {}

    @property
    def active(self) -> bool:
        """Whether functions are recorded."""
        return self._record is not None

    def run(self, key: Hashable, function: Work) -> None:
        """Do what `function` does.

        Args:
            key: names the function; calls with the same key have the same kernels.
        """
        if self._record is None:
            return function()
        replay = self._replays.get(key)
        if replay is None and self._calls.get(key, 0) >= WARM_UP:
            replay = self._try_to_record(key, function)
        if replay is None:
            self._calls[key] = self._calls.get(key, 0) + 1
            return self._warm_up(function)
        self._replays.move_to_end(key)
        replay()

    def clear(self) -> None:
        """Forget all graphs; the functions' tensors have moved."""
        self._replays.clear()
        self._calls.clear()

    def _warm_up(self, function: Work) -> None:
        if self._recorder is None:
            return function()
        self._recorder.aside(function)

    def _try_to_record(self, key: Hashable, function: Work) -> Work | None:
        assert self._record is not None
        while self._replays and (len(self._replays) >= MOST_GRAPHS or self._is_too_large()):
            self._replays.popitem(last=False)
        states = [generator.clone_state() for generator in self._generators]
        try:
            replay = self._record(function)
        except RuntimeError as error:  # out of memory is one of them
            for generator, state in zip(self._generators, states):
                generator.graphsafe_set_state(state)  # a recording that broke off leaves the generators in its middle
            self._give_up(str(error).splitlines()[0].rstrip("."))
            return None
        self._replays[key] = replay
        return replay

    def _is_too_large(self) -> bool:
        return self._recorder is not None and self._recorder.spent > self._recorder.budget

    def _give_up(self, reason: str) -> None:
        self.clear()
        self.failed, self._record, self._recorder = reason, None, None
        torch.cuda.empty_cache()
        self.report(f"Steps run one kernel after the other, which is slower, because the CUDA graph could not be recorded: {reason}.")


class CudaRecorder:
    """Records functions as CUDA graphs that share one memory pool, as they never run at the same time.

    Attributes:
        budget: bytes that the graphs may take.
        spent: bytes that they have taken.
    """

    def __init__(self, device: torch.device, generators: Sequence[torch.Generator]) -> None:
        self.generators = generators
        self.stream = torch.cuda.Stream(device)
        self.pool: Any = None
        self.device, self.spent = device, 0
        self.budget = _SHARE * torch.cuda.mem_get_info(device)[0]

    def __call__(self, function: Work) -> Work:
        """Record; nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_reserved(self.device)
        # "thread_local", because other threads of a WebUI may use the device meanwhile
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            function()
        self.pool = graph.pool()
        self.spent += torch.cuda.memory_reserved(self.device) - before
        return graph.replay

    def aside(self, function: Work) -> None:
        """Run on the stream that graphs are recorded on, so that libraries set up what they keep for a stream."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            function()
        current.wait_stream(self.stream)
