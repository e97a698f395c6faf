"""Makes the results of one picture after the other, from several threads. Knows nothing of folders' contents or progress."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace
from functools import partial
from io import BytesIO
from pathlib import Path

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.captions import caption_file
from textual_inversion.pictures.geometry import scaled
from textual_inversion.pictures.reading import mask_file, read_image
from textual_inversion.pictures.salience import debug_picture
from textual_inversion.preprocess.destination import write_whole
from textual_inversion.preprocess.flips import flipped
from textual_inversion.preprocess.layout import View
from textual_inversion.preprocess.picture import Picture, decode, decoded_pixels, focused, measure
from textual_inversion.preprocess.plan import Looker, Planned, old_caption, stamp_of
from textual_inversion.settings.preprocessing import PreprocessConfig

#: Folder inside the destination for what the focal crop saw.
DEBUG_FOLDER = "focal-point"


@dataclass(frozen=True)
class PreprocessReport:
    """What a run did.

    Attributes:
        written: picture files that are new, in order.
        captions: caption files that are new or have changed, in order.
        kept: picture files that an earlier run had written and that were left alone.
        skipped: (source file name, sentence that says why) of what has no result though it was wanted.
        left_out: source files that were left out of the plan by a person.
        notes: sentences on what these settings cannot do on this machine.
        stopped: it was asked to stop before the end; running it again goes on from there.
    """

    written: list[Path] = field(default_factory=list)
    captions: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stopped: bool = False

    def take(self, other: PreprocessReport) -> None:
        for name in ("written", "captions", "kept", "skipped", "left_out"):
            getattr(self, name).extend(getattr(other, name))


class Writer:
    """Makes what is missing of a picture's results; looks at the picture itself where no plan says what to do."""

    def __init__(self, config: PreprocessConfig, looker: Looker) -> None:
        self.config, self.looker, self.destination = config, looker, looker.destination

    def process(self, item: Planned) -> PreprocessReport:
        """Write what is missing of one picture; raises OSError for what would stop every other picture, too."""
        report, name = PreprocessReport(), item.source.name
        looked = bool(item.settings)
        if looked and item.views and not item.chosen:
            report.left_out.append(name)
            return report
        try:
            if item.reason:
                raise DatasetError(item.reason)
            if looked and stamp_of(item.source) != item.stamp:
                raise DatasetError(f"{name} has changed since it was looked at; look again.")
            if not looked:
                size, views = measure(item.source, self.config)
                item = replace(item, size=size, views=tuple(views))
            views = [view for view in item.views if view.chosen]
            with self.looker.room.taken(decoded_pixels(item.source, item.size, views)):
                self._write(item, views, report, looked=looked)
        except DatasetError as error:
            report.skipped.append((name, str(error)))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            report.skipped.append((name, f"{name} makes too long a name for its result; give it a shorter one."))
        return report

    def _write(self, item: Planned, views: list[View], report: PreprocessReport, *, looked: bool) -> None:
        if self.config.captions_only:
            self._caption_source(item, views[0], report, looked=looked)
            return
        missing = self._missing(item, views, report, looked=looked)
        if not missing:
            return
        picture = decode(item.source, item.size, views, self.config)
        if not looked:
            views, focus = focused(picture, views, self.config, self.looker.finder)
            item = replace(item, views=tuple(views), focus=focus)
            views = [self.looker.captioned(item.source, view, partial(picture.cut, view)) for view in views]
        if self.config.focal_debug and item.focus is not None:
            self._write_debug(item, picture)
        for view in views:
            self._write_view(item, view, picture, [flip for part, flip in missing if part == view.part], report)

    def _write_view(self, item: Planned, view: View, picture: Picture, flips: list[str], report: PreprocessReport) -> None:
        if not flips:
            return
        result, mask = picture.cut(view), picture.cut_mask(view)
        for flip in flips:
            target = self.destination.target(item.number, item.source, view, flip)
            beside = [file for file in (caption_file(target), mask_file(target)) if not file.exists()]
            try:
                # The picture last: one that is there is then always complete.
                self._write_caption(item.source, view, target, report)
                if mask:
                    self.destination.write_mask(target, flipped(mask, flip))
                self.destination.write_picture(target, flipped(result, flip), item.source)
            except OSError:
                for file in beside:  # a mask without its picture would be one itself
                    file.unlink(missing_ok=True)
                raise
            report.written.append(target)

    def _missing(self, item: Planned, views: list[View], report: PreprocessReport, *, looked: bool) -> list[tuple[int, str]]:
        """(part, flip) of results that are not there yet; those that are get the caption they lack."""
        missing = []
        for view in views:
            for flip in ("", *self.config.flips):
                found = self.destination.found(item.number, item.source, view, flip)
                if found is None:
                    missing.append((view.part, flip))
                    continue
                if problem := self.destination.mismatch(found, item.source, view):
                    raise DatasetError(problem)
                report.kept.append(self._complete(item, view, flip, found, report, looked=looked))
        return missing

    def _complete(self, item: Planned, view: View, flip: str, found: Path, report: PreprocessReport, *, looked: bool) -> Path:
        """Give a result of an earlier run the caption it lacks, or a person's new one; where it lies then."""
        if self.config.caption_place == "name":
            target = self.destination.target(item.number, item.source, view, flip)
            if not view.edited or target == found or target.exists():
                return found
            if mask_file(found).exists():
                mask_file(found).replace(mask_file(target))
            return found.replace(target)
        if not looked and not caption_file(found).exists():
            view = self.looker.captioned(item.source, view, partial(read_image, found))
        self._write_caption(item.source, view, found, report)
        return found

    def _write_caption(self, source: Path, view: View, target: Path, report: PreprocessReport) -> None:
        path = caption_file(target)
        # One in the destination may have been edited since.
        if view.caption is None or self.config.caption_place == "name" or (path.exists() and not view.edited):
            return
        copied = self.config.existing_captions == "copy" and not view.edited and caption_file(source).is_file()
        self._put(path, _bytes_of(caption_file(source)) if copied else view.caption.encode("utf-8"), report)

    def _caption_source(self, item: Planned, view: View, report: PreprocessReport, *, looked: bool) -> None:
        if not looked:
            view = self.looker.captioned(item.source, view, lambda: decode(item.source, item.size, [view], self.config).cut(view))
        now = old_caption(item.source)
        if looked and now not in (item.text, view.caption):
            raise DatasetError(f"The caption of {item.source.name} has changed since it was looked at; look again.")
        if view.caption is not None and view.caption != now:
            self._put(caption_file(item.source), view.caption.encode("utf-8"), report)

    def _put(self, path: Path, data: bytes, report: PreprocessReport) -> None:
        write_whole(path, data)
        report.captions.append(path)

    def _write_debug(self, item: Planned, picture: Picture) -> None:
        _, focus = focused(picture, list(item.views), self.config, self.looker.finder)  # once more: a plan does not keep corners
        if focus is None:
            return
        small = picture.small()
        boxes = [scaled(view.box, item.size, small.size) for view in item.views]
        buffer = BytesIO()
        debug_picture(small, focus, boxes).save(buffer, "JPEG", quality=88)
        folder = self.destination.folder / DEBUG_FOLDER
        folder.mkdir(exist_ok=True)
        write_whole(folder / f"{item.number:05d}-{item.source.stem}.jpg", buffer.getvalue())


def _bytes_of(caption: Path) -> bytes:
    try:
        return caption.read_bytes()
    except OSError as error:
        raise DatasetError(f"The caption {caption.name} cannot be read ({error.strerror or error}); check its permissions.") from error
