"""The port: what a WebUI lends to this package. `hosts/` has an adapter for each WebUI, and `fake.py` for tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.settings.creation import NewEmbedding

if TYPE_CHECKING:
    from textual_inversion.app.job import Listener, ShouldStop
    from textual_inversion.preprocess.captioning import Captioner
    from textual_inversion.settings.training import TrainingConfig


@dataclass(frozen=True)
class Folders:
    """The folders of a WebUI.

    Attributes:
        embeddings: new embeddings are written here.
        outputs: logs, previews and pictures are written below this folder.
        templates: prompt templates; only read.
        pictures: an example data set; only read.
        searched: folders that are searched for embeddings, in this order.
    """

    embeddings: Path
    outputs: Path
    templates: Path
    pictures: Path
    searched: tuple[Path, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The chosen checkpoint.

    Attributes:
        name: its name in lists.
        path: its file.
        vae: the file of a VAE that replaces the checkpoint's own; None = the checkpoint's own.
        widths: text encoder -> width of the vectors that the WebUI accepts; None = as in the checkpoint's header.
    """

    name: str
    path: Path
    vae: Path | None = None
    widths: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Suggestions:
    """Starting values with which a beginner's first run works: for Create, and for fields of `TrainingConfig` and `GenerationSettings`."""

    new: NewEmbedding = field(default_factory=lambda: NewEmbedding("my-concept"))
    training: Mapping[str, Any] = field(default_factory=dict)
    drawing: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """A training run as the WebUI wants it.

    Attributes:
        config: the settings, completed by the WebUI's own training options, device and precision.
        listener: receives all events; also shows them in the WebUI's progress bar.
        should_stop: also true after a click on the WebUI's Interrupt button.
    """

    config: TrainingConfig
    listener: Listener
    should_stop: ShouldStop


class Host(ABC):
    """A WebUI that lends its folders, its checkpoint, its place in the queue and its memory."""

    @abstractmethod
    def folders(self) -> Folders:
        """The folders of this WebUI."""

    @abstractmethod
    def checkpoint(self) -> Checkpoint:
        """The chosen checkpoint; raises `CheckpointError` where none is chosen."""

    @abstractmethod
    def device(self) -> str:
        """The torch device that the WebUI computes on; empty = the best there is."""

    @abstractmethod
    def suggestions(self) -> Suggestions:
        """Starting values of the forms."""

    @abstractmethod
    def captioners(self, listener: Listener, should_stop: ShouldStop) -> Mapping[str, Captioner]:
        """Name -> captioner of the WebUI; each loads its model at its first call.

        A call waits for its turn in the WebUI's queue: `listener` is notified, and `should_stop` ends the wait.
        """

    @abstractmethod
    def turn(self, config: TrainingConfig, listener: Listener, should_stop: ShouldStop) -> AbstractContextManager[Turn]:
        """Hold the WebUI's queue: inside, nothing else loads, draws or trains, and the progress bar and Interrupt button serve the run.

        Raises `StoppedWaitingError` where `should_stop` ends the wait, and `ConfigError` where the WebUI's own options cannot be used.
        """

    @abstractmethod
    def lent_memory(self) -> AbstractContextManager[None]:
        """Keep the WebUI's models out of the device's memory inside the context."""

    @abstractmethod
    def embeddings_changed(self) -> None:
        """Notify the WebUI that embedding files were written or moved: it must draw the next picture with the new files."""
