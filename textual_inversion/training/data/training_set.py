"""A folder listed as captioned pictures with the sizes that they are trained at.

Only the heads of the files are read here, so that a folder of any number of pictures costs next to no memory.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.folder import caption_for, find_images, require_images
from textual_inversion.pictures.geometry import CENTRE, Place, Size
from textual_inversion.pictures.reading import picture_size
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
    """

    path: Path
    caption: str
    original: Size
    size: Size
    places: tuple[Place, ...] = (CENTRE,)
    repeats: int = 1


@dataclass(frozen=True)
class TrainingSet:
    """The pictures of one folder.

    Attributes:
        pictures: at least one, in the natural order of their names, folder by folder.
        skipped: (file name, sentence that names the file and says why) of pictures whose heads cannot be read.
        options: how the pictures become views.
    """

    pictures: tuple[TrainingPicture, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    options: ViewOptions = field(default_factory=ViewOptions)

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
    """

    sizing: Sizing
    word_regex: str = ""
    word_join: str = " "
    background: str = "white"
    weighted: bool = False
    subfolders: bool = False


def scan_training_set(folder: str | Path, options: DatasetOptions) -> TrainingSet:
    """List the pictures of `folder`; one whose head or caption cannot be read is named in `skipped` and the rest goes on.

    Damage further on in a file shows when its views are read.

    Raises:
        DatasetError: no such folder, no pictures in it, or not one that can be read.
    """
    pictures: list[TrainingPicture] = []
    skipped: list[tuple[str, str]] = []
    for path, repeats in _files(folder, subfolders=options.subfolders):
        picture = _entry(path, repeats, options)
        if isinstance(picture, DatasetError):
            skipped.append((path.name, str(picture)))
        else:
            pictures.append(picture)
    if not pictures:
        raise none_usable(folder, skipped)
    return TrainingSet(tuple(pictures), tuple(skipped), ViewOptions(options.background, options.weighted, options.sizing.method == OWN))


def none_usable(folder: str | Path, skipped: list[tuple[str, str]]) -> DatasetError:
    """The error for a folder of which every picture was left out; `skipped` is that of `TrainingSet`."""
    if len(skipped) == 1:
        return DatasetError(f"The one picture in {folder} cannot be used: {skipped[0][1]}", path=folder)
    return DatasetError(f"None of the {len(skipped)} pictures in {folder} can be used; the first: {skipped[0][1]}", path=folder)


def _files(folder: str | Path, *, subfolders: bool) -> list[tuple[Path, int]]:
    """(picture file, how often it is shown while others are shown once), folder by folder."""
    if not subfolders:
        return [(path, 1) for path in require_images(folder)]
    find_images(folder)  # raises where the folder itself is missing
    folders = [Path(place) for place, _, _ in os.walk(Path(folder).expanduser())]
    top = folders[0]
    visible = [place for place in folders if not any(part.startswith(".") for part in place.relative_to(top).parts)]
    files = []
    for place in sorted(visible):
        match = _REPEATS.match(place.name) if place != top else None
        repeats = min(MAX_REPEATS, max(1, int(match[1]))) if match else 1
        files += [(path, repeats) for path in find_images(place)]
    return files or [(path, 1) for path in require_images(folder)]


def _entry(path: Path, repeats: int, options: DatasetOptions) -> TrainingPicture | DatasetError:
    """A picture of the training set, or the reason why it is left out."""
    sizing = options.sizing
    try:
        caption, original = caption_for(path, options.word_regex, options.word_join), picture_size(path)
        if min(original) < 1:
            raise DatasetError(f"{path.name} has no pixels; replace it or take it out of the folder.", path=path)
    except DatasetError as error:
        return error
    try:
        return TrainingPicture(path, caption, original, sizing.size_of(original), sizing.places(original), repeats)
    except DatasetError as error:
        sentence = f"{path.name} is left out: {error}; resize it, or turn “Do not resize images” off."
        return DatasetError(sentence, path=path, setting="no_resize")
