"""The adapter that A1111, reForge and Forge build upon: folders, settings, queue, and the embeddings that prompts know."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules import paths, shared

from textual_inversion.app.job import StoppedWaitingError
from textual_inversion.app.port import Folders, Host, Suggestions, Turn
from textual_inversion.errors import DatasetError
from textual_inversion.formats import PICTURE_ENDINGS, READ_ENDINGS
from textual_inversion.hosts.webui import options
from textual_inversion.hosts.webui.generation import forget_conditioning
from textual_inversion.hosts.webui.tables import EmbeddingTables, TableClass
from textual_inversion.hosts.webui.turn import queue_if_free, queue_turn, take_turn
from textual_inversion.prompts.templates import template_folder
from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.settings.schema import setting_of
from textual_inversion.settings.training import FULL_SIZE, TrainingConfig

if TYPE_CHECKING:
    from PIL import Image

    from textual_inversion.app.job import Listener, ShouldStop
    from textual_inversion.library import EmbeddingLibrary
    from textual_inversion.preprocess.captioning import Captioner

_FAILED = "<error>"  # what A1111's interrogator adds to its text, instead of raising
_PICKLES = tuple(ending for ending in READ_ENDINGS if ending not in (".safetensors", *PICTURE_ENDINGS))


class WebUIHost(Host):
    """A WebUI of the Stable Diffusion WebUI family; a subclass adds its checkpoint, its memory and its tables.

    Args:
        classes: the WebUI's classes of tables of embeddings.
    """

    def __init__(self, classes: Sequence[TableClass]) -> None:
        self.library: Callable[[], EmbeddingLibrary]  # given by `install`
        self.tables = EmbeddingTables(classes, self.library_for, lambda: bool(self.option("own_reader")), forget_conditioning)

    # what the port asks for

    def folders(self) -> Folders:
        """The WebUI's folders; its own templates where it has some, else ours. There are no pictures to begin with."""
        theirs = getattr(shared.cmd_opts, "textual_inversion_templates_dir", None)
        templates = Path(theirs) if theirs and any(Path(theirs).glob("*.txt")) else template_folder()
        embeddings, outputs = Path(shared.cmd_opts.embeddings_dir), Path(paths.data_path) / "textual_inversion"
        return Folders(embeddings, outputs, templates, Path(), self.searched_folders() or (embeddings,))

    def suggestions(self) -> Suggestions:
        """What guides recommend for checkpoints of full size, with the WebUI's own options where it has them."""
        training = {
            "images": "",
            "log_dir": str(self.folders().outputs),
            **FULL_SIZE,
            "csv_every": int(options.host_option("training_write_csv_every", 1) or 0),
            "clip_skip": setting_of(TrainingConfig, "clip_skip").nearest(int(options.host_option("CLIP_stop_at_last_layers", 1) or 1)),
        }
        return Suggestions(NewEmbedding("my-concept", "*", "auto"), training)

    def captioners(self, listener: Listener, should_stop: ShouldStop) -> Mapping[str, Captioner]:
        """The WebUI's interrogators."""
        return interrogators(listener, should_stop)

    @contextmanager
    def turn(self, config: TrainingConfig, listener: Listener, should_stop: ShouldStop) -> Iterator[Turn]:
        """Hold the WebUI's queue, and be the job that its page shows."""
        config = options.with_host_options(config)
        half_is_off = getattr(shared.cmd_opts, "no_half", False) or getattr(shared.cmd_opts, "precision", "") == "full"
        precision = "fp32" if config.precision == "auto" and half_is_off else config.precision
        config = replace(config, device=config.device or self.device(), precision=precision)
        with take_turn(config, listener, should_stop) as turn:
            yield turn

    def tokens(self) -> dict[str, str]:
        """Those in the WebUI's Settings."""
        return options.tokens()

    def embeddings_changed(self) -> None:
        """Have the WebUI read its embeddings again. A busy WebUI reads them by itself before its next picture."""
        with queue_if_free() as free:
            if free:
                self.read_embeddings()

    # what only WebUIs have

    @abstractmethod
    def read_embeddings(self) -> None:
        """Have the WebUI fill its tables of embeddings again, so that the next picture uses them."""

    @abstractmethod
    def known_names(self) -> Mapping[str, int]:
        """Names that the WebUI's prompts know at this moment -> number of vectors."""

    def searched_folders(self) -> tuple[Path, ...]:
        """Folders in which the WebUI looks for embeddings; empty = only the folder for new embeddings."""
        return ()

    def library_for(self, table: Any) -> EmbeddingLibrary:
        """The library over the folders of one of the WebUI's tables, judged by the widths that the table takes."""
        return self.library()

    def install(self, library: Callable[[], EmbeddingLibrary]) -> None:
        """Fill the WebUI's tables through this package's library from its next scan on; a second call changes nothing."""
        self.library = library
        self.tables.install()

    def remove(self) -> None:
        """Leave the WebUI as it was."""
        self.tables.remove()

    def model_loaded(self) -> None:
        """The WebUI has loaded a model."""

    def before_loading(self) -> None:
        """The WebUI is about to load the chosen checkpoint for a generation, if it is not loaded."""

    def before_prompts(self) -> None:
        """The WebUI is about to read the prompts of a generation."""

    def before_sampling(self, p: Any) -> None:
        """The WebUI's generation `p` is about to draw a batch, its prompts encoded."""

    def option(self, name: str) -> Any:
        """The value of one of this extension's settings."""
        return options.option(name)

    def offers_check(self) -> bool:
        """Whether the page offers to check the files: until the user has answered, if there are files that programs unpickle."""
        if not self.option("offer_check"):
            return False
        walks = (files for folder in self.folders().searched for _, _, files in os.walk(folder, followlinks=True))
        return any(name.lower().endswith(_PICKLES) for files in walks for name in files)

    def check_answered(self) -> None:
        """Turn the setting for the offer off."""
        options.turn_off("offer_check")


def interrogators(listener: Listener, should_stop: ShouldStop) -> dict[str, Captioner]:
    """Name -> function that describes an RGB picture, by the WebUI's BLIP and Deepbooru.

    A function waits for its turn in the WebUI's queue, and loads its model when it is called first. It raises `DatasetError` where the
    WebUI could not describe the picture, or where the wait was stopped.
    """

    def in_turn(describe: Captioner) -> Captioner:
        def described(image: Image.Image) -> str:
            try:
                with queue_turn(listener, should_stop):
                    return describe(image)
            except StoppedWaitingError:
                raise DatasetError("Stopped before the WebUI could describe it.") from None
            except DatasetError:
                raise
            except Exception as error:
                raise DatasetError(
                    f"The WebUI could not describe it ({type(error).__name__}: {error}); its console may say more."
                ) from error

        return described

    return {"interrogate (WebUI)": in_turn(_interrogate), "deepbooru (WebUI)": in_turn(_deepbooru)}


def _interrogate(image: Image.Image) -> str:
    from modules import shared

    description = str(shared.interrogator.interrogate(image.convert("RGB"))).removesuffix(_FAILED).strip(", ")
    if not description:
        raise DatasetError("The WebUI could not describe it; its console says why, as where it cannot download its model.")
    return description


def _deepbooru(image: Image.Image) -> str:
    from modules import deepbooru

    deepbooru.model.start()
    try:
        return str(deepbooru.model.tag_multi(image.convert("RGB"), force_disable_ranks=True))
    finally:
        deepbooru.model.stop()
