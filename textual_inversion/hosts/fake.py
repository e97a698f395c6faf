"""A WebUI that needs no model: its training is a picture that comes into focus."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.app.cards import Card
from textual_inversion.app.engine import Engine
from textual_inversion.app.port import Checkpoint, Folders, Host, Suggestions, Turn
from textual_inversion.description import EmbeddingDescription
from textual_inversion.errors import DatasetError, EmbeddingError, InvalidNameError, NameTakenError
from textual_inversion.files import replace_file
from textual_inversion.last_run import ENDING, LastRun, last_run_file, read_last_run
from textual_inversion.settings.creation import AUTO_VECTORS, NewEmbedding, wants_search
from textual_inversion.training.events import Busy, CopySaved, Evaluated, Judged, Message, PreviewDrawn, Started, StepDone, Stopped
from textual_inversion.training.preview_prompts import preview_prompts

if TYPE_CHECKING:
    from PIL import Image

    from textual_inversion.app.job import Listener, ShouldStop
    from textual_inversion.preprocess.captioning import Captioner
    from textual_inversion.settings.training import TrainingConfig

_PICTURE_ENDINGS = {".png", ".jpg", ".jpeg", ".webp"}
_WORD_SCALE = 0.07  # of the tiny checkpoint's token table


@dataclass
class FakeHost(Host):
    """A host in one folder; it also plays the programs that have a list of checkpoints, and that offer to check files.

    Attributes:
        folder: everything lies in it.
        chosen: name of the chosen checkpoint, which ends with the side of its pictures; there is no file.
        changes: how often the WebUI was told of changed embeddings.
        level: what its runs are judged to be: `good`, `fair` or `bad`.
        turns: how many runs hold the WebUI's queue.
        asks: whether the page offers to check the files.
    """

    folder: Path
    chosen: str = "fake-128"
    changes: int = 0
    level: str = "good"
    turns: int = 0
    asks: bool = False

    def __post_init__(self) -> None:
        for path in (self.folders().embeddings, self.folders().outputs, self.folders().templates):
            path.mkdir(parents=True, exist_ok=True)
        template = self.folders().templates / "subject_filewords.txt"
        if not template.exists():
            template.write_text("a picture of [name], [filewords]\n", encoding="utf-8")
        if not self.folders().pictures.exists():
            _draw_pictures(self.folders().pictures)

    def folders(self) -> Folders:
        """Four folders under `folder`."""
        root = self.folder
        return Folders(root / "embeddings", root / "outputs", root / "templates", root / "pictures", (root / "embeddings",))

    def checkpoint(self) -> Checkpoint:
        """The chosen one."""
        return Checkpoint(self.chosen, self.folder / f"{self.chosen}.safetensors")

    def device(self) -> str:
        """The processor."""
        return "cpu"

    def suggestions(self) -> Suggestions:
        """A short run over four pictures."""
        training = {"images": str(self.folders().pictures), "steps": 200, "batch_size": 2, "preview_every": 50}
        return Suggestions(NewEmbedding("my-concept", "picture", "auto"), training, {"prompt": "a picture"})

    def captioners(self, listener: Listener, should_stop: ShouldStop) -> Mapping[str, Captioner]:
        """One that names the colour."""
        return {"colours": _colours}

    @contextmanager
    def turn(self, config: TrainingConfig, listener: Listener, should_stop: ShouldStop) -> Iterator[Turn]:
        """At once, and as it was asked for."""
        self.turns += 1
        try:
            yield Turn(config, listener, should_stop)
        finally:
            self.turns -= 1

    def lent_memory(self) -> AbstractContextManager[None]:
        """There is nothing to move."""
        return nullcontext()

    def embeddings_changed(self) -> None:
        """The WebUI hears of it."""
        self.changes += 1

    def checkpoints(self) -> list[str]:
        """Two that differ in name and size."""
        return ["fake-128", "fake-512"]

    def choose_checkpoint(self, name: str) -> None:
        """Choose by name."""
        self.chosen = name

    def offers_check(self) -> bool:
        """As it was made, until it was answered."""
        return self.asks

    def check_answered(self) -> None:
        """Not again."""
        self.asks = False


class FakeEngine(Engine):
    """An engine without a model, deterministic; embeddings are `.json` files.

    Args:
        host: whose folders it works in.
        pace: seconds that a step of training or drawing takes.
    """

    host: FakeHost
    samplers = ("Euler", "Euler a", "DPM++ 2M Karras")

    def __init__(self, host: FakeHost, pace: float = 0.01) -> None:
        super().__init__(host)
        self.pace = pace

    def picture_size(self) -> int:
        """The number in the checkpoint's name."""
        return _size_of(self.host.checkpoint())

    def about_checkpoint(self) -> str:
        """The checkpoint's name, and what it stands for."""
        return f"{self.host.checkpoint().name} stands for a checkpoint."

    def cards(self, *, rescan: bool = False) -> list[Card]:
        """One for each file; a file made for another size says so."""
        files = [path for path in self.host.folders().embeddings.glob("*.json") if not path.name.endswith(ENDING)]
        return [self._card(path) for path in sorted(files, key=lambda path: path.name.lower())]

    def embeddings_version(self) -> str:
        """The time of the folder, whose files are always replaced."""
        return str(self.host.folders().embeddings.stat().st_mtime_ns)

    def create(self, new: NewEmbedding) -> Path:
        """Write `name.json`, with the checks that every host makes."""
        path = self._path(new.name)
        if path.exists() and not new.overwrite:
            raise NameTakenError(f"An embedding named {new.name!r} exists; choose another name, or allow overwriting.")
        words = AUTO_VECTORS if wants_search(new.initializer_text) else len(new.initializer_text.split())
        count = words if new.num_vectors == "auto" else int(new.num_vectors)
        if not 1 <= count <= 75:
            raise EmbeddingError(f"{count} vectors per token were asked for; 1 to 75 can be had.")
        _write(path, {"vectors": count, "step": 0, "size": self.picture_size()})
        self.refresh()
        return path

    def train(self, config: TrainingConfig, listener: Listener, should_stop: ShouldStop) -> None:
        """Emit what a real run emits: a loss that falls with noise, previews that come into focus, copies."""
        with self.host.turn(config, listener, should_stop) as turn:
            self._train_embedding(turn.config, turn.listener, turn.should_stop)
            self.refresh()

    def _train_embedding(self, config: TrainingConfig, listener: Listener, should_stop: ShouldStop) -> None:
        path = self._path(config.name)
        if not path.exists():
            raise EmbeddingError(f"There is no embedding named {config.name!r}; create it first.")
        embedding = json.loads(path.read_text(encoding="utf-8"))
        listener(Message("Loading fake-128"))
        images = _pictures(Path(config.images))
        config = config.with_steps(len(images), full_size=False)
        first = step = embedding["step"]
        listener(Started(config.name, first, config.total_steps, len(images)))
        self._begin(config, path, first, listener)
        while step < config.total_steps and not should_stop():
            step += 1
            time.sleep(self.pace)
            listener(self._step(config, step, first))
            self._preview_and_copy(config, step, listener)
            if step % 25 == 0:
                listener(Evaluated(step, 0.04 + 0.11 * math.exp(-step / 60), step))
                listener(self._judged(step, over=False))
        _write(path, {**embedding, "step": step})
        judged = self._judged(step, over=True)
        listener(judged)
        before = str(Path(config.log_dir) / f"{config.name}-{first}.json")
        LastRun(config.to_dict(), step, judged.level, judged.text, before).write(last_run_file(path))
        picture = Path(config.log_dir) / f"{config.name}-{step}.png"
        if config.preview_every and picture.is_file():
            path.with_suffix(".png").write_bytes(picture.read_bytes())
        listener(Stopped(step, "interrupted" if step < config.total_steps else "finished", str(path)))

    def _begin(self, config: TrainingConfig, path: Path, first: int, listener: Listener) -> None:
        """What a run leaves before its first step."""
        LastRun(config.to_dict(), first).write(last_run_file(path))
        self._copy(config, first, listener)
        listener(Evaluated(first, 0.15, first))
        if config.preview_every:
            self._preview(config, first, listener)

    def _judged(self, step: int, *, over: bool) -> Judged:
        level, long = self.host.level if over else "fair", 40.0 if self.host.level == "bad" else 1.1
        text = {
            "good": "Levelled off since step 100: its error on the pictures is 60 % lower.",
            "fair": "Still improving: its error on the pictures is 40 % lower.",
            "bad": "Broken, because its vectors are 40 times as long as words.",
        }[level]
        return Judged(step, level, text, {"clip_l": ("purple", "star")}, {"clip_l": (long * 0.5, long * 0.55)}, {"clip_l": (0.4, 0.5, 0.6)})

    def embedding_file(self, name: str) -> Path:
        """The `.json` of that name."""
        path = self._path(name)
        if not path.is_file():
            raise EmbeddingError(f"There is no embedding {name!r} with a file of its own.")
        return path

    def put_vectors(self, source: Path, target: Path, name: str) -> int:
        """A copy of the file."""
        _write(target, json.loads(source.read_text(encoding="utf-8")))
        return int(json.loads(source.read_text(encoding="utf-8"))["step"])

    def step_if_equal(self, source: Path, target: Path, name: str) -> int | None:
        """Files hold a step in place of vectors."""
        steps = [int(json.loads(path.read_text(encoding="utf-8"))["step"]) for path in (source, target)]
        return steps[1] if steps[0] == steps[1] else None

    def count_tokens(self, prompt: str) -> tuple[int, int]:
        """Words, and 75 for each chunk."""
        count = len(prompt.split())
        return count, 75 * max(1, math.ceil(count / 75))

    def generate(self, values: Mapping[str, Any], progress: Callable[[int, int], None], should_stop: ShouldStop) -> list[Image.Image]:
        """One drawing for each picture asked for; the seed chooses its colour."""
        pictures: list[Image.Image] = []
        for index in range(values["count"]):
            for step in range(values["steps"]):
                if should_stop():
                    return pictures
                time.sleep(self.pace)
                progress(index * values["steps"] + step + 1, values["count"] * values["steps"])
            picture = _drawing(values["seed"] + index, 1.0, (values["width"], values["height"]))
            picture.info["parameters"] = f"{values['prompt']}\nSteps: {values['steps']}, Seed: {values['seed'] + index}"
            pictures.append(picture)
        return pictures

    def _path(self, name: str) -> Path:
        if not name or "/" in name or "\\" in name or name.startswith("."):
            raise InvalidNameError(f"The name {name!r} is empty or has a path in it; give a name only.")
        return self.host.folders().embeddings / f"{name}.json"

    def _card(self, path: Path) -> Card:
        embedding = json.loads(path.read_text(encoding="utf-8"))
        picture = path.with_suffix(".png")
        checkpoint, made_for = self.host.checkpoint(), embedding["size"]
        size = _size_of(checkpoint)
        reason = "" if made_for == size else f"It was made for {made_for} px; {checkpoint.name} draws {size} px."
        partner, run = f"{path.stem}-neg", read_last_run(path)
        return Card(
            path.stem,
            EmbeddingDescription(embedding["vectors"], "SD1", embedding["step"], f"fake-{made_for}"),
            picture=picture if picture.exists() else None,
            reason=reason,
            negative=partner if path.with_name(f"{partner}.json").exists() else "",
            is_negative=path.stem.endswith("-neg"),
            verdict=run.verdict,
            level=run.level,
            changed=path.stat().st_mtime,
        )

    def _step(self, config: TrainingConfig, step: int, first: int) -> StepDone:
        noise = random.Random(step * 7919 + config.seed).gauss(0, 0.018)
        loss = max(0.002, 0.06 + 0.11 * math.exp(-step / 60) + noise)
        rate = 1 / max(self.pace, 1e-3)
        learning_rate = config.rates(first, _WORD_SCALE).at(step)
        return StepDone(step, loss, learning_rate, 0.4 + 0.1 * math.sqrt(step - first), rate, (config.total_steps - step) / rate)

    def _preview_and_copy(self, config: TrainingConfig, step: int, listener: Listener) -> None:
        if config.preview_every and (step % config.preview_every == 0 or step == config.total_steps):
            self._preview(config, step, listener)
        if config.copy_every and step % config.copy_every == 0:
            self._copy(config, step, listener)

    def _preview(self, config: TrainingConfig, step: int, listener: Listener) -> None:
        listener(Busy(f"Drawing the preview of step {step}"))
        for number, row in enumerate(preview_prompts(config, f"a picture of {config.name}")):
            path = self._log(config) / f"{config.name}-{step}{f'-{number + 1}' if number else ''}.png"
            _drawing(row.seed + number, min(1.0, step / config.total_steps), (config.width, config.height)).save(path)
            listener(PreviewDrawn(step, str(path), row.prompt, row.seed, number))
        self._copy(config, step, listener)

    def _copy(self, config: TrainingConfig, step: int, listener: Listener) -> None:
        path = self._log(config) / f"{config.name}-{step}.json"
        _write(path, {**json.loads(self._path(config.name).read_text(encoding="utf-8")), "step": step})
        listener(CopySaved(step, str(path)))

    def _log(self, config: TrainingConfig) -> Path:
        folder = Path(config.log_dir) if config.log_dir else self.host.folders().outputs
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _size_of(checkpoint: Checkpoint) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


