"""Latents of pictures: their moments, samples of them, and a store on the disk that keeps them for the next run.

The store uses a hash of the files and settings as the key. A store that cannot be read or written slows a run down but does not
stop it: `problems` records each kind of problem once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from textual_inversion.errors import DatasetError, EmbeddingError
from textual_inversion.files import os_error_words, read_regular, remove_quietly, replace_file, sha256_of


@dataclass(frozen=True)
class LatentMoments:
    """The VAE's encoding of views of one size: a normal distribution for each latent value, already times the scale factor.

    Attributes:
        mean: fp32 [rows, c, h, w].
        std: fp32 [rows, c, h, w], 0 or more.
        flipped: there are two rows for each of the n views; row i is view i, row n + i its mirror image.

    Raises:
        DatasetError: the shapes differ, or an odd number of rows is said to be flipped.
    """

    mean: torch.Tensor
    std: torch.Tensor
    flipped: bool = False

    def __post_init__(self) -> None:
        if self.mean.shape != self.std.shape or self.mean.ndim != 4:
            raise DatasetError(
                f"Latent moments have shapes {list(self.mean.shape)} and {list(self.std.shape)}; expected [rows, c, h, w] twice."
            )
        if self.flipped and self.mean.shape[0] % 2:
            raise DatasetError(f"Latent moments have {self.mean.shape[0]} rows; with mirror images the number must be even.")

    @property
    def views(self) -> int:
        """Number of views n; mirror images do not count."""
        return self.mean.shape[0] // (2 if self.flipped else 1)

    def to(self, device: torch.device | str) -> LatentMoments:
        """The same moments on another device."""
        return LatentMoments(self.mean.to(device), self.std.to(device), self.flipped)


@dataclass(frozen=True)
class LatentBucket:
    """The encoded pictures of one size.

    Attributes:
        moments: one row for each view, then one for each view's mirror image if those are wanted.
        pictures: the picture of each view, as an index into the training set; the views of a picture stand together.
        weights: loss weight of each place, fp32 [rows, 1, h, w]; None where all count alike.
        sizes: of the picture and the crop, fp32 [rows, 6] as SDXL is told them; None where nobody knows them.
    """

    moments: LatentMoments
    pictures: tuple[int, ...]
    weights: torch.Tensor | None = None
    sizes: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> LatentBucket:
        """The same bucket on another device."""
        weights = None if self.weights is None else self.weights.to(device)
        sizes = None if self.sizes is None else self.sizes.to(device)
        return LatentBucket(self.moments.to(device), self.pictures, weights, sizes)

    def with_weights(self) -> LatentBucket:
        """The same bucket with weights, all 1 where it had none."""
        return self if self.weights is not None else replace(self, weights=torch.ones_like(self.moments.mean[:, :1]))


def sample(moments: LatentMoments, rows: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """Latents of some rows: their mean plus `noise` times their standard deviation.

    Args:
        moments: the rows to choose from.
        rows: int64 [b] on the moments' device, each below the number of rows (`view + moments.views` is its mirror image).
        noise: standard normal [b, c, h, w] on that device, or None for the mean itself.

    Returns:
        fp32 [b, c, h, w], a new tensor.
    """
    mean = moments.mean.index_select(0, rows)  # b c h w
    if noise is None:
        return mean
    return torch.addcmul(mean, moments.std.index_select(0, rows), noise)


LIMIT_BYTES = 4 * 2**30
_VERSION = 2  # increased whenever reading or cropping of pictures changes
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
        from textual_inversion.formats import FileBytes, is_safetensors, read_safetensors  # here, as a step needs torch only

        path = self.folder / f"{key}.safetensors"
        try:
            if not key:
                return None
            data = read_regular(path, _MOST_BYTES)
            os.utime(path)
        except OSError:
            return None
        try:
            source = FileBytes(data)
            contents = read_safetensors(source) if is_safetensors(source) else None
            tensors = {name: stored.read() for name, stored in contents.tree.items()} if contents else {}
        except EmbeddingError:
            contents, tensors = None, {}
        if contents is None or not {"mean", "std", "sizes"} <= set(tensors) or _checksum(tensors) != contents.metadata.get(_SUM):
            self._note("damaged", f"Latents kept in {self.folder} were damaged; those pictures are encoded anew.")
            return None
        return tensors

    def put(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keep fp32 tensors under `key`, all or nothing."""
        from textual_inversion.formats import write_safetensors

        if not key or not self._writable:
            return
        path = self.folder / f"{key}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Not synced to the disk, which would take longer than encoding: the checksum finds files that a crash has cut short.
            replace_file(path, write_safetensors(tensors, {_SUM: _checksum(tensors)}), durable=False, follow_links=False)
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
