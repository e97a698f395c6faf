"""Defines a layout, and the helpers that layouts share: checks of vectors and texts, and the metadata texts.

A safetensors header or a PNG may have these metadata keys, all optional:

    ti_name             the embedding's name; never trusted over the file's name
    ti_step             optimizer steps trained
    sd_checkpoint_name  the checkpoint it was trained on, without ending, as in A1111's `.pt`
    sd_checkpoint       first 10 hex digits of that checkpoint's sha256, as in A1111's `.pt`
    initializer_text    the words that the vectors started from
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.tensors import VECTOR_DTYPES, Contents, StoredTensor

MAX_TEXT_LENGTH = 2000
_MAX_STEP = 2**53
#: Types of values that are not tensors.
NO_TENSOR = (dict, list, str, bytes, int, float, type(None))


@dataclass(frozen=True)
class Parsed:
    """One embedding as read by a layout.

    Attributes:
        vectors: text encoder -> stored tensor [n, d].
        stored_name: the name inside the file, if any; the file's own name counts.
        provenance: the training facts in the file.
        word: the name of this embedding when the file holds several; None when it is the only one.
        unusable: one clause why no prompt can use it with any checkpoint; empty when it is usable.
    """

    vectors: dict[str, StoredTensor]
    stored_name: str | None = None
    provenance: Provenance = field(default_factory=Provenance)
    word: str | None = None
    unusable: str = ""


@dataclass(frozen=True)
class Keys:
    """The rules for the keys of a dict in a layout.

    Attributes:
        has: required keys -> the type of their values.
        some: optional pattern; at least one key must match it completely.
        lacks: a pattern that no key may match completely.
        others: allowed types for the values of all other keys; `()` forbids other keys.
    """

    has: Mapping[str, type] = field(default_factory=dict)
    some: re.Pattern[str] | None = None
    lacks: re.Pattern[str] | None = None
    others: type | tuple[type, ...] = object

    def fit(self, tree: object) -> bool:
        """Whether `tree` is a dict that follows these rules."""
        if not isinstance(tree, dict) or not all(key in tree and isinstance(tree[key], kind) for key, kind in self.has.items()):
            return False
        if self.lacks is not None and any(_matches(self.lacks, key) for key in tree):
            return False
        matching = set() if self.some is None else {key for key in tree if _matches(self.some, key)}
        if self.some is not None and not matching:
            return False
        known = matching | self.has.keys()
        return self.others is object or all(key in known or isinstance(value, self.others) for key, value in tree.items())


@dataclass(frozen=True)
class Layout:
    """One arrangement of embeddings in a file.

    Contents fit the layout when the container, one of `keys` and `when` all fit. When contents may fit two layouts, `before` must order
    these two, directly or through other layouts.

    Attributes:
        name: the name for users and for the `before` of other layouts.
        read: turns the contents into at least one embedding; raises `EmbeddingError` with a clause that follows the file's name.
        keys: alternative rules for the keys; empty when the keys do not matter.
        when: a further condition on the contents. It must not raise, and should look at as few values as possible.
        containers: containers that may use this layout; empty means all.
        before: names of layouts that are tried only if this one does not fit.
        write: returns the bytes of a file with one embedding; None when the layout is read-only.
        endings: file endings that `save` maps to this layout, such as `.pt`.
    """

    name: str
    read: Callable[[Contents], list[Parsed]]
    keys: tuple[Keys, ...] = ()
    when: Callable[[Contents], bool] | None = None
    containers: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    write: Callable[[Embedding], bytes] | None = None
    endings: tuple[str, ...] = ()

    def fits(self, contents: Contents) -> bool:
        """Whether `contents` fit this layout."""
        if self.containers and contents.container not in self.containers:
            return False
        if self.keys and not any(keys.fit(contents.tree) for keys in self.keys):
            return False
        return self.when is None or self.when(contents)


def as_vectors(value: object, key: str) -> StoredTensor:
    """Return `value` as a stored tensor [n, d]; the [d] of early files becomes [1, d].

    Raises:
        EmbeddingError: `value` is not a tensor, has another number of dimensions, or is not fp16, bf16, fp32 or fp64.
    """
    shown = str(key)[:60]
    if not isinstance(value, StoredTensor):
        raise EmbeddingError(f"{shown!r} holds a {type(value).__name__} where a tensor [vectors, width] is expected.", field=shown)
    if len(value.shape) not in (1, 2) or 0 in value.shape or value.dtype not in VECTOR_DTYPES:
        raise EmbeddingError(
            f"{shown!r} is a {value.dtype} tensor of shape {list(value.shape)}; expected floats of [vectors, width].", field=shown
        )
    if len(value.shape) == 2:
        return value
    return replace(value, shape=(1, *value.shape), read=lambda: value.read().unsqueeze(0))


def as_text(value: object) -> str | None:
    """`value` without unprintable characters, cut to 2,000 characters; None when it is not text or nothing is left."""
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


def metadata_of(embedding: Embedding) -> dict[str, str]:
    """The metadata texts of `embedding`, cleaned by `as_text` and `as_step`, without unknown fields."""
    origin = embedding.provenance
    step = as_step(origin.step)
    texts = {
        "ti_name": as_text(embedding.name),
        "ti_step": None if step is None else str(step),
        "sd_checkpoint_name": as_text(origin.checkpoint_name),
        "sd_checkpoint": as_text(origin.checkpoint_hash),
        "initializer_text": as_text(origin.initializer_text),
    }
    return {key: text for key, text in texts.items() if text is not None}


def provenance_in(texts: Mapping[str, object]) -> Provenance:
    """Read the provenance from `texts`. A missing or invalid text gives an unknown field."""
    return Provenance(
        step=as_step(texts.get("ti_step")),
        checkpoint_name=as_text(texts.get("sd_checkpoint_name")),
        checkpoint_hash=as_text(texts.get("sd_checkpoint")),
        initializer_text=as_text(texts.get("initializer_text")),
    )


def with_metadata(contents: Contents, parsed: Parsed) -> Parsed:
    """`parsed` with name and provenance from the container's metadata or, without metadata, from the keys of A1111's `.pt`."""
    tree = contents.tree if isinstance(contents.tree, dict) else {}
    texts: Mapping[str, object] = contents.metadata or {"ti_name": tree.get("name"), "ti_step": tree.get("step"), **tree}
    return replace(parsed, stored_name=parsed.stored_name or as_text(texts.get("ti_name")), provenance=provenance_in(texts))


def summarize(tree: object) -> str:
    """The keys and shapes of `tree` in a few words, for a message."""
    if not isinstance(tree, dict):
        return f"a {type(tree).__name__}"
    items = []
    for key, value in list(tree.items())[:4]:
        label = repr(key if len(str(key)) <= 60 else f"{str(key)[:60]}…")
        items.append(f"{label} {list(value.shape)}" if isinstance(value, StoredTensor) else label)
    return ", ".join(items) + (f" and {len(tree) - 4} more" if len(tree) > 4 else "") or "nothing"


def _matches(pattern: re.Pattern[str], key: object) -> bool:
    return isinstance(key, str) and pattern.fullmatch(key) is not None
