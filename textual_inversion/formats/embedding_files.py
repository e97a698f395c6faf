"""Loads, saves and describes embedding files with the help of containers and layouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from textual_inversion.description import EmbeddingDescription
from textual_inversion.embedding import Embedding, Provenance, family_of, name_in_file
from textual_inversion.errors import EmbeddingError
from textual_inversion.files import short_hash
from textual_inversion.formats.containers import read_container
from textual_inversion.formats.containers.file_bytes import FileBytes, file_sha256, open_file, write_atomic
from textual_inversion.formats.containers.tensors import MAX_VALUES
from textual_inversion.formats.layout import Layout, Parsed
from textual_inversion.formats.registry import LAYOUTS, parse, writable_layouts
from textual_inversion.settings.creation import MAX_VECTORS

#: Endings of files that may hold an embedding. The bytes, not the ending, decide the kind of file.
READ_ENDINGS = (".safetensors", ".pt", ".bin", ".pti", ".png", ".webp")
#: The picture endings among them. Most pictures are previews and carry no embedding.
PICTURE_ENDINGS = (".png", ".webp")
_DEFAULT_ENDING = ".safetensors"
_OTHER_ENDINGS = (".bin", ".pti", ".ckpt", ".pth", ".webp", ".jpg", ".jpeg", ".txt", ".json")


@dataclass(frozen=True)
class FileInfo:
    """The facts in a file about one of its embeddings, known without reading the vectors.

    Attributes:
        path: the file.
        layout: name of its layout, such as `safetensors` or `A1111 .pt`.
        widths: text encoder -> width of its vectors.
        counts: text encoder -> number of its vectors.
        dtype: how the vectors are stored: `fp16`, `bf16`, `fp32`, `fp64`, several joined by commas.
        stored_name: the name inside the file, for display only; prompts use the file's own name.
        provenance: step, checkpoint and initialization text, as far as the file has them.
        size: bytes of the file.
        word: the name of this embedding when the file holds several; None when it is the only one.
        unusable: one clause why no prompt can use it with any checkpoint; empty when it is usable.
    """

    path: Path
    layout: str
    widths: dict[str, int]
    counts: dict[str, int]
    dtype: str
    stored_name: str | None
    provenance: Provenance
    size: int
    word: str | None = None
    unusable: str = ""

    @property
    def num_vectors(self) -> int:
        """Places that the word takes in a prompt: the largest count over its text encoders; 0 when the counts are unknown."""
        return max(self.counts.values(), default=0)

    @property
    def family(self) -> str:
        """`SD1`, `SD2`, `SDXL`, `Flux`, … as in `family_of`; empty when the widths are unknown."""
        return family_of(self.widths)

    @property
    def description(self) -> EmbeddingDescription:
        """The facts for people and programs."""
        stored = {"layout": self.layout, "dtype": self.dtype, "stored_name": self.stored_name}
        return self.provenance.describe(self.num_vectors, self.family, widths=self.widths, counts=self.counts, **stored)

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the whole file in 64 hex digits; computed at the first access.

        Raises:
            EmbeddingError: the file cannot be read any more.
        """
        return file_sha256(self.path)

    @property
    def a1111_hash(self) -> str:
        """First 12 hex digits of the sha256, as A1111 writes it in `TI hashes`."""
        return short_hash(self.sha256)


def load(path: str | Path, name: str | None = None, *, word: str | None = None) -> Embedding:
    """Read the embedding in the file at `path`; vectors come as fp32 [n, d] on the CPU.

    Args:
        path: a file in any layout of `LAYOUTS`; its bytes decide, not its ending.
        name: the word for prompts; None takes the file's name without ending, cleaned, or `word`.
        word: which embedding to take when the file holds several; None takes the first.

    Raises:
        UnsafeFileError: the file contains code; none of it was run.
        UnknownLayoutError: the file is readable but holds no known embedding layout.
        EmbeddingError: missing, damaged or too large file, more than 75 vectors, values that are not finite, or unusable in any prompt.
    """
    path = Path(path)
    with _parsed(path) as (_, _, embeddings):
        parsed = next((one for one in embeddings if word is None or one.word == word), None)
        if parsed is None:
            words = ", ".join(repr(one.word) for one in embeddings[:4] if one.word)
            raise EmbeddingError(f"it holds no embedding called {word!r}{f'; it holds {words}' if words else ''}.")
        return read_vectors(parsed, path, name)


def read_all(path: str | Path) -> Iterator[tuple[FileInfo, dict[str, torch.Tensor]]]:
    """Read every embedding in the file at `path` with its stored vectors, damaged ones too.

    Values may be NaN or infinite. An embedding that no prompt can use has no vectors. Raises the errors of `describe`.
    """
    path = Path(path)
    with _parsed(path) as (source, layout, embeddings):
        for parsed in embeddings:
            vectors = {} if parsed.unusable else {encoder: tensor.read() for encoder, tensor in parsed.vectors.items()}
            yield info_of(path, layout, parsed, source.size), vectors


def check_container(path: str | Path) -> None:
    """Check that the file at `path` is intact and safe, whatever its layout; raises the errors of `describe` except those of layouts."""
    with open_file(Path(path)) as source:
        read_container(source)


def describe(path: str | Path, *, word: str | None = None) -> FileInfo:
    """Describe the embedding called `word` in the file at `path`, or the first one.

    This function does not read the vectors, so only `load` notices values that are not finite.

    Raises:
        The errors of `load`, except that an unusable embedding raises nothing: the result's `unusable` gives the reason.
    """
    infos = describe_all(path)
    return next((info for info in infos if word is not None and info.word == word), infos[0])


