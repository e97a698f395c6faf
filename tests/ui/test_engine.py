"""The engine over a host: pictures of cards, memory that runs out, where an embedding is trained."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import textual_inversion.training
from textual_inversion import formats
from textual_inversion.app.engine import Engine
from textual_inversion.app.memory import enough_memory
from textual_inversion.diffusion import generate as drawing
from textual_inversion.diffusion import model as models
from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import ConfigError, TextualInversionError, TrainingError
from textual_inversion.hosts.fake import FakeHost
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.events import Message, PreviewDrawn

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """Over folders of this test, with a checkpoint that nobody reads."""
    return Engine(FakeHost(tmp_path))


def save(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    formats.save(Embedding(name, {"clip_l": torch.zeros(1, 768)}), folder / f"{name}.safetensors")


@pytest.fixture
def run(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Train `cat` with a trainer that draws one preview of a colour, then fails with an error if one is given."""
    trained_in: list[Path] = []

    def training(colour: tuple[int, int, int], error: Exception | None = None) -> list[Any]:
        def train(config: TrainingConfig, model: object, folder: Path, *, listener: Callable[[Any], None], should_stop: object) -> None:
            trained_in.append(folder)
            Image.new("RGB", (8, 8), colour).save(engine.host.folder / "preview.png")
            listener(PreviewDrawn(1, str(engine.host.folder / "preview.png"), "a cat", 0))
            if error:
                raise error

        monkeypatch.setattr(textual_inversion.training, "train", train)
        monkeypatch.setattr(models, "load_checkpoint", lambda path, **options: None)
        events: list[Any] = [trained_in]
        engine.train(TrainingConfig("cat", "pictures"), events.append, lambda: False)
        return events

    return training


def colour(path: Path) -> Any:
    with Image.open(path) as picture:
        return picture.convert("RGB").getpixel((0, 0))


def test_the_cards_picture_is_the_last_preview_and_follows_the_next_run(engine: Engine, run: Callable[..., list[Any]]) -> None:
    picture = engine.host.folders().embeddings / "cat.preview.png"
    run(RED)
    assert colour(picture) == RED
    run(BLUE)
    assert colour(picture) == BLUE
    assert [path.name for path in picture.parent.iterdir()] == ["cat.preview.png"]


def test_a_picture_that_a_person_put_there_stays(engine: Engine, run: Callable[..., list[Any]]) -> None:
    picture = engine.host.folders().embeddings / "cat.preview.png"
    Image.new("RGB", (8, 8), BLUE).save(picture)
    run(RED)
    assert colour(picture) == BLUE


def test_a_card_picture_that_cannot_be_written_costs_a_message_only(engine: Engine, run: Callable[..., list[Any]]) -> None:
    (engine.host.folders().embeddings / "cat.preview.png").write_bytes(b"no picture")
    said = [event.text for event in run(RED) if isinstance(event, Message)]
    assert "cat.preview.png was not written" in said[-1]


def test_a_run_that_fails_has_changed_the_embeddings_too(engine: Engine, run: Callable[..., list[Any]]) -> None:
    with pytest.raises(TrainingError):
        run(RED, TrainingError("no"))
    assert engine.host.changes == 1
    assert (engine.host.folders().embeddings / "cat.preview.png").exists()


class Weights:
    """Stands for a model that fills a card."""


@pytest.mark.parametrize("error", [None, TrainingError("no"), RuntimeError("CUDA out of memory")])
def test_the_model_of_a_run_is_gone_before_the_webuis_comes_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    alive: list[bool] = []

    @contextmanager
    def lent_memory() -> Iterator[None]:
        try:
            yield
        finally:
            alive.append(model() is not None)

    model: Any = None

    def load_checkpoint(path: Path, **options: Any) -> Weights:
        nonlocal model
        weights = Weights()
        model = weakref.ref(weights)
        return weights

    def train(config: TrainingConfig, model: Weights, *given: Any, **options: Any) -> None:
        step = (model, config)  # as a frame deep inside holds it
        if error and step:
            raise error

    monkeypatch.setattr(engine.host, "lent_memory", lent_memory)
    monkeypatch.setattr(textual_inversion.training, "train", train)
    monkeypatch.setattr(models, "load_checkpoint", load_checkpoint)
    with pytest.raises(TextualInversionError) if error else nullcontext():
        engine.train(TrainingConfig("cat", "pictures"), lambda event: None, lambda: False)
    assert alive == [False]


