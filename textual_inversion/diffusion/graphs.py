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
Record = Callable[[Hashable, Work, Sequence[torch.Generator]], Work]  # key, function, its generators -> its replay
WARM_UP = 2  # calls before a function is recorded; they set up cuDNN, cuBLAS and Triton, and are calls like any other
MOST_GRAPHS = 32
_SHARE = 0.9  # of the memory that is free at the start, for the buffers of all graphs together
_UNUSED = 4 * MOST_GRAPHS  # calls after which a graph may give way to another


class GraphCache:
    """Runs functions, each from a CUDA graph once it has run a few times.

    A function that is recorded must read and write the same tensors in every call, and must not let the processor wait for the
    device: a replay repeats the kernels, not the Python code. Where a function cannot be recorded, it and all others run as they
    are, and `report` receives the reason once.

    Args:
        device: where the functions compute; nothing is recorded anywhere but on CUDA.
        report: receives one sentence where recording fails.
        record: records a function with its generators; tests give their own.

    Attributes:
        draws_inside: whether recorded functions may draw random numbers. PyTorch versions that cannot register a generator with a
            graph have it False.
        failed: why nothing is recorded any more; empty while recording works.
    """

    def __init__(
        self,
        device: torch.device | str,
        report: Callable[[str], None] = lambda sentence: None,
        record: Record | None = None,
    ) -> None:
        self.device, self.report = torch.device(device), report
        self.failed = ""
        on_cuda = self.device.type == "cuda"
        self.draws_inside = record is None and (not on_cuda or hasattr(torch.cuda.CUDAGraph, "register_generator_state"))
        self._recorder = CudaRecorder(self.device) if on_cuda else None
        self._record = record or self._recorder
        self._replays: OrderedDict[Hashable, Work] = OrderedDict()
        self._calls: dict[Hashable, int] = {}
        self._used: dict[Hashable, int] = {}  # key -> number of the last call
        self._refused: set[Hashable] = set()  # there was no memory for their graphs
        self._clock = 0

    @property
    def active(self) -> bool:
        """Whether functions are recorded."""
        return self._record is not None

    def run(self, key: Hashable, function: Work, generators: Sequence[torch.Generator] = ()) -> None:
        """Do what `function` does.

        Args:
            key: names the function; calls with the same key have the same kernels.
            generators: the function draws from these; none where `draws_inside` is False.
        """
        if self._record is None:
            return function()
        self._clock += 1
        self._used[key] = self._clock
        replay = self._replays.get(key)
        if replay is None and key not in self._refused and self._calls.get(key, 0) >= WARM_UP:
            replay = self._try_to_record(key, function, generators)
        if replay is None:
            self._calls[key] = self._calls.get(key, 0) + 1
            return self._recorder.aside(function) if self._recorder else function()
        self._replays.move_to_end(key)
        replay()

    def clear(self) -> None:
        """Forget all graphs; the functions' tensors have moved."""
        self._replays.clear()
        self._calls.clear()
        if self._recorder:
            self._recorder.forget()

    def _try_to_record(self, key: Hashable, function: Work, generators: Sequence[torch.Generator]) -> Work | None:
        assert self._record is not None
        if not self._has_room():
            return None
        states = [generator.clone_state() for generator in generators] if self._recorder else []
        try:
            replay = self._record(key, function, generators)
        except RuntimeError as error:  # out of memory is one of them
            for generator, state in zip(generators, states):
                generator.graphsafe_set_state(state)  # a recording that broke off leaves the generators in its middle
            cause = error.__context__ or error  # what ended the recording; the error itself only says that it was ended
            reason = str(cause).splitlines()[0].rstrip(".")
            if isinstance(cause, torch.cuda.OutOfMemoryError):
                self._refused.add(key)  # the graphs that are there go on
                return None
        else:
            self._replays[key] = replay
            return replay
        self._give_up(reason)
        return None

    def _has_room(self) -> bool:
        """Whether one more graph may be recorded. The one used least recently gives way if it has not been used for long: recording takes
        longer than many calls, so graphs that are in use are not exchanged for each other.
        """
        if self._recorder and self._recorder.is_full:
            return False
        if len(self._replays) < MOST_GRAPHS:
            return True
        oldest = next(iter(self._replays))
        if self._clock - self._used[oldest] < _UNUSED:
            return False
        del self._replays[oldest]
        if self._recorder:
            self._recorder.forget(oldest)
        return True

    def _give_up(self, reason: str) -> None:
        self.clear()
        self.failed, self._record, self._recorder = reason, None, None
        torch.cuda.empty_cache()
        self.report(f"Steps run one kernel after the other, which is slower, because the CUDA graph could not be recorded: {reason}.")


class CudaRecorder:
    """Records functions as CUDA graphs that share one memory pool, as they never run at the same time.

    Attributes:
        budget: bytes that the graphs may take.
        spent: key -> bytes that its graph took.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool: Any = None
        self.spent: dict[Hashable, int] = {}
        self.budget = _SHARE * torch.cuda.mem_get_info(device)[0]

    @property
    def is_full(self) -> bool:
        """Whether the budget is spent."""
        return sum(self.spent.values()) > self.budget

    def __call__(self, key: Hashable, function: Work, generators: Sequence[torch.Generator]) -> Work:
        """Record; nothing is computed yet."""
        with torch.cuda.device(self.device):  # generators are registered on the current device
            current = torch.cuda.current_stream()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            before = torch.cuda.memory_reserved()
            graph = torch.cuda.CUDAGraph()
            for generator in generators:
                graph.register_generator_state(generator)
            try:
                # "thread_local", because other threads of a WebUI may use the device meanwhile
                with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                    function()
            finally:
                torch.cuda.set_stream(current)  # a recording that breaks off does not leave its stream
            self.pool = graph.pool()
            self.spent[key] = torch.cuda.memory_reserved() - before
        return graph.replay

    def forget(self, key: Hashable | None = None) -> None:
        """Forget one graph, or all of them with their pool."""
        if key is not None:
            self.spent.pop(key, None)
        else:
            self.spent.clear()
        if not self.spent:
            self.pool = None  # it goes with its last graph

    def aside(self, function: Work) -> None:
        """Run on the stream that graphs are recorded on, so that libraries set up what they keep for a stream."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            function()
        current.wait_stream(self.stream)
