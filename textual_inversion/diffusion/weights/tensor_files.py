"""A file of named tensors, whatever its container: shapes from the header, values on demand. Runs nothing that is in it."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from textual_inversion.diffusion.weights.strangers import stranger
from textual_inversion.errors import CheckpointError, EmbeddingError, UnsafeFileError, UnsupportedCheckpointError
from textual_inversion.files import open_regular, os_error_words

if TYPE_CHECKING:
    from textual_inversion.formats.containers.safetensors_file import Header
    from textual_inversion.formats.containers.torch_file import TorchLimits

#: Endings of the files that may be checkpoints; the first one is taken where files differ in their ending only.
ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_MAX_HEADER_BYTES = 100 * 2**20
_WEIGHT_TYPES = ("fp64", "fp32", "fp16", "bf16", "f8_e4m3", "f8_e5m2", "int64", "int32", "int16", "int8", "uint8", "bool", "u8", "i8")
#: Parts of training programs that old checkpoints keep beside their weights.
_TRAINERS = (
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "omegaconf.",
    "argparse.Namespace",
    "pathlib.",
    "typing.Any",
    "collections.deque",
)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params")  # keys of the dict that holds the weights
Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class TensorFile:
    """A file of tensors.

    Attributes:
        path: the file.
        shapes: tensor name -> shape.
        metadata: texts that programs have written into the file.
        keys: names in the file, those of other things than tensors too.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()

    def opened(self) -> AbstractContextManager[Read]:
        """A function that reads a tensor by its name, for as long as the context lasts.

        Raises:
            CheckpointError: the file is cut off or damaged; also from the function.
        """
        raise NotImplementedError


def open_tensor_file(path: Path) -> TensorFile:
    """Read the header of a `.safetensors` file or of a file of `torch.save`; the contents decide which one it is.

    Raises:
        CheckpointError: no such file, another kind of file, or a damaged one.
    """
    from textual_inversion.formats import is_safetensors, is_torch_file, open_file
    from textual_inversion.formats.containers.torch_tar import is_torch_tar

    try:
        with open_file(path) as source:
            if is_safetensors(source):  # first, because the length that such a file begins with may look like a pickle
                return SafetensorsFile.open(path)
            if not is_torch_file(source) and not is_torch_tar(source):
                raise stranger(path, source.read(0, 512), source.size)
    except EmbeddingError as error:
        raise _checkpoint_error(path, error) from error
    return TorchFile.open(path)


