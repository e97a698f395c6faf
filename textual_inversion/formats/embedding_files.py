"""Loading, saving and describing embedding files, through the containers and the layouts."""

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

#: Endings of files that may hold an embedding; what a file is, its bytes decide.
READ_ENDINGS = (".safetensors", ".pt", ".bin", ".pti", ".png", ".webp")
#: Those of them that are pictures, most of which are previews and carry nothing.
PICTURE_ENDINGS = (".png", ".webp")
_DEFAULT_ENDING = ".safetensors"
_OTHER_ENDINGS = (".bin", ".pti", ".ckpt", ".pth", ".webp", ".jpg", ".jpeg", ".txt", ".json")


@dataclass(frozen=True)
class FileInfo:
    """What an embedding file says about one embedding in it, told without reading the vectors.

    Attributes:
        path: the file.
        layout: name of its layout, such as `safetensors` or `A1111 .pt`.
        widths: text encoder -> width of its vectors.
        counts: text encoder -> number of its vectors.
        dtype: how the vectors are stored: `fp16`, `bf16`, `fp32`, `fp64`, several joined by commas.
        stored_name: the name inside the file; only for showing, the file's own name counts.
        provenance: step, checkpoint and initialization text, where the file tells them.
        size: bytes of the file.
        word: which of several embeddings in the file this is; None where it is the only one.
        unusable: one clause why no prompt can use it, whatever the checkpoint; empty when one can.
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
        """Places that the word takes in a prompt: the largest count over its text encoders; 0 where the layout tells none."""
        return max(self.counts.values(), default=0)

    @property
    def family(self) -> str:
        """`SD1`, `SD2`, `SDXL`, `Flux`, … as in `family_of`; empty where the layout tells none."""
        return family_of(self.widths)

    @property
    def description(self) -> EmbeddingDescription:
        """The facts about it that people and programs are shown."""
        stored = {"layout": self.layout, "dtype": self.dtype, "stored_name": self.stored_name}
        return self.provenance.describe(self.num_vectors, self.family, widths=self.widths, counts=self.counts, **stored)

    @cached_property
    def sha256(self) -> str:
        """Of the whole file, 64 hex digits; read when first asked for.

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
        word: which embedding, where the file holds several; None takes the first.

    Raises:
        UnsafeFileError: the file does more than hold data; nothing of it was run.
        UnknownLayoutError: readable, but no embedding that is known.
        EmbeddingError: missing, damaged, too large, more than 75 vectors, values that are not finite, or of a kind that no prompt can use.
    """
    path = Path(path)
    with _parsed(path) as (_, _, embeddings):
        parsed = next((one for one in embeddings if word is None or one.word == word), None)
        if parsed is None:
            words = ", ".join(repr(one.word) for one in embeddings[:4] if one.word)
            raise EmbeddingError(f"it holds no embedding called {word!r}{f'; it holds {words}' if words else ''}.")
        return read_vectors(parsed, path, name)


def read_all(path: str | Path) -> Iterator[tuple[FileInfo, dict[str, torch.Tensor]]]:
    """Every embedding in the file at `path` with its vectors as they are stored, for whoever looks into damaged ones too.

    Values may be NaN or infinite; what no prompt can use comes without vectors. Raises what `describe` raises.
    """
    path = Path(path)
    with _parsed(path) as (source, layout, embeddings):
        for parsed in embeddings:
            vectors = {} if parsed.unusable else {encoder: tensor.read() for encoder, tensor in parsed.vectors.items()}
            yield info_of(path, layout, parsed, source.size), vectors


def check_container(path: str | Path) -> None:
    """Whether the file at `path` is whole and safe, whatever it holds; raises what `describe` raises before it looks for a layout."""
    with open_file(Path(path)) as source:
        read_container(source)


def describe(path: str | Path, *, word: str | None = None) -> FileInfo:
    """What the file at `path` says about the embedding called `word`, or its first one.

    The vectors are not read, so values that are not finite are found by `load` only.

    Raises:
        What `load` raises, except for what no prompt can use: the result's `unusable` tells that.
    """
    infos = describe_all(path)
    return next((info for info in infos if word is not None and info.word == word), infos[0])


def describe_all(path: str | Path) -> list[FileInfo]:
    """What the file at `path` says about every embedding in it, at least one; raises what `describe` raises."""
    path = Path(path)
    with _parsed(path) as (source, layout, embeddings):
        return [info_of(path, layout, parsed, source.size) for parsed in embeddings]


def info_of(path: Path, layout: Layout, parsed: Parsed, size: int) -> FileInfo:
    """What a file of `size` bytes says about one embedding in it."""
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
    """The layout and the embeddings of an open file; those that are too large for any prompt are refused before they are read.

    One too large among several becomes unusable, so that the others can be used.
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
    """The embedding with its vectors, under `name`, or else under its word or the name of the file at `path`.

    Raises:
        EmbeddingError: no prompt can use it, or values that are not finite.
    """
    if parsed.unusable:
        raise EmbeddingError(f"{parsed.unusable}.")
    if name is None:
        name = name_in_file(path.stem, parsed.word)
    embedding = Embedding(name, {encoder: tensor.read() for encoder, tensor in parsed.vectors.items()}, parsed.provenance)
    _check_finite(embedding)
    return embedding


def save(embedding: Embedding, path: str | Path, *, overwrite: bool = False, layout: str | None = None) -> Path:
    """Write `embedding` in fp32 and return the file's path; it is always either the old file or the whole new one.

    Args:
        embedding: finite vectors.
        path: `.safetensors`, `.pt` for A1111's own layout, which has no place for the initialization text and for SDXL, or
            `.png` for a picture that carries it; without such an ending, the layout's own is added.
        overwrite: replace a file that is there.
        layout: name of a layout in `writable_layouts()`, in any capitals; None takes the first one for the ending.

    Raises:
        NameTakenError: a file is there and `overwrite` is false.
        EmbeddingError: a layout or an ending that is not written, no such folder, disk full, not allowed, or values that are not finite.
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
    """The path with its final ending, and the writer that it asks for."""
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
    return path.with_name(f"{path.name}{added}"), writers[added]  # the name may be such as "v1.5"


@contextmanager
def _parsed(path: Path) -> Iterator[tuple[FileBytes, Layout, list[Parsed]]]:
    """The file at `path`, which stays open for reading its vectors, with its layout and its embeddings."""
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
