"""Cuts a prompt into chunks of 75 tokens with weights and spliced embeddings, as A1111 does.

The module needs only the names and vector counts of embeddings, not their vectors.

A chunk is 77 ids: the start token, up to 75 tokens or vectors, the end token, padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from textual_inversion.errors import PromptError
from textual_inversion.prompts.emphasis import parse_emphasis
from textual_inversion.prompts.names import rewrite_names
from textual_inversion.prompts.tokenizer import END, START, Tokenizer

CHUNK_TOKENS = 75
COMMA_BACKTRACK = 20  # A1111's default: up to so many tokens after a comma move to the next chunk together


@dataclass(frozen=True)
class Splice:
    """One vector of an embedding in a chunk.

    Attributes:
        position: place in the chunk's 77 (1 to 75) where the vector replaces the row of the token table.
        name: the embedding, in the spelling of the known name.
        index: number of the vector (0 to n - 1).
    """

    position: int
    name: str
    index: int


@dataclass(frozen=True)
class Chunk:
    """The input of one pass of a text encoder.

    Attributes:
        ids: 77 token ids, 0 where a vector is spliced in.
        weights: 77 factors of emphasis, 1.0 for the start, the end and the padding.
        splices: the vectors that replace token embeddings, by rising position.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    splices: tuple[Splice, ...]


def chunk_prompt(text: str, tokenizer: Tokenizer, embeddings: Mapping[str, int], *, pad: int = END) -> list[Chunk]:
    """Cut a prompt into chunks; at least one.

    BREAK begins a new chunk. A full chunk is cut after its last comma if the comma is at most 20 tokens back. The vectors of an
    embedding stay together. The search compares token ids, so case does not matter; the longest name wins. `<name>` and
    `<name:1.2>` mean the embedding too.

    Args:
        text: a prompt with emphasis; escapes, names and BREAK are resolved here.
        tokenizer: the text encoder's tokenizer.
        embeddings: name -> number of vectors (1 to 75); of names with equal token ids the first wins.
        pad: id behind the end token: the end token for SD1 and SDXL's first encoder, 0 for SD2 and SDXL's second.

    Raises:
        PromptError: an embedding in the prompt has fewer than 1 or more than 75 vectors.
    """
    return [_close(items, pad) for items in _cut(text, tokenizer, embeddings)]


def count_tokens(text: str, tokenizer: Tokenizer, embeddings: Mapping[str, int]) -> tuple[int, int]:
    """Tokens that a prompt uses, including places that BREAK and cuts leave empty before the last chunk, and the capacity of its chunks.

    `(7, 75)` for a short prompt. Arguments and errors are those of `chunk_prompt`.
    """
    chunks = _cut(text, tokenizer, embeddings)
    used = CHUNK_TOKENS * (len(chunks) - 1) + len(chunks[-1])
    return used, CHUNK_TOKENS * len(chunks)


@dataclass(frozen=True)
class _Item:
    """One place of a chunk: a token, or a vector of an embedding."""

    id: int
    weight: float
    name: str | None = None
    index: int = 0


@dataclass
class _Cutter:
    """Collects items into chunks of at most 75."""

    chunks: list[list[_Item]] = field(default_factory=list)
    items: list[_Item] = field(default_factory=list)
    last_comma: int | None = None

    def next_chunk(self) -> None:
        self.chunks.append(self.items)
        self.items, self.last_comma = [], None

    def add_token(self, item: _Item, *, is_comma: bool) -> None:
        self.make_room(1, keep_clause=not is_comma)
        if is_comma:
            self.last_comma = len(self.items)
        self.items.append(item)

    def add_embedding(self, items: Sequence[_Item]) -> None:
        self.make_room(len(items), keep_clause=True)
        self.items.extend(items)

    def make_room(self, count: int, *, keep_clause: bool) -> None:
        """Begin a new chunk if `count` items do not fit. The items after a near last comma move to the new chunk."""
        full = len(self.items) == CHUNK_TOKENS
        if full and keep_clause and self.last_comma is not None and CHUNK_TOKENS - self.last_comma <= COMMA_BACKTRACK:
            cut = self.last_comma + 1
            moved = self.items[cut:]
            del self.items[cut:]
            self.next_chunk()
            self.items = moved
        if len(self.items) + count > CHUNK_TOKENS:
            self.next_chunk()


def _cut(text: str, tokenizer: Tokenizer, embeddings: Mapping[str, int]) -> list[list[_Item]]:
    names = _Names(tokenizer, embeddings)
    comma = tokenizer.encode(",")[0]
    cutter = _Cutter()
    for span in parse_emphasis(rewrite_names(text, embeddings)):
        if span.is_break:
            cutter.next_chunk()
            continue
        for id_or_name in names.find(tokenizer.encode(span.text)):
            if isinstance(id_or_name, str):
                count = _checked_count(id_or_name, embeddings[id_or_name])
                cutter.add_embedding([_Item(0, span.weight, id_or_name, index) for index in range(count)])
            else:
                cutter.add_token(_Item(id_or_name, span.weight), is_comma=id_or_name == comma)
    if cutter.items or not cutter.chunks:
        cutter.next_chunk()
    return cutter.chunks


class _Names:
    """Finds the names of embeddings among token ids."""

    def __init__(self, tokenizer: Tokenizer, embeddings: Mapping[str, int]) -> None:
        self._by_first: dict[int, list[tuple[list[int], str]]] = {}
        for name in embeddings:
            if ids := tokenizer.encode(name):
                self._by_first.setdefault(ids[0], []).append((ids, name))
        for entries in self._by_first.values():
            entries.sort(key=lambda entry: len(entry[0]), reverse=True)

    def find(self, ids: list[int]) -> Iterator[int | str]:
        """Yield the ids in order. The name of an embedding replaces its ids."""
        position = 0
        while position < len(ids):
            candidates = self._by_first.get(ids[position], ())
            match = next((entry for entry in candidates if ids[position : position + len(entry[0])] == entry[0]), None)
            yield match[1] if match else ids[position]
            position += len(match[0]) if match else 1


def _checked_count(name: str, count: int) -> int:
    if not 1 <= count <= CHUNK_TOKENS:
        raise PromptError(f"The embedding {name!r} in the prompt has {count} vectors; a chunk holds 1 to {CHUNK_TOKENS}.")
    return count


def _close(items: Sequence[_Item], pad: int) -> Chunk:
    padding = CHUNK_TOKENS - len(items)
    return Chunk(
        ids=(START, *(item.id for item in items), END, *[pad] * padding),
        weights=(1.0, *(item.weight for item in items), *[1.0] * (padding + 1)),
        splices=tuple(Splice(place, item.name, item.index) for place, item in enumerate(items, start=1) if item.name is not None),
    )
