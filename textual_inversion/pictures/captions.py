"""Captions as the trainers of the field keep them: in a file beside the picture, or in one table for a whole folder.

Beside a picture: `.txt` and `.caption` (A1111, kohya, OneTrainer, EveryDream, ai-toolkit), `.json` (ai-toolkit, downloads from picture
boards), `.yaml` (EveryDream). For a folder: `metadata.jsonl` and `.csv` (Hugging Face), `meta_cap.json` and the like (kohya),
`data.json` (EveryDream).
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from textual_inversion.errors import DatasetError
from textual_inversion.files import FileStamp, os_error_words, read_regular
from textual_inversion.pictures.encodings import decode, is_utf8
from textual_inversion.pictures.listing import file_in, files_ending_in, fold

TEXT_ENDINGS = (".txt", ".caption")
DATA_ENDINGS = (".json", ".yaml", ".yml")
#: Tables that hold the captions of a folder, the most specific first: kohya's last step writes `meta_lat.json`.
TABLES = (
    *("metadata.jsonl", "metadata.csv", "metadata.json", "meta_lat.json", "meta_clean.json", "meta_cap_dd.json", "meta_cap.json"),
    *("meta_dd.json", "data.json", "dataset.json", "captions.json", "captions.jsonl", "captions.csv"),
)
#: Endings of lists in which each row names a picture; such a file may have any name.
ROW_ENDINGS = (".csv", ".tsv", ".jsonl")
MOST_CAPTION_BYTES = 64 * 2**10  # a prompt of that size already takes hundreds of chunks of tokens
_MOST_BYTES = 64 * 2**20  # of a table
_MOST_UNNAMED = 16  # tables of any name in a folder that are looked into
_MOST_NEIGHBOURS = 100  # caption files that are looked at for their encoding
_KEYS = ("file_name", "image", "image_file_name", "image_path", "image_file", "file", "path", "filename", "img")
_TEXTS = ("caption", "text", "main_prompt", "prompt", "captions", "txt")
_DESCRIPTION = "description"  # of a picture board: a text about the picture where there are no tags
_BOARD_TAGS = ("tag_string", "tag_string_general")
#: Columns that say something about a picture, but do not describe it.
_ABOUT = ("split", "license", "licence", "source", "url", "author", "dataset", "md5", "sha256", "hash")
_COMPANION = re.compile(r"(?:^|_)(?:cond(?:itioning)?|control(?:net)?|masks?)(?:_|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Caption:
    """A picture's caption.

    Attributes:
        text: on one line, possibly empty.
        source: the file that holds it, or where it was taken from; None where it was written nowhere.
        lines: number of lines with text in a text file; 1 elsewhere.
    """

    text: str
    source: Path | None = None
    lines: int = 1


def written(picture: Path) -> Caption | None:
    """The caption that is written for `picture`, in the first of its places; None where there is none.

    Raises:
        DatasetError: a file of its caption is there and cannot be read, or its encoding cannot be told.
    """
    file = caption_source(picture)
    if file is None:
        return None
    if file.suffix.lower() in TEXT_ENDINGS:
        lines = [line for line in decoded(caption_bytes(file), file).splitlines() if line.strip()]
        return Caption(_one_line(" ".join(lines)), file, max(1, len(lines)))
    if is_table(file.name):
        text = _table(file).find(picture)
    else:
        text = _beside(file)
    return None if text is None else Caption(text, file)


def caption_source(picture: Path) -> Path | None:
    """The file that holds the caption of `picture`: beside it, or a table; None where there is none."""
    if file := file_in(picture.parent, *_names(picture, TEXT_ENDINGS)):
        return file
    file = file_in(picture.parent, *_names(picture, DATA_ENDINGS))
    if file is not None and file.name.lower() not in TABLES and _beside(file) is not None:
        return file
    return next((table for table in tables_for(picture.parent) if _table(table).find(picture) is not None), None)


def companion_names(folder: Path) -> frozenset[str]:
    """Folded names of files that tables name as masks or conditioning pictures of others, and not as pictures to learn."""
    names: set[str] = set()
    for table in tables_for(folder):
        names |= _table(table).companions - _table(table).pictures
    return frozenset(names)


def tables_for(folder: Path) -> list[Path]:
    """The tables that may hold captions for the pictures in `folder`: inside it, and in the folder above; inside it of any name."""
    others = [folder / name for name in files_ending_in(folder, ROW_ENDINGS) if name.lower() not in TABLES]
    named = [table for place in (folder, folder.parent) for name in TABLES if (table := file_in(place, name))]
    return named + others[:_MOST_UNNAMED]


def is_table(name: str) -> bool:
    """Whether a file of that name may be a table of captions: one that programs write, or any list of rows."""
    return name.lower() in TABLES or name.lower().endswith(ROW_ENDINGS)


def is_understood(table: Path) -> bool:
    """Whether captions were found in a table."""
    return bool(_table(table).captions)


def decoded(data: bytes, file: Path) -> str:
    """The text of a caption file.

    Raises:
        DatasetError: its encoding cannot be told; a caption that is learned as rubbish would be worse than none.
    """
    text = decode(data, lambda: _legacy_texts(file.parent, FileStamp.of(file.parent)))
    if text is None:
        sentence = f"The caption {file.name} is in an encoding that cannot be told; save it as UTF-8 (in an editor: Save as, UTF-8)."
        raise DatasetError(sentence, path=file)
    return text


@lru_cache(maxsize=8)
def _legacy_texts(folder: Path, _stamp: FileStamp | None) -> bytes:
    """Contents of some caption files of a folder that are no UTF-8, one after the other."""
    found: list[bytes] = []
    for name in sorted(os.listdir(folder)):
        if name.lower().endswith(TEXT_ENDINGS) and len(found) < _MOST_NEIGHBOURS:
            with suppress(DatasetError):
                data = caption_bytes(folder / name)
                found += [data] if not is_utf8(data) and b"\0" not in data else []
    return b"\n".join(found)


def caption_bytes(file: Path, most: int = MOST_CAPTION_BYTES) -> bytes:
    """Contents of a caption file, or of a table of captions with at most so many bytes.

    Raises:
        DatasetError: it cannot be read.
    """
    try:
        return read_regular(file, most)
    except OSError as error:
        sentence = f"The caption {file.name} cannot be read ({os_error_words(error)}); mend it or take it away."
        raise DatasetError(sentence, path=file) from error


def _names(picture: Path, endings: tuple[str, ...]) -> list[str]:
    """`cat.txt` and what downloaders write, `cat.png.txt`."""
    return [base + ending for base in (picture.stem, picture.name) for ending in endings]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _beside(file: Path) -> str | None:
    """The caption in a `.json` or `.yaml` beside a picture; None where nothing in it is one."""
    stamp = FileStamp.of(file)
    if stamp is not None and stamp.size > MOST_CAPTION_BYTES:
        return None  # a file of some program about the picture
    text = decode(caption_bytes(file))
    if text is None:
        return None
    if file.suffix.lower() != ".json":
        return _yaml_caption(text)
    try:
        return text_of(json.loads(text))
    except (ValueError, RecursionError):
        return None


def text_of(entry: Any) -> str | None:
    """The caption that a parsed entry holds: its text, its tags, or both; None where it has neither."""
    if isinstance(entry, str):
        return _one_line(entry)
    if not isinstance(entry, Mapping):
        return None
    text = next((said for key in _TEXTS if (said := _joined(entry.get(key)))), "")
    tags = next((_board_tags(entry[key]) for key in _BOARD_TAGS if isinstance(entry.get(key), str)), "") or _tags(entry.get("tags"))
    if not text and not tags:
        is_caption = any(key in entry for key in (*_TEXTS, "tags"))
        return _joined(entry.get(_DESCRIPTION)) or ("" if is_caption else None)
    return ", ".join(part for part in (text, tags) if part)


def _joined(value: Any) -> str:
    """A caption, or the first of several."""
    if isinstance(value, (list, tuple)):
        value = next((item for item in value if isinstance(item, str) and item.strip()), "")
    return _one_line(value) if isinstance(value, str) else ""


def _tags(value: Any) -> str:
    """Tags as a text, a list, or lists by their kind, joined by `, `."""
    if isinstance(value, str):
        return _one_line(value) if "," in value or "_" not in value else _board_tags(value)
    if isinstance(value, Mapping):
        return ", ".join(tags for kind, item in value.items() if kind != "meta" and (tags := _tags(item)))
    if isinstance(value, (list, tuple)):
        words = [item.get("tag", "") if isinstance(item, Mapping) else item for item in value]
        return ", ".join(_board_tag(word) for word in words if isinstance(word, str) and word.strip())
    return ""


def _board_tags(text: str) -> str:
    return ", ".join(_board_tag(tag) for tag in text.split())


def _board_tag(tag: str) -> str:
    """A tag of a picture board as words; its brackets are no emphasis."""
    return re.sub(r"(?<!\\)([()\[\]])", r"\\\1", _one_line(tag if len(tag) < 4 else tag.replace("_", " ")))


_YAML_TEXT = re.compile(r"^(?:main_prompt|caption)\s*:[ \t]*(.+)$", re.MULTILINE)
_YAML_TAG = re.compile(r"^\s*-\s*(?:tag\s*:\s*)?(?!\w+\s*:)(.+)$", re.MULTILINE)


def _yaml_caption(text: str) -> str | None:
    """The main prompt and the tags of EveryDream's `.yaml`, in its plain form; None where there are none."""
    found = [*_YAML_TEXT.findall(text)[:1], *(_YAML_TAG.findall(text) if re.search(r"^tags\s*:", text, re.MULTILINE) else [])]
    parts = [_one_line(part.split(" #")[0].strip().strip("'\"")) for part in found]
    return ", ".join(part for part in parts if part) if found else None


