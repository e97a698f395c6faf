"""The part of a host that is the same everywhere: this package's own engine over the host's checkpoint file. Knows no WebUI."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.app.job import Job, JobEvent, Listener, ShouldStop, never, silent
from textual_inversion.app.memory import enough_memory, give_memory_back, nothing_kept
from textual_inversion.app.port import Card, Checkpoint, Folders
from textual_inversion.errors import TextualInversionError
from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.text import legible
from textual_inversion.training.events import Message, PreviewDrawn

if TYPE_CHECKING:
    from PIL import Image

    from textual_inversion.diffusion.model import StableDiffusion
    from textual_inversion.library import EmbeddingLibrary, Entry
    from textual_inversion.preprocess.captioning import Captioner
    from textual_inversion.settings.generation import GenerationSettings
    from textual_inversion.settings.training import TrainingConfig


_OURS = "textual-inversion"  # text chunk of the card pictures that training has written, and may replace


class EngineHost:
    """Creates, trains and draws with `checkpoint()`; a host adds its folders, its checkpoints and what it must be told.

    One model is kept for drawing and creating. Training loads its own, after that one was let go, so that neither can change the
    other's device or type.
    """

    def __init__(self) -> None:
        self.job = Job()
        self._model: tuple[Path, StableDiffusion] | None = None
        self._library: EmbeddingLibrary | None = None
        self._judged_by: dict[str, int] | None = None
        self._lock = threading.RLock()  # loading and listing happen in several of the page's threads

    def folders(self) -> Folders:
        """Given by the host."""
        raise NotImplementedError

    def checkpoint(self) -> Checkpoint:
        """Given by the host."""
        raise NotImplementedError

    def embedding_folders(self) -> list[Path]:
        """Where embeddings are looked for, the first place first; new ones are written to `folders().embeddings`."""
        return [self.folders().embeddings]

    def vae_file(self) -> Path | None:
        """The file of a VAE that stands in for the checkpoint's own, if the host uses one."""
        return None

    def embeddings_changed(self) -> None:
        """Tell the WebUI that files were written; called after creating and training."""

    def offers_check(self) -> bool:
        """No: only a WebUI may load files in a way that runs what is in them."""
        return False

    def check_answered(self) -> None:
        """Nothing to remember."""

    def captioners(self, should_stop: ShouldStop = never, listener: Listener = silent) -> Mapping[str, Captioner]:
        """None: this program has no interrogators of its own."""
        return {}

    def device(self) -> str:
        """The best there is."""
        return ""

    def look_again(self) -> None:
        """List the files anew, and tell the WebUI."""
        self._changed()

    @contextmanager
    def lent_memory(self) -> Iterator[None]:
        """The WebUI's models are out of the way inside."""
        yield

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names that `generate` takes."""
        from textual_inversion.settings.generation import SAMPLERS

        return tuple(SAMPLERS)

    def cards(self, *, rescan: bool = False) -> list[Card]:
        """Every embedding of the folder; `reason` where it does not fit the chosen checkpoint."""
        library = self.library()
        return [_card(entry) for entry in (library.rescan() if rescan else library.recent())]

    def embeddings_version(self) -> str:
        """Of the library, which looks at its folders now and then."""
        library = self.library()
        library.recent()
        return library.version

    def create(self, new: NewEmbedding) -> Path:
        """Write the file of a new embedding; see `create_embedding` for its errors."""
        path = self.write_new(new)
        self._changed()
        return path

    def write_new(self, new: NewEmbedding) -> Path:
        """Only write the file."""
        from textual_inversion.training.embedding_file import create_embedding

        count: Any = new.num_vectors
        folder, checkpoint = self.folders().embeddings, self.checkpoint().path
        return create_embedding(checkpoint, new.name, new.initializer_text, count, folder, overwrite=new.overwrite)

    def train(self, config: TrainingConfig, listener: Listener, should_stop: ShouldStop) -> None:
        """Train in the calling thread; afterwards the last preview becomes the card's picture, if it has none of its own."""
        previews: list[Path] = []

        def listen(event: JobEvent) -> None:
            if isinstance(event, PreviewDrawn):
                previews.append(Path(event.path))
            listener(event)

        folder = self._folder_of(config.name)
        try:
            self._train(config, folder, listen, should_stop)
        finally:  # a run that fails has written what it had learned
            if previews:
                _keep_card_picture(previews[-1], folder / f"{config.name}.preview.png", listener)
            self._changed()

    def _train(self, config: TrainingConfig, folder: Path, listener: Listener, should_stop: ShouldStop) -> None:
        from textual_inversion.diffusion.model import check_device

        chosen = self.checkpoint()
        check_device(config.device)
        self.release()
        advice = "choose a smaller size or batch size, or a device with more"
        with self.lent_memory(), nothing_kept(), enough_memory("train", advice):
            self._train_on(chosen, config, folder, listener, should_stop)

    def _train_on(self, chosen: Checkpoint, config: TrainingConfig, folder: Path, listener: Listener, should_stop: ShouldStop) -> None:
        from textual_inversion.diffusion.model import load_checkpoint
        from textual_inversion.training import train

        listener(Message(f"Loading {chosen.name}"))
        model = load_checkpoint(chosen.path, vae=self._trainable_vae(listener), device=config.device, precision=config.precision)
        train(config, model, folder, listener=listener, should_stop=should_stop)

    def _trainable_vae(self, listener: Listener) -> Path | None:
        vae = self.vae_file()
        if vae is None or vae.suffix.lower() == ".safetensors":
            return vae
        listener(Message(f"{vae.name} is not a .safetensors file; training uses the VAE inside the checkpoint"))
        return None

    def _folder_of(self, name: str) -> Path:
        """Where the file of `name` is: the embeddings folder or, since the cards show those too, one below it."""
        entry = self.library().find(name)
        return entry.path.parent if entry and entry.path.stem == name else self.folders().embeddings

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """(places taken, places in the chunks that this prompt fills), an embedding counting as its vectors."""
        from textual_inversion.prompts.chunks import count_tokens
        from textual_inversion.prompts.names import names_in
        from textual_inversion.prompts.tokenizer import default_tokenizer

        known = {entry.name: entry.info.num_vectors for entry in self.library().entries() if entry.usable and entry.info}
        return count_tokens(prompt, default_tokenizer(), {name: known[name] for name in names_in([prompt], known)})

    def generate(self, values: Mapping[str, Any], progress: Callable[[int, int], None], should_stop: ShouldStop) -> list[Image.Image]:
        """Draw with every embedding that fits at hand; those that the prompts name are loaded."""
        # A thread that has computed keeps OpenMP's helpers for as long as it lives, and those of a web server live long: with more
        # helpers than cores, all of them sleep between operations, and training on the CPU takes nearly twice as long.
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
            drawn = generate(model, settings, library.as_mapping(), progress=progress, should_stop=should_stop)
        for index, picture in enumerate(drawn):
            picture.info["parameters"] = _infotext(settings, (settings.seed + index) % 2**32, model)
        return drawn

    def model(self) -> StableDiffusion:
        """The chosen checkpoint, loaded once and kept."""
        from textual_inversion.diffusion.model import load_checkpoint

        with self._lock, enough_memory("load the checkpoint", "close other programs, or wait until training is done"):
            path = self.checkpoint().path
            if self._model is None or self._model[0] != path:
                self._model = None
                self._model = (path, load_checkpoint(path))
            return self._model[1]

    def release(self) -> None:
        """Let the kept model go and give its memory back."""
        with self._lock:
            self._model = None
        give_memory_back()

    def library(self) -> EmbeddingLibrary:
        """The embeddings folder, judged by the chosen checkpoint; without one, by none."""
        from textual_inversion.library import EmbeddingLibrary

        with self._lock:
            widths = self._widths()
            if self._library is None:
                self._library = EmbeddingLibrary(self.embedding_folders(), widths)
            elif self._judged_by != widths:
                self._library.set_width(widths)
            self._judged_by = widths
            return self._library

    def _widths(self) -> dict[str, int] | None:
        """Widths of the chosen checkpoint's token tables, read off its header so that no model need be loaded."""
        from textual_inversion.diffusion.checkpoint import checkpoint_facts

        try:
            return checkpoint_facts(self.checkpoint().path).widths
        except TextualInversionError:
            return None

    def _changed(self, *, tell: bool = True) -> None:
        """Files were written; `tell` the WebUI too."""
        with self._lock:
            if self._library is not None:
                self._library.rescan()
        if tell:
            self.embeddings_changed()


