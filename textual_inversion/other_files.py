"""Files that are neither embeddings nor checkpoints, by their first bytes: what they are, and what helps."""

from __future__ import annotations

from typing import NamedTuple

_AGAIN = "fetch it again"


class OtherFile(NamedTuple):
    """A kind of file.

    Attributes:
        bytes: it begins with one of these, in small letters.
        what: what it is, such as "a web page".
        advice: what to do about it; empty where another file is needed.
        quantized: it is a model whose weights are quantized.
    """

    bytes: tuple[bytes, ...]
    what: str
    advice: str = ""
    quantized: bool = False


_KINDS = (
    OtherFile((b"version https://git-lfs",), "a Git LFS pointer, not the file that it stands for", "fetch that with `git lfs pull`"),
    OtherFile((b"<!doctype", b"<html", b"<head", b"<script"), "a web page", f"the site may ask you to log in, so {_AGAIN}"),
    OtherFile((b"<?xml", b'{"error', b'{"message', b'{"detail', b'{"statuscode'), "the error message of a server", _AGAIN),
    OtherFile((b"gguf", b"ggml", b"ggjt"), "a GGUF file, whose weights are quantized", quantized=True),
    OtherFile((b"\x89png", b"\xff\xd8\xff", b"riff", b"gif8"), "a picture"),
    OtherFile((b"rar!",), "a packed archive (RAR)", "unpack it first"),
    OtherFile((b"7z\xbc\xaf",), "a packed archive (7z)", "unpack it first"),
    OtherFile((b"\x1f\x8b",), "a packed archive (gzip)", "unpack it first"),
    OtherFile((b"\xfd7zxz", b"(\xb5/\xfd"), "a packed archive", "unpack it first"),
    OtherFile((b"\x89hdf",), "a Keras file"),
    OtherFile((b"%pdf",), "a PDF"),
)


def other_file(head: bytes) -> OtherFile | None:
    """The kind of a file, by its first bytes, some hundred; None where it is none of these."""
    begins = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((kind for kind in _KINDS if begins.startswith(kind.bytes)), None)


def is_unfinished(head: bytes) -> bool:
    """Whether the first bytes are zeros, as those of a download that has not ended are."""
    return not head.strip(b"\0")