@dataclass
class _Table:
    """The captions of a table.

    Attributes:
        captions: folded path of a picture as the table has it, with `/` -> caption.
        companions: folded names of masks and conditioning pictures that the table names.
        pictures: folded names of the pictures themselves.
    """

    folder: Path
    captions: dict[str, str] = field(default_factory=dict)
    companions: set[str] = field(default_factory=set)
    pictures: set[str] = field(default_factory=set)
    by_name: dict[str, list[str]] = field(default_factory=dict)  # folded name without folder -> paths

    def add(self, key: str, entry: Any) -> None:
        """Take over the caption of one picture; an entry without one is passed over."""
        text = text_of(entry)
        if text is None and isinstance(entry, Mapping):  # a table of one's own: the first column that is a text
            words = ((name, value) for name, value in entry.items() if isinstance(value, str) and "://" not in value)
            text = next((_one_line(value) for name, value in words if not _is_reference(name)), None)
        if isinstance(entry, Mapping):
            named = (value for name, value in entry.items() if isinstance(value, str) and _COMPANION.search(name))
            self.companions |= {fold(PurePosixPath(value.replace("\\", "/")).name) for value in named}
        if text is not None:
            path = fold(key.replace("\\", "/")).removeprefix("./")
            self.captions[path] = text
            self.pictures.add(PurePosixPath(path).name)
            self.by_name.setdefault(PurePosixPath(path).name, []).append(path)

    def find(self, picture: Path) -> str | None:
        """The caption of `picture`; kohya leaves out the ending, and may write the whole path."""
        with suppress(ValueError):
            relative = fold(picture.relative_to(self.folder).as_posix())
            for key in (relative, relative.removesuffix(fold(picture.suffix))):
                if key in self.captions:
                    return self.captions[key]
        whole = fold(picture.as_posix())
        for name in (fold(picture.name), fold(picture.stem)):
            paths = [path for path in self.by_name.get(name, []) if "/" in path]
            ending = [path for path in paths if _same_end(path, whole)]
            if ending or (len(paths) == 1 and picture.parent == self.folder):
                return self.captions[(ending or paths)[0]]
        return None


