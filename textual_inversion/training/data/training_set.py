"""A folder listed as captioned pictures with the sizes that they are trained at.

Only the heads of the files are read here, so that a folder of any number of pictures costs next to no memory.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.captions import Caption, caption_bytes, decoded, is_table, written
from textual_inversion.pictures.contents import MULTIPLY, account, account_for_folders, kind_of_folder
from textual_inversion.pictures.folder import caption_in_name, find_images, is_device_name, require_images
from textual_inversion.pictures.geometry import CENTRE, Place, Size
from textual_inversion.pictures.listing import file_in
from textual_inversion.pictures.reading import read_head
from textual_inversion.training.data.views import OWN, Sizing, TrainingView, ViewOptions, load_views

MAX_REPEATS = 1000
_REPEATS = re.compile(r"(\d{1,4})_")


@dataclass(frozen=True)
class TrainingPicture:
    """One picture to learn from.

    Attributes:
        path: the file.
        caption: its caption on one line, possibly empty.
        original: (width, height) upright, in pixels.
        size: (width, height) that it is trained at.
        places: of its crops, at least one.
        repeats: how often it is shown while others are shown once (1 to 1000).
        source: where the caption comes from, such as `.txt files` or `file names`; empty where it has none.
    """

    path: Path
    caption: str
    original: Size
    size: Size
    places: tuple[Place, ...] = (CENTRE,)
    repeats: int = 1
    source: str = ""


@dataclass(frozen=True)
class TrainingSet:
    """The pictures of one folder.

    Attributes:
        pictures: at least one, in the natural order of their names, folder by folder.
        skipped: (file name, sentence that names the file and says why) of pictures whose heads cannot be read.
        options: how the pictures become views.
        notes: sentences on the files of the folder that are not learned, and on what was made of their names.
    """

    pictures: tuple[TrainingPicture, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    options: ViewOptions = field(default_factory=ViewOptions)
    notes: tuple[str, ...] = ()

    def sizes(self) -> dict[Size, list[int]]:
        """Training size -> the pictures (by index) that have it, in the order of the pictures."""
        sizes: dict[Size, list[int]] = {}
        for index, picture in enumerate(self.pictures):
            sizes.setdefault(picture.size, []).append(index)
        return sizes

    @property
    def shown(self) -> int:
        """Pictures that one epoch shows."""
        return sum(picture.repeats for picture in self.pictures)

    def views(self, index: int) -> list[TrainingView]:
        """Read the crops of picture `index`.

        Raises:
            DatasetError: it cannot be read, or nothing of it counts.
        """
        picture = self.pictures[index]
        return load_views(picture.path, picture.original, picture.size, picture.places, self.options)


@dataclass(frozen=True)
class DatasetOptions:
    """How a folder is read.

    Attributes:
        sizing: the pictures' training sizes.
        word_regex, word_join: make captions of file names, as in `caption_for`.
        background: colour under transparent parts.
        weighted: masks and transparency are loss weights.
        subfolders: read the folders inside too; one named `5_cats` has its pictures shown 5 times as often.
        name: of the embedding; the words of a folder's name are learned without it.
    """

    sizing: Sizing
    word_regex: str = ""
    word_join: str = " "
    background: str = "white"
    weighted: bool = False
    subfolders: bool = False
    name: str = ""


def scan_training_set(folder: str | Path, options: DatasetOptions) -> TrainingSet:
    """List the pictures of `folder`; one whose head or caption cannot be read is named in `skipped` and the rest goes on.

    Damage further on in a file shows when its views are read.

    Raises:
        DatasetError: no such folder, no pictures in it, or not one that can be read.
    """
    pictures: list[TrainingPicture] = []
    skipped: list[tuple[str, str]] = []
    listed = _Listed(Path(folder).expanduser(), options)
    for place in listed.places:
        for path in place.files:
            picture = listed.entry(path, place)
            if isinstance(picture, DatasetError):
                skipped.append((path.name, str(picture)))
            else:
                pictures.append(picture)
    if not pictures:
        raise none_usable(folder, skipped)
    views = ViewOptions(options.background, options.weighted, options.sizing.method == OWN)
    return TrainingSet(tuple(pictures), tuple(skipped), views, tuple(listed.notes()))


def none_usable(folder: str | Path, skipped: list[tuple[str, str]]) -> DatasetError:
    """The error for a folder of which every picture was left out; `skipped` is that of `TrainingSet`."""
    if len(skipped) == 1:
        return DatasetError(f"The one picture in {folder} cannot be used: {skipped[0][1]}", path=folder)
    return DatasetError(f"None of the {len(skipped)} pictures in {folder} can be used; the first: {skipped[0][1]}", path=folder)


@dataclass(frozen=True)
class _Place:
    """A folder with its picture files, how often they are shown while others are shown once, and the words of its name."""

    folder: Path
    files: tuple[Path, ...]
    repeats: int = 1
    words: str = ""


class _Listed:
    """A folder, and the folders inside it where those are read; keeps account of their files.

    Raises:
        DatasetError: no such folder, or no pictures in it.
    """

    def __init__(self, folder: Path, options: DatasetOptions) -> None:
        self.folder, self.options = folder, options
        self.left_out: list[Path] = []
        self.sources: dict[Path, Path | None] = {}  # of the captions
        self.device_names: list[str] = []
        self.several_lines: list[str] = []
        self.moving: list[str] = []
        self.places = self._places()

    def _places(self) -> list[_Place]:
        if not self.options.subfolders:
            return [_Place(self.folder, tuple(require_images(self.folder)), _repeats(self.folder, 1))]
        find_images(self.folder)  # raises where the folder itself is missing
        places = []
        for place in sorted(Path(place) for place, _, _ in os.walk(self.folder)):
            parts = place.relative_to(self.folder).parts
            files = () if any(part.startswith(".") for part in parts) else tuple(find_images(place))
            if files and kind_of_folder(parts):
                self.left_out.append(place)
            elif files:
                match = _REPEATS.match(place.name) if parts else None
                repeats = min(MAX_REPEATS, max(1, int(match[1]))) if match else 1
                words = _class_words(place.name[match.end() :], self.options.name) if match else ""
                places.append(_Place(place, files, _repeats(place, repeats), words))
        return places or [_Place(self.folder, tuple(require_images(self.folder)))]

    def entry(self, path: Path, place: _Place) -> TrainingPicture | DatasetError:
        """A picture of the training set, or the reason why it is left out."""
        sizing = self.options.sizing
        self.sources[path] = None
        try:
            caption, source = self._caption(path, place)
            head = read_head(path)
            if min(original := head.size) < 1:
                raise DatasetError(f"{path.name} has no pixels; replace it or take it out of the folder.", path=path)
            self.moving += [path.name] if head.moves else []
        except DatasetError as error:
            return error
        try:
            size, places = sizing.size_of(original), sizing.places(original)
        except DatasetError as error:
            sentence = f"{path.name} is left out: {error}; resize it, or turn “Do not resize images” off."
            return DatasetError(sentence, path=path, setting="no_resize")
        return TrainingPicture(path, caption, original, size, places, place.repeats, source)

    def _caption(self, path: Path, place: _Place) -> tuple[str, str]:
        """The caption of a picture, and where it comes from."""
        if (found := written(path)) is not None:
            self.sources[path] = found.source
            if found.lines > 1:
                self.several_lines.append(path.name)
            return found.text, _name_source(found) if found.text else ""
        in_name = caption_in_name(path, self.options.word_regex, self.options.word_join)
        if place.words and not (" " in in_name or self.options.word_regex):  # a name of several words describes the picture
            return place.words, "folder names"
        if not in_name and not self.options.word_regex and is_device_name(path.stem):
            self.device_names.append(path.stem)
        return in_name, "file names" if in_name else ""

    def notes(self) -> list[str]:
        """Sentences on what was not learned of the folders, and why."""
        sentences = []
        if self.device_names:
            one = len(self.device_names) == 1
            count = "1 picture has" if one else f"{len(self.device_names)} pictures have"
            sentences.append(
                f"{count} no caption: {'its file name comes' if one else 'their file names come'} from a camera or a program, such as "
                f"{self.device_names[0]}, and {'is' if one else 'are'} not learned."
            )
        if self.several_lines:
            one = len(self.several_lines) == 1
            count = f"The caption of {self.several_lines[0]} has" if one else f"{len(self.several_lines)} captions have"
            sentences.append(f"{count} several lines, which are learned as one caption.")
        if self.moving:
            one = len(self.moving) == 1
            count = f"{self.moving[0]} is an animation" if one else f"{len(self.moving)} pictures are animations, such as {self.moving[0]}"
            sentences.append(f"{count}; {'its first frame is' if one else 'the first frame of each is'} learned.")
        for place in self.places:
            own = {path: source for path, source in self.sources.items() if path.parent == place.folder}
            sentences += account(place.folder, own, masks_used=self.options.weighted)
        return sentences + account_for_folders(self.folder, self.left_out, searched=self.options.subfolders)


def _repeats(folder: Path, otherwise: int) -> int:
    """How often the pictures of a folder are shown, by EveryDream's file that says so; at least once."""
    if (file := file_in(folder, MULTIPLY)) is None:
        return otherwise
    try:
        return min(MAX_REPEATS, max(1, round(float(decoded(caption_bytes(file), file)))))
    except (ValueError, OverflowError, DatasetError):
        return otherwise


def _class_words(words: str, name: str) -> str:
    """The words of a folder's name such as `5_my-cat cat`, without the embedding's own name."""
    left = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", words, flags=re.IGNORECASE) if name else words
    return " ".join(left.replace("_", " ").split())


def _name_source(caption: Caption) -> str:
    assert caption.source is not None
    return caption.source.name if is_table(caption.source.name) else f"{caption.source.suffix} files"
