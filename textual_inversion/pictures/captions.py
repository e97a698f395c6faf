"""The caption of a training picture: the text beside it, or its file name. Knows nothing of pixels, templates or tokens."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from textual_inversion.errors import DatasetError

# Numbering such as `00012-0-` orders pictures and says nothing of them.
_NUMBERING = re.compile(r"^[-_\d]+\s*")


def caption_file(path: str | Path) -> Path:
    """Where the caption of the picture `path` would lie: the same name with the ending `.txt`; it need not exist."""
    return Path(path).with_suffix(".txt")


def caption_for(path: str | Path, word_regex: str = "", join: str = " ") -> str:
    """Caption of the picture `path`, on one line.

    It is the text of the `.txt` file beside it (UTF-8, UTF-16 with its mark, or else Latin-1), also where that is empty; without one
    it is the file name without ending and without leading digits, dashes and underscores (inner underscores stay).

    Args:
        word_regex: which parts of a file name are words; empty = the whole name. With a group in it, the group is the word.
        join: what stands between those words.

    Raises:
        DatasetError: the `.txt` file is there and cannot be read.
        re.error: the pattern is none; settings are checked for that before.
    """
    path = Path(path)
    text_path = caption_file(path)
    if text_path.is_file():
        return " ".join(_read_text(text_path).split())
    name = _NUMBERING.sub("", path.stem)
    return " ".join((join.join(_words(name, word_regex)) if word_regex else name).split())


def _words(name: str, word_regex: str) -> list[str]:
    return [match[1] or "" if match.re.groups else match[0] for match in re.finditer(word_regex, name)]


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"The caption {path.name} cannot be read ({error.strerror or error}); check its permissions.") from error
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode("latin-1")