def _is_reference(column: str) -> bool:
    return column.lower() in (*_KEYS, *_ABOUT) or column.lower().endswith(("file_name", "_path", "_id")) or bool(_COMPANION.search(column))


def _same_end(path: str, whole: str) -> bool:
    """Whether the last two parts of a table's path are those of the picture, its ending aside."""
    named, found = PurePosixPath(path).parts[-2:], PurePosixPath(whole).parts[-2:]
    return named[0] == found[0] and named[-1] in (found[-1], PurePosixPath(found[-1]).stem)


def _table(file: Path) -> _Table:
    return _parsed(file, FileStamp.of(file))


@lru_cache(maxsize=64)  # more than the tables of a folder and of the one above, which are asked again for each picture
def _parsed(file: Path, stamp: FileStamp | None) -> _Table:
    """The table; empty where it is no such table."""
    table = _Table(file.parent)
    if stamp is None or stamp.size > _MOST_BYTES:
        return table
    text = decode(caption_bytes(file, _MOST_BYTES))
    with suppress(ValueError, RecursionError, csv.Error):
        for key, entry in _entries(file, text) if text is not None else ():
            table.add(key, entry)
    return table


def _entries(file: Path, text: str) -> Iterator[tuple[str, Any]]:
    """(path of a picture as the table has it, entry)."""
    ending = file.suffix.lower()
    if ending in (".csv", ".tsv"):
        rows: Any = csv.DictReader(io.StringIO(text), delimiter=_delimiter(text, ending))
    elif ending == ".jsonl":
        rows = _json_lines(text)
    else:
        rows = json.loads(text)
    if isinstance(rows, Mapping):
        yield from ((str(key), entry) for key, entry in rows.items())
        return
    for row in rows if isinstance(rows, Iterable) else ():
        if isinstance(row, Mapping):
            named = {str(name).lower(): value for name, value in row.items()}
            if key := next((named[name] for name in _KEYS if isinstance(named.get(name), str)), ""):
                yield key, {str(name): value for name, value in row.items()}


def _delimiter(text: str, ending: str) -> str:
    """What stands between the columns: programs of some countries write semicolons, because their numbers have commas."""
    head = text.partition("\n")[0]
    return "\t" if ending == ".tsv" or ("\t" in head and "," not in head) else ";" if ";" in head and "," not in head else ","


def _json_lines(text: str) -> Iterator[Any]:
    for line in text.splitlines():
        with suppress(ValueError, RecursionError):  # a line that is cut off does not cost the others
            yield json.loads(line)
