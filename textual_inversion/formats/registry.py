"""Which layouts there are, and loading, saving and describing a file through them. Knows nothing of any one layout.

To add a layout: one module with a `LAYOUT`, named in `LAYOUTS`. To add a container: one reader, named in `_CONTAINERS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from textual_inversion.description import EmbeddingDescription
from textual_inversion.embedding import MAX_VECTORS, Embedding, Provenance, clean_name, family_of, word_name
from textual_inversion.errors import EmbeddingError, UnknownLayoutError
from textual_inversion.files import short_hash
from textual_inversion.formats.containers.file_bytes import FileBytes, file_sha256, open_file, write_atomic
from textual_inversion.formats.containers.picture_file import is_picture, read_picture
from textual_inversion.formats.containers.safetensors_file import is_safetensors, read_safetensors
from textual_inversion.formats.containers.torch_file import is_torch_file, read_torch_file
from textual_inversion.formats.layout import MAX_VALUES, Contents, Layout, Parsed, summarize
from textual_inversion.formats.layouts import (
    a1111_picture,
    a1111_pt,
    diffusers_tokens,
    emb_params,
    encoder_tensors,
    foreign_files,
    lists,
    lora_bundle,
    original_pt,
    safetensors_embedding,
    xti,
)

#: Tried in this order when reading: the ones with keys of their own, then what is no embedding, then the ones under any key.
LAYOUTS: tuple[Layout, ...] = (
    safetensors_embedding.LAYOUT,
    a1111_picture.CHUNK_LAYOUT,
    a1111_picture.DATA_LAYOUT,
    original_pt.LAYOUT,
    a1111_pt.LAYOUT,
    encoder_tensors.LAYOUT,
    encoder_tensors.REPLICATE,
    emb_params.LAYOUT,
    emb_params.ONETRAINER,
    xti.LAYOUT,
    lora_bundle.LAYOUT,
    foreign_files.LAYOUT,
    diffusers_tokens.LAYOUT,
    lists.LAYOUT,
    lists.ALONE,
)
#: Endings of files that may hold an embedding; what a file is, its bytes decide.
READ_ENDINGS = (".safetensors", ".pt", ".bin", ".pti", ".png", ".webp")
#: Those of them that are pictures, most of which are previews and carry nothing.
PICTURE_ENDINGS = (".png", ".webp")
_EXPECTED = "expected string_to_param, emb_params, clip_l and clip_g, text_encoders_0, or vectors under their own tokens"
_DEFAULT_ENDING = ".safetensors"
_OTHER_ENDINGS = (".bin", ".pti", ".ckpt", ".pth", ".webp", ".jpg", ".jpeg", ".txt", ".json")
_CONTAINERS: tuple[tuple[Callable[[FileBytes], bool], Callable[[FileBytes], Contents]], ...] = (
    (is_picture, read_picture),
    (is_safetensors, read_safetensors),
    (is_torch_file, read_torch_file),
)


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
    with _parsed(path) as (_, found):
        return _read(_choose(found, word), path, name)


def load_all(path: str | Path) -> list[Embedding]:
    """Every embedding in the file at `path`, each under its own word where there are several; raises what `load` raises."""
    path = Path(path)
    with _parsed(path) as (_, found):
        return [_read(parsed, path, None) for parsed in found]


def read_all(path: str | Path) -> Iterator[tuple[FileInfo, dict[str, torch.Tensor]]]:
    """Every embedding in the file at `path` with its vectors as they are stored, for whoever looks into damaged ones too.

    Values may be NaN or infinite; what no prompt can use comes without vectors. Raises what `describe` raises.
    """
    path = Path(path)
    with open_file(path) as source:
        layout, found = _parse(source)
        for parsed in found:
            vectors = {} if parsed.unusable else {encoder: tensor.read() for encoder, tensor in parsed.vectors.items()}
            yield _info(path, layout, parsed, source.size), vectors


def check_container(path: str | Path) -> None:
    """Whether the file at `path` is whole and safe, whatever it holds; raises what `describe` raises before it looks for a layout."""
    path = Path(path)
    with open_file(path) as source:
        _contents(source)


def describe(path: str | Path, *, word: str | None = None) -> FileInfo:
    """What the file at `path` says about the embedding called `word`, or its first one.

    The vectors are not read, so values that are not finite are found by `load` only.

    Raises:
        What `load` raises, except for what no prompt can use: the result's `unusable` tells that.
    """
    found = describe_all(path)
    return found[0] if word is None else next((info for info in found if info.word == word), found[0])


def describe_all(path: str | Path) -> list[FileInfo]:
    """What the file at `path` says about every embedding in it, at least one; raises what `describe` raises."""
    path = Path(path)
    with open_file(path) as source:
        layout, found = _parse(source)
        return [_info(path, layout, parsed, source.size) for parsed in found]


def _info(path: Path, layout: Layout, parsed: Parsed, size: int) -> FileInfo:
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


def writable_layouts() -> dict[str, tuple[str, ...]]:
    """Name of each layout that `save` writes -> the endings of its files."""
    return {layout.name: layout.endings for layout in LAYOUTS if layout.write and layout.endings}


def _target(path: Path, layout: str | None) -> tuple[Path, Callable[[Embedding], bytes]]:
    """The path with its final ending, and the writer that it asks for."""
    if not path.name or "\0" in path.name:
        raise EmbeddingError(f"{str(path)!r} is not the path of a file; give one such as embeddings/my-cat.safetensors.", path=path)
    writable = _writers(layout)
    ending = path.suffix.lower()
    if ending in writable:
        return path, writable[ending]
    if ending in _OTHER_ENDINGS or any(ending in one.endings for one in LAYOUTS):
        raise EmbeddingError(
            f"{path} cannot be written because {ending} is not an ending for that; use {' or '.join(writable)}.", path=path
        )
    added = _DEFAULT_ENDING if _DEFAULT_ENDING in writable else next(iter(writable))
    return path.with_name(f"{path.name}{added}"), writable[added]  # such as the name "v1.5"


def _writers(layout: str | None) -> dict[str, Callable[[Embedding], bytes]]:
    """Ending -> the first writer for it, of all layouts or of the one that is named."""
    writers: dict[str, Callable[[Embedding], bytes]] = {}
    for one in LAYOUTS:
        if one.write and (layout is None or one.name.casefold() == layout.casefold()):
            for ending in one.endings:
                writers.setdefault(ending, one.write)
    if not writers:
        raise EmbeddingError(f"There is no layout {layout!r} to write; there are {', '.join(map(repr, writable_layouts()))}.")
    return writers


@contextmanager
def _parsed(path: Path) -> Iterator[tuple[Layout, list[Parsed]]]:
    """The layout and the embeddings of the file at `path`, which stays open for reading their vectors."""
    with open_file(path) as source:
        yield _parse(source)


def _parse(source: FileBytes) -> tuple[Layout, list[Parsed]]:
    contents = _contents(source)
    for layout in LAYOUTS:
        if layout.detect(contents):
            found = layout.read(contents)
            return layout, [_checked(parsed, alone=len(found) == 1) for parsed in found]
    raise UnknownLayoutError(f"it holds {summarize(contents.tree)}, which is no embedding layout that is known; {_EXPECTED}.")


def _contents(source: FileBytes) -> Contents:
    for recognises, read in _CONTAINERS:
        if recognises(source):
            return read(source)
    raise UnknownLayoutError("it is no safetensors file, PyTorch file or picture; fetch it again, perhaps the download was a web page.")


def _checked(parsed: Parsed, *, alone: bool) -> Parsed:
    """Refuse what no prompt can hold, before any of it is read; one among several does not spoil the others."""
    problem = "" if parsed.unusable else _too_large(parsed)
    if problem and alone:
        raise EmbeddingError(f"{problem}.")
    return replace(parsed, unusable=problem) if problem else parsed


def _too_large(parsed: Parsed) -> str:
    most = max(tensor.shape[0] for tensor in parsed.vectors.values())
    if most > MAX_VECTORS:
        return f"it has {most} vectors; a prompt's chunk holds {MAX_VECTORS}"
    if sum(math.prod(tensor.shape) for tensor in parsed.vectors.values()) > MAX_VALUES:
        return f"its vectors hold more than {MAX_VALUES} values, which no text encoder is wide enough for"
    return ""


def _choose(found: list[Parsed], word: str | None) -> Parsed:
    """The embedding that `word` tells; the first where it tells none."""
    if word is None:
        return found[0]
    for parsed in found:
        if parsed.word == word:
            return parsed
    words = ", ".join(repr(parsed.word) for parsed in found[:4] if parsed.word)
    raise EmbeddingError(f"it holds no embedding called {word!r}{f'; it holds {words}' if words else ''}.")


def _read(parsed: Parsed, path: Path, name: str | None) -> Embedding:
    if parsed.unusable:
        raise EmbeddingError(f"{parsed.unusable}.")
    vectors = {encoder: tensor.read() for encoder, tensor in parsed.vectors.items()}
    embedding = Embedding(_name(parsed, path) if name is None else name, vectors, parsed.provenance)
    _check_finite(embedding)
    return embedding


def _name(parsed: Parsed, path: Path) -> str:
    return clean_name(path.stem) if parsed.word is None else word_name(parsed.word)


def _check_finite(embedding: Embedding) -> None:
    if not all(torch.isfinite(tensor).all() for tensor in embedding.vectors.values()):
        raise EmbeddingError("its vectors hold values that are not finite (NaN or infinite), so pictures would be black.")
