"""The review of pictures before preprocessing: the planned results of each picture, and the user's changes to them.

The page's script sends clicks and typed captions as numbered commands. It repeats them until the server confirms
their numbers, because gradio drops a call while an earlier call is running.
"""

from __future__ import annotations

import io
import json
import secrets
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from textual_inversion.app.choices import ChoiceFiles, Choices, apply, choices_of, without_written
from textual_inversion.app.job import Advanced, Job, Listener, ShouldStop, left_out
from textual_inversion.errors import ConfigError, DatasetError
from textual_inversion.text import counted
from textual_inversion.training.events import Message

if TYPE_CHECKING:
    from textual_inversion.preprocess.captioning import Captioner
    from textual_inversion.preprocess.plan import Planned
    from textual_inversion.preprocess.run import PreprocessConfig

PAGE = 24  # pictures on the page at a time
THUMBNAIL = 384  # pixels of the longer side
MOST_CAPTION = 2000  # characters, as the page allows
MOST_CLIENTS = 200  # pages of browsers whose commands are counted
ALL, UNREADABLE, LEFT_OUT, DONE = "all", "unreadable", "out", "done"
_one_at_a_time = threading.Lock()
_sessions: WeakKeyDictionary[Job, ReviewSession] = WeakKeyDictionary()


def review_of(job: Job) -> ReviewSession:
    """The review that belongs to this job. All pages of the program share it, so that a reloaded page finds it again."""
    return _sessions.setdefault(job, ReviewSession())


