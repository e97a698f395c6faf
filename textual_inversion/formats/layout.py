"""What a layout is and the checks that all layouts share. Knows nothing of files, containers or any one layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import EmbeddingError

if TYPE_CHECKING:
    import torch

#: Types that an embedding's vectors are stored in, as they are shown.
VECTOR_DTYPES = ("fp16", "bf16", "fp32", "fp64")
MAX_TEXT_LENGTH = 2000
MAX_VALUES = 2**22  # of one embedding: four times 75 vectors of the widest text encoder
_MAX_STEP = 2**53


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file: it is known to be there in full, but not read yet.

    Attributes:
        shape: its sizes, each at least 1.
        dtype: `fp16`, `bf16`, `fp32`, `fp64`, or the name of another type, which no embedding has.
        read: the values as a CPU tensor of that shape and type, while the file is open.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], torch.Tensor]


class Parameters(dict[Any, Any]):
    """What a `torch.nn.ParameterDict` held."""


@dataclass(frozen=True)
class Contents:
    """A container's data, already safe: plain dicts with text or number keys, lists, numbers, texts and stored tensors.

    Attributes:
        container: `safetensors`, `pickle`, `picture chunk` or `picture data`.
        tree: what it holds, most often a dict of tensors; a `ParameterDict` comes as `Parameters`.
        metadata: texts of a safetensors header, or beside the embedding in a PNG; empty elsewhere.
    """

    container: str
    tree: Any
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Parsed:
    """One embedding as a layout reads it.

    Attributes:
        vectors: text encoder -> stored tensor [n, d].
        stored_name: the name inside the file, if any; the file's own name counts.
        provenance: what else the file says.
        word: the name that tells it from the others where the file holds several; None where it is the only one.
        unusable: one clause why no prompt can use it, whatever the checkpoint; empty when one can.
    """

    vectors: dict[str, StoredTensor]
    stored_name: str | None = None
    provenance: Provenance = field(default_factory=Provenance)
    word: str | None = None
    unusable: str = ""


@dataclass(frozen=True)
class Layout:
    """One way of laying out embeddings in a file.

    Attributes:
        name: as shown to people.
        detect: whether the contents are in this layout; never raises, looks at keys more than at values.
        read: the contents as at least one embedding; raises `EmbeddingError` with a clause that follows the file's name.
        write: the bytes of a file with one embedding; None where the layout is only read.
        endings: file endings that `save` maps to this layout, such as `.pt`.
    """

    name: str
    detect: Callable[[Contents], bool]
    read: Callable[[Contents], list[Parsed]]
    write: Callable[[Embedding], bytes] | None = None
    endings: tuple[str, ...] = ()


def as_vectors(value: object, key: str) -> StoredTensor:
    """`value` as a stored tensor [n, d]; an early file's [d] becomes [1, d].

    Raises:
        EmbeddingError: not a tensor, another number of dimensions, or a type that is not fp16, bf16, fp32 or fp64.
    """
    shown = str(key)[:60]
    if not isinstance(value, StoredTensor):
        raise EmbeddingError(f"{shown!r} holds a {type(value).__name__} where a tensor [vectors, width] is expected.")
    if len(value.shape) not in (1, 2) or 0 in value.shape or value.dtype not in VECTOR_DTYPES:
        raise EmbeddingError(f"{shown!r} is a {value.dtype} tensor of shape {list(value.shape)}; expected floats of [vectors, width].")
    if len(value.shape) == 2:
        return value
    return replace(value, shape=(1, *value.shape), read=lambda: value.read().unsqueeze(0))


def as_text(value: object) -> str | None:
    """`value` without unprintable characters and cut to 2,000 characters; None when it is no text or nothing is left."""
    if not isinstance(value, str):
        return None
    if value.isprintable():
        return value[:MAX_TEXT_LENGTH] or None
    return "".join(char for char in value if char.isprintable())[:MAX_TEXT_LENGTH] or None


def as_step(value: object) -> int | None:
    """`value` as a count of steps; None when it is not a whole number from 0 to 2**53."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value <= _MAX_STEP else None


def summarize(tree: object) -> str:
    """The keys and shapes of `tree` in a few words, for a message."""
    if not isinstance(tree, dict):
        return f"a {type(tree).__name__}"
    shown = [_summarize_item(key, value) for key, value in list(tree.items())[:4]]
    return ", ".join(shown) + (f" and {len(tree) - 4} more" if len(tree) > 4 else "") or "nothing"


def _summarize_item(key: object, value: object) -> str:
    label = repr(key if len(str(key)) <= 60 else f"{str(key)[:60]}…")
    return f"{label} {list(value.shape)}" if isinstance(value, StoredTensor) else label
