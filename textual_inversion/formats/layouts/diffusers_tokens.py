"""diffusers' layout: a dict of tokens and their vectors, such as `{"<cat>": [n, d]}`.

Early files hold `[d]`. A file with several tokens holds several embeddings. One exception: diffusers writes a word of three vectors as
the tokens `<cat>`, `<cat>_1`, `<cat>_2` with one row each. As in A1111, a dict with exactly one tensor fits this layout under almost any
key. When there are several tensors, each must have the width of a text encoder's table. diffusers writes an SDXL embedding as two
files, one for each text encoder.
"""

from __future__ import annotations

import re

from textual_inversion.embedding import ENCODER_BY_WIDTH, Embedding
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.safetensors_file import write_safetensors
from textual_inversion.formats.containers.tensors import VECTOR_DTYPES, Contents, StoredTensor
from textual_inversion.formats.layout import Keys, Layout, Parsed, as_text, as_vectors, metadata_of, with_metadata
from textual_inversion.formats.layouts.encoder_tensors import ENCODER_KEY, by_width, join_rows
from textual_inversion.formats.layouts.foreign_files import names_foreign_file

#: Keys of other layouts; these are not tokens.
_NO_TOKEN = re.compile(rf"string_to_param|string_to_token|emb_params|emp_params|emp_params_out|{ENCODER_KEY.pattern}")
#: Prefixes of keys that belong to other layouts even when a file holds only one key.
_OTHER_KEYS = ("__metadata__", "text_encoders_", "bundle_emb.")
_MAX_TOKENS = 1_000


def read(contents: Contents) -> list[Parsed]:
    """Read an embedding for each token, or for each group of numbered tokens."""
    words = _join_numbered({str(key): as_vectors(value, str(key)) for key, value in contents.tree.items()})
    return [
        with_metadata(contents, Parsed(by_width(rows).vectors, as_text(token), word=token if len(words) > 1 else None))
        for token, rows in words.items()
    ]


def write(embedding: Embedding) -> bytes:
    """The bytes of a safetensors file, vectors in fp32. The key is the first of `name`, `<name>`, `<embedding>` with no other meaning.

    Raises:
        EmbeddingError: vectors for more than one text encoder, as SDXL has.
    """
    if len(embedding.vectors) != 1:
        raise EmbeddingError("it has vectors for several text encoders, which diffusers keeps in as many files; save it as safetensors.")
    name = as_text(embedding.name) or "embedding"
    token = next((text for text in (name, f"<{name}>") if not _means_something_else(text)), "<embedding>")
    return write_safetensors({token: next(iter(embedding.vectors.values()))}, {"format": "pt", **metadata_of(embedding)})


def _means_something_else(key: str) -> bool:
    return _NO_TOKEN.fullmatch(key) is not None or key.startswith(_OTHER_KEYS) or names_foreign_file(key)


def _join_numbered(tokens: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Join `<cat>`, `<cat>_1`, … under the first token. Each of them has one row, all of the same width."""
    joined: set[str] = set()
    words: dict[str, StoredTensor] = {}
    for token, rows in sorted(tokens.items(), key=lambda item: len(item[0])):  # the first token is the shortest
        if token in joined:
            continue
        parts, one_row = [rows], (1, rows.shape[1])
        while rows.shape == one_row and (name := f"{token}_{len(parts)}") in tokens and tokens[name].shape == one_row:
            parts.append(tokens[name])
            joined.add(name)
        words[token] = join_rows(parts)
    return {token: words[token] for token in tokens if token in words}


def _holds_rows_alone(contents: Contents) -> bool:
    """Whether the contents are one tensor only, or several tensors that all have the width of a text encoder's table."""
    values = list(contents.tree.values())
    if not 1 <= len(values) <= _MAX_TOKENS or not all(isinstance(value, StoredTensor) for value in values):
        return False
    return len(values) == 1 or (
        all(isinstance(key, str) for key in contents.tree)
        and all(len(v.shape) in (1, 2) and v.shape[-1] in ENCODER_BY_WIDTH and v.dtype in VECTOR_DTYPES for v in values)
    )


LAYOUT = Layout(
    "diffusers",
    read,
    keys=(Keys(lacks=_NO_TOKEN),),
    when=_holds_rows_alone,
    write=write,
    endings=(".safetensors",),
)
