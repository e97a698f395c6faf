"""What the buttons of the three tabs do, in plain values. Knows nothing of gradio; a host does the work."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.app.job import JobRunningError, Listener, ShouldStop, user_message
from textual_inversion.description import EmbeddingDescription
from textual_inversion.errors import ConfigError, InvalidNameError, TextualInversionError
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.events import Message
from textual_inversion.ui import form

if TYPE_CHECKING:
    from textual_inversion.app.port import Card, Host, NewEmbedding
    from textual_inversion.training.preflight import Preflight

_STOPPING = "Stopping after this step; what was learned is kept."
FOLDER_STAMP = "%Y-%m-%d_%H-%M-%S"


@dataclass(frozen=True)
class Outcome:
    """What a click led to: a sentence, whether it is an `error`, and the embedding or folder that the form should now show."""

    text: str
    kind: str = "done"
    name: str = ""

    @property
    def failed(self) -> bool:
        """Whether the click did nothing but say why."""
        return self.kind == "error"


def answered(click: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """The handler with every error as its answer."""

    @wraps(click)
    def answer(*given: Any) -> Outcome:
        try:
            return click(*given)
        except Exception as error:  # noqa: BLE001  a click's last frame: of what rises above it gradio shows "Error" and no more
            return Outcome(user_message(error), "error")

    return answer


class Actions:
    """The handlers, over one host; every one answers with a sentence, whatever happens."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @answered
    def create(self, values: Mapping[str, Any]) -> Outcome:
        """Make a new embedding from the Create tab's values."""
        from textual_inversion.training.embedding_file import STARTS_FROM_ZEROS, starts_from_zeros

        new = new_embedding(values)
        if self.host.job.about("train", new.name):
            raise JobRunningError(f"“{new.name}” is being trained; interrupt that first, or choose another name.")
        path = self.host.create(new)
        card = self.card(new.name)
        vectors = f" with {card.description.vectors}" if card else ""
        blank = f" {STARTS_FROM_ZEROS[0].upper()}{STARTS_FROM_ZEROS[1:]}." if starts_from_zeros(path, new.initializer_text) else ""
        return Outcome(f"“{new.name}” is there{vectors}; the Train tab has it selected.{blank}", name=new.name)

    @answered
    def train(self, values: Mapping[str, Any], new_values: Mapping[str, Any]) -> Outcome:
        """Start training in the background; an embedding that does not exist yet is created first."""
        if self.host.job.running:
            about = self.host.job.snapshot()["name"]
            raise JobRunningError(f"{about!r} is still at work; interrupt it or wait until it is done.")
        config = self.config(values)
        card = self.card(config.name)
        if card and (reason := card.reason or card.untrainable):
            raise ConfigError(f"{config.name!r} cannot be trained here: {reason}")
        if card and card.description.step and card.description.step >= config.steps:
            raise ConfigError(f"{config.name!r} is at step {card.description.step} already; raise Max steps above that to go on.")
        new = None if card else new_embedding({**new_values, "name": config.name, "overwrite": False})
        self.host.job.start("train", config.name, lambda listener, stop: self._train(config, new, listener, stop), Path(config.log_dir))
        origin = f"“{new.initializer_text}”" if new and new.initializer_text else "zeros"
        return Outcome(f"“{config.name}” did not exist and is created first, from {origin}." if new else "", name=config.name)

    def check(self, values: Mapping[str, Any], new_values: Mapping[str, Any]) -> Preflight:
        """Look at what Train would do with these values, without doing it; takes seconds and loads no checkpoint."""
        from textual_inversion.training.preflight import FATAL, Finding, Preflight, preflight

        try:
            config = self.config(values)
            card = self.card(config.name)
            new = None if card else new_embedding({**new_values, "name": config.name, "overwrite": False})
            checkpoint = self.host.checkpoint().path
            facts = card.description if card else EmbeddingDescription(_vectors(new))
            return preflight(config, facts.num_vectors, checkpoint, first_step=facts.step or 0)
        except (TextualInversionError, OSError) as error:
            return Preflight(findings=(Finding(FATAL, user_message(error)),))

    def interrupt(self) -> Outcome:
        """Ask the running job to stop."""
        job = self.host.job
        writing, looking = job.about("preprocess"), job.about("look")
        if job.interrupt():
            at_pictures = "Stopping after this picture; " + ("those that are written stay." if writing else "nothing is written.")
            return Outcome(at_pictures if writing or looking else _STOPPING)
        return Outcome("Nothing is running.", "hint")

    def card(self, name: str) -> Card | None:
        """The embedding of that name, one that can be used before others; None when there is none."""
        return min((card for card in self.host.cards() if card.name == name), key=lambda card: bool(card.reason), default=None)

    def names(self) -> list[str]:
        """Embeddings that can be trained here."""
        return [card.name for card in self.host.cards() if not (card.reason or card.untrainable)]

    def left_out(self) -> list[Card]:
        """Those that cannot."""
        return [card for card in self.host.cards() if card.reason or card.untrainable]

    def config(self, values: Mapping[str, Any]) -> TrainingConfig:
        """The Train tab's values as settings, checked; the log folder is this run's own."""
        from textual_inversion.embedding import check_name
        from textual_inversion.pictures.folder import require_images
        from textual_inversion.prompts.templates import read_template

        defaults = form.training_defaults()
        labels = {setting.key: setting.label for setting in form.train_settings()}
        cleaned = {key: clean(values[key], default, labels.get(key, key)) for key, default in defaults.items() if key in values}
        check_name(cleaned["name"])
        cleaned["images"] = folder_text(cleaned["images"])
        require_images(cleaned["images"])
        if cleaned.get("template"):
            cleaned["template"] = str(self.host.folders().templates / Path(cleaned["template"]).name)
            read_template(cleaned["template"])  # told now rather than after a checkpoint was loaded
        cleaned["latent_cache"] = folder_text(cleaned.get("latent_cache", ""))
        log = folder_text(cleaned.get("log_dir", "")) or str(self.host.folders().outputs / "training")
        cleaned["log_dir"] = str(Path(log).expanduser() / cleaned["name"] / time.strftime(FOLDER_STAMP))
        return TrainingConfig.from_dict(cleaned)

    def _train(self, config: TrainingConfig, new: NewEmbedding | None, listener: Listener, should_stop: ShouldStop) -> None:
        if new:
            listener(Message(f"Creating “{new.name}”"))
            self.host.create(new)
        self.host.train(config, listener, should_stop)


