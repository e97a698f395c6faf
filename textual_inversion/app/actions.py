"""The actions behind the buttons of the Create and Train tabs. They take and return plain values; the engine does the work."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.app.cards import keep_card_picture
from textual_inversion.app.copies import exchange, take_back
from textual_inversion.app.job import JobKind, JobRunningError, Listener, ShouldStop, for_page, silent, user_message
from textual_inversion.app.remembered import question
from textual_inversion.description import EmbeddingDescription
from textual_inversion.errors import ConfigError, InvalidNameError, TextualInversionError
from textual_inversion.settings.creation import AUTO_VECTORS, NewEmbedding, wants_search
from textual_inversion.settings.schema import AUTO, Setting, cleaned, folder_text, setting_of, settings_of
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.text import counted
from textual_inversion.training.events import Message

if TYPE_CHECKING:
    from textual_inversion.app.cards import Card
    from textual_inversion.app.engine import Engine
    from textual_inversion.training.preflight import Preflight

_STOPPING = "Stopping after this step; what was learned is kept."
FOLDER_STAMP = "%Y-%m-%d_%H-%M-%S"
#: The values that a WebUI's txt2img page passes, in this order, as fields of `TrainingConfig`.
DRAWING_SETTINGS = (
    "preview_prompt",
    "preview_negative_prompt",
    "preview_steps",
    "preview_sampler",
    "preview_cfg_scale",
    "preview_seed",
    "preview_width",
    "preview_height",
)
_NETWORKS = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>")  # previews are drawn without them


@dataclass(frozen=True)
class Outcome:
    """The result of a click.

    Attributes:
        text: one sentence.
        kind: `done`, `error`, `hint`, or `ask`: nothing was done yet, and the same click again does it.
        name: the embedding or folder that the form should now show.
        setting: the setting at fault, by its name; empty where there is none.
    """

    text: str
    kind: str = "done"
    name: str = ""
    setting: str = ""

    @property
    def failed(self) -> bool:
        """Whether the action failed; `text` says why."""
        return self.kind == "error"


def answered(click: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """Wrap a handler so that it returns every error as an `Outcome` with the error's message."""

    @wraps(click)
    def answer(*values: Any) -> Outcome:
        try:
            return click(*values)
        except Exception as error:  # noqa: BLE001  for an error that leaves the handler, gradio shows only "Error"
            return Outcome(user_message(error), "error", setting=getattr(error, "setting", ""))

    return answer


