"""Plans a folder of pictures before anything is written: crops, captions and problems. Keeps no pixels and writes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from textual_inversion.errors import DatasetError
from textual_inversion.files import FileStamp, os_error_words
from textual_inversion.pictures.folder import caption_file, caption_for, caption_in_name, require_images, written_caption
from textual_inversion.pictures.geometry import Size
from textual_inversion.pictures.measures import Fingerprint, find_duplicates
from textual_inversion.pictures.parallel import PixelRoom, default_workers, in_order
from textual_inversion.pictures.reading import on_colour
from textual_inversion.pictures.salience import FaceFinder, Focus, one_thread
from textual_inversion.preprocess.captioning import Captioner, Describer, compose_caption
from textual_inversion.preprocess.destination import Destination, outdated_caption
from textual_inversion.preprocess.layout import PlannedView
from textual_inversion.preprocess.picture import (
    Picture,
    Problem,
    check_enlargement,
    check_shape,
    check_sharpness,
    decode,
    decoded_pixels,
    focus_views,
    measure,
)
from textual_inversion.settings.preprocessing import PreprocessConfig


@dataclass(frozen=True)
class Planned:
    """The results that one source picture is going to become.

    Attributes:
        source: its file.
        number: begins the names of its results.
        size: (width, height) of the whole upright picture in pixels; (0, 0) when it cannot be read.
        views: what becomes results; empty when nothing does.
        focus: the place that the focal crop chose, and the faces that it found; None where it had nothing to do.
        problems: what to look at before writing.
        reason: one sentence on why it has no result; empty when it has.
        done: all of its results are in the destination already.
        settings: fingerprint of the settings that it was planned with.
        stamp: of the source when it was planned.
        text: of the caption file beside the source when it was planned; None when there was none.
    """

    source: Path
    number: int
    size: Size = (0, 0)
    views: tuple[PlannedView, ...] = ()
    focus: Focus | None = None
    problems: tuple[Problem, ...] = ()
    reason: str = ""
    done: bool = False
    settings: str = ""
    stamp: FileStamp | None = None
    text: str | None = None

    @property
    def chosen(self) -> bool:
        """Whether any of its views is wanted."""
        return any(view.chosen for view in self.views)

    def choose(self, chosen: bool, part: int | None = None) -> Planned:
        """The same with all its views, or only that part, wanted or left out."""
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
    """Plan the results of every picture of the source folder; nothing is written, and no pixels stay in memory.

    Args:
        config: folders and settings.
        progress: called with (pictures done, pictures in all, file name) after each picture.
        should_stop: asked before each picture; the plan then ends there.
        captioners: name -> captioner; those in `config.captioners` describe the pictures now.
        workers: threads; 0 = as many as there are processors, at most four.

    Returns:
        One entry a picture, in natural order of names; pictures that cannot be used are among them, with their reason.

    Raises:
        ConfigError: a captioner that is not there.
        DatasetError: no such folder, no pictures in it, or the destination cannot be listed.
    """
    sources = require_images(config.source_path)
    planner = Planner(config, Describer(config, captioners or {}), Destination(config))
    numbers = planner.destination.number(sources)
    planned: list[Planned] = []
    fingerprints: list[Fingerprint | None] = []
    with one_thread(), closing(in_order(planner.plan, zip(sources, numbers), workers or default_workers(), should_stop)) as plans:
        for item, fingerprint in plans:
            planned.append(item)
            fingerprints.append(fingerprint)
            if progress:
                progress(len(planned), len(sources), item.source.name)
    for place, first in enumerate(find_duplicates(fingerprints)):
        if first is not None:
            text = f"It shows the same as {planned[first].source.name}; leave one of them out, or that picture counts twice."
            planned[place] = replace(planned[place], problems=(*planned[place].problems, Problem("duplicate", text)))
    return planned


class Planner:
    """Plans one picture after the other, called from several threads."""

    def __init__(self, config: PreprocessConfig, describer: Describer, destination: Destination) -> None:
        self.config, self.describer, self.destination = config, describer, destination
        self.finder, self.room = FaceFinder(), PixelRoom()

    def plan(self, numbered: tuple[Path, int]) -> tuple[Planned, Fingerprint | None]:
        """A picture's plan, and its fingerprint where it can be read."""
        source, number = numbered
        item = Planned(source, number, settings=self.config.fingerprint)
        try:
            item = replace(item, stamp=stamp_of(source), text=written_caption(source))
            size, views = measure(source, self.config)
            item = replace(item, size=size)
            with self.room.reserve(decoded_pixels(source, size, views)):
                return self._plan_decoded(item, views)
        except DatasetError as error:
            return replace(item, reason=str(error)), None

    def _plan_decoded(self, item: Planned, views: list[PlannedView]) -> tuple[Planned, Fingerprint]:
        picture = decode(item.source, item.size, views, self.config)
        small = picture.small()
        views, focus = focus_views(picture, views, self.config, self.finder)
        checks = [check_sharpness(np.asarray(small.convert("L")))]
        if not self.config.captions_only:
            checks += [check_enlargement(views), check_shape(item.size, views)]
        done = self.config.caption_place == "txt" and self.destination.has_all(item.number, item.source, views)
        if done:  # captioners are not called for results that will not be written
            views = [self._with_existing_caption(item, view) for view in views]
            checks += [self._check_captions(item, views)]
        else:
            views, problem = self._describe_all(item.source, picture, views)
            checks.append(problem)
            done = self.destination.has_all(item.number, item.source, views)
        problems = tuple(problem for problem in checks if problem)
        if focus:
            focus = replace(focus, corners=())  # a hundred of them for each of 10,000 pictures take 100 MB
        return replace(item, views=tuple(views), focus=focus, problems=problems, done=done), Fingerprint.of(small)

    def _check_captions(self, item: Planned, views: list[PlannedView]) -> Problem | None:
        """Whether a result has the caption that the source had before."""
        results = (self.destination.existing(item.number, item.source, view, "") for view in views)
        said = next((text for result in results if result and (text := outdated_caption(result, item.source))), "")
        return Problem("caption", said) if said else None

    def _with_existing_caption(self, item: Planned, view: PlannedView) -> PlannedView:
        """The view of an existing result, with the caption beside this result, or with a composed caption where it has none."""
        result = self.destination.existing(item.number, item.source, view, "")
        if result is not None and caption_file(result).is_file():
            return replace(view, caption=caption_for(result))
        return replace(view, caption=self._compose(item.source, item.text, []))

    def _describe_all(self, source: Path, picture: Picture, views: list[PlannedView]) -> tuple[list[PlannedView], Problem | None]:
        """The views with their captions; where a captioner fails, with captions composed without captioners, and the problem."""
        try:
            return [self.with_caption(source, view, partial(picture.cut, view)) for view in views], None
        except Exception as error:  # noqa: BLE001  a captioner is foreign code, and the picture is usable without it
            caption = self._compose(source, written_caption(source), [])
            text = str(error) if isinstance(error, DatasetError) else f"It could not be described ({type(error).__name__}: {error})."
            return [replace(view, caption=caption) for view in views], Problem("caption", text)

    def with_caption(self, source: Path, view: PlannedView, make: Callable[[], Image.Image]) -> PlannedView:
        """The view with its caption; `make` returns the result's pixels, and is called only if a captioner needs them."""
        old = written_caption(source)
        new = self.describer.describe(on_colour(make(), self.config.background)) if self.describer.is_needed(old) else []
        return replace(view, caption=self._compose(source, old, new))

    def _compose(self, source: Path, old: str | None, new: list[str]) -> str | None:
        return compose_caption(self.config, old, new, caption_in_name(source))


def stamp_of(source: Path) -> FileStamp:
    """The stamp of a source.

    Raises:
        DatasetError: it is not there.
    """
    try:
        return FileStamp.from_status(os.stat(source))._replace(inode=0)  # inode numbers of some network file systems change
    except OSError as error:
        raise DatasetError(f"{source.name} is not there any more ({os_error_words(error)}).", path=source) from error