def new_embedding(values: Mapping[str, Any]) -> NewEmbedding:
    """The Create tab's values, checked.

    Raises:
        InvalidNameError, ConfigError: what cannot be a name or a number of vectors.
    """
    from textual_inversion.app.port import NewEmbedding
    from textual_inversion.embedding import MAX_VECTORS, check_name

    name = check_name(str(values["name"] or "").strip())
    count: int | str = str(values["num_vectors"] or "").strip().lower()
    if count != "auto":
        count = _whole(count, "Number of vectors per token")
        if not 1 <= count <= MAX_VECTORS:
            raise ConfigError(f"Number of vectors per token is {count}; it must be from 1 to {MAX_VECTORS}, or auto.")
    return NewEmbedding(name, str(values["initializer_text"] or "").strip(), count, bool(values["overwrite"]))


def _vectors(new: NewEmbedding | None) -> int:
    """How many vectors a new embedding will have."""
    from textual_inversion.prompts.tokenizer import default_tokenizer

    if new is None or new.num_vectors != "auto":
        return int(new.num_vectors) if new else 1
    return max(1, len(default_tokenizer().encode(new.initializer_text)))


def name_problem(name: str) -> str:
    """Why `name` cannot be a new word; empty when it can."""
    from textual_inversion.embedding import check_name

    try:
        check_name(name)
    except InvalidNameError as error:
        return str(error)
    return ""


def clean(value: Any, default: Any, label: str) -> Any:
    """What a component holds as the type of its setting: gradio hands whole numbers over as floats and empty ones as None."""
    if isinstance(default, bool):
        return bool(value)
    if isinstance(default, int):
        return _whole(value, label)
    if isinstance(default, float):
        return _number(value, label)
    text = str(value if value is not None else "")
    return text if default and not str(default).strip() else text.strip()  # a space is a setting where a space is the default


def folder_text(value: Any) -> str:
    """A folder as people paste it, without spaces or quotation marks around it, `~` resolved."""
    text = os.path.expanduser(re.sub(r"^([\"'])(.*)\1$", r"\2", str(value or "").strip()).strip())
    return os.path.abspath(text) if text.startswith("~") else text  # the home of nobody: pathlib would raise, this does not exist


def _number(value: Any, label: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{label} is {'empty' if value in (None, '') else repr(value)}; it must be a number.") from None


def _whole(value: Any, label: str) -> int:
    number = _number(value, label)
    if number != number or not float(number).is_integer():
        raise ConfigError(f"{label} is {value!r}; it must be a whole number.")
    return int(number)