def _write(path: Path, embedding: Mapping[str, Any]) -> None:
    replace_file(path, json.dumps(embedding).encode())  # the page reads cards while the job's thread writes them


def _pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError(f"There is no folder {str(folder)!r}; give the folder that holds the training pictures.")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURE_ENDINGS)
    if not pictures:
        raise DatasetError(f"The folder {str(folder)!r} holds no pictures; expected .png, .jpg or .webp files.")
    return pictures


def _draw_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for seed in range(4):
        _drawing(seed, 1.0, (128, 128)).save(folder / f"{seed}.png")
        (folder / f"{seed}.txt").write_text("on a plain ground", encoding="utf-8")


def _drawing(seed: int, focus: float, size: tuple[int, int]) -> Image.Image:
    """A disc on a ground, grey at focus 0 and in full colour at 1."""
    from PIL import Image, ImageDraw

    ground, disc = _hue(seed * 47 + 30, 0.25 + 0.3 * focus), _hue(seed * 47 + 200, 0.7 * focus)
    picture = Image.new("RGB", size, ground)
    width, height = size
    radius = 0.34 * min(size) * (0.5 + focus / 2)
    box = (width / 2 - radius, height / 2 - radius, width / 2 + radius, height / 2 + radius)
    ImageDraw.Draw(picture).ellipse(box, fill=disc)
    return picture


def _hue(degrees: float, saturation: float) -> tuple[int, int, int]:
    import colorsys

    red, green, blue = colorsys.hls_to_rgb(degrees % 360 / 360, 0.6, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def _colours(image: Image.Image) -> str:
    """What a captioner may say: which of its colours a picture has most of."""
    red, green, blue = image.resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    return max((red, "a red picture"), (green, "a green picture"), (blue, "a blue picture"))[1]
