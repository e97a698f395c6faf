"""The host for use without a WebUI: one data folder, the demo checkpoint and any other checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from textual_inversion.app.port import Checkpoint, Folders, Host, Suggestions, Turn
from textual_inversion.diffusion.checkpoint import checkpoint_facts, checkpoints_in, name_of
from textual_inversion.diffusion.model import TINY_CHECKPOINT, TINY_CHECKPOINTS
from textual_inversion.errors import CheckpointError
from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.settings.training import FULL_SIZE

if TYPE_CHECKING:
    from textual_inversion.app.job import Listener, ShouldStop
    from textual_inversion.preprocess.captioning import Captioner
    from textual_inversion.settings.training import TrainingConfig

TINY = TINY_CHECKPOINT
DEMO_PICTURES = Path(__file__).resolve().parents[2] / "assets" / "demo" / "pictures"
DATA_VARIABLE = "TEXTUAL_INVERSION_DATA"
_TINY_GUIDANCE = 4.0  # the tiny checkpoint follows prompts closely without strong guidance


class StandaloneHost(Host):
    """Everything lies under `data`: `embeddings/`, `outputs/`, and `checkpoints/` for more models than the one that ships.

    Args:
        data: the folder, made if missing.
        checkpoint: a file or a folder to choose at first; None = the tiny one that ships.

    Raises:
        CheckpointError: `checkpoint` is not there or is not one.
    """

    def __init__(self, data: Path, checkpoint: Path | None = None) -> None:
        self._data = data
        for folder in (self.folders().embeddings, self.folders().outputs, self._data / "checkpoints"):
            folder.mkdir(parents=True, exist_ok=True)
        if checkpoint is not None:
            checkpoint_facts(checkpoint)
        self._given = checkpoint
        self._chosen = checkpoint or TINY

    def folders(self) -> Folders:
        """Under the data folder; templates and demo pictures are the project's."""
        from textual_inversion.prompts.templates import template_folder

        embeddings = self._data / "embeddings"
        return Folders(embeddings, self._data / "outputs", template_folder(), DEMO_PICTURES, (embeddings,))

    def suggestions(self) -> Suggestions:
        """For the tiny checkpoints the demonstration's run; for others what guides recommend."""
        if self._chosen not in TINY_CHECKPOINTS.values():
            return Suggestions(training={"images": "", **FULL_SIZE})
        from textual_inversion.demo import run, world

        scene = world.Scene(shape="heart", colour="red", pattern="striped", background="yellow")
        training = {
            **run.demo_config().to_dict(),
            "log_dir": str(self.folders().outputs / "training"),
            "preview_every": 50,
            "preview_prompt": "a picture of [name], pink background",
            "preview_cfg_scale": _TINY_GUIDANCE,
        }
        drawing = {"prompt": world.caption(scene), "cfg_scale": _TINY_GUIDANCE}
        return Suggestions(NewEmbedding(run.NAME, run.INITIALIZER_TEXT, run.NUM_VECTORS), training, drawing)

    def device(self) -> str:
        """The best there is."""
        return ""

    def captioners(self, listener: Listener, should_stop: ShouldStop) -> Mapping[str, Captioner]:
        """None: this program has no interrogators of its own."""
        return {}

    def turn(self, config: TrainingConfig, listener: Listener, should_stop: ShouldStop) -> AbstractContextManager[Turn]:
        """At once: the job is the only one that trains here."""
        return nullcontext(Turn(config, listener, should_stop))

    def lent_memory(self) -> AbstractContextManager[None]:
        """Nothing to move: the engine lets its own model go."""
        return nullcontext()

    def embeddings_changed(self) -> None:
        """Nobody else has to be told."""

    def checkpoints(self) -> list[str]:
        """Names of those that ship, the one given, and those in `checkpoints/`."""
        return list(self._files())

    def checkpoint(self) -> Checkpoint:
        """The chosen one; raises `CheckpointError` when its file is gone or no checkpoint any more."""
        if not self._chosen.exists():
            raise CheckpointError(f"The checkpoint {self._chosen} is not there; put it back or choose another.")
        checkpoint_facts(self._chosen)
        name = next((name for name, path in self._files().items() if path == self._chosen), name_of(self._chosen))
        return Checkpoint(name, self._chosen)

    def choose_checkpoint(self, name: str) -> None:
        """Choose by name; raises `CheckpointError` for an unknown name or a file that is no checkpoint, and keeps the one before."""
        files = self._files()
        if name not in files:
            raise CheckpointError(f"There is no checkpoint named {name!r}; put it into {self._data / 'checkpoints'} and reload the page.")
        checkpoint_facts(files[name])
        self._chosen = files[name]

    def _files(self) -> dict[str, Path]:
        """Name -> file or folder; of two with one name, the second is called by its whole file name."""
        files: dict[str, Path] = {}
        for path in (*TINY_CHECKPOINTS.values(), self._given, *checkpoints_in(self._data / "checkpoints")):
            if path is not None and path.exists() and path not in files.values():
                files[name_of(path) if name_of(path) not in files else path.name] = path
        return files


def default_data_folder() -> Path:
    """`$TEXTUAL_INVERSION_DATA`, else `textual-inversion-data` beside the repository, or in the working folder when installed."""
    if given := os.environ.get(DATA_VARIABLE):
        return Path(given).expanduser()
    root = Path(__file__).resolve().parents[3]
    return (root.parent if (root / "launch.py").is_file() else Path.cwd()) / "textual-inversion-data"
