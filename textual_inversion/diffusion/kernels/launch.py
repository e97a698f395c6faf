"""Every fused kernel starts here, so that launches can be recorded instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Launch:
    """One launch as it was asked for.

    Attributes:
        kernel: the Triton function, or the Python function where Triton is missing.
        grid: number of programs along each axis.
        arguments: tensors and numbers, in the order of the kernel's parameters.
        constants: the kernel's compile-time parameters.
        num_warps: warps of a program.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int


_recording: ContextVar[list[Launch] | None] = ContextVar("recording", default=None)  # of this thread only


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, **constants: Any) -> None:
    """Start a kernel, or only note the launch while `recorded` is open. The first argument is a tensor."""
    if (noted := _recording.get()) is not None:
        noted.append(Launch(kernel, grid, arguments, constants, num_warps))
        return
    with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device, PyTorch on that of the tensors
        kernel[grid](*arguments, num_warps=num_warps, **constants)


class _Nothing(list[Launch]):
    """A list that stays empty, so that no tensor is kept alive by its launch."""

    def append(self, launch: Launch) -> None:
        pass


@contextmanager
def skipped() -> Iterator[None]:
    """Start no kernel; the outputs stay unwritten, so tensors may be on the meta device."""
    token = _recording.set(_Nothing())
    try:
        yield
    finally:
        _recording.reset(token)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Note launches instead of starting them; the outputs stay unwritten, so tensors may be on the meta device."""
    launches: list[Launch] = []
    token = _recording.set(launches)
    try:
        yield launches
    finally:
        _recording.reset(token)