def test_an_embedding_in_a_subfolder_is_trained_there(engine: Engine, run: Callable[..., list[Any]]) -> None:
    below = engine.host.folders().embeddings / "animals"
    save(below, "cat")
    assert [card.name for card in engine.cards()] == ["cat"]
    assert run(RED)[0] == [below]
    assert (below / "cat.preview.png").exists()


def test_cards_are_of_a_moment_ago_unless_a_scan_is_asked_for(engine: Engine) -> None:
    folder = engine.host.folders().embeddings
    save(folder, "cat")
    assert [card.name for card in engine.cards()] == ["cat"]
    version = engine.embeddings_version()
    save(folder / "sub", "dog")
    assert [card.name for card in engine.cards()] == ["cat"]
    assert [card.name for card in engine.cards(rescan=True)] == ["cat", "dog"]
    assert engine.embeddings_version() != version


def test_a_card_tells_what_its_file_says(engine: Engine) -> None:
    folder = engine.host.folders().embeddings
    origin = Provenance(step=300, checkpoint_name="v1-5")
    for name in ("cat", "cat-neg"):
        formats.save(Embedding(name, {"clip_l": torch.zeros(2, 768)}, origin), folder / f"{name}.pt")
    (folder / "broken.pt").write_bytes(b"nothing")
    broken, cat, negative = engine.cards()
    facts = cat.description
    assert (facts.line(), facts.checkpoint, cat.negative) == ("2 vectors · SD1 · step 300", "v1-5", "cat-neg")
    assert (negative.is_negative, negative.negative) == (True, "")
    assert broken.reason


def test_training_goes_on_only_with_a_file_of_the_words_own_name(engine: Engine) -> None:
    from safetensors.torch import save_file

    folder = engine.host.folders().embeddings
    save_file({"<toy>": torch.zeros(1, 768), "<car>": torch.zeros(1, 768)}, folder / "pack.safetensors")
    save(folder, "cat")
    save_file({"bundle_emb.style.emb_params": torch.zeros(1, 768)}, folder / "style.safetensors")
    formats.save(Embedding("bird", {"clip_l": torch.zeros(1, 768)}), folder / "bird.png")
    assert {card.name: card.untrainable for card in engine.cards()} == {
        "bird": "it lies in bird.png; convert it to bird.safetensors to train it further.",
        "car": "it lies in pack.safetensors; convert it to car.safetensors to train it further.",
        "cat": "",
        "style": "it lies in style.safetensors beside other data, which training would write over; "
        "convert it to a file of another name to train it further.",
        "toy": "it lies in pack.safetensors; convert it to toy.safetensors to train it further.",
    }


def test_only_what_the_prompt_names_is_loaded_and_counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    formats.save(Embedding("cat", {"clip_l": torch.zeros(5, 768)}), engine.host.folders().embeddings / "cat.pt")
    save(engine.host.folders().embeddings, "dog")
    assert engine.count_tokens("a CAT") == (6, 75)
    given: list[Any] = []
    monkeypatch.setattr(drawing, "generate", lambda model, settings, embeddings, **more: given.append(embeddings) or [])
    monkeypatch.setattr(Engine, "model", lambda self: None)
    assert engine.generate({"prompt": "a cat"}, lambda done, total: None, lambda: False) == []
    assert list(given[0]) == ["cat", "dog"]
    assert engine.library()._loaded == {}


def test_drawing_leaves_no_thread_that_would_slow_training_down(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    drew: list[threading.Thread] = []
    monkeypatch.setattr(drawing, "generate", lambda *given, **more: drew.append(threading.current_thread()) or [])
    monkeypatch.setattr(Engine, "model", lambda self: None)
    engine.generate({"prompt": "a cat"}, lambda done, total: None, lambda: False)
    assert drew[0] is not threading.current_thread()
    assert not drew[0].is_alive()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_is_one_sentence(error: Exception, run: Callable[..., list[Any]]) -> None:
    with pytest.raises(ConfigError, match="not enough memory to train; choose a smaller"):
        run(RED, error)


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("draw", "wait"):
        raise RuntimeError("shapes differ")
