"""The actions behind the buttons of the Preprocess tab. They take and return plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.app.actions import Outcome, answered
from textual_inversion.app.choices import ChoiceFiles, apply
from textual_inversion.app.job import Advanced, JobKind, Listener, ShouldStop, left_out, never, silent
from textual_inversion.app.review import ReviewSession, review_of
from textual_inversion.errors import DatasetError
from textual_inversion.settings.preprocessing import PreprocessConfig
from textual_inversion.settings.schema import cleaned
from textual_inversion.text import counted
from textual_inversion.training.events import Message

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine
    from textual_inversion.preprocess.captioning import Captioner
    from textual_inversion.preprocess.plan import Planned

OURS = ("blip", "tagger")  # captioners that need no WebUI
_BYTES_A_MESSAGE = 50 * 2**20  # bytes of a download between two messages


class Preprocessing:
    """The handlers; each returns a sentence, also after an error."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def review(self) -> ReviewSession:
        """The review of this engine's job, with the user's changes of earlier reviews."""
        review = review_of(self.engine.job)
        if review.kept_in is None:
            review.kept_in = ChoiceFiles(self.engine.host.folders().outputs / "reviews")
        return review

    @property
    def parent(self) -> Path:
        """The folder in which each source gets a destination of its own."""
        return self.engine.host.folders().outputs / "preprocessed"

    def destination_for(self, source: Path) -> Path:
        """A folder for the results of the folder `source`: named after it, and without pictures of another source."""
        from textual_inversion.preprocess.destination import Destination, caption_stem

        name, pictures = caption_stem(source.name) or "pictures", _pictures_in(source)
        places = (self.parent / (name if number == 1 else f"{name} {number}") for number in count(1))
        configs = (PreprocessConfig(str(source), str(place)) for place in places if place.resolve() != source.expanduser().resolve())
        return next(config.destination_path for config in configs if not Destination(config).pictures_of_others(pictures))

    def captioners(self) -> list[str]:
        """Names of the available captioners."""
        return [*self.engine.host.captioners(silent, never), *OURS]

    @answered
    def look(self, values: Mapping[str, Any]) -> Outcome:
        """Plan the pictures in the background for review; nothing is written."""
        config = self._config(values)
        download = bool(values.get("may_download"))

        def work(listener: Listener, stop: ShouldStop) -> str:
            return self.review.look(config, self._load(config, download, listener, stop), listener, stop)

        self.engine.job.start(JobKind.LOOK, config.source_path.name, work)
        return Outcome("")

    @answered
    def write(self, values: Mapping[str, Any], sent: Any = "", confirmed: str = "") -> Outcome:
        """Preprocess in the background; pictures keep the user's changes from looking at them, now or earlier.

        Args:
            values: the form's values.
            sent: the latest commands of the page's script; they may contain a caption that the user is still typing.
            confirmed: the question that this click answers with yes; empty = none was asked.
        """
        config = self._config(values)
        review = self.review
        review.take(sent)
        planned = review.for_writing(config)
        if (asked := _question(config)) and asked != confirmed:
            return Outcome(asked, "ask", setting="destination")
        download = bool(values.get("may_download"))

        def work(listener: Listener, stop: ShouldStop) -> str:
            captioners = self._load(config, download, listener, stop) if planned is None else {}
            wanted = self._as_chosen_earlier(config, captioners, listener, stop) if planned is None else planned
            review.writing = True
            try:
                message, complete = write(config, wanted, captioners, listener, stop)
            finally:
                review.writing = False
            if complete and not stop():  # otherwise the next run needs the user's changes again
                review.end_written(config.source_path)
            return message

        self.engine.job.start(JobKind.PREPROCESS, config.source_path.name, work)
        wanted = values.get("use_result") and not config.captions_only
        return Outcome("", name=config.destination if wanted else "")

    def _config(self, values: Mapping[str, Any]) -> PreprocessConfig:
        """The form's settings; in place of the folder of all destinations, the source gets one of its own."""
        config = config_of(values)
        shared = config.destination and config.destination_path == self.parent and config.source
        return replace(config, destination=str(self.destination_for(config.source_path))) if shared else config

    def _as_chosen_earlier(
        self, config: PreprocessConfig, captioners: Mapping[str, Captioner], listener: Listener, should_stop: ShouldStop
    ) -> list[Planned] | None:
        """A plan with the choices of an earlier review of the same folder; None where there are none."""
        from textual_inversion.preprocess.plan import plan

        choices = self.review.choices(config.source_path)
        if not choices:
            return None
        listener(Message("Choices of an earlier look at these pictures are used; Look shows them.", important=True))
        return apply(plan(config, lambda done, total, _: listener(Advanced(done, total)), should_stop, captioners=captioners), choices)

    def _load(self, config: PreprocessConfig, may_download: bool, listener: Listener, should_stop: ShouldStop) -> dict[str, Captioner]:
        if not config.captioners:
            return {}
        from textual_inversion.diffusion.model import best_device
        from textual_inversion.preprocess.captioning import load_captioners

        def progress(done: int, total: int, file: str) -> None:
            if done % _BYTES_A_MESSAGE < 2**20 or done == total:
                listener(Message(f"{file}: {done >> 20} of {total >> 20} MB"))

        listener(Message(f"Loading {' and '.join(config.captioners)}"))
        offered = self.engine.host.captioners(listener, should_stop)
        device = self.engine.host.device() or best_device()
        return load_captioners(config, offered, device=device, may_download=may_download, progress=progress, should_stop=should_stop)


