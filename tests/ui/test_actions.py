"""The buttons, over the fake engine: what they do and what they say when they cannot."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from textual_inversion.app.actions import Actions, name_problem
from textual_inversion.app.cards import Card
from textual_inversion.app.engine import Engine
from textual_inversion.app.job import JobKind
from textual_inversion.description import EmbeddingDescription
from textual_inversion.errors import DatasetError
from textual_inversion.hosts.fake import FakeEngine
from textual_inversion.hosts.standalone.adapter import StandaloneHost
from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.settings.schema import defaults_of, folder_text
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.ui import form, pictures, render
from textual_inversion.ui.page import starting_values


def train_values(engine: FakeEngine, **changes: Any) -> dict[str, Any]:
    values = starting_values(Actions(engine))["train"]
    return {**{key: value for key, value in values.items() if not key.endswith("_options")}, **changes}


def new_values(engine: FakeEngine, **changes: Any) -> dict[str, Any]:
    return {"overwrite": False, **starting_values(Actions(engine))["create"], **changes}


def test_the_first_click_on_train_works_when_nothing_was_created(engine: FakeEngine) -> None:
    actions = Actions(engine)
    outcome = actions.train(train_values(engine), new_values(engine))
    assert not outcome.failed, outcome.text
    assert "is created first" in outcome.text
    assert engine.job.wait(20)
    state = engine.job.snapshot()
    assert (state["phase"], state["step"], state["name"]) == ("finished", 200, "my-concept")
    assert [preview["step"] for preview in state["previews"]] == [0, 50, 100, 150, 200]
    assert actions.names() == ["my-concept"]


def test_words_that_training_finds_are_announced(engine: FakeEngine) -> None:
    actions = Actions(engine)
    created = actions.create(new_values(engine, name="cat", initializer_text="auto"))
    assert "4 vectors" in created.text
    assert "search for words" in created.text
    assert "search" not in actions.create(new_values(engine, name="dog", initializer_text="automobile")).text
    started = actions.train(train_values(engine, name="wug"), new_values(engine, initializer_text="Auto"))
    assert "from words that training finds" in started.text
    assert engine.job.wait(20)


def test_create_train_interrupt_and_go_on(engine: FakeEngine) -> None:
    actions = Actions(engine)
    engine.pace = 0.01
    created = actions.create(new_values(engine, name="cat", initializer_text="small cat"))
    assert (created.name, created.failed) == ("cat", False)
    assert "2 vectors" in created.text
    assert not actions.train(train_values(engine, name="cat"), new_values(engine)).failed
    refused = actions.train(train_values(engine, name="cat"), new_values(engine))
    assert "'cat' is still at work" in refused.text
    while engine.job.snapshot()["step"] < 3:
        time.sleep(0.005)
    assert "kept" in actions.interrupt().text
    assert engine.job.wait(20)
    card = actions.card("cat")
    assert card is not None
    assert 3 <= (card.description.step or 0) < 200
    engine.pace = 0
    assert not actions.train(train_values(engine, name="cat"), new_values(engine)).failed
    assert engine.job.wait(20)
    assert engine.job.snapshot()["first_step"] == card.description.step
    assert "at step 200 already" in actions.train(train_values(engine, name="cat"), new_values(engine)).text


def test_create_says_when_the_checkpoint_knows_none_of_the_words(tmp_path: Path) -> None:
    actions = Actions(Engine(StandaloneHost(tmp_path)))
    values = {"num_vectors": "auto", "overwrite": True, "name": "word"}
    for words, told in (("helicopter", True), ("red heart", False), ("", False)):
        outcome = actions.create({**values, "initializer_text": words})
        assert not outcome.failed, outcome.text
        assert ("knows none of these words, so it starts from zeros" in outcome.text) is told


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "../cat"}, "path"),
        ({"name": ""}, "empty"),
        ({"images": "/no/such/folder"}, "does not exist"),
        ({"learning_rate": "fast"}, "'fast'"),
        ({"steps": None}, "Max steps is empty"),
        ({"batch_size": 1.5}, "whole number"),
        ({"width": 100}, "multiple of 8"),
        ({"batch_size": 0}, "from 1 to"),
    ],
)
def test_train_says_what_is_wrong_and_changes_nothing(engine: FakeEngine, changes: dict[str, Any], said: str) -> None:
    outcome = Actions(engine).train(train_values(engine, **changes), new_values(engine))
    assert outcome.failed
    assert said in outcome.text
    assert "\n" not in outcome.text
    assert not engine.job.running
    assert engine.cards() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "a/b"}, "path"),
        ({"name": ""}, "empty"),
        ({"num_vectors": "0"}, "from 1 to 75"),
        ({"num_vectors": "76"}, "from 1 to 75"),
        ({"num_vectors": "many"}, "must be a number"),
        ({"name": "taken"}, "exists"),
    ],
)
def test_create_says_what_is_wrong(engine: FakeEngine, changes: dict[str, Any], said: str) -> None:
    actions = Actions(engine)
    actions.create(new_values(engine, name="taken"))
    outcome = actions.create(new_values(engine, **changes))
    assert outcome.failed
    assert said in outcome.text
    assert actions.names() == ["taken"]


def test_an_embedding_that_does_not_fit_is_neither_offered_nor_trained(engine: FakeEngine) -> None:
    actions = Actions(engine)
    actions.create(new_values(engine, name="small"))
    engine.host.choose_checkpoint("fake-512")
    assert actions.names() == []
    assert "made for 128 px" in actions.train(train_values(engine, name="small"), new_values(engine)).text


def test_each_run_has_a_log_folder_of_its_own(engine: FakeEngine, tmp_path: Path) -> None:
    config = Actions(engine).config(train_values(engine, log_dir=str(tmp_path / "logs")))
    assert Path(config.log_dir).parent == tmp_path / "logs" / "my-concept"


def test_the_template_is_taken_from_the_hosts_folder_only(engine: FakeEngine) -> None:
    (engine.host.folders().templates / "passwd").write_text("[name]", encoding="utf-8")
    config = Actions(engine).config(train_values(engine, template="../../etc/passwd"))
    assert Path(config.template) == engine.host.folders().templates / "passwd"


def test_a_template_without_the_name_is_told_at_the_click(engine: FakeEngine) -> None:
    (engine.host.folders().templates / "bare.txt").write_text("a picture\n", encoding="utf-8")
    outcome = Actions(engine).train(train_values(engine, template="bare.txt"), new_values(engine))
    assert outcome.failed
    assert "has no [name] in line 1" in outcome.text
    assert engine.cards() == []


def test_a_word_is_not_overwritten_while_it_is_trained(engine: FakeEngine) -> None:
    engine.pace = 0.02
    actions = Actions(engine)
    assert not actions.train(train_values(engine), new_values(engine)).failed
    refused = actions.create(new_values(engine, overwrite=True))
    assert "is being trained" in refused.text
    assert not actions.create(new_values(engine, name="other")).failed
    actions.interrupt()
    assert engine.job.wait(20)


def test_cards_can_be_read_while_a_job_writes_them(engine: FakeEngine) -> None:
    new = NewEmbedding("cat", "a cat", 2, overwrite=True)
    engine.create(new)
    writer = threading.Thread(target=lambda: [engine.create(new) for _ in range(50)])
    writer.start()
    while writer.is_alive():
        assert [card.description.num_vectors for card in engine.cards()] == [2]
    writer.join()


def test_of_two_files_with_one_name_the_one_that_can_be_used_counts(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [Card("cat", reason="It is broken."), Card("cat", EmbeddingDescription(2, "SD1"))]
    monkeypatch.setattr(FakeEngine, "cards", lambda self, rescan=False: both)
    assert Actions(engine).card("cat") == both[1]


def test_what_nobody_foresaw_is_one_sentence_too(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: FakeEngine, new: object) -> Path:
        raise KeyError("table")

    monkeypatch.setattr(FakeEngine, "create", broken)
    outcome = Actions(engine).create(new_values(engine))
    assert outcome.failed
    assert "Something unexpected happened (KeyError: 'table')" in outcome.text


def test_a_name_that_cannot_be_one_is_told_before_the_click() -> None:
    assert "has a path in it" in name_problem("a/b")
    assert name_problem("a-b") == ""


def test_interrupting_speaks_of_what_is_running(engine: FakeEngine) -> None:
    actions = Actions(engine)
    assert "Nothing is running" in actions.interrupt().text
    engine.job.start(JobKind.PREPROCESS, "cats", lambda listener, stop: _until(stop))
    assert "picture" in actions.interrupt().text
    assert engine.job.wait(5)


def _until(stop: Callable[[], bool]) -> None:
    while not stop():
        time.sleep(0.005)


def test_the_form_has_every_training_setting_once() -> None:
    rows = [row for section in form.train_sections().values() for row in section]
    assert sorted(setting.name for row in rows for setting in row) == sorted(defaults_of(TrainingConfig))
    rows += [*form.create_rows(), *(row for section in form.preprocess_sections().values() for row in section)]
    labels = [setting.label for row in rows for setting in row]
    assert len(labels) == len(set(labels)), "a WebUI remembers values by label"


def test_a_space_stays_where_it_means_something(engine: FakeEngine) -> None:
    actions = Actions(engine)
    values = train_values(engine)
    assert actions.config(values).filename_join == " "
    assert actions.config({**values, "filename_join": ", ", "filename_regex": " [a-z]+ "}).filename_join == ", "
    assert actions.config({**values, "filename_regex": " [a-z]+ "}).filename_regex == "[a-z]+"


def test_the_form_offers_the_latest_embedding(engine: FakeEngine) -> None:
    actions = Actions(engine)
    for name in ("old", "new"):
        actions.create(new_values(engine, name=name))
        path = engine.host.folders().embeddings / f"{name}.json"
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime + (10 if name == "new" else 0)))
    assert starting_values(actions)["train"]["name"] == "new"


def test_the_home_of_nobody_is_a_folder_that_does_not_exist(engine: FakeEngine) -> None:
    for images in ("~no-such-person/pictures", "\0"):
        assert "ti-note-error" in pictures.pictures_in(folder_text(images)).html()
        assert "does not exist" in Actions(engine).train(train_values(engine, images=images), new_values(engine)).text


def test_dropped_pictures_are_checked_and_renamed(engine: FakeEngine, tmp_path: Path) -> None:
    source = engine.host.folders().pictures
    (tmp_path / "evil.png").write_text("<script>")
    (tmp_path / "run.exe").write_bytes(b"MZ")
    whole = (source / "2.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "..x$y.png").write_bytes((source / "0.png").read_bytes())
    dropped = [source / "1.png", source / "1.txt", *(tmp_path / name for name in ("evil.png", "run.exe", "torn.png", "..x$y.png"))]
    folder, left_out = pictures.keep_uploads([str(path) for path in dropped], tmp_path / "kept")
    assert sorted(path.name for path in folder.iterdir()) == ["1.png", "1.txt", "x_y.png"]
    assert "evil.png" in left_out
    assert "run.exe" in left_out
    assert "torn.png" in left_out
    with pytest.raises(DatasetError, match="None of the files"):
        pictures.keep_uploads([str(tmp_path / "evil.png")], tmp_path / "kept2")
    assert not (tmp_path / "kept2").exists()


def test_the_strip_counts_pictures_and_captions(engine: FakeEngine, tmp_path: Path) -> None:
    assert "4 pictures, all with captions" in pictures.pictures_in(str(engine.host.folders().pictures)).html()
    missing = pictures.pictures_in(str(tmp_path / "none"))
    assert missing.problem
    assert "ti-note-error" in missing.html()
    assert pictures.pictures_in("").problem == ""


def test_what_cannot_be_trained_is_not_offered_and_refused_with_its_reason(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    usable = EmbeddingDescription(1, "SD1")
    cards = [Card("cat", usable), Card("old", reason="made for SD2."), Card("toy", usable, untrainable="it lies in pack.bin.")]
    monkeypatch.setattr(FakeEngine, "cards", lambda self, rescan=False: cards)
    actions = Actions(engine)
    assert actions.names() == ["cat"]
    assert actions.left_out() == cards[1:]
    outcome = actions.train({**train_values(engine), "name": "toy"}, new_values(engine))
    assert (outcome.kind, outcome.text) == ("error", "'toy' cannot be trained here: it lies in pack.bin.")


def test_a_check_says_what_training_would_do_and_does_nothing(engine: FakeEngine) -> None:
    actions = Actions(engine)
    before = sorted(engine.host.folder.rglob("*"))
    found = actions.check(train_values(engine), new_values(engine))
    assert found.ready
    assert found.pictures == 4
    shown = render.findings(found.findings)
    assert "Every prompt holds the name" in shown
    assert sorted(engine.host.folder.rglob("*")) == before
    bad = actions.check(train_values(engine, images="<b>/gone"), new_values(engine))
    assert not bad.ready
    assert "&lt;b&gt;/gone does not exist" in render.findings(bad.findings)


def test_the_form_keeps_latents_beside_the_outputs(engine: FakeEngine) -> None:
    assert starting_values(Actions(engine))["train"]["latent_cache"] == str(engine.host.folders().outputs / "latents")
