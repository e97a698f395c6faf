"""What this package borrows from the WebUI that it lives in; `hosts/` has an adapter for each, and `fake.py` for tests."""

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
        outputs: logs, previews and pictures are written below this.
        templates: prompt templates; only read.
        pictures: a data set to begin with; only read.
        searched: where embeddings are looked for, the first place first.
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
        vae: the file of a VAE that stands in for the checkpoint's own; None = the checkpoint's own.
        widths: text encoder -> width of the vectors that the WebUI takes; None = as the checkpoint's header says.
    """

    name: str
    path: Path
    vae: Path | None = None
    widths: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Suggestions:
    """Values that make a newcomer's first clicks work: for Create, and by the fields of `TrainingConfig` and `GenerationSettings`."""

    new: NewEmbedding = field(default_factory=lambda: NewEmbedding("my-concept"))
    training: Mapping[str, Any] = field(default_factory=dict)
    drawing: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """A training run as the WebUI wants it.

    Attributes:
        config: the settings, completed by the WebUI's own training options, device and precision.
        listener: to be told everything; shows it in the WebUI's progress bar too.
        should_stop: heeds the WebUI's Interrupt button too.
    """

    config: TrainingConfig
    listener: Listener
    should_stop: ShouldStop


class Host(ABC):
    """A WebUI that lends its folders, its checkpoint, its place in the queue and its memory."""

    @abstractmethod
    def folders(self) -> Folders:
        """Where things lie."""

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
        """Name -> the WebUI's own ways to describe a picture; each loads its model when it is called first.

        A call waits for its turn in the WebUI's queue: `listener` is told so, and `should_stop` ends the wait.
        """

    @abstractmethod
    def turn(self, config: TrainingConfig, listener: Listener, should_stop: ShouldStop) -> AbstractContextManager[Turn]:
        """Inside, nothing else loads, draws or trains in the WebUI, and its progress bar and Interrupt button are the run's.

        Raises `StoppedWaitingError` where `should_stop` ends the wait, and `ConfigError` where the WebUI's own options cannot be used.
        """

    @abstractmethod
    def lent_memory(self) -> AbstractContextManager[None]:
        """Inside, the WebUI's models are out of the device's memory."""

    @abstractmethod
    def embeddings_changed(self) -> None:
        """Embedding files were written or moved: the next picture is drawn with what is there now."""