@dataclass(frozen=True)
class SafetensorsFile(TensorFile):
    """A `.safetensors` file; tensors are mapped from the disk.

    Attributes:
        dtypes: tensor name -> its type in the header.
    """

    dtypes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Read the header; raises `CheckpointError` where it is damaged, or longer than the file."""
        header, size = _read_header(path), path.stat().st_size
        promised = header.start + max((entry.end for entry in header.tensors.values()), default=0)
        if promised > size:
            reason = f"{path.name} is cut off: it has {size:,} bytes of {promised:,}"
            raise CheckpointError(f"{reason}. The download has not ended or has failed, so download it again.", path=path)
        shapes = {key: entry.shape for key, entry in header.tensors.items()}
        dtypes = {key: entry.dtype for key, entry in header.tensors.items()}
        return cls(path, shapes, header.metadata, tuple(shapes), dtypes)

    @contextmanager
    def opened(self) -> Iterator[Read]:
        """Read tensors by name; raises `CheckpointError`, also for a type that PyTorch does not know."""
        if unknown := next(((key, dtype) for key, dtype in self.dtypes.items() if dtype not in _WEIGHT_TYPES), None):
            reason = f"{self.path.name} stores {unknown[0][:80]} as {unknown[1]}"
            raise UnsupportedCheckpointError(f"{reason}, which cannot be used; take one in fp16 or fp32.", path=self.path)
        try:
            opened = safe_open(self.path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path.name} is damaged or cut off ({error}); download it again.", path=self.path) from error
        with opened as file:
            yield lambda name: self._read(file, name)

    def _read(self, file: safe_open, name: str) -> torch.Tensor:
        try:
            return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path.name}: {name} cannot be read ({error}); download the file again.", path=self.path) from error


@dataclass(frozen=True)
class TorchFile(TensorFile):
    """A file of `torch.save`: zip, stream or tar."""

    @classmethod
    def open(cls, path: Path) -> TorchFile:
        """Read its pickle as data; raises `CheckpointError` where it is damaged or contains code."""
        tree = _read_tree(path)
        tensors = _tensors(tree)
        return cls(path, {key: tensor.shape for key, tensor in tensors.items()}, {}, tuple(_names(tree)))

    @contextmanager
    def opened(self) -> Iterator[Read]:
        """Read tensors by name. The pickle is read again, so that the file is held open no longer than the context lasts."""
        tensors = _tensors(_read_tree(self.path))
        yield lambda name: self._read(tensors, name)

    def _read(self, tensors: dict[str, Any], name: str) -> torch.Tensor:
        try:
            return tensors[name].read()
        except (KeyError, EmbeddingError) as error:
            raise CheckpointError(f"{self.path.name}: {name} cannot be read; download the file again.", path=self.path) from error


def _read_header(path: Path) -> Header:
    """The header of a safetensors file."""
    from textual_inversion.formats import open_file, read_header  # here, so that the model needs torch and safetensors only

    try:
        with open_file(path) as source:
            return read_header(source, max_bytes=_MAX_HEADER_BYTES, max_brackets=_MAX_HEADER_BYTES)  # metadata of merges is long
    except EmbeddingError as error:
        raise _checkpoint_error(path, error, "a .safetensors checkpoint") from error


def _read_tree(path: Path) -> Any:
    """The plain data in a file of `torch.save`. The file stays mapped for as long as its tensors are in use."""
    from textual_inversion.formats.containers.torch_file import read_torch_data
    from textual_inversion.formats.containers.torch_tar import is_torch_tar, read_torch_tar

    try:
        with open_regular(path) as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return read_torch_tar(data, _limits()) if is_torch_tar(data) else read_torch_data(data, _limits())
    except (OSError, ValueError) as error:
        words = os_error_words(error)
        raise CheckpointError(f"{path.name} cannot be read ({words}); check the file and its folder.", path=path) from error
    except UnsafeFileError as error:
        raise CheckpointError(f"{path.name} is not read, because {error.reason}", path=path) from error
    except EmbeddingError as error:
        raise _checkpoint_error(path, error) from error


def _limits() -> TorchLimits:
    """What a checkpoint may hold: gigabytes of weights, and what training programs leave beside them."""
    from textual_inversion.formats.containers.pickle_tags import ALLOWED, Import
    from textual_inversion.formats.containers.torch_file import TorchLimits
    from textual_inversion.formats.containers.unpickler import PickleRules

    small_floats = {f"torch.{name}": Import("type", name) for name in ("float8_e4m3fn", "float8_e5m2")}
    rules = PickleRules(ALLOWED | small_floats, _TRAINERS, max_opcodes=4_000_000)
    return TorchLimits(
        pickle_bytes=2**27, entries=60_000, elements=2**37, values=1_000_000, depth=32, rules=rules, checks_sums=False, allows_empty=True
    )


def _checkpoint_error(path: Path, error: EmbeddingError, expected: str = "a checkpoint") -> CheckpointError:
    if isinstance(error.__cause__, OSError):
        words = os_error_words(error.__cause__)
        return CheckpointError(f"{path.name} cannot be read ({words}); check the file and its folder.", path=path)
    return CheckpointError(f"{path.name} is not {expected}, or damaged; download it again: {error.reason}", path=path)


def _tensors(tree: Any) -> dict[str, Any]:
    """The tensors by name, of the dict that holds the weights: the one under a usual key, else the one with most tensors."""
    if not isinstance(tree, dict):
        return {}
    inner = [tree[key] for key in _WRAPPERS if isinstance(tree.get(key), dict)]
    others = [value for value in tree.values() if isinstance(value, dict)]
    chosen = next((found for part in inner if (found := _own_tensors(part))), None)
    return chosen or max(map(_own_tensors, (tree, *others)), key=len)


def _own_tensors(part: dict[Any, Any]) -> dict[str, Any]:
    from textual_inversion.formats import StoredTensor

    return {key: value for key, value in part.items() if isinstance(key, str) and isinstance(value, StoredTensor)}


def _names(tree: Any) -> Iterator[str]:
    """The text keys of a tree and of the dicts in it."""
    if isinstance(tree, dict):
        for part in (tree, *(value for value in tree.values() if isinstance(value, dict))):
            yield from (key for key in part if isinstance(key, str))
