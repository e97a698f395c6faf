"""The kinds of files that hold embeddings (safetensors, PyTorch, pictures), read as plain data; nothing in them is run."""

from __future__ import annotations

from collections.abc import Callable

from textual_inversion.errors import UnknownLayoutError
from textual_inversion.formats.containers.file_bytes import FileBytes
from textual_inversion.formats.containers.picture_file import is_picture, read_picture
from textual_inversion.formats.containers.safetensors_file import is_safetensors, read_safetensors
from textual_inversion.formats.containers.tensors import Contents
from textual_inversion.formats.containers.torch_file import is_torch_file, read_torch_file

#: How a kind of file is recognised by its first bytes, and its reader. To add one: a module here, and its line.
_CONTAINERS: tuple[tuple[Callable[[FileBytes], bool], Callable[[FileBytes], Contents]], ...] = (
    (is_picture, read_picture),
    (is_safetensors, read_safetensors),
    (is_torch_file, read_torch_file),
)


def read_container(source: FileBytes) -> Contents:
    """What the file holds, whatever its ending; tensors are checked but not read yet.

    Raises:
        UnsafeFileError: the file does more than hold data; nothing of it was run.
        UnknownLayoutError: no kind of file that is known.
        EmbeddingError: damaged or too large.
    """
    for recognises, read in _CONTAINERS:
        if recognises(source):
            return read(source)
    raise UnknownLayoutError("it is no safetensors file, PyTorch file or picture; fetch it again, perhaps the download was a web page.")
