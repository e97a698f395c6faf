"""The folder that results go to: the names of results, the results of earlier runs, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from textual_inversion.errors import DatasetError
from textual_inversion.files import open_regular, os_error_text, replace_file, sha256_of
from textual_inversion.pictures.captions import caption_source
from textual_inversion.pictures.folder import caption_file, find_images, find_mask, mask_file, written_caption
from textual_inversion.preprocess.layout import FLIPS, PlannedView
from textual_inversion.settings.preprocessing import PreprocessConfig
from textual_inversion.text import counted

_CHUNK = "preprocessed"  # of a result's PNG: its source and settings
_LEVEL = 3  # of PNG's compression: a third of the time of the usual 6, and a twentieth larger
_RESULT = re.compile(r"(\d{5,})-(\d+)-(.+)\.png", re.DOTALL)
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]+')
_LONGEST = 150  # bytes of a caption in a name; file systems take 255 in all


class Destination:
    """Finds results of earlier runs by their names and by the note inside them, and writes new ones.

    Args:
        config: names the folder, which need not exist.

    Raises:
        DatasetError: it cannot be listed.
    """

    def __init__(self, config: PreprocessConfig) -> None:
        self.folder, self.config = config.destination_path, config
        self._results: dict[tuple[int, int], str] = {}  # (number of the source, middle number) -> file name
        if not config.captions_only:
            try:
                names = sorted(os.listdir(self.folder))
            except FileNotFoundError:
                names = []
            except OSError as error:
                raise write_error(self.folder, error, 0) from error
            masks = {mask_file(name).name for name in names}
            self._results = {place: name for name in names if name not in masks and (place := place_of(name))}

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            DatasetError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.folder, error, 0) from error

    def number(self, sources: list[Path]) -> list[int]:
        """A number for each source, that of its results where there are any."""
        return number_sources(sources, {(number, self._source_stem(name)) for (number, _), name in self._results.items()})

    def _source_stem(self, name: str) -> str:
        """Stem of the source of a result; where captions are names, only the note inside the result tells it."""
        if self.config.caption_place == "name":
            try:
                with open_regular(self.folder / name) as file, Image.open(file, formats=["PNG"]) as image:
                    source = _parse_note(image.info.get(_CHUNK)).get("source")
            except (OSError, SyntaxError, ValueError):
                source = None
            if isinstance(source, str):
                return Path(source).stem
        return stem_of(name)

    def pictures_of_others(self, sources: Iterable[Path]) -> list[str]:
        """Names of the pictures in the folder that do not come from one of `sources`; empty where there is no such folder."""
        if self.config.captions_only:
            return []
        try:
            found = find_images(self.folder)
        except DatasetError:
            return []  # not there yet
        results, stems = set(self._results.values()), {source.stem for source in sources}
        return [path.name for path in found if path.name not in results or self._source_stem(path.name) not in stems]

    def target(self, number: int, source: Path, view: PlannedView, flip: str) -> Path:
        """Where a result goes."""
        stem = caption_stem(view.caption or "") if self.config.caption_place == "name" else ""
        return self.folder / result_name(number, stem or source.stem, view.part, flip)

    def existing(self, number: int, source: Path, view: PlannedView, flip: str) -> Path | None:
        """The result of an earlier run; None where there is none."""
        name = self._results.get((number, view.part * len(FLIPS) + FLIPS[flip]))
        if self.config.caption_place == "name":
            return self.folder / name if name else None
        target = self.target(number, source, view, flip)
        return target if name == target.name or os.path.exists(target) else None

    def has_all(self, number: int, source: Path, views: Iterable[PlannedView]) -> bool:
        """Whether every result of these views, mirrored ones included, is there already, made with these settings."""
        if self.config.captions_only:
            return False
        results = [(view, self.existing(number, source, view, flip)) for view in views for flip in ("", *self.config.flips)]
        return all(path is not None and not self.mismatch(path, source, view) for view, path in results)

    def mismatch(self, result: Path, source: Path, view: PlannedView) -> str:
        """Why a file in the destination is not the result of these settings; empty when it is.

        The user may have edited the file, so it is never replaced. An edited file without its note is recognised by its size.
        """
        try:
            with open_regular(result) as file, Image.open(file, formats=["PNG"]) as image:
                size, note = image.size, _parse_note(image.info.get(_CHUNK))
        except (OSError, SyntaxError, ValueError):
            return f"{result.name} is in the destination already and is not a PNG picture; delete it and run again."
        if size != view.size:
            difference = f"with {size[0]}x{size[1]} pixels, for other settings"
        elif note.get("settings", self.config.fingerprint) != self.config.fingerprint:
            difference = "for other settings"
        elif source.exists() and (changed := _changed_since(note, source)):
            difference = f"from another {changed}"
        else:
            return ""
        return f"{result.name} is in the destination already {difference}; delete it or choose another destination."

    def write_mask(self, target: Path, mask: Image.Image) -> None:
        """Write the mask of the result `target`; raises OSError."""
        write_result(mask_file(target), encoded(mask, "PNG"))

    def write_picture(self, target: Path, image: Image.Image, source: Path) -> None:
        """Write a result with its note; raises OSError."""
        chunks = PngInfo()
        chunks.add_text(_CHUNK, json.dumps({"settings": self.config.fingerprint, **_identity(source)}))
        write_result(target, encoded(image, "PNG", pnginfo=chunks, compress_level=_LEVEL))


def _identity(source: Path) -> dict[str, Any]:
    """The note about the files that a result is made of; raises OSError."""
    status, mask = source.stat(), find_mask(source)
    contents = {"sha256": sha256_of(source), "mask": sha256_of(mask) if mask else ""}
    return {"source": source.name, "bytes": status.st_size, "modified": status.st_mtime_ns, **contents}


def _changed_since(note: dict[str, Any], source: Path) -> str:
    """Name of the file that has other contents than the note says; empty where none has. A note of an earlier version says less."""
    try:
        status, mask = source.stat(), find_mask(source)
        if note.get("bytes", status.st_size) != status.st_size:
            return source.name
        if "sha256" in note and note.get("modified") != status.st_mtime_ns and note["sha256"] != sha256_of(source):
            return source.name
        if "mask" in note and note["mask"] != (sha256_of(mask) if mask else ""):
            return mask.name if mask else f"{source.name}, with a mask"
    except OSError:
        return ""  # reading it says why
    return ""


def outdated_caption(result: Path, source: Path) -> str:
    """A sentence where the caption beside a source was changed after the one beside its result was written; else empty.

    The one beside the result may have been edited as well, so it stays, and a person decides.
    """
    ours, theirs = caption_file(result), caption_source(source)
    if theirs is None:
        return ""
    try:
        is_older = ours.stat().st_mtime_ns < theirs.stat().st_mtime_ns
    except OSError:
        return ""  # one of the two is not there
    if not is_older or written_caption(result) == written_caption(source):
        return ""
    return f"{theirs.name} was changed after {ours.name} was written, which stays as it is; delete {ours.name} to take the new caption."


def about_others(names: Sequence[str], destination: Path) -> str:
    """A sentence on pictures in the destination that are not of the source; empty where there are none."""
    if not names:
        return ""
    number = f"{counted(len(names), 'picture')} that {'is' if len(names) == 1 else 'are'} not from this source, such as {names[0]}"
    return f"The destination {destination} holds {number}: training there learns them, too."


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The picture as the bytes of a file."""
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _parse_note(text: object) -> dict[str, Any]:
    """The note about its source that lies in a result; empty where there is none."""
    try:
        note = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def write_result(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, replacing leftovers of a killed run; a link in its place is replaced. Raises OSError."""
    replace_file(path, content, durable=False, fixed_name=True, follow_links=False)


def write_error(destination: Path, error: OSError, written: int) -> DatasetError:
    """The error that ends a run, in one sentence."""
    causes = {
        errno.EEXIST: "it is a file, not a folder; choose another name",
        errno.ENOTDIR: "a part of its path is a file, not a folder; choose another name",
    }
    cause = causes.get(error.errno or 0) or os_error_text(error)
    cause += "" if ";" in cause else "; choose another folder"
    sentence = f"The destination {destination} could not be written after {counted(written, 'picture')}: {cause}."
    return DatasetError(sentence, path=destination, setting="destination")


def result_name(number: int, stem: str, part: int = 0, flip: str = "") -> str:
    """File name of a result, such as `00012-0-cat.png`.

    The middle number counts four to a part of a split picture: the picture itself, mirrored horizontally, vertically, both.
    """
    return f"{number:05d}-{part * len(FLIPS) + FLIPS[flip]}-{stem}.png"


def place_of(name: str) -> tuple[int, int] | None:
    """(number of the source, middle number) of a result's name; None for other names."""
    match = _RESULT.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def stem_of(name: str) -> str:
    """The part of a result's name behind the numbers; other names as they are."""
    match = _RESULT.fullmatch(name)
    return match[3] if match else name


def caption_stem(caption: str) -> str:
    """A caption as a part of a file name: without characters that file systems refuse, and not too long; empty when nothing is left."""
    text = " ".join(_UNSAFE.sub(" ", caption).split())
    return text.encode("utf-8")[:_LONGEST].decode("utf-8", errors="ignore").rstrip(" .,")


def number_sources(sources: list[Path], existing: Iterable[tuple[int, str]]) -> list[int]:
    """Number each source picture so that a second run finds the results of the first, even when pictures were added in between.

    Args:
        sources: picture files in order; at first each is numbered by its place.
        existing: (number, stem of the source) of the results in the destination.

    Returns:
        One number a source, no two alike; a new one is also free in `existing`.
    """
    unused = dict.fromkeys(sorted(existing))  # a dict, for its order
    used_numbers = {number for number, _ in unused}
    numbers = {place: place for place, source in enumerate(sources) if unused.pop((place, source.stem), 0) is None}
    of_stem: dict[str, list[int]] = {}
    for number, stem in reversed(unused):
        of_stem.setdefault(stem, []).append(number)
    free = (number for number in count(len(sources)) if number not in used_numbers)
    for place, source in enumerate(sources):
        if place in numbers:
            continue
        if of_stem.get(source.stem):
            numbers[place] = of_stem[source.stem].pop()
        else:
            numbers[place] = place if place not in used_numbers else next(free)
    return [numbers[place] for place in range(len(sources))]
