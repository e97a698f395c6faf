"""Turns a folder of pictures into a folder of training pictures, with their captions."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from textual_inversion.errors import ConfigError, DatasetError
from textual_inversion.pictures.captions import TEXT_ENDINGS, caption_bytes, caption_source
from textual_inversion.pictures.folder import caption_file, mask_file, require_images, written_caption
from textual_inversion.pictures.geometry import scaled
from textual_inversion.pictures.parallel import default_workers, in_order
from textual_inversion.pictures.reading import read_image
from textual_inversion.pictures.salience import debug_picture, one_thread, why_no_faces
from textual_inversion.preprocess.captioning import Captioner, Describer
from textual_inversion.preprocess.destination import Destination, about_others, encoded, outdated_caption, write_error, write_result
from textual_inversion.preprocess.layout import PlannedView, flipped
from textual_inversion.preprocess.picture import Picture, decode, decoded_pixels, focus_views, measure
from textual_inversion.preprocess.plan import Planned, Planner, plan, stamp_of
from textual_inversion.settings.preprocessing import PreprocessConfig

__all__ = ["Planned", "PreprocessConfig", "PreprocessReport", "notes", "plan", "preprocess"]

#: Folder inside the destination for pictures of focal points.
DEBUG_FOLDER = "focal-point"


@dataclass(frozen=True)
class PreprocessReport:
    """The outcome of a run.

    Attributes:
        written: picture files that are new, in order.
        captions: caption files that are new or have changed, in order.
        kept: results of an earlier run, which were left alone.
        skipped: (source file name, sentence that says why) of wanted pictures without a result.
        left_out: source files that were left out of the plan by a person.
        notes: sentences on what this machine cannot do for these settings, and on captions of results that are older than their sources'.
        stopped: it was asked to stop before the end; running it again goes on from there.
    """

    written: list[Path] = field(default_factory=list)
    captions: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stopped: bool = False

    def add(self, other: PreprocessReport) -> None:
        """Add the files of another report, such as that of one picture."""
        for name in ("written", "captions", "kept", "skipped", "left_out", "notes"):
            getattr(self, name).extend(getattr(other, name))


def preprocess(
    config: PreprocessConfig,
    progress: Callable[[int, int, str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    *,
    planned: Sequence[Planned] | None = None,
    captioners: Mapping[str, Captioner] | None = None,
    workers: int = 0,
) -> PreprocessReport:
    """Write the results of every picture of the source folder, as PNG, into the destination, with captions.

    Results are named `<number, 5 digits>-<part and mirroring>-<source name>.png`. Files appear whole or not at all; a second run
    leaves what is there alone and does the rest. A picture that cannot be read is named in the report and skipped.

    Args:
        config: folders and settings.
        progress: called with (pictures done, pictures in all, file name) after each source picture.
        should_stop: asked before each source picture; those begun are finished.
        planned: from `plan` with the same settings, perhaps with pictures left out and captions edited; None = plan while writing.
        captioners: name -> captioner, for those in `config.captioners`; not asked about pictures that are planned.
        workers: threads; 0 = as many as there are processors, at most four.

    Raises:
        ConfigError: a captioner that is not there, or a plan of other settings.
        DatasetError: no such source, no pictures in it, or the destination cannot be written (no permission, disk full).
    """
    if planned is not None and any(item.settings != config.fingerprint for item in planned):
        raise ConfigError("These pictures were looked at with other settings; look at them again before writing.")
    describer, destination = Describer(config, None if planned is not None else captioners or {}), Destination(config)
    if planned is None:
        sources = require_images(config.source_path)
        planned = [Planned(source, number) for source, number in zip(sources, destination.number(sources))]
    destination.prepare()
    writer = Writer(Planner(config, describer, destination))
    others = about_others(destination.pictures_of_others([item.source for item in planned]), destination.folder)
    report = PreprocessReport(notes=[*notes(config), *([others] if others else [])])
    done = 0
    with one_thread(), closing(in_order(writer.process, planned, workers or default_workers(), should_stop)) as outcomes:
        try:
            for outcome in outcomes:
                report.add(outcome)
                done += 1
                if progress:
                    progress(done, len(planned), planned[done - 1].source.name)
        except OSError as error:
            raise write_error(config.destination_path, error, len(report.written)) from error
    return replace(report, stopped=done < len(planned))


def notes(config: PreprocessConfig) -> list[str]:
    """Sentences on what this machine cannot do for these settings."""
    faces = why_no_faces() if config.focal_crop and config.face_weight and not config.captions_only else ""
    return [faces] if faces else []


class Writer:
    """Writes the missing results of one picture after the other, called from several threads; plans a picture that has no plan."""

    def __init__(self, planner: Planner) -> None:
        self.planner, self.config, self.destination = planner, planner.config, planner.destination

    def process(self, item: Planned) -> PreprocessReport:
        """Write the missing results of one picture; raises OSError for a fault that would stop every other picture, too."""
        report, name = PreprocessReport(), item.source.name
        is_planned = bool(item.settings)
        if is_planned and item.views and not item.chosen:
            report.left_out.append(name)
            return report
        try:
            if item.reason:
                raise DatasetError(item.reason, path=item.source)
            if not is_planned:
                size, views = measure(item.source, self.config)
                item = replace(item, size=size, views=tuple(views))
            elif stamp_of(item.source) != item.stamp:
                raise DatasetError(f"{name} has changed since it was looked at; look again.", path=item.source)
            views = [view for view in item.views if view.chosen]
            with self.planner.room.reserve(decoded_pixels(item.source, item.size, views)):
                if self.config.captions_only:
                    self._caption_source(item, views[0], report, is_planned=is_planned)
                elif missing := self._missing(item, views, report, is_planned=is_planned):
                    self._write_missing(item, views, missing, report, is_planned=is_planned)
        except DatasetError as error:
            report.skipped.append((name, str(error)))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            report.skipped.append((name, f"{name} makes too long a name for its result; give it a shorter one."))
        return report

    def _missing(self, item: Planned, views: list[PlannedView], report: PreprocessReport, *, is_planned: bool) -> list[tuple[int, str]]:
        """(part, flip) of results that are not there yet; the others get the caption they lack."""
        missing = []
        for view in views:
            for flip in ("", *self.config.flips):
                result = self.destination.existing(item.number, item.source, view, flip)
                if result is None:
                    missing.append((view.part, flip))
                    continue
                if difference := self.destination.mismatch(result, item.source, view):
                    raise DatasetError(difference, path=result)
                report.kept.append(self._complete(item, view, flip, result, report, is_planned=is_planned))
        return missing

    def _complete(self, item: Planned, view: PlannedView, flip: str, result: Path, report: PreprocessReport, *, is_planned: bool) -> Path:
        """Give a result of an earlier run the caption it lacks, or a person's new one; returns its path after that."""
        if self.config.caption_place == "name":
            target = self.destination.target(item.number, item.source, view, flip)
            if not view.edited or target == result or target.exists():
                return result
            if mask_file(result).exists():
                mask_file(result).replace(mask_file(target))
            return result.replace(target)
        if said := outdated_caption(result, item.source):
            report.notes.append(said)
        if not is_planned and not caption_file(result).exists():
            view = self.planner.with_caption(item.source, view, partial(read_image, result))
        self._write_caption(item.source, view, result, report)
        return result

    def _write_missing(
        self, item: Planned, views: list[PlannedView], missing: list[tuple[int, str]], report: PreprocessReport, *, is_planned: bool
    ) -> None:
        picture = decode(item.source, item.size, views, self.config)
        if not is_planned:
            views, focus = focus_views(picture, views, self.config, self.planner.finder)
            item = replace(item, views=tuple(views), focus=focus)
            views = [self.planner.with_caption(item.source, view, partial(picture.cut, view)) for view in views]
        if self.config.focal_debug and item.focus is not None:
            self._write_debug(item, picture)
        for view in views:
            flips = [flip for part, flip in missing if part == view.part]
            if flips:
                self._write_view(item, view, picture, flips, report)

    def _write_view(self, item: Planned, view: PlannedView, picture: Picture, flips: list[str], report: PreprocessReport) -> None:
        result, mask = picture.cut(view), picture.cut_mask(view)
        for flip in flips:
            target = self.destination.target(item.number, item.source, view, flip)
            new_files = [file for file in (caption_file(target), mask_file(target)) if not file.exists()]
            try:
                # The picture is written last, so that an existing picture is always complete.
                self._write_caption(item.source, view, target, report)
                if mask:
                    self.destination.write_mask(target, flipped(mask, flip))
                self.destination.write_picture(target, flipped(result, flip), item.source)
            except OSError:
                for file in new_files:  # a mask without its picture would count as a picture
                    file.unlink(missing_ok=True)
                raise
            report.written.append(target)

    def _write_caption(self, source: Path, view: PlannedView, target: Path, report: PreprocessReport) -> None:
        path = caption_file(target)
        # The user may have edited a caption in the destination.
        if view.caption is None or self.config.caption_place == "name" or (path.exists() and not view.edited):
            return
        text_file = caption_source(source) if self.config.existing_captions == "copy" and not view.edited else None
        is_copied = text_file is not None and text_file.suffix.lower() in TEXT_ENDINGS
        write_result(path, caption_bytes(text_file) if text_file and is_copied else view.caption.encode("utf-8"))
        report.captions.append(path)

    def _caption_source(self, item: Planned, view: PlannedView, report: PreprocessReport, *, is_planned: bool) -> None:
        if not is_planned:
            view = self.planner.with_caption(item.source, view, lambda: decode(item.source, item.size, [view], self.config).cut(view))
        now = written_caption(item.source)
        if is_planned and now not in (item.text, view.caption):
            raise DatasetError(f"The caption of {item.source.name} has changed since it was looked at; look again.", path=item.source)
        if view.caption is not None and view.caption != now:
            path = caption_file(item.source)
            write_result(path, view.caption.encode("utf-8"))
            report.captions.append(path)

    def _write_debug(self, item: Planned, picture: Picture) -> None:
        _, focus = focus_views(picture, list(item.views), self.config, self.planner.finder)  # once more: a plan does not keep corners
        if focus is None:
            return
        small = picture.small()
        boxes = [scaled(view.box, item.size, small.size) for view in item.views]
        folder = self.destination.folder / DEBUG_FOLDER
        folder.mkdir(exist_ok=True)
        drawing = encoded(debug_picture(small, focus, boxes), "JPEG", quality=88)
        write_result(folder / f"{item.number:05d}-{item.source.stem}.jpg", drawing)
