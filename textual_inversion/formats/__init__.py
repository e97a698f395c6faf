"""Loads, saves and describes embedding files. Exports the container readers for code that reads other tensors."""

from __future__ import annotations

from textual_inversion.formats.containers.file_bytes import MAX_READ_BYTES, FileBytes, file_sha256, open_file, write_atomic
from textual_inversion.formats.containers.safetensors_file import is_safetensors, read_header, read_safetensors, write_safetensors
from textual_inversion.formats.containers.tensors import StoredTensor
from textual_inversion.formats.containers.torch_file import ZIP_START, is_torch_file, read_torch_file
from textual_inversion.formats.containers.unpickler import may_import, walk_pickle
from textual_inversion.formats.embedding_files import (
    PICTURE_ENDINGS,
    READ_ENDINGS,
    FileInfo,
    check_container,
    describe,
    describe_all,
    load,
    read_all,
    save,
)
from textual_inversion.formats.registry import writable_layouts

__all__ = [
    "MAX_READ_BYTES",
    "PICTURE_ENDINGS",
    "READ_ENDINGS",
    "ZIP_START",
    "FileBytes",
    "FileInfo",
    "StoredTensor",
    "check_container",
    "describe",
    "describe_all",
    "file_sha256",
    "is_safetensors",
    "is_torch_file",
    "load",
    "may_import",
    "open_file",
    "read_all",
    "read_header",
    "read_safetensors",
    "read_torch_file",
    "save",
    "walk_pickle",
    "writable_layouts",
    "write_atomic",
    "write_safetensors",
]
