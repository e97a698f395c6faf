"""What the buttons of the Preprocess tab do, in plain values. Knows nothing of gradio; a host lends its job and its interrogators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from textual_inversion.training.events import Message
from textual_inversion.training.job import Advanced, Listener, ShouldStop, left_out
from textual_inversion.ui.actions import Outcome, answered
from textual_inversion.ui.looking import JOB, Looking, counted, looking_of
from textual_inversion.ui.preprocess_form import config_of

if TYPE_CHECKING:
    from textual_inversion.hosts.port import Host
    from textual_inversion.preprocess.captioning import Captioner
    from textual_inversion.preprocess.plan import Planned
    from textual_inversion.preprocess.run import PreprocessConfig

OURS = ("blip", "tagger")  # captioners that need no WebUI


class Preprocessing:
    """The handlers, over one host; every one answers with a sentence, whatever happens."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @property
    def looking(self) -> Looking:
        """What was looked at."""
        return looking_of(self.host.job)

    def captioners(self) -> list[str]:
        """Names of who can describe pictures."""
        return [*self.host.captioners(), *OURS]

    @answered
    def look(self, values: Mapping[str, Any]) -> Outcome:
        """Look at the pictures in the background; nothing is written."""
        config = config_of(values)
        download = bool(values.get("may_download"))

        def work(listener: Listener, stop: ShouldStop) -> str:
            return self.looking.look(config, self._load(config, download, listener), listener, stop)

        self.host.job.start(JOB, config.source_path.name, work)
        return Outcome("")

    @answered
    def write(self, values: Mapping[str, Any], sent: Any = "") -> Outcome:
        """Preprocess in the background, as it was looked at and changed if it was; `sent` are the page's latest commands."""
        config = config_of(values)
        self.looking.take(sent)
        planned = self.looking.for_writing(config)
        download = bool(values.get("may_download"))

        def work(listener: Listener, stop: ShouldStop) -> str:
            captioners = self._load(config, download, listener) if planned is None else {}
            told = write(config, planned, captioners, listener, stop)
            self.looking.forget()
            return told

        self.host.job.start("preprocess", config.source_path.name, work)
        wanted = values.get("use_result") and not config.captions_only
        return Outcome("", name=config.destination if wanted else "")

    def _load(self, config: PreprocessConfig, may_download: bool, listener: Listener) -> dict[str, Captioner]:
        from textual_inversion.preprocess.captioners import load_captioners

        if not config.captioners:
            return {}
        listener(Message(f"Loading {' and '.join(config.captioners)}"))
        progress: Callable[[int, int, str], None] = lambda done, total, _name: listener(Advanced(done, total))  # noqa: E731
        return load_captioners(config, self.host.captioners(), may_download=may_download, progress=progress)


def write(
    config: PreprocessConfig,
    planned: list[Planned] | None,
    captioners: Mapping[str, Captioner],
    listener: Listener,
    should_stop: ShouldStop,
) -> str:
    """Preprocess, and say in one sentence what came of it."""
    from textual_inversion.preprocess.run import preprocess

    def progress(done: int, total: int, _name: str) -> None:
        listener(Advanced(done, total))

    report = preprocess(config, progress, should_stop, planned=planned, captioners=captioners)
    for file, reason in report.skipped:
        listener(Message(left_out(file, reason)))
    for note in report.notes:
        listener(Message(note))
    if config.captions_only:
        parts = [f"{counted(len(report.captions), 'caption')} written"]
    else:
        parts = [f"{len(report.written)} written"]
        parts += [f"{len(report.kept)} kept from before"] if report.kept else []
    parts += [f"{len(report.skipped)} left out"] if report.skipped else []
    return f"{', '.join(parts)}; they are in {config.destination_path}."