def _card(entry: Entry) -> Card:
    if entry.info is None:
        return Card(entry.name, picture=entry.preview, reason=entry.reason or "It cannot be read.")
    return Card(
        entry.name,
        entry.description,
        picture=entry.preview,
        reason=entry.reason,
        negative=entry.negative,
        is_negative=entry.is_negative,
        untrainable=_untrainable(entry),
    )


def _untrainable(entry: Entry) -> str:
    """Why training, which goes on with the file of the embedding's own name, cannot go on with this one; empty when it can."""
    own, where = entry.path.stem == entry.name, f"it lies in {legible(entry.path.name)}"
    if own and entry.info and entry.info.word is not None:
        return f"{where} beside other data, which training would write over; convert it to a file of another name to train it further."
    own = own and entry.path.suffix.lower() in (".safetensors", ".pt") and entry.second is None
    return "" if own else f"{where}; convert it to {entry.name}.safetensors to train it further."


def _keep_card_picture(preview: Path, target: Path, listener: Listener) -> None:
    """Make the preview the card's picture, marked as ours; a picture that a person put there stays."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text(_OURS, "preview")
    part = target.with_name(f".{target.name}.part")
    try:
        if target.exists() and not _is_ours(target):
            return
        with Image.open(preview) as picture:
            picture.save(part, "PNG", pnginfo=mark)
        os.replace(part, target)  # a new file, so that whoever watches the folder sees it
    except (OSError, SyntaxError, ValueError) as error:
        part.unlink(missing_ok=True)
        listener(Message(f"The card's picture {target.name} was not written: {error}"))


def _is_ours(picture: Path) -> bool:
    from PIL import Image

    with Image.open(picture) as opened:
        return _OURS in opened.info


def _infotext(settings: GenerationSettings, seed: int, model: StableDiffusion) -> str:
    """How a picture was made, in the words that WebUIs read back."""
    negative = f"\nNegative prompt: {settings.negative_prompt}" if settings.negative_prompt else ""
    return (
        f"{settings.prompt}{negative}\nSteps: {settings.steps}, Sampler: {settings.sampler}, CFG scale: {settings.cfg_scale:g}, "
        f"Seed: {seed % 2**32}, Size: {settings.width}x{settings.height}, Model hash: {model.hash}, Model: {model.name}"
    )