def describe_all(path: str | Path) -> list[FileInfo]:
    """Describe every embedding in the file at `path`, at least one; raises the errors of `describe`."""
    path = Path(path)
    with _parsed(path) as (source, layout, embeddings):
        return [info_of(path, layout, parsed, source.size) for parsed in embeddings]


def info_of(path: Path, layout: Layout, parsed: Parsed, size: int) -> FileInfo:
    """The facts about one embedding in a file of `size` bytes."""
    vectors = parsed.vectors
    return FileInfo(
        path=path,
        layout=layout.name,
        widths={encoder: tensor.shape[1] for encoder, tensor in vectors.items()},
        counts={encoder: tensor.shape[0] for encoder, tensor in vectors.items()},
        dtype=", ".join(sorted({tensor.dtype for tensor in vectors.values()})),
        stored_name=parsed.stored_name,
        provenance=parsed.provenance,
        size=size,
        word=parsed.word,
        unusable=parsed.unusable,
    )


def parse_file(source: FileBytes) -> tuple[Layout, list[Parsed]]:
    """The layout and the embeddings of an open file. An embedding that is too large is refused before its vectors are read.

    When the file holds several embeddings, a too large one only becomes unusable, so prompts can use the others.
    """
    layout, embeddings = parse(read_container(source))
    for position, parsed in enumerate(embeddings):
        problem = "" if parsed.unusable else _too_large(parsed)
        if problem and len(embeddings) == 1:
            raise EmbeddingError(f"{problem}.")
        if problem:
            embeddings[position] = replace(parsed, unusable=problem)
    return layout, embeddings


def read_vectors(parsed: Parsed, path: Path, name: str | None) -> Embedding:
    """Read the vectors and name the embedding: `name` if given, else its word, else the name of the file at `path`.

    Raises:
        EmbeddingError: no prompt can use it, or some values are not finite.
    """
    if parsed.unusable:
        raise EmbeddingError(f"{parsed.unusable}.")
    if name is None:
        name = name_in_file(path.stem, parsed.word)
    embedding = Embedding(name, {encoder: tensor.read() for encoder, tensor in parsed.vectors.items()}, parsed.provenance)
    _check_finite(embedding)
    return embedding


def save(embedding: Embedding, path: str | Path, *, overwrite: bool = False, layout: str | None = None) -> Path:
    """Write `embedding` in fp32 and return the file's path. The file is always either the old one or the complete new one.

    Args:
        embedding: finite vectors.
        path: the ending chooses the layout: `.safetensors`, `.pt` (A1111's layout, without initialization text and not for SDXL) or
            `.png` (a picture that carries the embedding). Without one of these endings, the layout's ending is added.
        overwrite: replace an existing file.
        layout: name of a layout in `writable_layouts()`, in any capitals; None takes the first one for the ending.

    Raises:
        NameTakenError: a file is there and `overwrite` is false.
        EmbeddingError: this layout or ending cannot be written, no such folder, disk full, not allowed, or values that are not finite.
    """
    path, write = _target(Path(path), layout)
    try:
        _check_finite(embedding)
        data = write(embedding)
    except EmbeddingError as error:
        error.at(path)
        raise
    write_atomic(path, data, overwrite=overwrite)
    return path


def _target(path: Path, layout: str | None) -> tuple[Path, Callable[[Embedding], bytes]]:
    """The path with its final ending, and the writer for that ending."""
    if not path.name or "\0" in path.name:
        raise EmbeddingError(f"{str(path)!r} is not the path of a file; give one such as embeddings/my-cat.safetensors.", path=path)
    writers: dict[str, Callable[[Embedding], bytes]] = {}  # by ending
    for one in LAYOUTS:
        if one.write and (layout is None or one.name.casefold() == layout.casefold()):
            for ending in one.endings:
                writers.setdefault(ending, one.write)
    if not writers:
        raise EmbeddingError(f"There is no layout {layout!r} to write; there are {', '.join(map(repr, writable_layouts()))}.")
    ending = path.suffix.lower()
    if ending in writers:
        return path, writers[ending]
    if ending in _OTHER_ENDINGS or any(ending in one.endings for one in LAYOUTS):
        raise EmbeddingError(f"{path} cannot be written because {ending} is not an ending for that; use {' or '.join(writers)}.", path=path)
    added = _DEFAULT_ENDING if _DEFAULT_ENDING in writers else next(iter(writers))
    return path.with_name(f"{path.name}{added}"), writers[added]  # the name may contain a dot, such as "v1.5"


@contextmanager
def _parsed(path: Path) -> Iterator[tuple[FileBytes, Layout, list[Parsed]]]:
    """Open the file at `path` and parse its layout and embeddings. The file stays open so that the vectors can be read."""
    with open_file(path) as source:
        yield source, *parse_file(source)


def _too_large(parsed: Parsed) -> str:
    """One clause why the embedding is too large; empty when it is not."""
    most = max(tensor.shape[0] for tensor in parsed.vectors.values())
    if most > MAX_VECTORS:
        return f"it has {most} vectors; a prompt's chunk holds {MAX_VECTORS}"
    if sum(math.prod(tensor.shape) for tensor in parsed.vectors.values()) > MAX_VALUES:
        return f"its vectors hold more than {MAX_VALUES} values, which no text encoder is wide enough for"
    return ""


def _check_finite(embedding: Embedding) -> None:
    if not all(torch.isfinite(tensor).all() for tensor in embedding.vectors.values()):
        raise EmbeddingError("its vectors hold values that are not finite (NaN or infinite), so pictures would be black.")
