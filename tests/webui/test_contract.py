"""What every host promises, over every adapter: the stand-in, the standalone one, and A1111, Forge and reForge over stand-ins of theirs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.support import webui_hosts
from textual_inversion.app.engine import Engine
from textual_inversion.app.job import Job
from textual_inversion.app.port import Host
from textual_inversion.embedding import Embedding
from textual_inversion.errors import CheckpointError, DatasetError, NameTakenError
from textual_inversion.formats import save
from textual_inversion.hosts import entry
from textual_inversion.hosts.fake import FakeEngine, FakeHost
from textual_inversion.hosts.standalone.adapter import TINY, StandaloneHost
from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.events import Started, StepDone, Stopped

CLASSES = {"a1111": "A1111Host", "forge": "ForgeHost", "reforge": "ReForgeHost"}
WEBUIS = webui_hosts.KINDS
FOUND_BY = {
    "a1111": {"modules"},
    "forge": {"backend.diffusion_engine", "modules_forge"},
    "reforge": {"ldm_patched", "modules_forge"},
}
ALL = ("fake", "standalone", *WEBUIS)


@dataclass
class World:
    """A host with the engine over it, and for a WebUI what is inside of it."""

    kind: str
    engine: Any
    inside: Any = None

    @property
    def host(self) -> Any:
        return self.engine.host

    def put(self, name: str, width: int = 64, vectors: int = 2) -> Path:
        """A file that somebody else has written."""
        folder = self.host.folders().embeddings
        if self.kind == "fake":
            path = folder / f"{name}.json"
            path.write_text(f'{{"vectors": {vectors}, "step": 0, "size": {128 if width == 64 else width}}}', encoding="utf-8")
            return Path(path)
        path = folder / f"{name}.safetensors"
        save(Embedding(name, {"clip_l" if width < 1000 else "clip_h": torch.randn(vectors, width)}), path, overwrite=True)
        return Path(path)

    def card(self, name: str) -> Any:
        return next((card for card in self.engine.cards(rescan=True) if card.name == name), None)

    def check_at_rest(self) -> None:
        """Nothing of ours is left in the WebUI."""
        if self.inside is None:
            return
        assert not self.inside.queue.locked()
        assert self.inside.modules["modules.shared"].state.job == ""
        assert self.inside.on_card or not self.inside.gives_back


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], World]]:
    """`make(kind)`; what was imported over stand-ins is forgotten afterwards."""
    made: list[Any] = []

    def make_one(kind: str) -> World:
        if kind == "fake":
            return World(kind, FakeEngine(FakeHost(tmp_path / "fake"), pace=0))
        if kind == "standalone":
            return World(kind, Engine(StandaloneHost(tmp_path / "data")))
        inside = webui_hosts.stand_ins(kind, tmp_path / kind, TINY, 64)
        for name, module in inside.modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        host = getattr(importlib.import_module(f"textual_inversion.hosts.{kind}"), CLASSES[kind])()
        engine = Engine(host)
        host.install(engine.library)
        webui_hosts.load_model(inside)
        made.append(host)
        return World(kind, engine, inside)

    with webui_hosts.forgetting():
        yield make_one
        for host in made:
            host.remove()


@pytest.fixture(params=ALL)
def world(request: pytest.FixtureRequest, make: Callable[[str], World]) -> World:
    """Each host."""
    return make(request.param)


@pytest.fixture(params=WEBUIS)
def webui(request: pytest.FixtureRequest, make: Callable[[str], World]) -> World:
    """Each host that is a WebUI."""
    return make(request.param)


@pytest.fixture
def config(world: World, tmp_path: Path) -> TrainingConfig:
    """Three steps on one picture."""
    return three_steps(world, tmp_path)


def three_steps(world: World, root: Path) -> TrainingConfig:
    pictures = root / "pictures"
    pictures.mkdir()
    Image.new("RGB", (64, 64), "red").save(pictures / "red.png")
    log = str(world.host.folders().outputs / "log")
    return TrainingConfig("word", str(pictures), steps=3, width=64, height=64, log_dir=log, preview_every=0, copy_every=0)


# what a page asks


def test_it_is_a_host(world: World) -> None:
    host: Host = world.host
    assert isinstance(host, Host)
    assert isinstance(world.engine.job, Job)
    folders = host.folders()
    assert all(isinstance(folder, Path) for folder in (folders.embeddings, folders.outputs, folders.pictures, *folders.searched))
    chosen = host.checkpoint()
    assert chosen.name == ("fake-128" if world.kind == "fake" else "tiny")
    assert world.engine.picture_size() == 128
    assert folders.embeddings in folders.searched
    assert folders.templates.is_dir()
    assert any(folders.templates.glob("*.txt"))
    assert all(callable(captioner) for captioner in host.captioners(lambda event: None, lambda: False).values())


def test_the_port_is_small_and_nothing_of_it_is_left_open(world: World) -> None:
    asked = Host.__abstractmethods__
    assert len(asked) <= 8
    assert asked == {name for name in vars(Host) if not name.startswith("_")}
    assert not type(world.host).__abstractmethods__


def test_its_suggestions_are_settings(world: World) -> None:
    known = {field.name for field in fields(TrainingConfig)}
    assert set(world.host.suggestions().training) <= known
    assert world.host.suggestions().new.name


def test_a_new_embedding_has_a_card_at_once(world: World) -> None:
    before = world.engine.embeddings_version()
    path = world.engine.create(NewEmbedding("word", "red shape", "auto"))
    assert path.parent == world.host.folders().embeddings
    assert (world.card("word").description.num_vectors, world.card("word").reason) == (2, "")
    assert world.engine.embeddings_version() != before
    with pytest.raises(NameTakenError):
        world.engine.create(NewEmbedding("word", "red", 1))
    world.engine.create(NewEmbedding("word", "red", 1, overwrite=True))
    assert world.card("word").description.num_vectors == 1
    world.check_at_rest()


def test_what_does_not_fit_has_a_card_with_the_reason(world: World) -> None:
    world.put("word")
    world.put("wide", 1024)
    cards = world.engine.cards(rescan=True)
    assert [card.name for card in cards] == ["wide", "word"]
    assert [bool(card.reason) for card in cards] == [True, False]
    assert world.card("wide").reason.count("\n") == 0


def test_files_of_others_are_seen_when_it_looks_again(world: World) -> None:
    world.engine.cards(rescan=True)
    path = world.put("late")
    world.engine.refresh()
    assert "late" in {card.name for card in world.engine.cards()}
    path.unlink()
    world.engine.refresh()
    assert "late" not in {card.name for card in world.engine.cards()}


# training


def test_training_tells_its_steps_and_is_kept(world: World, config: TrainingConfig) -> None:
    world.engine.create(NewEmbedding("word", "red", 1))
    events: list[Any] = []
    world.engine.train(config, events.append, lambda: False)
    started = next(event for event in events if isinstance(event, Started))
    assert (started.name, started.first_step, started.last_step) == ("word", 0, 3)
    assert [event.step for event in events if isinstance(event, StepDone)] == [1, 2, 3]
    assert [(event.step, event.reason) for event in events if isinstance(event, Stopped)] == [(3, "finished")]
    assert world.card("word").description.step == 3
    world.check_at_rest()


def test_interrupting_keeps_what_was_learned(world: World, config: TrainingConfig) -> None:
    world.engine.create(NewEmbedding("word", "red", 1))
    events: list[Any] = []
    world.engine.train(config, events.append, lambda: any(isinstance(event, StepDone) for event in events))
    stopped = next(event for event in events if isinstance(event, Stopped))
    assert (stopped.step, stopped.reason, world.card("word").description.step) == (1, "interrupted", 1)
    world.check_at_rest()


def test_a_failure_is_raised_and_leaves_everything_at_rest(world: World, config: TrainingConfig) -> None:
    world.engine.create(NewEmbedding("word", "red", 1))
    for path in Path(config.images).iterdir():
        path.unlink()
    with pytest.raises(DatasetError):
        world.engine.train(config, lambda event: None, lambda: False)
    world.check_at_rest()
    assert world.card("word").description.step in (0, None)


# what a WebUI adds


def test_a_check_is_offered_until_it_is_answered(webui: World) -> None:
    save_file({"emb_params": torch.zeros(1, 64)}, webui.host.folders().embeddings / "safe.safetensors")
    assert not webui.host.offers_check()
    (webui.host.folders().embeddings / "deep").mkdir()
    (webui.host.folders().embeddings / "deep" / "any.PT").write_bytes(b"")
    assert webui.host.offers_check()
    webui.host.check_answered()
    assert not webui.host.offers_check()
    assert webui.inside.saved == 1


def test_a_trained_word_is_read_before_the_next_in_the_queue_draws(webui: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    webui.engine.create(NewEmbedding("word", "red", 1))
    read, queue_held = webui.host.read_embeddings, list[bool]()
    monkeypatch.setattr(webui.host, "read_embeddings", lambda: queue_held.append(webui.inside.queue.locked()) or read())
    webui.engine.train(three_steps(webui, tmp_path), lambda event: None, lambda: False)
    assert queue_held == [True]
    assert webui.inside.tables[0].word_embeddings["word"].step == 3


def test_a_run_that_is_stopped_in_the_queue_has_changed_nothing(webui: World, tmp_path: Path) -> None:
    webui.engine.create(NewEmbedding("word", "red", 1))
    events: list[Any] = []
    with webui.inside.queue:
        webui.engine.train(three_steps(webui, tmp_path), events.append, lambda: True)
    assert [event.reason for event in events if isinstance(event, Stopped)] == ["interrupted"]
    assert not any(isinstance(event, Started) for event in events)
    webui.check_at_rest()


def test_each_webui_is_told_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, there in {
        "a1111": {"modules"},
        "forge": {"backend.diffusion_engine", "modules_forge"},
        "reforge": {"ldm_patched", "modules_forge"},
    }.items():
        monkeypatch.setattr(entry, "_has", lambda name, there=there: name in there)
        assert entry.webui_name() == kind


def test_without_a_checkpoint_there_is_one_sentence(webui: World) -> None:
    webui.inside.checkpoint = None
    webui.inside.modules["modules.sd_models"].model_data.sd_model = None
    with pytest.raises(CheckpointError, match="checkpoint"):
        webui.host.checkpoint()
    assert webui.engine.cards() == []
    assert webui.host.known_names() == {}


def test_prompts_know_a_word_as_soon_as_it_was_made(webui: World) -> None:
    webui.engine.create(NewEmbedding("word", "red shape", "auto"))
    assert webui.host.known_names() == {"word": 2}
    assert webui.inside.known() == {"word"}
    embedding = webui.inside.tables[0].word_embeddings["word"]
    assert (embedding.vectors, embedding.shape, embedding.vec.shape) == (2, 64, (2, 64))
    assert not embedding.vec.is_inference()
    assert len(embedding.shorthash) == 12


def test_a_webui_at_work_is_not_disturbed(webui: World) -> None:
    scans = webui.inside.tables[0].scans
    with webui.inside.queue:
        webui.engine.create(NewEmbedding("word", "red", 1))
        assert webui.inside.tables[0].scans == scans
    assert webui.card("word").reason == ""
    webui.host.before_prompts()
    if webui.kind != "forge":  # these ask at every generation by themselves
        webui.inside.tables[0].load_textual_inversion_embeddings()
    assert webui.inside.known() == {"word"}


def test_cached_prompts_are_forgotten_when_vectors_change(webui: World) -> None:
    cache = webui.inside.modules["modules.processing"].StableDiffusionProcessing.cached_c
    cache[:] = ["what it is for", "encoded"]
    webui.engine.create(NewEmbedding("word", "red", 1))
    assert cache[0] is None


def test_a_file_that_cannot_be_read_says_why_and_stays(webui: World) -> None:
    path = webui.host.folders().embeddings / "broken.pt"
    path.write_bytes(b"PK\x03\x04 no more")
    webui.host.embeddings_changed()
    skipped = webui.inside.tables[0].skipped_embeddings
    assert "broken" in skipped
    assert skipped["broken"].reason
    assert path.read_bytes() == b"PK\x03\x04 no more"
    assert webui.inside.tables[0].read_by_host == []


def test_the_setting_leaves_reading_to_the_webui(webui: World) -> None:
    webui.put("word")
    webui.inside.options().textual_inversion_own_reader = False
    webui.host.embeddings_changed()
    assert webui.inside.tables[0].read_by_host == ["word.safetensors"]


def test_install_and_remove_change_nothing_but_once(webui: World) -> None:
    names = ("load_textual_inversion_embeddings", "load_from_file")

    def methods() -> list[Any]:
        return [getattr(cls, name) for cls in webui.inside.classes for name in names]

    ours = methods()
    webui.host.install(webui.engine.library)
    assert methods() == ours
    assert all(method.__module__.startswith("textual_inversion.") for method in ours)
    webui.host.remove()
    webui.host.remove()
    assert not any(method.__module__.startswith("textual_inversion.") for method in methods())
    webui.put("word")
    for table in webui.inside.tables:
        table.scan()
    assert webui.inside.tables[0].read_by_host == ["word.safetensors"]


def test_a_job_that_ends_while_the_page_is_reloaded_has_no_file_read_by_the_webui(webui: World) -> None:
    webui.host.remove()  # as the WebUI asks for, before it loads the scripts again
    path = webui.put("word")
    webui.host.embeddings_changed()
    assert webui.inside.tables[0].read_by_host == []
    webui.host.install(webui.engine.library)
    webui.engine.refresh()
    assert webui.inside.known() == {"word"}
    assert path.exists()


def test_a_card_is_lent_and_comes_back(webui: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webui.inside, "device", torch.device("cuda"))
    if hasattr(devices := webui.inside.modules.get("modules.devices"), "device"):
        devices.device = torch.device("cuda")
    with webui.host.lent_memory():
        assert not webui.inside.on_card
    webui.check_at_rest()
    webui.inside.on_card = True
    with pytest.raises(ZeroDivisionError):
        fail_with_lent_memory(webui)
    webui.check_at_rest()


def fail_with_lent_memory(webui: World) -> None:
    with webui.host.lent_memory():
        assert not webui.inside.on_card
        raise ZeroDivisionError


def test_every_model_of_a1111_leaves_the_card_and_the_one_in_use_comes_back(make: Callable[[str], World]) -> None:
    inside = make("a1111").inside
    models = inside.modules["modules.sd_models"]
    data, moves, full = models.model_data, list[Any](), [False]
    other = SimpleNamespace(cond_stage_model=None)
    data.loaded_sd_models.append(other)

    def to_cpu(model: Any) -> None:
        if full[0] and model is other:
            raise MemoryError
        moves.append(("cpu", model))

    models.send_model_to_cpu, models.send_model_to_device = to_cpu, lambda model: moves.append(("card", model))
    inside.modules["modules.devices"].device = torch.device("cuda")
    host = importlib.import_module("textual_inversion.hosts.a1111").A1111Host()
    with host.lent_memory():
        assert moves == [("cpu", data.sd_model), ("cpu", other)]
    assert moves.pop() == ("card", data.sd_model)
    moves.clear()
    full[0] = True
    with pytest.raises(MemoryError), host.lent_memory():
        pytest.fail("there was no room for them")
    assert moves == [("cpu", data.sd_model), ("card", data.sd_model)]


def test_training_that_gets_no_memory_is_raised_and_leaves_everything_at_rest(
    webui: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    webui.engine.create(NewEmbedding("word", "red", 1))
    monkeypatch.setattr(webui.inside, "device", torch.device("meta"))  # not the processor, and there everywhere
    if hasattr(devices := webui.inside.modules.get("modules.devices"), "device"):
        devices.device = torch.device("meta")
    places = {
        "a1111": ("modules.sd_models", "send_model_to_cpu"),
        "forge": ("backend.memory_management", "unload_all_models"),
        "reforge": ("ldm_patched.modules.model_management", "unload_all_models"),
    }
    module, name = places[webui.kind]
    config = replace(three_steps(webui, tmp_path), device="cpu")  # where the training itself runs

    def train() -> list[Any]:
        events: list[Any] = []
        webui.engine.train(config, events.append, lambda: False)
        return events

    with monkeypatch.context() as broken:
        broken.setattr(webui.inside.modules[module], name, _refuse)
        with pytest.raises(RuntimeError, match="device-side assert"):
            train()
    webui.check_at_rest()
    assert [event.reason for event in train() if isinstance(event, Stopped)] == ["finished"]
    webui.check_at_rest()


def _refuse(*given: Any) -> None:
    raise RuntimeError("CUDA error: device-side assert triggered")


def test_on_the_processor_nothing_is_moved(webui: World) -> None:
    with webui.host.lent_memory():
        assert webui.inside.on_card
    assert torch.device(webui.host.device()).type == "cpu"


def test_the_vae_that_is_chosen(webui: World, tmp_path: Path) -> None:
    assert webui.host.checkpoint().vae is None
    vae, text_encoder = tmp_path / "v.safetensors", tmp_path / "t.safetensors"
    save_file({"encoder.conv_in.weight": torch.zeros(1), "decoder.conv_in.weight": torch.zeros(1)}, vae)
    save_file({"text_model.encoder.layers.0.layer_norm1.bias": torch.zeros(1)}, text_encoder)
    if webui.kind == "forge":
        webui.inside.options().forge_additional_modules = [str(text_encoder), str(vae)]
    else:
        webui.inside.modules["modules.sd_vae"].loaded_vae_file = str(vae)
    assert webui.host.checkpoint().vae == vae


def test_what_a_failed_load_leaves_is_no_model(make: Callable[[str], World]) -> None:
    webui = make("reforge")
    data = webui.inside.modules["modules.sd_models"].model_data
    webui.engine.create(NewEmbedding("word", "red", 1))
    data.loaded_sd_models.clear()  # and `sd_model` is still the one that was taken apart
    data.sd_model = SimpleNamespace(sd_checkpoint_info=SimpleNamespace(filename="gone.safetensors", name_for_extra="gone"))
    assert webui.host.checkpoint().name == "tiny"
    scans = webui.inside.tables[0].scans
    webui.engine.create(NewEmbedding("other", "red", 1))
    assert webui.inside.tables[0].scans == scans


def test_before_the_first_model_names_are_those_that_it_will_know(webui: World) -> None:
    for name in ("neg,", "toy (old)", "plain"):
        webui.put(name)
    webui.host.read_embeddings()
    after = webui.host.known_names()
    if webui.kind != "forge":
        assert {"neg,", "toy (old)", "plain"} <= set(after)
        return
    webui.inside.modules["modules.sd_models"].model_data.sd_model = None
    assert dict(webui.host.known_names()) == dict(after)


def test_after_a_load_that_failed_the_next_generation_loads_again(webui: World) -> None:
    data = webui.inside.modules["modules.sd_models"].model_data
    webui.host.before_loading()
    assert data.forge_hash == "loaded"
    data.sd_model = None
    webui.host.before_loading()
    if webui.kind == "forge":
        assert data.forge_hash == ""
    assert isinstance(webui.host.known_names(), dict)
