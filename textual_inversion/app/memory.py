"""Memory that runs out, told in one sentence, and memory that is given back."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from textual_inversion.errors import ConfigError


@contextmanager
def enough_memory(doing: str, advice: str) -> Iterator[None]:
    """Say in one sentence that memory ran out inside; `doing` and `advice` are parts of that sentence.

    Raises:
        ConfigError: the device or the machine has too little memory for what was asked.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise ConfigError(f"There is not enough memory to {doing}; {advice}.") from error


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Let go at the end of everything that was made inside, also of what the frames of an error still hold."""
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
    """Collect what nobody holds any more, and return the device's cached memory to it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. On the processor PyTorch raises a plain RuntimeError, which only its wording tells from others."""
    import torch

    message = str(error).lower()
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "out of memory" in message or "can't allocate memory" in message
