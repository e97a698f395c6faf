"""Reads safetensors files, PyTorch files and pictures as plain data. Runs nothing in them."""

from __future__ import annotations

from collections.abc import Callable

from textual_inversion.errors import UnknownLayoutError
from textual_inversion.formats.containers.file_bytes import FileBytes
from textual_inversion.formats.containers.picture_file import is_picture, read_picture
from textual_inversion.formats.containers.safetensors_file import is_safetensors, read_safetensors
from textual_inversion.formats.containers.tensors import Contents
from textual_inversion.formats.containers.torch_file import is_torch_file, read_torch_file

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


#: First letters of files that are no embeddings -> what they are, and what to do.
_OTHERS = (
    (b"version https://git-lfs", "it is a pointer of Git LFS, not the file itself; fetch the file with `git lfs pull` or from its page"),
    (b"<!doctype", "it is a web page, not the file that it should be; fetch it again, perhaps after logging in there"),
    (b"<html", "it is a web page, not the file that it should be; fetch it again, perhaps after logging in there"),
    (b"<?xml", "it is an answer of a web server, not the file that it should be; fetch it again"),
    (b"{", "it is JSON text, such as an error of a web server or settings, not an embedding"),
    (b"7z\xbc\xaf", "it is a 7z archive; unpack it"),
    (b"rar!", "it is a RAR archive; unpack it"),
    (b"\x1f\x8b", "it is a gzip archive; unpack it"),
    (b"gguf", "it is a GGUF model, not an embedding"),
    (b"%pdf", "it is a PDF, not an embedding"),
)


def _what_it_is(head: bytes) -> str:
    """A sentence about a file that is of no kind that holds embeddings, by its first bytes."""
    letters = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head.strip(b"\0"):
        return "it begins with zeros only, so its download was not finished; fetch it again."
    for start, words in _OTHERS:
        if letters.startswith(start):
            return f"{words}."
    return "it is no safetensors file, PyTorch file or picture; fetch it again, perhaps the download was a web page."
