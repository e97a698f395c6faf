"""What this package borrows from the WebUI it lives in. Knows no WebUI; `hosts/*.py` are its adapters, `fake.py` the one for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from textual_inversion.description import EmbeddingDescription
from textual_inversion.settings.creation import NewEmbedding

if TYPE_CHECKING:
    from PIL import Image

    from textual_inversion.app.job import Job, Listener, ShouldStop
    from textual_inversion.preprocess.captioning import Captioner
    from textual_inversion.settings.training import TrainingConfig


@dataclass(frozen=True)
class Folders:
    """Where things lie: `embeddings` and `outputs` are written to, `templates` and `pictures` (a data set to begin with) are read."""

    embeddings: Path
    outputs: Path
    templates: Path
    pictures: Path


@dataclass(frozen=True)
class Checkpoint:
    """The chosen checkpoint: its name in lists, its file, and the side in pixels of the pictures it was made for."""

    name: str
    path: Path
    size: int = 512


@dataclass(frozen=True)
class Card:
    """An embedding as a page shows it.

    `reason` says in one sentence why it does not fit the checkpoint, `untrainable` why training cannot go on with it; both are empty
    when all is well. `negative` names the embedding that belongs into the
    negative prompt with it, and `is_negative` says that it is such a one.
    """

    name: str
    description: EmbeddingDescription = field(default_factory=EmbeddingDescription)
    picture: Path | None = None
    reason: str = ""
    negative: str = ""
    is_negative: bool = False
    untrainable: str = ""


@dataclass(frozen=True)
class Suggestions:
    """Values that make a newcomer's first clicks work: for Create, and by the fields of `TrainingConfig` and `GenerationSettings`."""

    new: NewEmbedding = field(default_factory=lambda: NewEmbedding("my-concept"))
    training: Mapping[str, Any] = field(default_factory=dict)
    drawing: Mapping[str, Any] = field(default_factory=dict)


class Host(Protocol):
    """A WebUI that lends its folders, its checkpoint and its memory."""

    job: Job

    def folders(self) -> Folders: ...

    def suggestions(self) -> Suggestions: ...

    def checkpoints(self) -> list[str]:
        """Names to choose from; empty where the WebUI has its own list of checkpoints."""

    def checkpoint(self) -> Checkpoint:
        """The chosen one; raises `CheckpointError` when there is none."""

    def choose_checkpoint(self, name: str) -> None: ...

    def cards(self, *, rescan: bool = False) -> list[Card]:
        """Every embedding, also those that do not fit, by name, as of a moment ago; `rescan` looks at every file now."""

    def embeddings_version(self) -> str:
        """Another text whenever the cards have changed; asked every second."""

    def embedding_folders(self) -> list[Path]:
        """Where embeddings are looked for."""

    def offers_check(self) -> bool:
        """Whether the page should offer to check every embedding file for code: once, where such files are."""

    def check_answered(self) -> None:
        """The offer was taken or refused: remember not to make it again."""

    def look_again(self) -> None:
        """Files were moved: list them anew, and tell the WebUI."""

    def captioners(self, should_stop: ShouldStop = ..., listener: Listener = ...) -> Mapping[str, Captioner]:
        """Name -> the WebUI's own ways to describe a picture; nothing is loaded before one is called.

        A call waits for its turn in the WebUI's queue: `listener` is told so, and `should_stop` ends the wait.
        """

    def device(self) -> str:
        """The torch device that the WebUI computes on; empty = the best there is."""

    def create(self, new: NewEmbedding) -> Path:
        """Write the file of a new embedding, read by the chosen checkpoint's token table, and tell the WebUI."""

    def train(self, config: TrainingConfig, listener: Listener, should_stop: ShouldStop) -> None:
        """Train to the end in the calling thread, the WebUI's memory lent for as long, and tell the WebUI."""


class PictureHost(Host, Protocol):
    """A host that draws pictures through this package, having no txt2img page of its own."""

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names that `generate` takes; the last one is the usual one."""

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """(places taken, places in the chunks that this prompt fills)."""

    def generate(self, values: Mapping[str, Any], progress: Callable[[int, int], None], should_stop: ShouldStop) -> list[Image.Image]:
        """Draw; `values` are the fields of `GenerationSettings`. Each picture's `info["parameters"]` says how it was made."""
