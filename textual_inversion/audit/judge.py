"""Judges one file: usable, unusable, no embedding, damaged, unchecked or unsafe, in one sentence.

"Unsafe" covers every program that may read the file, not only this one. This project may read a file as data, while a program that
unpickles every file with a pickle's ending runs code from it.
"""

from __future__ import annotations

import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.audit import EmbeddingJudgement, FileJudgement, Kind
from textual_inversion.embedding import family_of
from textual_inversion.errors import EmbeddingError, NoEmbeddingError, UnknownLayoutError, UnsafeFileError
from textual_inversion.formats import (
    MAX_READ_BYTES,
    PICTURE_ENDINGS,
    ZIP_START,
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

#: The kind of a file with several embeddings is the first of these kinds that occurs among them.
_FIRST_TO_LAST = (Kind.DAMAGED, Kind.OK, Kind.UNUSABLE)
_NEVER_UNPICKLED = (".safetensors", *PICTURE_ENDINGS)
_MAX_PICKLES = 5  # PyTorch reads five pickles of a legacy file before the tensors
_MAX_NAMED = 4  # a sentence names at most so many embeddings of one file


def judge(path: str | Path) -> FileJudgement:
    """Read and judge the file at `path`. Never runs code from the file. Bad contents give a verdict, not an error."""
    path = Path(path)
    judged = _judge_as_read(path)
    if judged.kind in (Kind.UNSAFE, Kind.UNCHECKED):
        return judged
    if clause := _runs_elsewhere(path, known_dangerous=judged.dangerous):
        return _refused(path, Kind.UNSAFE, f"{clause}.", dangerous=True)
    return judged


# The view of this project's reader -------------------------------------------------------------------------------------------


def _judge_as_read(path: Path) -> FileJudgement:
    try:
        embeddings = tuple(_judge_embedding(info, vectors) for info, vectors in read_all(path))
    except UnsafeFileError as error:
        return _refused(path, Kind.UNSAFE, error.reason, dangerous=True)
    except NoEmbeddingError:
        return _refused(path, Kind.NOT_AN_EMBEDDING, "it is an ordinary picture.", ordinary=True)
    except UnknownLayoutError as error:
        return _refused(path, Kind.NOT_AN_EMBEDDING, error.reason)
    except EmbeddingError as error:
        return _judge_unread(path, error.reason)
    kinds = {embedding.kind for embedding in embeddings}
    kind = next(kind for kind in _FIRST_TO_LAST if kind in kinds)
    return FileJudgement(path, kind, _joint_verdict(embeddings), embeddings)


def _refused(path: Path, kind: Kind, reason: str, **more: Any) -> FileJudgement:
    return FileJudgement(path, kind, f"{kind}: {reason}", **more)


def _judge_embedding(info: FileInfo, vectors: dict[str, torch.Tensor]) -> EmbeddingJudgement:
    if info.unusable:
        return EmbeddingJudgement(info, Kind.UNUSABLE, f"{Kind.UNUSABLE}: {info.unusable}")
    if damage := _damage(vectors):
        return EmbeddingJudgement(info, Kind.DAMAGED, f"{Kind.DAMAGED}: {damage}")
    family = family_of(info.widths)
    checkpoints = f"checkpoints whose words are {family}" if family.endswith("wide") else f"{family} checkpoints"
    return EmbeddingJudgement(info, Kind.OK, f"usable with {checkpoints}{_remarks(vectors)}")


def _judge_unread(path: Path, reason: str) -> FileJudgement:
    """Judge a file that the reader refused for `reason`: the file is unreadable, damaged, or intact but not an embedding."""
    try:
        with open_file(path) as source:
            head = source.read(0, 4)
            is_pickle = head == ZIP_START or (head[:1] == b"\x80" and source.read(8, 9) != b"{")
            is_pickle = is_pickle or path.suffix.lower() not in _NEVER_UNPICKLED  # programs may decide by the bytes or by the ending
            too_large = is_pickle and source.size > MAX_READ_BYTES
    except EmbeddingError:
        is_empty = os.path.isfile(path) and os.path.getsize(path) == 0
        return _refused(path, Kind.DAMAGED if is_empty else Kind.UNCHECKED, reason)
    if too_large:
        return _refused(path, Kind.UNCHECKED, reason)
    try:
        check_container(path)
    except EmbeddingError:
        warning = " As a pickle that cannot be checked it may be dangerous." if is_pickle else ""
        return _refused(path, Kind.DAMAGED, f"{reason.rstrip('.')}.{warning}", dangerous=is_pickle)
    return _refused(path, Kind.UNUSABLE, reason)


def _joint_verdict(embeddings: tuple[EmbeddingJudgement, ...]) -> str:
    """One sentence for all embeddings of a file. When their verdicts differ, the worst come first."""
    if len(embeddings) == 1:
        return embeddings[0].verdict
    words = ", ".join(str(embedding.info.word) for embedding in embeddings[:_MAX_NAMED])
    if len(embeddings) > _MAX_NAMED:
        words += f" and {len(embeddings) - _MAX_NAMED} more"
    clauses = {embedding.clause for embedding in embeddings}
    if len(clauses) == 1:
        return f"{len(embeddings)} embeddings ({words}), {clauses.pop()}."
    ordered = sorted(embeddings, key=lambda embedding: _FIRST_TO_LAST.index(embedding.kind))
    listed = "; ".join(f"{embedding.info.word}: {embedding.clause}" for embedding in ordered[:_MAX_NAMED])
    return f"{len(embeddings)} embeddings ({words}): {listed}."


def _damage(vectors: dict[str, torch.Tensor]) -> str:
    """A clause about the vectors with NaN or infinity after conversion to fp32; empty when there are none."""
    clauses, total = [], 0
    for encoder, rows in vectors.items():
        finite = rows.float().isfinite().all(dim=1)  # n
        if bad := [str(index + 1) for index, fine in enumerate(finite.tolist()) if not fine]:
            clauses.append(f"vector{'s' * (len(bad) > 1)} {join_clauses(bad)} for {encoder}")
            total += len(bad)
    return f"{join_clauses(clauses)} hold{'s' * (total == 1)} NaN or infinity, so pictures would be black" if clauses else ""


def _remarks(vectors: dict[str, torch.Tensor]) -> str:
    """Further remarks for the user about finite vectors."""
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


# The view of other programs ----------------------------------------------------------------------------------------


def _runs_elsewhere(path: Path, *, known_dangerous: bool) -> str:
    """A clause why a program that unpickles the file because of its ending would run code; empty when no code would run.

    A damaged pickle is `known_dangerous`. Its verdict already warns, so a mere possibility is not reported.
    """
    if path.suffix.lower() in _NEVER_UNPICKLED:
        return ""
    try:
        with open_file(path) as source:
            if source.read(0, 4) == ZIP_START:
                return ""  # the reader has checked the pickle inside
            data, whole = source.read(0, min(source.size, MAX_READ_BYTES)), source.size <= MAX_READ_BYTES
    except EmbeddingError:
        return ""  # deleted meanwhile, or empty
    if _is_tar(data):
        return "it is a tar archive, whose pickles PyTorch would run; best delete the file"
    stream, begin = BytesIO(data), 0
    try:
        for _ in range(_MAX_PICKLES):
            walk_pickle(stream)
            begin = stream.tell()
    except UnsafeFileError as error:
        return f"to programs that go by its ending it is a pickle: {error.reason.rstrip('.')}"
    except EmbeddingError:  # other readers may continue here
        if not known_dangerous and may_import(data[begin:], whole=whole):
            return "to programs that go by its ending it may be a pickle that runs code; best delete the file"
    return ""


def _is_tar(data: bytes) -> bool:
    """Whether PyTorch, which tries tar first, would find a tar archive that is not empty."""
    try:
        tarfile.TarInfo.frombuf(data[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")  # not the whole archive, which can take any time
    except (tarfile.TarError, ValueError):
        return False
    return True
