"""The adapter that A1111, reForge and Forge build upon: folders, settings and queue. Knows no one of them."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules import paths, shared

from textual_inversion.app.engine import EngineHost
from textual_inversion.app.job import never, silent
from textual_inversion.app.port import Folders, Suggestions
from textual_inversion.errors import ConfigError
from textual_inversion.formats import PICTURE_ENDINGS, READ_ENDINGS
from textual_inversion.hosts.webui import options
from textual_inversion.hosts.webui.interrogators import interrogators
from textual_inversion.hosts.webui.turn import StoppedWaitingError, queue_if_free, queue_turn, running, tensorboard
from textual_inversion.prompts.templates import template_folder
from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.settings.schema import setting_of
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.events import Stopped

if TYPE_CHECKING:
    from textual_inversion.app.job import Listener, ShouldStop
    from textual_inversion.preprocess.captioning import Captioner

_PICKLES = tuple(ending for ending in READ_ENDINGS if ending not in (".safetensors", *PICTURE_ENDINGS))


class WebUIHost(EngineHost):
    """A WebUI of the Stable Diffusion WebUI family; a host adds its checkpoint, its memory and its token table."""

    @abstractmethod
    def install(self) -> None:
        """Change what has to be changed in the WebUI; a second call changes nothing."""

    @abstractmethod
    def remove(self) -> None:
        """Undo that."""

    @abstractmethod
    def model_loaded(self) -> None:
        """The WebUI has loaded a model."""

    @abstractmethod
    def known_names(self) -> Mapping[str, int]:
        """Names that the WebUI's prompts know at this moment -> number of vectors."""

    @abstractmethod
    def device(self) -> str:
        """The torch device that the WebUI computes on."""

    def before_loading(self) -> None:
        """The WebUI is about to load the chosen checkpoint for a generation, if it has not."""

    def before_prompts(self) -> None:
        """The WebUI is about to read the prompts of a generation."""

    def before_sampling(self, p: Any) -> None:
        """The WebUI's generation `p` is about to draw a batch, its prompts encoded."""

    def option(self, name: str) -> Any:
        """The value of one of this extension's settings."""
        return options.option(name)

    def folders(self) -> Folders:
        """The WebUI's folders; its own templates where it has some, else ours. There are no pictures to begin with."""
        theirs = getattr(shared.cmd_opts, "textual_inversion_templates_dir", None)
        templates = Path(theirs) if theirs and any(Path(theirs).glob("*.txt")) else template_folder()
        outputs = Path(paths.data_path) / "textual_inversion"
        return Folders(Path(shared.cmd_opts.embeddings_dir), outputs, templates, Path())

    def suggestions(self) -> Suggestions:
        """What guides recommend for checkpoints of full size, with the WebUI's own options where it has them."""
        training = {
            "images": "",
            "log_dir": str(self.folders().outputs),
            "steps": 3000,
            "preview_every": 250,
            "copy_every": 500,
            "csv_every": int(options.host_option("training_write_csv_every", 1) or 0),
            "clip_skip": setting_of(TrainingConfig, "clip_skip").nearest(int(options.host_option("CLIP_stop_at_last_layers", 1) or 1)),
        }
        return Suggestions(NewEmbedding("my-concept", "*", "auto"), training)

    def checkpoints(self) -> list[str]:
        """None: the WebUI's own list at the top of its page counts."""
        return []

    def choose_checkpoint(self, name: str) -> None:
        """Not here: the WebUI's own list counts."""
        raise ConfigError("The checkpoint is chosen at the top of the WebUI's page.")

    def create(self, new: NewEmbedding) -> Path:
        """Write the file of a new embedding: prompts know it at once or, while the WebUI is at work, from its next picture on."""
        path = self.write_new(new)
        self.look_again()
        return path

    def offers_check(self) -> bool:
        """Until it was answered, and as soon as there is a file that programs unpickle."""
        return bool(self.option("offer_check")) and any(_has_pickle(folder) for folder in self.embedding_folders())

    def check_answered(self) -> None:
        """Turn the setting off."""
        options.turn_off("offer_check")

    def look_again(self) -> None:
        """List the files anew; a WebUI that is at work looks itself before it draws again."""
        with queue_if_free() as free:
            self._changed(tell=free)

    def captioners(self, should_stop: ShouldStop = never, listener: Listener = silent) -> Mapping[str, Captioner]:
        """Its interrogators."""
        return interrogators(should_stop, listener)

    def train(self, config: TrainingConfig, listener: Listener, should_stop: ShouldStop) -> None:
        """Train when the WebUI's queue has come to this job."""
        config = self._settings(config)
        try:
            with (
                queue_turn(should_stop, listener),
                running(config.name, listener, should_stop) as progress,
                tensorboard(config, progress.listen) as listen,
            ):
                super().train(config, listen, progress.should_stop)
        except StoppedWaitingError:
            listener(Stopped(0, "interrupted", ""))

    def _settings(self, config: TrainingConfig) -> TrainingConfig:
        config = options.with_host_options(config)
        half_is_off = getattr(shared.cmd_opts, "no_half", False) or getattr(shared.cmd_opts, "precision", "") == "full"
        precision = "fp32" if config.precision == "auto" and half_is_off else config.precision
        return replace(config, device=config.device or self.device(), precision=precision)


def _has_pickle(folder: Path) -> bool:
    """Whether a file below `folder` has an ending that programs unpickle."""
    return any(name.lower().endswith(_PICKLES) for _, _, names in os.walk(folder, followlinks=True) for name in names)
