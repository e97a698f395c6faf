"""Reports out-of-memory errors in one sentence, and releases memory."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from textual_inversion.errors import ConfigError


@contextmanager
def enough_memory(doing: str, advice: str) -> Iterator[None]:
    """Turn an out-of-memory error inside into one sentence; `doing` and `advice` are parts of this sentence.

    Raises:
        ConfigError: the device or the machine has too little memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise ConfigError(f"There is not enough memory to {doing}; {advice}.") from error


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Release at the end everything that was created inside, also objects that the frames of an error still reference."""
    try:
        yield
    except BaseException as error:
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        raise
    finally:
        give_memory_back()


def give_memory_back() -> None:
    """Collect unreferenced objects, and return PyTorch's cached memory to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. On the CPU, PyTorch raises a plain RuntimeError that only its message distinguishes from others."""
    import torch

    message = str(error).lower()
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "out of memory" in message or "can't allocate memory" in message
