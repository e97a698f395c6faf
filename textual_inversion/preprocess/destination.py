"""The folder that results go to: what is in it already, and writing into it whole or not at all. Knows nothing of crops."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.reading import mask_file
from textual_inversion.preprocess.flips import PLACES
from textual_inversion.preprocess.layout import View
from textual_inversion.preprocess.names import caption_stem, number_sources, place_of, result_name, stem_of
from textual_inversion.settings.preprocessing import PreprocessConfig
from textual_inversion.text import counted

_CHUNK = "preprocessed"  # of a result: what it was made from, and how
_LEVEL = 3  # of PNG's compression: a third of the time of the usual 6, and a twentieth larger


class Destination:
    """Finds results of earlier runs by their names and by the note inside them.

    Args:
        config: names the folder, which need not exist.

    Raises:
        DatasetError: it cannot be listed.
    """

    def __init__(self, config: PreprocessConfig) -> None:
        self.folder, self.config = config.destination_path, config
        self._found: dict[tuple[int, int], str] = {}
        if not config.captions_only:
            names = self._list()
            masks = {mask_file(name).name for name in names}
            self._found = {place: name for name in names if name not in masks and (place := place_of(name))}

    def _list(self) -> list[str]:
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise write_error(self.folder, error, 0) from error

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
        return number_sources(sources, {(number, self._stem(name)) for (number, _), name in self._found.items()})

    def _stem(self, name: str) -> str:
        """Stem of the source of a result; a name that is a caption does not say it, the note inside does."""
        noted = read_note(self.folder / name).get("source") if self.config.caption_place == "name" else None
        return Path(noted).stem if isinstance(noted, str) else stem_of(name)

    def target(self, number: int, source: Path, view: View, flip: str) -> Path:
        """Where a result goes."""
        stem = caption_stem(view.caption or "") if self.config.caption_place == "name" else ""
        return self.folder / result_name(number, stem or source.stem, view.part, flip)

    def found(self, number: int, source: Path, view: View, flip: str) -> Path | None:
        """The result of an earlier run; None where there is none."""
        name = self._found.get((number, view.part * len(PLACES) + PLACES[flip]))
        if self.config.caption_place == "name":
            return self.folder / name if name else None
        target = self.target(number, source, view, flip)
        return target if name == target.name or os.path.exists(target) else None

    def has_all(self, number: int, source: Path, views: Iterable[View]) -> bool:
        """Whether every result of these views, mirrored ones included, is there already, made with these settings."""
        if self.config.captions_only:
            return False
        found = [(view, self.found(number, source, view, flip)) for view in views for flip in ("", *self.config.flips)]
        return all(path is not None and not self.mismatch(path, source, view) for view, path in found)

    def mismatch(self, result: Path, source: Path, view: View) -> str:
        """Why a file in the destination is not the result of these settings; empty when it is.

        It may have been worked on by hand, so it is not replaced in either case; one whose note was lost by that is known by its size.
        """
        try:
            with Image.open(result, formats=["PNG"]) as image:
                size, note = image.size, _parsed(image.info.get(_CHUNK))
        except (OSError, SyntaxError, ValueError):
            return f"{result.name} is in the destination already and is not a PNG picture; delete it and run again."
        if size != view.size:
            why = f"with {size[0]}x{size[1]} pixels, for other settings"
        elif note.get("settings", self.config.fingerprint) != self.config.fingerprint:
            why = "for other settings"
        elif source.exists() and note.get("bytes", source.stat().st_size) != source.stat().st_size:
            why = f"from another {source.name}"
        else:
            return ""
        return f"{result.name} is in the destination already {why}; delete it or choose another destination."

    def write_mask(self, target: Path, mask: Image.Image) -> None:
        """Write the mask of the result `target`; raises OSError."""
        buffer = BytesIO()
        mask.save(buffer, "PNG")
        write_whole(mask_file(target), buffer.getvalue())

    def write_picture(self, target: Path, image: Image.Image, source: Path) -> None:
        """Write a result with its note; raises OSError."""
        note = {"source": source.name, "bytes": source.stat().st_size, "settings": self.config.fingerprint}
        chunks, buffer = PngInfo(), BytesIO()
        chunks.add_text(_CHUNK, json.dumps(note))
        image.save(buffer, "PNG", pnginfo=chunks, compress_level=_LEVEL)
        write_whole(target, buffer.getvalue())


def read_note(path: Path) -> dict[str, Any]:
    """What a result says of its making; empty where it says nothing."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return _parsed(image.info.get(_CHUNK))
    except (OSError, SyntaxError, ValueError):
        return {}


def _parsed(text: object) -> dict[str, Any]:
    try:
        note = json.loads(text) if isinstance(text, str) else {}
    except (ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def write_whole(target: Path, data: bytes) -> None:
    """Write a file whole or not at all; raises OSError."""
    # A fixed name, so that what a killed run left is overwritten by the next; hidden, so that nothing takes it for a picture.
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, target)
    except OSError:
        if os.path.exists(part):  # not Path.exists, which raises where the name is too long
            part.unlink()
        raise


def write_error(destination: Path, error: OSError, written: int) -> DatasetError:
    """One sentence for an error that ends a run."""
    causes = {
        errno.ENOSPC: "the disk is full; make room and run it again",
        errno.EDQUOT: "the disk quota is used up; make room and run it again",
        errno.EACCES: "its permissions do not allow it; choose another folder",
        errno.EPERM: "its permissions do not allow it; choose another folder",
        errno.EROFS: "it is on a read-only disk; choose another folder",
        errno.EEXIST: "it is a file, not a folder; choose another name",
        errno.ENOTDIR: "a part of its path is a file, not a folder; choose another name",
    }
    cause = causes.get(error.errno or 0, f"{error.strerror or error}; choose another folder")
    return DatasetError(f"The destination {destination} could not be written after {counted(written, 'picture')}: {cause}.")