class Actions:
    """The handlers; each returns a sentence, also after an error."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @answered
    def create(self, values: Mapping[str, Any]) -> Outcome:
        """Make a new embedding from the Create tab's values."""
        from textual_inversion.prompts.names import about_name
        from textual_inversion.training.embedding_file import STARTS_FROM_ZEROS, about_words, starts_from_zeros

        new = new_embedding(values)
        if self.engine.job.about(JobKind.TRAIN, new.name):
            raise JobRunningError(f"“{new.name}” is being trained; interrupt that first, or choose another name.")
        path = self.engine.create(new)
        card = self.card(new.name)
        vectors = f" with {card.description.vectors}" if card else ""
        blank = f" {STARTS_FROM_ZEROS[0].upper()}{STARTS_FROM_ZEROS[1:]}." if starts_from_zeros(path, new.initializer_text) else ""
        words = " Training begins with a search for words that describe the pictures." if wants_search(new.initializer_text) else ""
        remark = about_words(new.initializer_text, card.description.num_vectors) if card else ""
        said = " ".join(part for part in (remark, about_name(new.name)) if part)
        text = f"“{new.name}” is there{vectors}; the Train tab has it selected.{words}{blank} {said}"
        return Outcome(text.strip(), name=new.name)

    @answered
    def train(self, values: Mapping[str, Any], new_values: Mapping[str, Any], confirmed: str = "") -> Outcome:
        """Start training with the values of the Train and Create tabs; an embedding that does not exist yet is created first.

        Args:
            confirmed: the question that this click answers with yes; empty = none was asked.
        """
        from textual_inversion.prompts.names import about_name

        self._require_idle()
        config = self.config(values)
        new = None if self.card(config.name) else new_embedding({**new_values, "name": config.name, "overwrite": False})
        asked = (about_name(new.name), "name") if new else (question(self.engine, config), "images")
        if asked[0] and asked[0] != confirmed:
            return Outcome(asked[0], "ask", name=config.name, setting=asked[1])
        return self._start(config, new)

    @answered
    def start(self, config: TrainingConfig) -> Outcome:
        """Start training an existing embedding with the result of `settings`."""
        self._require_idle()
        return self._start(config, None)

    def _require_idle(self) -> None:
        if self.engine.job.running:
            raise JobRunningError(f"{self.engine.job.name!r} is still at work; interrupt it or wait until it is done.")

    def _start(self, config: TrainingConfig, new: NewEmbedding | None) -> Outcome:
        card = self.card(config.name)
        if card and (reason := card.reason or card.untrainable):
            raise ConfigError(f"{config.name!r} cannot be trained here: {reason}", setting="name")
        if card and card.description.step and config.steps != AUTO and card.description.step >= config.total_steps:
            reason = f"{config.name!r} is at step {card.description.step} already; raise Max steps above that to go on."
            raise ConfigError(reason, setting="steps")
        sentence = _about_run(config, new, card)
        self.engine.job.start(JobKind.TRAIN, config.name, partial(self._train, config, new, sentence), Path(config.log_dir))
        return Outcome(sentence, name=config.name)

    @answered
    def exchange(self, sent: str) -> Outcome:
        """Carry out what the page's script asks: `{"use": step, "job": id}` or `{"back": name}`."""
        job = self.engine.job
        back, job_id, step = _asked(sent)
        # the file's own name: others that lead to it differ in capitals, or have a path in them
        name = self.engine.embedding_file(back or job.name).stem
        if job.about(JobKind.TRAIN, name):
            raise JobRunningError(f"“{name}” is being trained; interrupt that first, or wait until it is done.")
        if back:
            step = take_back(self.engine, name)
            job.use_step(name, step)
            self._keep_picture(name, step)
            return Outcome(f"“{name}” holds the vectors of step {step} again.", name=name)
        step = exchange(self.engine, name, job.copy(job_id, step))
        job.use_step(name, step)
        self._keep_picture(name, step)
        return Outcome(f"“{name}” holds the vectors of step {step} now.", name=name)

    def _keep_picture(self, name: str, step: int) -> None:
        """Make the preview of a step the picture of the card, where training may choose it."""
        if preview := self.engine.job.preview(step):
            target = self.engine.embedding_file(name).parent / f"{name}.preview.png"
            keep_card_picture(preview, target, silent)

    def check(self, values: Mapping[str, Any], new_values: Mapping[str, Any]) -> Preflight:
        """Check what Train would do with these values. The check takes seconds and loads no checkpoint."""
        from textual_inversion.training.preflight import FATAL, Finding, Preflight, preflight

        try:
            config = self.config(values)
            card = self.card(config.name)
            new = None if card else new_embedding({**new_values, "name": config.name, "overwrite": False})
            checkpoint = self.engine.host.checkpoint().path
            facts = card.description if card else EmbeddingDescription(_vectors(new))
            finds_words = wants_search(new.initializer_text if new else facts.initializer_text)
            found = preflight(config, facts.num_vectors, checkpoint, first_step=0 if new else facts.step, finds_words=finds_words)
            return replace(found, findings=tuple(replace(each, text=for_page(each.text)) for each in found.findings))
        except (TextualInversionError, OSError) as error:
            return Preflight(findings=(Finding(FATAL, user_message(error)),))

    def interrupt(self) -> Outcome:
        """Ask the running job to stop."""
        job = self.engine.job
        writing, looking = job.about(JobKind.PREPROCESS), job.about(JobKind.LOOK)
        if job.interrupt():
            at_pictures = "Stopping after this picture; " + ("those that are written stay." if writing else "nothing is written.")
            return Outcome(at_pictures if writing or looking else _STOPPING)
        return Outcome("Nothing is running.", "hint")

    def card(self, name: str) -> Card | None:
        """The card of the embedding called `name`, a usable one first; None when there is none."""
        return min((card for card in self.engine.cards() if card.name == name), key=lambda card: bool(card.reason), default=None)

    def names(self) -> list[str]:
        """Embeddings that can be trained here."""
        return [card.name for card in self.engine.cards() if not (card.reason or card.untrainable)]

    def left_out(self) -> list[Card]:
        """Embeddings that cannot be trained here."""
        return [card for card in self.engine.cards() if card.reason or card.untrainable]

    def config(self, values: Mapping[str, Any]) -> TrainingConfig:
        """Checked settings from the Train tab's values; the log folder belongs to this run alone."""
        return self.settings(cleaned(TrainingConfig, values))

    def settings(self, values: Mapping[str, Any]) -> TrainingConfig:
        """Checked settings from values that have the right types. Paths are this host's; the log folder belongs to this run alone."""
        from textual_inversion.embedding import check_name
        from textual_inversion.pictures.folder import require_images
        from textual_inversion.prompts.templates import read_template

        paths = {each.name: folder_text(values.get(each.name)) for each in settings_of(TrainingConfig) if each.folder}
        name, folders = check_name(values["name"]), self.engine.host.folders()
        require_images(paths["images"])
        if template := values.get("template"):
            paths["template"] = str(folders.templates / Path(template).name)
            read_template(paths["template"])  # reports a bad template before the checkpoint is loaded
        log = Path(paths["log_dir"] or folders.outputs / "training").expanduser()
        paths["log_dir"] = str(log / name / time.strftime(FOLDER_STAMP))
        return TrainingConfig.from_dict({**values, **paths})

    def _train(self, config: TrainingConfig, new: NewEmbedding | None, sentence: str, listener: Listener, should_stop: ShouldStop) -> None:
        listener(Message(sentence))
        if new:
            listener(Message(f"Creating “{new.name}”"))
            self.engine.create(new)
        self.engine.train(config, listener, should_stop)


