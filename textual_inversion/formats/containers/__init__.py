"""Reads safetensors files, PyTorch files and pictures as plain data. Runs nothing in them."""

from __future__ import annotations

from collections.abc import Callable

from textual_inversion.errors import UnknownLayoutError
from textual_inversion.formats.containers.file_bytes import FileBytes
from textual_inversion.formats.containers.picture_file import is_picture, read_picture
from textual_inversion.formats.containers.safetensors_file import is_safetensors, read_safetensors
from textual_inversion.formats.containers.tensors import Contents
from textual_inversion.formats.containers.torch_file import is_torch_file, read_torch_file
from textual_inversion.other_files import is_unfinished, other_file

#: (test of the first bytes, reader) for each kind of file. To add a kind, add a module to this folder and a line here.
_CONTAINERS: tuple[tuple[Callable[[FileBytes], bool], Callable[[FileBytes], Contents]], ...] = (
    (is_picture, read_picture),
    (is_safetensors, read_safetensors),
    (is_torch_file, read_torch_file),
)


def read_container(source: FileBytes) -> Contents:
    """Read the contents of the file, whatever its ending. Tensors are checked but not read yet.

    Raises:
        UnsafeFileError: the file contains code; none of it was run.
        UnknownLayoutError: the kind of file is unknown.
        EmbeddingError: the file is damaged or too large.
    """
    for recognises, read in _CONTAINERS:
        if recognises(source):
            return read(source)
    raise UnknownLayoutError(_what_it_is(source.read(0, 512)))


def _what_it_is(head: bytes) -> str:
    """A sentence about a file that is of no kind that holds embeddings, by its first bytes."""
    if is_unfinished(head):
        return "it begins with zeros only, so its download was not finished; fetch it again."
    if known := other_file(head):
        return f"it is {known.what}; {known.advice or 'it holds no embedding'}."
    if head.lstrip().startswith(b"{"):
        return "it is JSON text, such as settings, not an embedding."
    return "it is no safetensors file, PyTorch file or picture; fetch it again, perhaps the download was a web page."
