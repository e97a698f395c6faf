"""Looks at a folder of pictures before anything is written: crops, captions and problems. Holds no pixels and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.captions import caption_file, caption_for
from textual_inversion.pictures.colours import on_colour
from textual_inversion.pictures.faces import FaceFinder, one_thread
from textual_inversion.pictures.geometry import Size
from textual_inversion.pictures.parallel import PixelRoom, default_workers, in_order
from textual_inversion.pictures.reading import require_images
from textual_inversion.pictures.salience import Focus
from textual_inversion.preprocess.captioning import Captioner, Describer
from textual_inversion.preprocess.checks import (
    Print,
    Problem,
    check_shape,
    check_sharpness,
    check_size,
    duplicate_of,
    find_duplicates,
    print_of,
)
from textual_inversion.preprocess.destination import Destination
from textual_inversion.preprocess.layout import View
from textual_inversion.preprocess.picture import Picture, decode, decoded_pixels, focused, measure
from textual_inversion.settings.preprocessing import PreprocessConfig


@dataclass(frozen=True)
class Planned:
    """What is going to be made of one source picture.

    Attributes:
        source: its file.
        number: by which its results are named.
        size: (width, height) of the whole upright picture in pixels; (0, 0) when it cannot be read.
        views: what becomes results; empty when nothing does.
        focus: what the focal crop saw and chose, but for corners; None where it had nothing to do.
        problems: what to look at before writing.
        reason: one sentence why nothing is made of it; empty when all is well.
        done: all of its results are in the destination already.
        settings: fingerprint of the settings that it was planned with.
        stamp: (time of the last change in ns, bytes) of the source then.
        text: the caption file beside the source then; None when there was none.
    """

    source: Path
    number: int
    size: Size = (0, 0)
    views: tuple[View, ...] = ()
    focus: Focus | None = None
    problems: tuple[Problem, ...] = ()
    reason: str = ""
    done: bool = False
    settings: str = ""
    stamp: tuple[int, int] = (0, 0)
    text: str | None = None

    @property
    def chosen(self) -> bool:
        """Whether any of its views is wanted."""
        return any(view.chosen for view in self.views)

    def choose(self, chosen: bool, part: int | None = None) -> Planned:
        """The same with all its views, or only that part, taken or left out."""
        return self._changed(part, chosen=chosen)

    def with_caption(self, caption: str, part: int | None = None) -> Planned:
        """The same with a person's caption for all its views, or only that part."""
        return self._changed(part, caption=" ".join(caption.split()), edited=True)

    def _changed(self, part: int | None, **values: object) -> Planned:
        views = (replace(view, **values) if part in (None, view.part) else view for view in self.views)  # type: ignore[arg-type]
        return replace(self, views=tuple(views))


