"""Which keys name a text encoder, and vectors by such keys. Knows nothing of containers or of any one layout.

A key such as `clip_g` holds rows of that encoder's token table. The same key with `_out` holds what the encoder should give out
for the word, which no prompt here can use: beside rows it is left out, instead of rows it makes the embedding unusable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from textual_inversion.embedding import ENCODER_BY_WIDTH, encoder_for_width, family_of
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.layout import Parsed, StoredTensor, as_vectors

if TYPE_CHECKING:
    import torch

#: Key as it is spelt in files -> the text encoder. The ones from `t5` on are read by models that no prompt here speaks to.
ENCODERS = {
    "clip_l": "clip_l",
    "clip_g": "clip_g",
    "clip_h": "clip_h",
    "t5": "t5",
    "t5xxl": "t5",
    "llama": "llama",
    "gemma": "gemma",
    "gemma2_2b": "gemma",
}
#: Why an embedding cannot be used that has the wished outputs of a text encoder.
ONLY_OUTPUTS = "it holds outputs of the text encoder ({}) instead of words for it, which no prompt here can use"
_OUT = "_out"
_CLIP = set(ENCODER_BY_WIDTH.values())


def names_encoder(key: object) -> bool:
    """Whether `key` is a text encoder's, with or without `_out`."""
    return isinstance(key, str) and key.removesuffix(_OUT) in ENCODERS


def by_width(rows: StoredTensor) -> Parsed:
    """Rows of one text encoder, which their width tells."""
    return Parsed({encoder_for_width(rows.shape[1]): rows})


def by_encoder(tree: Mapping[Any, Any]) -> Parsed:
    """The vectors under the keys that name a text encoder; other keys are left out.

    Counts may differ from encoder to encoder: the word then takes as many places as the largest count.

    Raises:
        EmbeddingError: one of the keys holds no vectors, or two name the same text encoder.
    """
    vectors: dict[str, StoredTensor] = {}
    for key in filter(names_encoder, tree):
        rows = as_vectors(tree[key], key)
        if key.endswith(_OUT):
            continue
        if ENCODERS[key] in vectors:
            raise EmbeddingError(f"it holds vectors for {ENCODERS[key]} twice.")
        vectors[ENCODERS[key]] = rows
    if len(vectors) == 1 and next(iter(vectors)) in _CLIP:
        (rows,) = vectors.values()
        # a table that is as wide as another encoder's is that encoder's
        vectors = {ENCODER_BY_WIDTH.get(rows.shape[1], next(iter(vectors))): rows}
    outputs = {ENCODERS[key.removesuffix(_OUT)] for key in tree if names_encoder(key) and key.endswith(_OUT)}
    ordered = dict(sorted(vectors.items(), key=lambda item: item[0] != "clip_l"))
    return Parsed(ordered, unusable=_why_unusable(set(vectors), outputs))


def _why_unusable(rows: set[str], outputs: set[str]) -> str:
    """One clause why no prompt can use an embedding with these text encoders' rows and outputs; empty when one can."""
    if rows - _CLIP:
        family = family_of(dict.fromkeys(rows, 0))
        return f"it is made for {family}, whose text encoders ({', '.join(sorted(rows))}) no prompt here speaks to"
    if outputs - rows:
        return ONLY_OUTPUTS.format(", ".join(sorted(outputs - rows)))
    return ""


def join_rows(parts: Sequence[StoredTensor]) -> StoredTensor:
    """The rows of several tensors [..., d] of one width, one below the other, as [n, d]."""
    if len(parts) == 1 and len(parts[0].shape) == 2:
        return parts[0]
    width = parts[0].shape[-1]

    def read() -> torch.Tensor:
        import torch

        return torch.cat([part.read().reshape(-1, width) for part in parts])

    dtypes = {part.dtype for part in parts}
    rows = sum(math.prod(part.shape[:-1]) for part in parts)
    return replace(parts[0], shape=(rows, width), dtype=dtypes.pop() if len(dtypes) == 1 else "fp32", read=read)
