"""Latents kept on the disk for the next run, by a hash of the files and settings that they were made of.

A store that cannot be read or written costs time, never a run: each kind of problem is noted once, in `problems`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from textual_inversion.errors import EmbeddingError
from textual_inversion.files import os_error_words, remove_quietly, replace_file, sha256_of
from textual_inversion.formats import FileBytes, is_safetensors, read_safetensors, write_safetensors

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
        """Key of the latents of `files` (of their contents, where they exist) with `settings`; empty when one cannot be read."""
        try:
            contents = [sha256_of(file) if file.is_file() else "" for file in files]
        except OSError:
            return ""
        text = json.dumps([_VERSION, self.encoder, contents, settings])
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors kept under `key`; None when there are none, or they are damaged."""
        path = self.folder / f"{key}.safetensors"
        try:
            if not key or path.stat().st_size > _MOST_BYTES:
                return None
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        try:
            source = FileBytes(data)
            contents = read_safetensors(source) if is_safetensors(source) else None
            tensors = {name: stored.read() for name, stored in contents.tree.items()} if contents else {}
        except EmbeddingError:
            contents, tensors = None, {}
        if contents is None or not {"mean", "std"} <= set(tensors) or _checksum(tensors) != contents.metadata.get(_SUM):
            self._note("damaged", f"Latents kept in {self.folder} were damaged; those pictures are encoded anew.")
            return None
        return tensors

    def put(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keep fp32 tensors under `key`, all or nothing."""
        if not key or not self._writable:
            return
        path = self.folder / f"{key}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Not synced to the disk, which would take longer than encoding: the checksum finds files that a crash has cut short.
            replace_file(path, write_safetensors(tensors, {_SUM: _checksum(tensors)}), durable=False)
            self._wrote = True
        except OSError as error:
            self._writable = False
            self._note(
                "unwritable", f"Latents are not kept for the next run, because {self.folder} cannot be written ({os_error_words(error)})."
            )

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
            remove_quietly(path)  # another run may hold it; the next one tries again
            total -= size

    def _note(self, kind: str, sentence: str) -> None:
        with self._lock:
            self.problems.setdefault(kind, sentence)


def encoder_hash(*modules: torch.nn.Module) -> str:
    """Hex digits over the names, types and values of modules' tensors."""
    digest = hashlib.sha256()
    for name, tensor in (item for module in modules for item in sorted(module.state_dict().items())):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
