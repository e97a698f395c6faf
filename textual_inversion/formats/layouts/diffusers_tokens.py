"""diffusers' layout: each token with its vectors, such as `{"<cat>": [n, d]}`. Knows nothing of files.

Early files hold `[d]`. A file of several tokens holds several embeddings, except that `<cat>`, `<cat>_1`, `<cat>_2`, one row each,
are one word of three vectors, as diffusers spells it. A dict with exactly one tensor under any key is this layout, as in A1111; of
several, every tensor must be as wide as a text encoder's table. diffusers writes SDXL as two files, one for each text encoder.
"""

from __future__ import annotations

from typing import Any

from textual_inversion.embedding import ENCODER_BY_WIDTH, Embedding
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.safetensors_file import write_safetensors
from textual_inversion.formats.layout import VECTOR_DTYPES, Contents, Layout, Parsed, StoredTensor, as_text, as_vectors
from textual_inversion.formats.layouts.encoders import by_width, join_rows, names_encoder
from textual_inversion.formats.layouts.foreign_files import names_foreign_file
from textual_inversion.formats.layouts.metadata import beside, metadata_of

_RESERVED = {"string_to_param", "string_to_token", "emb_params", "emp_params", "emp_params_out"}
_OTHER_KEYS = ("__metadata__", "text_encoders_", "bundle_emb.")
_MAX_TOKENS = 1_000


def detect(contents: Contents) -> bool:
    """Whether there is one tensor and nothing else, or several that are all as wide as a text encoder's table."""
    tree = contents.tree
    if not isinstance(tree, dict) or not 1 <= len(tree) <= _MAX_TOKENS or _RESERVED & set(tree) or any(map(names_encoder, tree)):
        return False
    if len(tree) == 1:
        return isinstance(next(iter(tree.values())), StoredTensor)
    return all(isinstance(key, str) and _are_rows(value) for key, value in tree.items())


def read(contents: Contents) -> list[Parsed]:
    """An embedding for each token, or for each row of tokens that belong together."""
    groups = _grouped({str(key): as_vectors(value, str(key)) for key, value in contents.tree.items()})
    found: list[Parsed] = []
    for token, rows in groups.items():
        vectors = by_width(rows).vectors
        found.append(beside(contents, Parsed(vectors, as_text(token), word=token if len(groups) > 1 else None)))
    return found


def write(embedding: Embedding) -> bytes:
    """The bytes of a safetensors file, vectors in fp32, under the first of `name`, `<name>` and `<embedding>` that means nothing else.

    Raises:
        EmbeddingError: vectors for more than one text encoder, as SDXL has.
    """
    if len(embedding.vectors) != 1:
        raise EmbeddingError("it has vectors for several text encoders, which diffusers keeps in as many files; save it as safetensors.")
    return write_safetensors({_token(embedding.name): next(iter(embedding.vectors.values()))}, {"format": "pt", **metadata_of(embedding)})


def _token(name: str) -> str:
    """`name`, in angle brackets where the bare one is a key that means something else; neither where both do."""
    token = as_text(name) or "embedding"
    return next((text for text in (token, f"<{token}>") if not _means_more(text)), "<embedding>")


def _means_more(key: str) -> bool:
    return key in _RESERVED or names_encoder(key) or key.startswith(_OTHER_KEYS) or names_foreign_file(key)


def _are_rows(value: Any) -> bool:
    return (
        isinstance(value, StoredTensor)
        and len(value.shape) in (1, 2)
        and value.shape[-1] in ENCODER_BY_WIDTH
        and value.dtype in VECTOR_DTYPES
    )


def _grouped(tokens: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """First token -> the rows of it and of the tokens that are numbered after it, each one row of the same width."""
    taken: set[str] = set()
    groups: dict[str, StoredTensor] = {}
    for token, rows in sorted(tokens.items(), key=lambda item: len(item[0])):  # the first token is the shortest
        if token in taken:
            continue
        parts = [rows]
        while (following := tokens.get(name := f"{token}_{len(parts)}")) is not None and following.shape == rows.shape == (
            1,
            rows.shape[1],
        ):
            parts.append(following)
            taken.add(name)
        groups[token] = join_rows(parts)
    return {token: groups[token] for token in tokens if token in groups}


LAYOUT = Layout("diffusers", detect, read, write, (".safetensors",))
