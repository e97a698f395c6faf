"""Parts of a checkpoint (UNet, VAE, text encoder) by the shapes of its tensors: built without weights, and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from textual_inversion.errors import CheckpointError

if TYPE_CHECKING:
    from textual_inversion.diffusion.checkpoint import CheckpointFile

Part = TypeVar("Part", bound=nn.Module)


def part_on_meta(file: CheckpointFile, prefix: str, build: Callable[[Mapping[str, tuple[int, ...]]], Part]) -> Part:
    """A part of a checkpoint without its weights.

    Args:
        build: makes the part from the shapes of the tensors under `prefix`.

    Raises:
        CheckpointError: tensors are missing, or have shapes that no such part has.
    """
    try:
        with torch.device("meta"):
            part = build(file.under(prefix))
    except KeyError as error:
        sentence = f"{file.path.name} misses {prefix}{error.args[0]}; download it again or take another."
        raise CheckpointError(sentence, path=file.path) from error
    except (IndexError, ValueError, ZeroDivisionError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        sentence = f"{file.path.name} has tensors of unusual shapes under {prefix} ({reason}); take another."
        raise CheckpointError(sentence, path=file.path) from error
    check_shapes(file, part, prefix)
    return part


def check_shapes(file: CheckpointFile, module: nn.Module, prefix: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the module's tensors, which the file has under `prefix` in the same shapes.

    Raises:
        CheckpointError: tensors are missing or have another shape; the error lists their keys.
    """
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    problems = _problems(wanted, file.under(prefix), prefix)
    if problems:
        listed = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise CheckpointError(f"{file.path.name} does not fit its own layout: {listed}. Download it again or take another.", path=file.path)
    return wanted


def _problems(wanted: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], prefix: str) -> list[str]:
    missing = [f"{prefix}{key} is missing" for key in wanted if key not in stored]
    # the VAE's attention is stored as 1x1 convolutions or as linear layers: the same numbers
    wrong = [
        f"{prefix}{key} is {list(stored[key])}, expected {list(shape)}"
        for key, shape in wanted.items()
        if key in stored and _trimmed(stored[key]) != _trimmed(shape)
    ]
    return missing + wrong


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape
