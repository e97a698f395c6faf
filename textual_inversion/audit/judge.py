"""What to think of one file: usable, unusable, no embedding, damaged, unchecked or unsafe, in one sentence.

Knows nothing of checkpoints, vocabularies or folders. "Unsafe" is judged for every program that may read the file, not only for
this one: a file that is data to the reader here may be a program to one that unpickles whatever has a pickle's ending.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from textual_inversion.embedding import family_of
from textual_inversion.errors import EmbeddingError, NoEmbeddingError, UnknownLayoutError, UnsafeFileError
from textual_inversion.formats import (
    MAX_READ_BYTES,
    PICTURE_ENDINGS,
    ZIP_START,
    FileBytes,
    FileInfo,
    check_container,
    may_import,
    open_file,
    read_all,
    walk_pickle,
)
from textual_inversion.text import counted, join_clauses

if TYPE_CHECKING:
    import torch

#: From the best to the worst.
KINDS = ("ok", "unusable", "not an embedding", "damaged", "unchecked", "unsafe")
_NEVER_UNPICKLED = (".safetensors", *PICTURE_ENDINGS)
_MAX_PICKLES = 5  # what PyTorch reads of a legacy file before its tensors
_SHOWN = 4


@dataclass(frozen=True, eq=False)
class Found:
    """One embedding of a file.

    Attributes:
        info: what the file says about it.
        kind: `ok`, `unusable` or `damaged`.
        sentence: the verdict without a full stop, such as `usable with SD1 checkpoints`.
    """

    info: FileInfo
    kind: str
    sentence: str


@dataclass(frozen=True, eq=False)
class Judgement:
    """A file and what to think of it.

    Attributes:
        path: the file.
        kind: one of `KINDS`.
        sentence: the verdict as one sentence that does not name the file.
        found: the embeddings in it; empty unless the file could be read.
        dangerous: a program that unpickles it might run code, because it is unsafe or a pickle too damaged to be checked.
        ordinary: a picture without an embedding, as previews are.
    """

    path: Path
    kind: str
    sentence: str
    found: tuple[Found, ...] = ()
    dangerous: bool = False
    ordinary: bool = False


def judge(path: str | Path) -> Judgement:
    """Read the file at `path` and say what to think of it; never raises for what is in the file, and runs nothing of it."""
    path = Path(path)
    judged = _judge(path)
    if judged.kind in ("unsafe", "unchecked") or not (clause := _runs_elsewhere(path, doubtful=judged.dangerous)):
        return judged
    return Judgement(path, "unsafe", f"unsafe: {clause}.", dangerous=True)


def suitable(widths: dict[str, int]) -> str:
    """The checkpoints that vectors of these widths per text encoder are for, in words."""
    family = family_of(widths)
    return f"checkpoints whose words are {family}" if family.endswith("wide") else f"{family} checkpoints"


def _judge(path: Path) -> Judgement:
    try:
        found = tuple(_found(info, vectors) for info, vectors in read_all(path))
    except UnsafeFileError as error:
        return Judgement(path, "unsafe", f"unsafe: {_without_path(path, error)}", dangerous=True)
    except UnknownLayoutError as error:
        ordinary = isinstance(error, NoEmbeddingError)
        what = "it is an ordinary picture." if ordinary else _without_path(path, error)
        return Judgement(path, "not an embedding", f"not an embedding: {what}", ordinary=ordinary)
    except EmbeddingError as error:
        return _judge_refused(path, _without_path(path, error))
    kinds = {one.kind for one in found}
    kind = next(kind for kind in ("damaged", "ok", "unusable") if kind in kinds)
    return Judgement(path, kind, _sentence(found), found)


def _found(info: FileInfo, vectors: dict[str, torch.Tensor]) -> Found:
    if info.unusable:
        return Found(info, "unusable", f"unusable: {info.unusable}")
    if damage := _damage(vectors):
        return Found(info, "damaged", f"damaged: {damage}")
    return Found(info, "ok", f"usable with {suitable(info.widths)}{_remarks(vectors)}")


def _judge_refused(path: Path, reason: str) -> Judgement:
    """Whether a file that was refused cannot be read, is damaged, or is whole and holds something that cannot be used."""
    try:
        with open_file(path) as source:
            pickled = _may_be_unpickled(path, source)
            too_large = pickled and source.size > MAX_READ_BYTES
    except EmbeddingError:
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        return Judgement(path, "damaged" if empty else "unchecked", f"{'damaged' if empty else 'unchecked'}: {reason}")
    if too_large:
        return Judgement(path, "unchecked", f"unchecked: {reason}")
    try:
        check_container(path)
    except EmbeddingError:
        unknown = " As a pickle that cannot be checked it may be dangerous." if pickled else ""
        return Judgement(path, "damaged", f"damaged: {reason.rstrip('.')}.{unknown}", dangerous=pickled)
    return Judgement(path, "unusable", f"unusable: {reason}")


def _without_path(path: Path, error: Exception) -> str:
    text = str(error)
    shorter = text.removeprefix(f"{path}: ")
    return shorter if shorter != text else "it" + text.removeprefix(str(path)) if text.startswith(f"{path} ") else text


def _sentence(found: tuple[Found, ...]) -> str:
    if len(found) == 1:
        return f"{found[0].sentence}."
    sentences = {one.sentence for one in found}
    names = ", ".join(str(one.info.word) for one in found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    if len(sentences) == 1:
        return f"{len(found)} embeddings ({names}), {sentences.pop()}."
    told = "; ".join(f"{one.info.word}: {one.sentence}" for one in sorted(found, key=lambda one: one.kind)[:_SHOWN])
    return f"{len(found)} embeddings ({names}): {told}."


def _damage(vectors: dict[str, torch.Tensor]) -> str:
    """Which vectors hold NaN or infinity, once they are fp32; empty when none does."""
    clauses = []
    for encoder, rows in vectors.items():
        finite = rows.float().isfinite().all(dim=1)  # n
        if bad := [str(index + 1) for index, fine in enumerate(finite.tolist()) if not fine]:
            clauses.append(f"vector{'s' * (len(bad) > 1)} {join_clauses(bad)} for {encoder}")
    return f"{join_clauses(clauses)} hold{'s' * _one(clauses)} NaN or infinity, so pictures would be black" if clauses else ""


def _one(clauses: list[str]) -> bool:
    return len(clauses) == 1 and clauses[0].startswith("vector ")


def _remarks(vectors: dict[str, torch.Tensor]) -> str:
    """What else a person should know of finite vectors."""
    remarks = []
    counts = {encoder: rows.shape[0] for encoder, rows in vectors.items()}
    nonzero = {encoder: int(rows.any(dim=1).sum()) for encoder, rows in vectors.items()}
    zero = [encoder for encoder, count in nonzero.items() if not count]
    few = sum(counts.values()) - sum(nonzero.values())
    if len(zero) == len(vectors):
        remarks.append("all its vectors are zero, so it is not trained yet")
    elif zero:
        remarks.append(f"its {join_clauses(zero)} half is zero, as embedding-merge leaves it, and changes nothing there")
    elif few:
        remarks.append(f"{few} of its {sum(counts.values())} vectors {'is' if few == 1 else 'are'} zero")
    if set(vectors) == {"clip_g"}:
        remarks.append("it is only one half, of use beside the file with its vectors for clip_l")
    if len(set(counts.values())) > 1:
        remarks.append("it has " + join_clauses([f"{counted(count, 'vector')} for {encoder}" for encoder, count in counts.items()]))
    return f", but {join_clauses(remarks)}" if remarks else ""


# What other programs would run -----------------------------------------------------------------------------------------


def _may_be_unpickled(path: Path, source: FileBytes) -> bool:
    """Whether a program may take the file for a pickle, by its bytes or by its ending."""
    head = source.read(0, 4)
    by_ending = path.suffix.lower() not in _NEVER_UNPICKLED
    return head == ZIP_START or (head[:1] == b"\x80" and source.read(8, 9) != b"{") or by_ending


def _runs_elsewhere(path: Path, *, doubtful: bool) -> str:
    """Why a program that unpickles by a file's ending would run code from a file that is something else to the reader here.

    Of a `doubtful` file, a damaged pickle, it is said already that it may.
    """
    if path.suffix.lower() in _NEVER_UNPICKLED:
        return ""
    try:
        with open_file(path) as source:
            if source.read(0, 4) == ZIP_START:
                return ""  # what a zip holds the reader has checked
            data, whole = source.read(0, min(source.size, MAX_READ_BYTES)), source.size <= MAX_READ_BYTES
    except EmbeddingError:
        return ""  # gone meanwhile, or empty
    if _is_tar(data):
        return "it is a tar archive, whose pickles PyTorch would run; best delete the file"
    return _runs_unpickled(data, whole=whole, doubtful=doubtful)


def _runs_unpickled(data: bytes, *, whole: bool, doubtful: bool) -> str:
    """Why a program that takes `data`, the beginning of a file where it is not `whole`, for pickles would run code."""
    stream, begin = BytesIO(data), 0
    try:
        for _ in range(_MAX_PICKLES):
            walk_pickle(stream)
            begin = stream.tell()
    except UnsafeFileError as error:
        return f"to programs that go by its ending it is a pickle: {str(error).rstrip('.')}"
    except EmbeddingError:  # which need not stop other readers
        if not doubtful and may_import(data[begin:], whole=whole):
            return "to programs that go by its ending it may be a pickle that runs code; best delete the file"
    return ""


def _is_tar(data: bytes) -> bool:
    """Whether PyTorch, which tries that first, would find an archive with something in it."""
    try:
        tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")  # no more is read: archives can take any time
    except (tarfile.TarError, ValueError):
        return False
    return True