@dataclass
class ReviewSession:
    """A set of pictures under review, and which of them are shown.

    Attributes:
        id: identifies the set of pictures; a new set gets a new id. Empty while there is no set.
        config: the settings of the plan.
        planned: one entry for each picture, with the user's changes.
        notes: sentences on what the settings cannot do on this machine.
        show: the filter: `all`, a kind of problem, `unreadable`, `out` or `done`.
        page: number of the page within the filtered pictures, from 0.
        taken: id of a browser page -> number of its last command that was carried out.
        writing: the results are being written; until that ends, nothing can be changed.
        kept_in: the files that keep the user's changes; None = they are lost at the program's end.
    """

    id: str = ""
    config: PreprocessConfig | None = None
    planned: list[Planned] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    show: str = ALL
    page: int = 0
    taken: dict[str, int] = field(default_factory=dict)
    writing: bool = False
    kept_in: ChoiceFiles | None = None

    def look(self, config: PreprocessConfig, captioners: Mapping[str, Captioner], listener: Listener, should_stop: ShouldStop) -> str:
        """Plan every picture of the source and return one sentence. The user's earlier changes to the same pictures stay."""
        from textual_inversion.preprocess.run import notes, plan

        latest = [0, 0]  # done, total

        def progress(done: int, total: int, _name: str) -> None:
            latest[:] = done, total
            listener(Advanced(done, total))

        planned = plan(config, progress, should_stop, captioners=captioners)
        if should_stop() and latest[0] < latest[1]:
            return f"Stopped after {latest[0]} of {counted(latest[1], 'picture')}; nothing has changed."
        planned = apply(planned, self.choices(config.source_path))
        self.close()
        self.config, self.planned, self.notes = config, planned, notes(config)
        for sentence in _about_files(config, planned):
            listener(Message(sentence))
        self.id = secrets.token_hex(6)
        for item in planned:
            if item.reason:
                listener(Message(left_out(item.source.name, item.reason)))
        return f"{counted(len(planned), 'picture')} looked at; nothing is written yet."

    def choices(self, source: Path) -> Choices:
        """The user's changes to the pictures of the folder `source`, also from an earlier review or an earlier start of the program."""
        if self.config is None or self.config.source_path != source:
            return self.kept_in.load(source) if self.kept_in else {}
        return {**self._away(source), **choices_of(self.planned)}

    def _away(self, source: Path) -> Choices:
        """Choices for pictures that this look did not find or could not read; they count again when the pictures are there again."""
        planned = {(item.source.name, view.part) for item in self.planned for view in item.views}
        kept = self.kept_in.load(source) if self.kept_in and self.planned else {}
        return {key: choice for key, choice in kept.items() if key not in planned}

    def forget(self) -> None:
        """End the review and forget the user's changes."""
        if self.kept_in and self.config:
            self.kept_in.save(self.config.source_path, {})
        self.close()

    def end_written(self, source: Path) -> None:
        """End the review after all results of the folder `source` were written. What was left out stays left out."""
        if self.kept_in:
            choices, away = self.choices(source), self._away(source)
            self.kept_in.save(source, {**away, **without_written(choices)})
        self.close()

    def close(self) -> None:
        """End the review; the page shows no pictures any more, and the user's changes stay on disk."""
        self.id, self.config, self.planned, self.notes = "", None, [], []
        self.show, self.page, self.taken = ALL, 0, {}

    def for_writing(self, config: PreprocessConfig) -> list[Planned] | None:
        """The reviewed pictures for a run with these settings; None without a review.

        Raises:
            ConfigError: the review was made with other settings.
        """
        if not self.id:
            return None
        if config != self.config:
            raise ConfigError(
                "The settings were changed after the pictures were looked at; click Look again (captions and choices of yours stay), "
                "or close the pictures below."
            )
        return list(self.planned)

    def places(self, show: str | None = None) -> list[int]:
        """Indices into `planned` of the pictures that pass the filter `show`; None = the current filter."""
        show = self.show if show is None else show
        return [place for place, item in enumerate(self.planned) if show in (ALL, *kinds(item))]

    def shown(self) -> list[int]:
        """Indices into `planned` of the pictures on the current page."""
        return self.places()[self.page * PAGE : (self.page + 1) * PAGE]

    @property
    def pages(self) -> int:
        """How many pages there are, at least one."""
        return max(1, -(-len(self.places()) // PAGE))

    def counts(self) -> Counter[str]:
        """How many pictures there are of each kind."""
        return Counter(kind for item in self.planned for kind in (ALL, *kinds(item)))

    def sizes(self) -> Counter[tuple[int, int]]:
        """(width, height) -> number of chosen results, mirrored copies included."""
        copies = 1 + len(self.config.flips) if self.config else 1
        results: Counter[tuple[int, int]] = Counter()
        for item in self.planned:
            for view in item.views:
                results[view.size] += copies * view.chosen
        return +results  # drops sizes with a count of 0

    def take(self, sent: Any) -> bool:
        """Carry out each command that the page's script sent as JSON, once; returns whether the page must be redrawn."""
        before = (self.id, self.show, self.page)
        request, draw_anew = _object(sent), False
        client = client_of(sent)
        if self.writing or not self.id or request.get("look") != self.id:
            return False
        changed = choices_of(self.planned)
        commands = request.get("commands")
        for command in commands if isinstance(commands, list) else []:
            if isinstance(command, dict) and (number := _whole(command.get("n"))) > self.taken.get(client, 0):
                draw_anew |= self._do(command)
                if self.id:  # the command may have ended the review
                    self.taken[client] = number
        if self.kept_in and self.config and choices_of(self.planned) != changed:
            self.kept_in.save(self.config.source_path, self.choices(self.config.source_path))
        while len(self.taken) > MOST_CLIENTS:
            self.taken.pop(next(iter(self.taken)))
        return draw_anew or (self.id, self.show, self.page) != before

    def _do(self, command: Mapping[str, Any]) -> bool:
        kind = command.get("do")
        if kind == "forget":
            self.forget()
        elif kind == "show":
            self.show, self.page = str(command.get("kind") or ALL), 0
        elif kind == "page":
            self.page = min(max(0, _whole(command.get("page"))), self.pages - 1)
        elif kind == "choose_shown":
            for place in self.places():
                self.planned[place] = self.planned[place].choose(bool(command.get("chosen")))
            return True
        elif 0 <= (place := _whole(command.get("item"))) < len(self.planned):
            item, part = self.planned[place], command.get("part")
            part = part if isinstance(part, int) else None
            if kind == "choose":
                self.planned[place] = item.choose(bool(command.get("chosen")), part)
            elif kind == "caption":
                self.planned[place] = item.with_caption(str(command.get("text") or "")[:MOST_CAPTION], part)
        return False

    def thumbnail(self, look: str, place: int) -> bytes | None:
        """A small JPEG of a whole upright source picture; None when there is no such picture, or when it can no longer be read."""
        if look != self.id or not look or not 0 <= place < len(self.planned) or self.config is None:
            return None
        source = self.planned[place].source
        try:
            return small_jpeg(str(source), source.stat().st_mtime_ns, self.config.exif, self.config.background)
        except (OSError, DatasetError, MemoryError):
            return None


def _about_files(config: PreprocessConfig, planned: list[Planned]) -> list[str]:
    """Sentences on the captions, and on the files of the source folder that are not used."""
    from textual_inversion.pictures.captions import caption_source
    from textual_inversion.pictures.contents import account, account_for_folders
    from textual_inversion.prompts.examples import show_captions

    captions = show_captions([view.caption or "" for item in planned for view in item.views])
    folder = config.source_path
    try:
        files = account(folder, {item.source: caption_source(item.source) for item in planned})
    except DatasetError:
        files = []  # the picture whose caption cannot be read has that as its reason
    return [sentence for sentence in (captions, *files, *account_for_folders(folder, [], searched=False, advice="")) if sentence]


def kinds(item: Planned) -> list[str]:
    """Filters that show a picture, besides `all`."""
    filters = list(dict.fromkeys(problem.kind for problem in item.problems))
    filters += [UNREADABLE] if item.reason else []
    filters += [LEFT_OUT] if item.views and not all(view.chosen for view in item.views) else []
    return filters + ([DONE] if item.done else [])


def sent_for(sent: Any) -> str:
    """Id of the set of pictures that the page showed when its script last sent something."""
    return str(_object(sent).get("look") or "")


def client_of(sent: Any) -> str:
    """Id of the browser page that sent `sent`; each page numbers its own commands."""
    return str(_object(sent).get("client") or "")[:40]


def _object(sent: Any) -> dict[str, Any]:
    try:
        value = json.loads(sent or "{}")
    except (TypeError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


@lru_cache(maxsize=256)
def small_jpeg(path: str, _modified: int, upright: bool, background: str) -> bytes:
    """JPEG of a picture, 384 pixels on its longer side at most.

    Raises:
        DatasetError: the picture cannot be read.
    """
    from textual_inversion.pictures.reading import on_colour, read_colours

    with _one_at_a_time:  # a browser asks for six at once, and each may have 100 megapixels
        image = read_colours(Path(path), (THUMBNAIL, THUMBNAIL), upright=upright)
        image.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=2.0)
    buffer = io.BytesIO()
    on_colour(image, background).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
