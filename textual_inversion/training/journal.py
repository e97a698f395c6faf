"""The journal of a run: a small file beside the embedding with the vectors of the last second, for a run that is killed.

The embedding's file is replaced about once a minute, because that takes the disk's time. The journal is written several times a second
without waiting for the disk: it survives the end of the program, not the loss of power. It has two places that are written in turn, each
with a checksum, so that one of them is always whole.
"""

from __future__ import annotations

import hashlib
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from textual_inversion import formats
from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError
from textual_inversion.files import FileStamp, open_regular, os_error_text, read_regular, remove_quietly
from textual_inversion.formats import FileBytes, read_safetensors, write_safetensors
from textual_inversion.training.optimizer import AdamW
from textual_inversion.training.state import has_state_of, optimizer_file, save_optimizer

SECONDS = 0.25  # between two notes at least
_START, _PLACE = struct.Struct("<4sI"), struct.Struct("<II")  # mark and size of a place; length and checksum of a note
_MARK = b"TIJ1"
_MOST_BYTES = 64 * 2**20
_ROOM = 4096  # bytes by which a note may grow: its numbers get longer
_VECTORS, _STATE = "vectors.", "optimizer."


def journal_file(embedding: Path) -> Path:
    """Where the journal of the embedding in the file `embedding` lies."""
    return embedding.with_name(f"{embedding.name}.journal")


def fingerprint(vectors: Mapping[str, torch.Tensor]) -> str:
    """A hash of the vectors of each text encoder."""
    return hashlib.sha256(write_safetensors(dict(vectors), {})).hexdigest()


@dataclass(frozen=True)
class Note:
    """What a journal says.

    Attributes:
        step: steps done.
        vectors: text encoder -> fp32 [n, d].
        base: what `base_of` gave for the embedding's file when this was learned from it.
        encoders: the text encoders whose vectors are trained, in the checkpoint's order.
        state: steps and moments of the optimizer, as `state_dict` gives them; empty where they are not kept.
    """

    step: int
    vectors: Mapping[str, torch.Tensor]
    base: str = ""
    encoders: tuple[str, ...] = ()
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        tensors = {_VECTORS + key: value for key, value in self.vectors.items()}
        tensors |= {_STATE + key: value for key, value in self.state.items()}
        return write_safetensors(tensors, {"step": str(self.step), "base": self.base, "encoders": ",".join(self.encoders)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Note:
        """Raises `EmbeddingError` or `ValueError` for bytes that are no note."""
        contents = read_safetensors(FileBytes(data))
        tensors = {key: stored.read() for key, stored in contents.tree.items()}
        vectors = {key.removeprefix(_VECTORS): value for key, value in tensors.items() if key.startswith(_VECTORS)}
        state = {key.removeprefix(_STATE): value for key, value in tensors.items() if key.startswith(_STATE)}
        about = contents.metadata
        return cls(
            int(about.get("step", "")), vectors, about.get("base", ""), tuple(filter(None, about.get("encoders", "").split(","))), state
        )


class Journal:
    """Writes the journal of one run.

    Args:
        embedding: the embedding's file.
        report: receives a sentence if the journal cannot be written; training goes on without it.
    """

    def __init__(self, embedding: Path, report: Callable[[str], None]) -> None:
        self.path, self._report = journal_file(embedding), report
        self._place, self._size, self._next, self._off = 0, 0, 0.0, False

    def is_due(self) -> bool:
        """Whether the last note is old enough."""
        return not self._off and time.monotonic() >= self._next

    def write(self, note: Note) -> None:
        """Write a note into the place of the note before the last one."""
        data = note.to_bytes()
        try:
            if _PLACE.size + len(data) > self._size:
                self._begin(len(data))
            with open_regular(self.path, "r+b") as file:
                file.seek(_START.size + self._place * self._size)
                file.write(_PLACE.pack(len(data), zlib.crc32(data)) + data)
        except OSError as error:
            self._off = True
            sentence = f"The journal {self.path.name} cannot be written: {os_error_text(error)}."
            self._report(f"{sentence} If this program is killed, up to a minute of training is lost.")
            return
        self._place = 1 - self._place
        self._next = time.monotonic() + SECONDS

    def remove(self) -> None:
        """Delete the journal, because the embedding's file has everything."""
        remove_quietly(self.path)
        self._size = 0

    def _begin(self, length: int) -> None:
        self._size, self._place = _PLACE.size + length + _ROOM, 0
        with open_regular(self.path, "wb") as file:
            file.write(_START.pack(_MARK, self._size))


def base_of(path: Path, vectors: Mapping[str, torch.Tensor]) -> str:
    """What tells the present contents of an embedding's file from other ones: its vectors, and when it was written."""
    stamp = FileStamp.of(path)
    return f"{fingerprint(vectors)} {stamp.modified if stamp else 0}"


def read_notes(path: Path) -> list[Note]:
    """The notes of a journal that are whole, the newest first; none where there is no journal."""
    try:
        data = read_regular(path, _MOST_BYTES)
    except OSError:
        return []
    if len(data) < _START.size or _START.unpack_from(data)[0] != _MARK:
        return []
    size = max(_START.unpack_from(data)[1], _PLACE.size)
    notes = []
    for begin in (_START.size, _START.size + size):
        if begin + _PLACE.size > len(data):
            continue
        length, checksum = _PLACE.unpack_from(data, begin)
        part = data[begin + _PLACE.size : begin + _PLACE.size + length]
        if len(part) == length and zlib.crc32(part) == checksum:
            try:
                notes.append(Note.from_bytes(part))
            except (EmbeddingError, ValueError):
                continue
    return sorted(notes, key=lambda note: -note.step)


def recover(path: Path, embedding: Embedding) -> tuple[Embedding, str]:
    """Take over what a run had learned that was killed before it wrote the embedding's file.

    Args:
        path: the embedding's file, which gets the vectors; the optimizer's state goes into its own file.
        embedding: the embedding as it was read from the file.

    Returns:
        The embedding, and a sentence for the user; empty where there is nothing to take over.

    Raises:
        EmbeddingError: the file cannot be written.
    """
    step, base, own = embedding.provenance.step or 0, base_of(path, embedding.vectors), fingerprint(embedding.vectors)
    for note in read_notes(journal_file(path)):
        if note.base == base and note.step > step and _fits(note, embedding):
            embedding = embedding.with_vectors(dict(note.vectors), step=note.step)
            formats.save(embedding, path, overwrite=True)
            _recover_state(path, note)
            return embedding, f"The last run was killed; training goes on from step {note.step}, which its journal had kept."
        if fingerprint(note.vectors) == own:
            _recover_state(path, note)  # it was killed between the two files
            return embedding, ""
    return embedding, ""


def _fits(note: Note, embedding: Embedding) -> bool:
    shapes = {key: value.shape for key, value in embedding.vectors.items()}
    same = {key: value.shape for key, value in note.vectors.items()} == shapes
    return same and all(bool(torch.isfinite(value).all()) for value in note.vectors.values())


def _recover_state(path: Path, note: Note) -> None:
    """Write the optimizer's state that belongs to the note's vectors, if the note has one and the file has another."""
    parts = [note.vectors[encoder] for encoder in note.encoders if encoder in note.vectors]
    if not parts or set(note.state) != {"steps", "mean", "square"}:
        return
    vectors = torch.cat(parts, dim=1)
    if has_state_of(optimizer_file(path), vectors):
        return
    optimizer = AdamW(vectors.clone())
    optimizer.load_state_dict({**note.state, "steps": note.state["steps"].reshape(())})
    save_optimizer(optimizer_file(path), optimizer)