def plan(
    config: PreprocessConfig,
    progress: Callable[[int, int, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    *,
    captioners: Mapping[str, Captioner] | None = None,
    workers: int = 0,
) -> list[Planned]:
    """Look at every picture of the source folder; nothing is written, and no pixels stay in memory.

    Args:
        config: folders and settings.
        progress: told (pictures done, pictures in all, file name) after each picture.
        should_stop: asked before each picture; the plan then ends there.
        captioners: name -> what describes a picture; with those in `config.captioners`, captions are made now.
        workers: threads; 0 = as many as there are processors, at most four.

    Returns:
        One entry a picture, in natural order of names; pictures that cannot be used are among them, with their reason.

    Raises:
        ConfigError: a captioner that is not there.
        DatasetError: no such folder, no pictures in it, or the destination cannot be listed.
    """
    sources = require_images(config.source_path)
    looker = Looker(config, Describer(config, captioners or {}), Destination(config))
    numbers = looker.destination.number(sources)
    planned: list[Planned] = []
    prints: list[Print | None] = []
    with one_thread(), closing(in_order(looker.look, zip(sources, numbers), workers or default_workers(), should_stop)) as looks:
        for item, known_by in looks:
            planned.append(item)
            prints.append(known_by)
            if progress:
                progress(len(planned), len(sources), item.source.name)
    return _with_duplicates(planned, prints)


class Looker:
    """Looks at one picture after the other, from several threads."""

    def __init__(self, config: PreprocessConfig, describer: Describer, destination: Destination) -> None:
        self.config, self.describer, self.destination = config, describer, destination
        self.finder, self.room = FaceFinder(), PixelRoom()

    def look(self, numbered: tuple[Path, int]) -> tuple[Planned, Print | None]:
        """A picture's plan, and by what it is known again."""
        source, number = numbered
        item = Planned(source, number, settings=self.config.fingerprint)
        try:
            item = replace(item, stamp=stamp_of(source), text=old_caption(source))
            size, views = measure(source, self.config)
            item = replace(item, size=size)
            with self.room.taken(decoded_pixels(source, size, views)):
                return self._see(item, views)
        except DatasetError as error:
            return replace(item, reason=str(error)), None

    def _see(self, item: Planned, views: list[View]) -> tuple[Planned, Print]:
        config = self.config
        picture = decode(item.source, item.size, views, config)
        small = picture.small()
        views, focus = focused(picture, views, config, self.finder)
        boxes = [view.box for view in views]
        found = [check_sharpness(np.asarray(small.convert("L")))]
        if not config.captions_only:
            found += [check_size(boxes, [view.size for view in views]), check_shape(item.size, boxes)]
        done = config.caption_place == "txt" and self.destination.has_all(item.number, item.source, views)
        if done:  # nobody is asked again for what is not going to be written
            views = [self._as_written(item, view) for view in views]
        else:
            views, silent = self._described(item.source, picture, views)
            found.append(silent)
            done = self.destination.has_all(item.number, item.source, views)
        problems = tuple(problem for problem in found if problem)
        if focus:
            focus = replace(focus, corners=())  # a hundred of them for each of 10,000 pictures take 100 MB
        return replace(item, views=tuple(views), focus=focus, problems=problems, done=done), print_of(small)

    def _as_written(self, item: Planned, view: View) -> View:
        """The view of a result that is there already, with the caption that is beside it, or the one that it lacks."""
        result = self.destination.found(item.number, item.source, view, "")
        if result is not None and caption_file(result).is_file():
            return replace(view, caption=caption_for(result))
        return replace(view, caption=self.describer.rules.caption(item.text, [], caption_in_name(item.source)))

    def _described(self, source: Path, picture: Picture, views: list[View]) -> tuple[list[View], Problem | None]:
        """The views with their captions; where describing fails, with what there is without it, and what is to be said of that."""
        try:
            return [self.captioned(source, view, partial(picture.cut, view)) for view in views], None
        except Exception as error:  # noqa: BLE001  of a captioner, anybody's code: the picture can do without it
            rest = self.describer.rules.caption(old_caption(source), [], caption_in_name(source))
            told = str(error) if isinstance(error, DatasetError) else f"It could not be described ({type(error).__name__}: {error})."
            return [replace(view, caption=rest) for view in views], Problem("caption", told)

    def captioned(self, source: Path, view: View, make: Callable[[], Image.Image]) -> View:
        """The view with its caption; `make` gives the very pixels that become the result, if they have to be described."""
        old = old_caption(source)
        new: list[str] = []
        if self.describer.wanted and self.describer.rules.needs_new(old):
            new = self.describer.describe(on_colour(make(), self.config.background))
        return replace(view, caption=self.describer.rules.caption(old, new, caption_in_name(source)))


def stamp_of(source: Path) -> tuple[int, int]:
    """By which a change of a file is seen: (time of the last one in ns, bytes).

    Raises:
        DatasetError: it is not there.
    """
    try:
        status = source.stat()
    except OSError as error:
        raise DatasetError(f"{source.name} is not there any more ({error.strerror or error}).") from error
    return status.st_mtime_ns, status.st_size


def old_caption(source: Path) -> str | None:
    """The text beside a picture, on one line; None when there is no file."""
    return caption_for(source) if caption_file(source).is_file() else None


def caption_in_name(source: Path) -> str:
    """What the file name of a picture without a caption file says."""
    return "" if caption_file(source).is_file() else caption_for(source)


def _with_duplicates(planned: list[Planned], prints: list[Print | None]) -> list[Planned]:
    first = find_duplicates(prints)
    return [
        item if place is None else replace(item, problems=(*item.problems, duplicate_of(planned[place].source.name)))
        for item, place in zip(planned, first)
    ]
