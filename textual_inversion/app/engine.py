"""Creates, trains and draws with the checkpoint file that a host lends, and lists the embeddings of its folders."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.app.cards import Card, card_of, keep_card_picture
from textual_inversion.app.job import Job, JobEvent, Listener, ShouldStop, StoppedWaitingError
from textual_inversion.app.memory import enough_memory, give_memory_back, nothing_kept
from textual_inversion.app.port import Checkpoint, Host, Turn
from textual_inversion.errors import EmbeddingError, TextualInversionError
from textual_inversion.files import remove_quietly
from textual_inversion.last_run import last_run_file
from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.training.events import Message, PreviewDrawn, Stopped

if TYPE_CHECKING:
    from PIL import Image

    from textual_inversion.diffusion.model import StableDiffusion
    from textual_inversion.library import EmbeddingLibrary
    from textual_inversion.settings.training import TrainingConfig

_USUAL_STEPS = 20  # of a sampler; the parts of a prompt are the same with others


class Engine:
    """Does this package's work with the folders, checkpoint and memory of one host.

    The engine keeps one model for drawing and creating. Training first releases this model, then loads its own, so that neither
    can change the other's device or type.

    Attributes:
        host: lends the folders, the checkpoint, the queue and the memory.
        job: the background job of this host; at most one runs at a time.
    """

    def __init__(self, host: Host) -> None:
        self.host, self.job = host, Job()
        self._model: tuple[Path, StableDiffusion] | None = None
        self._library: EmbeddingLibrary | None = None
        self._library_widths: Mapping[str, int] | None = None
        self._lock = threading.RLock()  # several of the page's threads load and list

    # the checkpoint

    def checkpoint(self) -> Checkpoint | None:
        """The chosen checkpoint; None where none is chosen."""
        try:
            return self.host.checkpoint()
        except TextualInversionError:
            return None

    def picture_size(self) -> int | None:
        """Native picture side of the chosen checkpoint in pixels; None when no checkpoint is chosen."""
        from textual_inversion.diffusion.checkpoint import checkpoint_facts

        if (checkpoint := self.checkpoint()) is None:
            return None
        try:
            return checkpoint_facts(checkpoint.path).picture_size
        except TextualInversionError:
            return 512  # training reports a checkpoint that it cannot use

    def about_checkpoint(self) -> str:
        """Sentences on the chosen checkpoint's family and on what its UNet predicts; empty where none is chosen, or it cannot be used.

        The header of the file says it; what only a trial tells is added once the model is loaded.
        """
        from textual_inversion.diffusion.prediction import about_checkpoint

        try:
            path = self.host.checkpoint().path
            kept = self._model
            return about_checkpoint(path, kept[1] if kept and kept[0] == path else None)
        except TextualInversionError:
            return ""

    def model(self) -> StableDiffusion:
        """The chosen checkpoint, loaded once and kept."""
        from textual_inversion.diffusion.model import load_checkpoint

        with self._lock, enough_memory("load the checkpoint", "close other programs, or wait until training is done"):
            path = self.host.checkpoint().path
            if self._model is None or self._model[0] != path:
                self._model = None
                self._model = (path, load_checkpoint(path))
            return self._model[1]

    def release(self) -> None:
        """Release the kept model and its memory."""
        with self._lock:
            self._model = None
        give_memory_back()

    # the embeddings

    def library(self) -> EmbeddingLibrary:
        """The library of the embeddings folders. Entries are judged against the chosen checkpoint, if there is one."""
        from textual_inversion.diffusion.checkpoint import checkpoint_facts
        from textual_inversion.library import EmbeddingLibrary

        with self._lock:
            try:
                checkpoint = self.host.checkpoint()
                # from the file's header, without loading the model
                widths = dict(checkpoint.widths) if checkpoint.widths else checkpoint_facts(checkpoint.path).widths
            except TextualInversionError:
                widths = None
            if self._library is None:
                self._library = EmbeddingLibrary(list(self.host.folders().searched), widths)
            elif self._library_widths != widths:
                self._library.set_width(widths)
            self._library_widths = widths
            return self._library

    def cards(self, *, rescan: bool = False) -> list[Card]:
        """Cards of all embeddings by name, also of those that do not fit. The list may be a moment old; `rescan` checks every file now."""
        library = self.library()
        return [card_of(entry) for entry in (library.rescan() if rescan else library.recent())]

    def embeddings_version(self) -> str:
        """A text that changes whenever the cards change; pages ask for it every second."""
        library = self.library()
        library.recent()
        return library.version

    def refresh(self) -> None:
        """List the files again after some were written or moved, and notify the WebUI."""
        with self._lock:
            if self._library is not None:
                self._library.rescan()
        self.host.embeddings_changed()

    def create(self, new: NewEmbedding) -> Path:
        """Write the file of a new embedding, with vectors from the chosen checkpoint's token table; raises as `create_embedding`."""
        from textual_inversion.training.embedding_file import create_embedding

        count: Any = new.num_vectors
        folder, checkpoint = self.host.folders().embeddings, self.host.checkpoint().path
        path = create_embedding(checkpoint, new.name, new.initializer_text, count, folder, overwrite=new.overwrite)
        remove_quietly(last_run_file(path))  # it is about the embedding that had this name before
        self.refresh()
        return path

    def embedding_file(self, name: str) -> Path:
        """The file of the embedding `name`.

        Raises:
            EmbeddingError: there is none that training could write.
        """
        library = self.library()
        library.recent()
        entry = library.find(name)
        if entry is None or entry.path.stem != entry.name or not entry.info or entry.info.word is not None:
            raise EmbeddingError(f"There is no embedding {name!r} with a file of its own.")
        return entry.path

    def put_vectors(self, source: Path, target: Path, name: str) -> int:
        """Write the vectors of the file `source` into the file `target`; returns their step. Raises EmbeddingError."""
        from textual_inversion import formats

        embedding = formats.load(source, name)
        formats.save(embedding, target, overwrite=True)
        return embedding.provenance.step or 0

    def step_if_equal(self, source: Path, target: Path, name: str) -> int | None:
        """The step of the vectors in two files, where they are the same; None where they differ. Raises EmbeddingError."""
        from textual_inversion import formats

        one, other = formats.load(source, name), formats.load(target, name)
        same = one.vectors.keys() == other.vectors.keys() and all(one.vectors[key].equal(other.vectors[key]) for key in one.vectors)
        return other.provenance.step or 0 if same else None

    # training

    def train(self, config: TrainingConfig, listener: Listener, should_stop: ShouldStop) -> None:
        """Train to the end in the calling thread; afterwards the last preview becomes the card's picture, if it has none of its own."""
        try:
            with self.host.turn(config, listener, should_stop) as turn:
                self._train(turn)
        except StoppedWaitingError:
            listener(Stopped(0, "interrupted", ""))

    def _train(self, turn: Turn) -> None:
        from textual_inversion.diffusion.model import check_device

        previews: list[Path] = []

        def listen(event: JobEvent) -> None:
            if isinstance(event, PreviewDrawn) and not event.row:
                previews.append(Path(event.path))
            turn.listener(event)

        name = turn.config.name
        entry = self.library().find(name)
        # an embedding in a subfolder is trained in place
        folder = entry.path.parent if entry and entry.path.stem == name else self.host.folders().embeddings
        try:
            checkpoint = self.host.checkpoint()
            check_device(turn.config.device)
            self.release()
            advice = "choose a smaller size or batch size, or a device with more"
            with self.host.lent_memory(), nothing_kept(), enough_memory("train", advice):
                _load_and_train(checkpoint, turn.config, folder, listen, turn.should_stop)
        finally:  # a failed run has still written its last good vectors
            if previews:
                keep_card_picture(previews[-1], folder / f"{name}.preview.png", turn.listener)
            self.refresh()

    # drawing

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the samplers for `generate`."""
        from textual_inversion.settings.generation import SAMPLERS

        return tuple(SAMPLERS)

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """(tokens of the prompt, capacity of its chunks in tokens); an embedding counts once for each of its vectors.

        Of a prompt that changes from step to step, or that `AND` joins, the longest part counts.
        """
        from textual_inversion.prompts.chunks import count_tokens
        from textual_inversion.prompts.names import names_in, rewrite_names
        from textual_inversion.prompts.schedule import schedule, subprompts
        from textual_inversion.prompts.tokenizer import default_tokenizer

        known = {entry.name: entry.info.num_vectors for entry in self.library().entries() if entry.usable and entry.info}
        written = rewrite_names(prompt, names_in([prompt], known))
        texts = dict.fromkeys(text for part in subprompts(written) for _, text in schedule(part.text, _USUAL_STEPS))
        sizes = {name: known[name] for name in names_in(texts, known)}
        return max(count_tokens(text, default_tokenizer(), sizes) for text in texts)

    def generate(self, values: Mapping[str, Any], progress: Callable[[int, int], None], should_stop: ShouldStop) -> list[Image.Image]:
        """Draw pictures. Prompts may name every embedding that fits; only the named ones are loaded.

        Args:
            values: the fields of `GenerationSettings`.
            progress: called with (sampler steps done, steps in all).
            should_stop: ends the drawing; finished pictures are returned.

        Returns:
            Pictures whose `info["parameters"]` says how each was made.
        """
        # A thread that computes keeps its OpenMP workers until it ends, and threads of a web server live long. With more workers than
        # cores, all workers sleep between operations, and training on the CPU takes nearly twice as long.
        with ThreadPoolExecutor(1, "textual-inversion-draw") as own:
            return own.submit(self._draw, values, progress, should_stop).result()

    def _draw(self, values: Mapping[str, Any], progress: Callable[[int, int], None], should_stop: ShouldStop) -> list[Image.Image]:
        from textual_inversion.diffusion.generate import generate
        from textual_inversion.settings.generation import GenerationSettings

        library = self.library()
        library.rescan()
        settings = GenerationSettings(**values)
        with enough_memory(f"draw {settings.width} x {settings.height}", "draw smaller pictures, or wait until training is done"):
            model = self.model()
            embeddings = library.as_mapping()
            return generate(model, settings, embeddings, progress=progress, should_stop=should_stop, hash_of=library.short_hash_of)


def _load_and_train(checkpoint: Checkpoint, config: TrainingConfig, folder: Path, listener: Listener, should_stop: ShouldStop) -> None:
    """Load the model and train. A separate function, so that the model is released when its frame ends."""
    from textual_inversion.diffusion.model import load_checkpoint
    from textual_inversion.training import train

    listener(Message(f"Loading {checkpoint.name}"))
    model = load_checkpoint(
        checkpoint.path, vae=checkpoint.vae, device=config.device, precision=config.precision, prediction_type=config.prediction_type
    )
    train(config, model, folder, listener=listener, should_stop=should_stop)
