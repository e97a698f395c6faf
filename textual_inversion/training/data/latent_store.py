"""Latents kept on the disk for the next run, by what they were made of. Knows nothing of pictures, encoders or training.

A store that cannot be read or written costs time, never a run: what goes wrong is told once, in `problems`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from textual_inversion.errors import EmbeddingError
from textual_inversion.formats import FileBytes, file_sha256, is_safetensors, read_safetensors, write_safetensors

LIMIT_BYTES = 4 * 2**30
_VERSION = 1  # raised whenever pictures are read or cropped in another way
_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
_SUM = "sha256"
_MOST_BYTES = 64 * 2**20  # of one picture


class LatentStore:
    """A folder of safetensors files, one for each picture; used by several threads at once.

    Args:
        folder: made when the first picture is kept.
        encoder: what identifies the encoder, such as a hash of its weights.
        limit_bytes: what the folder may hold; the files used least recently go first.
    """

    def __init__(self, folder: str | Path, encoder: str, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder, self.encoder, self.limit_bytes = Path(folder).expanduser(), encoder, limit_bytes
        self.problems: dict[str, str] = {}  # kind -> sentence
        self._writable = True
        self._wrote = False
        self._lock = threading.Lock()

    def key(self, files: Sequence[Path], settings: Sequence[Any]) -> str:
        """Names what is made of the contents of `files` (those that exist) with `settings`; empty when one cannot be read."""
        try:
            contents = [file_sha256(file) if file.is_file() else "" for file in files]
        except EmbeddingError:
            return ""
        text = json.dumps([_VERSION, self.encoder, contents, settings])
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """What was kept under `key`; None when nothing was, or it is damaged."""
        path = self.folder / f"{key}.safetensors"
        try:
            if not key or path.stat().st_size > _MOST_BYTES:
                return None
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        try:
            return _parsed(data)
        except EmbeddingError:
            self._tell("damaged", f"Latents kept in {self.folder} were damaged; those pictures are encoded anew.")
            return None

    def put(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keep fp32 tensors under `key`, all or nothing."""
        if not key or not self._writable:
            return
        path = self.folder / f"{key}.safetensors"
        temporary = self.folder / f".{secrets.token_hex(8)}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Not synced to the disk, which would take longer than encoding: a checksum tells what a crash has cut short.
            temporary.write_bytes(write_safetensors(tensors, {_SUM: _checksum(tensors)}))
            os.replace(temporary, path)
            self._wrote = True
        except OSError as error:
            self._writable = False
            self._tell(
                "unwritable", f"Latents are not kept for the next run, because {self.folder} cannot be written ({error.strerror or error})."
            )
        finally:
            _remove(temporary)

    def tidy(self) -> None:
        """Bring the folder below its limit again."""
        if not self._wrote:
            return
        try:
            files = [
                (entry.stat().st_mtime, entry.stat().st_size, entry.path)
                for entry in os.scandir(self.folder)
                if _NAME.fullmatch(entry.name)
            ]
        except OSError:
            return  # another run tidies it at this moment
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit_bytes:
                break
            _remove(Path(path))
            total -= size

    def _tell(self, kind: str, sentence: str) -> None:
        with self._lock:
            self.problems.setdefault(kind, sentence)


def encoder_hash(*modules: torch.nn.Module) -> str:
    """Hex digits over the names, types and values of modules' tensors."""
    digest = hashlib.sha256()
    for name, tensor in (item for module in modules for item in sorted(module.state_dict().items())):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _parsed(data: bytes) -> dict[str, torch.Tensor]:
    source = FileBytes(data)
    if not is_safetensors(source):
        raise EmbeddingError("it is no safetensors file.")
    contents = read_safetensors(source)
    tensors = {name: stored.read() for name, stored in contents.tree.items()}
    if not {"mean", "std"} <= set(tensors) or _checksum(tensors) != contents.metadata.get(_SUM):
        raise EmbeddingError("the checksum does not fit.")
    return tensors


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # another run may hold it; the next one tries again
        path.unlink(missing_ok=True)
