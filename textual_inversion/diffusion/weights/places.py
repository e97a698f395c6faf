"""Where each tensor of a checkpoint is: under which name, and what has to be done to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from textual_inversion.diffusion.weights.tensor_files import Read, TensorFile
from textual_inversion.errors import CheckpointError
from textual_inversion.files import FileStamp

Shape = tuple[int, ...]
_SMALL_FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)


class Place(NamedTuple):
    """Where a tensor is.

    Attributes:
        names: of the stored tensors; several are joined along their rows.
        scale: a stored tensor that the values have to be multiplied with; empty = none.
        transposed: whether rows and columns are exchanged.
    """

    names: tuple[str, ...]
    scale: str = ""
    transposed: bool = False


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint under the names of the LDM layout.

    Attributes:
        path: the file or folder that was given.
        file: the file, or the files of a folder, that holds the tensors.
        places: tensor name -> its place.
        made: tensors that no file holds, because they follow from settings beside the files.
        metadata: what the files say of themselves.
        keys: names in the files, for naming a file that is no checkpoint.
    """

    path: Path
    file: TensorFile
    places: Mapping[str, Place]
    made: Mapping[str, torch.Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()

    def shapes(self) -> dict[str, Shape]:
        """Tensor name -> shape."""
        found = {name: self._shape(place) for name, place in self.places.items()}
        return found | {name: tuple(tensor.shape) for name, tensor in self.made.items()}

    @contextmanager
    def opened(self) -> Iterator[OpenWeights]:
        """Open the file for reading; raises `CheckpointError` where it is damaged."""
        with self.file.opened() as read:
            yield OpenWeights(self, read)

    def _shape(self, place: Place) -> Shape:
        shapes = self.file.shapes
        first = shapes[place.names[0]]
        if len(place.names) > 1 and first:
            first = (sum(shapes[name][0] if shapes[name] else 1 for name in place.names), *first[1:])
        return first[::-1] if place.transposed else first


@dataclass(frozen=True)
class OpenWeights:
    """Tensors of open files."""

    weights: Weights
    read: Read

    def get_tensor(self, name: str) -> torch.Tensor:
        """The tensor called `name`. Values of eight bits come as fp16, which has them all, or as fp32 where they have a scale.

        Raises:
            CheckpointError: the file is damaged, or parts that belong together do not fit each other.
        """
        if name in self.weights.made:
            return self.weights.made[name]
        place = self.weights.places[name]
        parts = [_plain(self.read(one)) for one in place.names]
        try:
            tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
            tensor = tensor.t() if place.transposed else tensor
            return _scaled(tensor, self.read(place.scale)) if place.scale else tensor
        except (RuntimeError, IndexError) as error:
            path = self.weights.path
            names = ", ".join((*place.names, *([place.scale] if place.scale else [])))
            raise CheckpointError(f"{path.name}: {names} do not fit together; download the file again.", path=path) from error


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.dtype in _SMALL_FLOATS else tensor


def _scaled(tensor: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`tensor` times `scale`: one number, or one for each row."""
    scale = scale.float().reshape(-1)
    rows = scale.reshape(-1, *[1] * (tensor.ndim - 1)) if scale.numel() > 1 else scale.reshape(())
    return tensor.float() * rows


def stamp_of(path: Path) -> FileStamp | None:
    """The stamp of a file, or of a folder with everything in it; None where it is missing."""
    stamp = FileStamp.of(path)
    if stamp is None or not path.is_dir():
        return stamp
    inside = [found for part in sorted(path.glob("*/*")) if (found := FileStamp.of(part))]
    whole = [stamp, *inside]
    return FileStamp(sum(one.size for one in whole), max(one.modified for one in whole), hash(tuple(one.inode for one in whole)))
