"""Triton where it is installed. It is imported with this module, which only the fused path imports.

Without Triton the kernels are plain functions that nobody calls: their launches can be counted, and importing them fails nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import triton  # type: ignore
    import triton.language as tl  # type: ignore
except ImportError:
    triton = tl = None


def jit(*unspecialized: str) -> Callable[[Callable[..., None]], Any]:
    """Decorator of a kernel; `unspecialized` names the integers whose values must not make Triton compile another variant."""

    def decorate(function: Callable[..., None]) -> Any:
        return function if triton is None else triton.jit(function, do_not_specialize=list(unspecialized))

    return decorate


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least `number` (1 or more)."""
    return 1 << (number - 1).bit_length()