def config_of(values: Mapping[str, Any]) -> PreprocessConfig:
    """The Preprocess tab's values as settings.

    Raises:
        ConfigError: with the name of the first setting that cannot be used.
    """
    fields = cleaned(PreprocessConfig, values)
    if fields.get("captions_only"):
        fields["destination"] = ""  # the form's field for it is never empty
    return PreprocessConfig.from_dict(fields)


def _question(config: PreprocessConfig) -> str:
    """What to ask before pictures join others that are not of the same source; empty where they do not."""
    from textual_inversion.preprocess.destination import Destination, about_others

    return about_others(Destination(config).pictures_of_others(_pictures_in(config.source_path)), config.destination_path)


def _pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder; none where it cannot be listed, which looking and writing report."""
    from textual_inversion.pictures.folder import find_images

    try:
        return find_images(folder)
    except DatasetError:
        return []


def values_of(config: PreprocessConfig) -> dict[str, Any]:
    """Values of the form's components for these settings; with an empty destination, the form keeps its own."""
    values = config.to_dict().items()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values if name != "destination" or value}


def write(
    config: PreprocessConfig,
    planned: list[Planned] | None,
    captioners: Mapping[str, Captioner],
    listener: Listener,
    should_stop: ShouldStop,
) -> tuple[str, bool]:
    """Preprocess; returns the outcome in one sentence, and whether all chosen results exist now.

    Args:
        config: the settings.
        planned: the reviewed pictures; None = all pictures of the source.
        captioners: name -> captioner, for the names in `config`.
        listener, should_stop: of the job.
    """
    from textual_inversion.preprocess.run import preprocess

    def progress(done: int, total: int, _name: str) -> None:
        listener(Advanced(done, total))

    report = preprocess(config, progress, should_stop, planned=planned, captioners=captioners)
    for file, reason in report.skipped:
        listener(Message(left_out(file, reason), important=True))
    for note in report.notes:
        listener(Message(note, important=True))
    if config.captions_only:
        parts = [f"{counted(len(report.captions), 'caption')} written"]
    else:
        parts = [f"{len(report.written)} written"]
        parts += [f"{len(report.kept)} kept from before"] if report.kept else []
    parts += [f"{len(report.skipped)} left out"] if report.skipped else []
    parts += [f"{len(report.left_out)} left out as you chose"] if report.left_out else []
    message = f"{', '.join(parts)}; they are in {config.destination_path}."
    if report.stopped:
        message += " The rest is still to be done; Preprocess goes on with it."
    unusable_before = {item.source.name for item in planned or [] if item.reason}
    return message, not report.stopped and all(name in unusable_before for name, _ in report.skipped)
