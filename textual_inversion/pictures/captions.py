"""The caption of a picture: the text file beside it, or else the words of its file name."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from textual_inversion.errors import DatasetError
from textual_inversion.files import os_error_words

# Numbering such as `00012-0-` orders pictures and does not describe them.
_NUMBERING = re.compile(r"^[-_\d]+\s*")


def caption_file(path: str | Path) -> Path:
    """Where the caption of the picture `path` would lie: the same name with the ending `.txt`; it need not exist."""
    return Path(path).with_suffix(".txt")


def caption_for(path: str | Path, word_regex: str = "", join: str = " ") -> str:
    """Caption of the picture `path`, on one line: from its caption file, even an empty one, or else from its file name.

    Args:
        word_regex: which parts of a file name are words, as in `caption_in_name`.
        join: what stands between those words.

    Raises:
        DatasetError: the caption file is there and cannot be read.
        re.error: `word_regex` is not a pattern; settings are checked for that before.
    """
    written = written_caption(path)
    return caption_in_name(path, word_regex, join) if written is None else written


def written_caption(path: str | Path) -> str | None:
    """Text of the caption file of the picture `path`, on one line; None when there is no such file.

    The file is UTF-8, UTF-16 with its mark, or else Latin-1.

    Raises:
        DatasetError: the file cannot be read.
    """
    file = caption_file(path)
    if not file.is_file():
        return None
    data = caption_bytes(file)
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return " ".join(text.split())


def caption_in_name(path: str | Path, word_regex: str = "", join: str = " ") -> str:
    """Words of the file name of the picture `path`, without its ending and without leading digits, dashes and underscores.

    Args:
        word_regex: which parts of the name are words; with a group in it, the group is the word. Empty = the whole name.
        join: what stands between those words.
    """
    name = _NUMBERING.sub("", Path(path).stem)
    if word_regex:
        name = join.join(match[1] or "" if match.re.groups else match[0] for match in re.finditer(word_regex, name))
    return " ".join(name.split())


def caption_bytes(file: Path) -> bytes:
    """Contents of a caption file.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        sentence = f"The caption {file.name} cannot be read ({os_error_words(error)}); check its permissions."
        raise DatasetError(sentence, path=file) from error