def new_embedding(values: Mapping[str, Any]) -> NewEmbedding:
    """The Create tab's values, checked.

    Raises:
        InvalidNameError: a bad name. ConfigError: a bad number of vectors.
    """
    from textual_inversion.embedding import check_name

    fields = cleaned(NewEmbedding, values)
    check_name(fields["name"])
    return NewEmbedding.from_dict(fields)


def _about_run(config: TrainingConfig, new: NewEmbedding | None, card: Card | None) -> str:
    """What a run takes: the embedding with its vectors, and the pictures."""
    pictures = f"the pictures in {config.images}"
    if new:
        return f"“{new.name}” did not exist and is created first, with {begins_with(new)}; it learns {pictures}."
    vectors = f" with {card.description.vectors}" if card else ""
    return f"“{config.name}”{vectors} learns {pictures}."


def begins_with(new: NewEmbedding) -> str:
    """The vectors of a new embedding and what they start from, such as `4 vectors from “shape”`."""
    return f"{counted(_vectors(new), 'vector')} from {new.origin}"


def _vectors(new: NewEmbedding | None) -> int:
    """How many vectors a new embedding will have."""
    from textual_inversion.prompts.tokenizer import default_tokenizer

    if new is None or new.num_vectors != "auto":
        return int(new.num_vectors) if new else 1
    if wants_search(new.initializer_text):
        return AUTO_VECTORS
    return max(1, len(default_tokenizer().encode(new.initializer_text)))


def name_problem(name: str) -> str:
    """Why `name` cannot be a new word; empty when it can."""
    from textual_inversion.embedding import check_name

    try:
        check_name(name)
    except InvalidNameError as error:
        return str(error)
    return ""


def preview_settings(drawn_with: Sequence[Any], fixed_seed: Any) -> dict[str, Any]:
    """Values of `DRAWING_SETTINGS` adapted to previews: within their ranges, with a sampler that this package has.

    Args:
        drawn_with: the values of the txt2img page.
        fixed_seed: replaces a random seed, so that previews can be compared.
    """
    values = zip(DRAWING_SETTINGS, drawn_with)
    return {name: _usable(setting_of(TrainingConfig, name), value, fixed_seed) for name, value in values}


def _usable(setting: Setting, value: Any, fixed_seed: Any) -> Any:
    """`value` adapted to the setting: a number within its range, a sampler that this package has, a prompt without networks."""
    if setting.choices:
        known = {choice.lower(): choice for choice in setting.choices}
        return known.get(str(value or "").lower(), setting.default)
    if setting.type is str:
        return " ".join(_NETWORKS.sub("", str(value or "")).split("\n")).strip()  # previews take a line for a prompt of its own
    if setting.name == "preview_seed":
        seed = int(value if value not in (None, "") else -1)
        return seed if seed == setting.nearest(seed) else fixed_seed
    return setting.nearest(float(value or 0))


def _asked(sent: str) -> tuple[str, str, int]:
    """What the page's script asks of `Actions.exchange`: the name to take back (empty = none), else the job and the step to use."""
    try:
        asked = json.loads(sent or "{}")
        back = asked.get("back", "")
        return str(back), str(asked.get("job", "")), 0 if back else int(asked["use"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigError("The page asked for something that is not known here; reload it.") from error
