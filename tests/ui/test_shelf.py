"""Embeddings are renamed and deleted with everything that belongs to them, and both can be undone; a run says what it takes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ui.test_actions import new_values, train_values
from textual_inversion.app.actions import Actions
from textual_inversion.app.copies import kept_before
from textual_inversion.app.shelf import Shelf
from textual_inversion.hosts.fake import FakeEngine
from textual_inversion.last_run import read_last_run
from textual_inversion.settings.creation import NewEmbedding


def trained(engine: FakeEngine, name: str) -> None:
    assert not Actions(engine).train(train_values(engine, name=name), new_values(engine)).failed
    assert engine.job.wait(30)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_rename_takes_everything_along_and_can_be_undone(engine: FakeEngine) -> None:
    trained(engine, "wug")
    folders, shelf = engine.host.folders(), Shelf(engine)
    (folders.embeddings / "wug.txt").write_text("notes")
    (folders.embeddings / "wug.2.json").write_text((folders.embeddings / "wug.json").read_text())  # another embedding
    before = contents(folders.embeddings)
    outcome = shelf.rename("wug", "blick")
    assert (outcome.kind, outcome.name) == ("done", "blick")
    assert sorted(contents(folders.embeddings)) == ["blick.json", "blick.png", "blick.training.json", "blick.txt", "wug.2.json"]
    assert not (folders.outputs / "training" / "wug").exists()
    kept = kept_before(engine, "blick")
    assert kept is not None, "the vectors of before can still be taken back"
    assert kept.is_relative_to(folders.outputs / "training" / "blick")
    assert read_last_run(folders.embeddings / "blick.json").settings["name"] == "blick"
    state = engine.job.snapshot()
    assert state["name"] == "blick"
    assert engine.job.picture(state["job"], state["previews"][0]["file"]).is_file()  # type: ignore[union-attr]
    assert not Actions(engine).exchange(json.dumps({"use": 100, "job": state["job"]})).failed
    assert not Actions(engine).exchange(json.dumps({"back": "blick"})).failed
    assert "old name" in shelf.undo().text
    after = contents(folders.embeddings)
    assert set(before) <= set(after)
    assert not [name for name in after if name.startswith("blick")], "the picture that came since is called so, too"
    assert after["wug.json"] == before["wug.json"]
    assert kept_before(engine, "wug") is not None
    assert shelf.undo().kind == "hint"


def test_a_deleted_word_comes_back_as_it_was(engine: FakeEngine) -> None:
    trained(engine, "wug")
    folders = engine.host.folders()
    before, logs = contents(folders.embeddings), contents(folders.outputs / "training")
    outcome = Shelf(engine).delete("wug")
    assert outcome.kind == "done", outcome.text
    assert contents(folders.embeddings) == {}
    assert not (folders.outputs / "training" / "wug").exists()
    assert not Shelf(engine).undo().failed, "also after the program was started again"
    assert contents(folders.embeddings) == before
    assert contents(folders.outputs / "training") == logs


def test_logs_in_the_folder_of_the_form_come_along(engine: FakeEngine) -> None:
    outputs = engine.host.folders().outputs  # a WebUI has its logs directly below
    for name in ("wug", "txt2img"):
        assert not Actions(engine).train(train_values(engine, name=name, log_dir=str(outputs)), new_values(engine)).failed
        assert engine.job.wait(30)
    (outputs / "txt2img" / "of another.json").write_text("{}")
    assert not Shelf(engine).rename("wug", "blick").failed
    assert (outputs / "blick").is_dir()
    assert not (outputs / "wug").exists()
    assert not Shelf(engine).delete("txt2img").failed
    assert (outputs / "txt2img" / "of another.json").is_file(), "a folder that holds other things stays"


@pytest.mark.parametrize(
    ("new", "said"), [("cat", "already"), ("CAT", "already"), ("wug", "called “wug” already"), ("", "is empty"), ("a/b", "a path in it")]
)
def test_a_name_that_cannot_be_had_changes_nothing(new: str, said: str, engine: FakeEngine) -> None:
    engine.create(NewEmbedding("cat", "cat"))
    engine.create(NewEmbedding("wug", "cat"))
    before = contents(engine.host.folders().embeddings)
    outcome = Shelf(engine).rename("wug", new)
    assert outcome.failed
    assert said in outcome.text
    assert contents(engine.host.folders().embeddings) == before


def test_a_move_that_fails_half_way_is_taken_back(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(engine, "wug")
    folders = engine.host.folders()
    before = contents(folders.embeddings)
    (folders.outputs / "training" / "blick").mkdir()
    assert "Nothing is changed" in Shelf(engine).rename("wug", "blick").text
    assert contents(folders.embeddings) == before


@pytest.mark.parametrize("change", ["rename", "delete"])
def test_settings_of_others_move_no_folder_elsewhere(change: str, engine: FakeEngine, tmp_path: Path) -> None:
    trained(engine, "wug")
    folders = engine.host.folders()
    private = tmp_path / "private" / "wug"
    (private / "run").mkdir(parents=True)
    note = folders.embeddings / "wug.training.json"
    kept = json.loads(note.read_text())
    kept["settings"]["log_dir"] = f"{folders.outputs}/../{os.path.relpath(private, folders.outputs.parent)}/run"
    note.write_text(json.dumps(kept))
    outcome = Shelf(engine).delete("wug") if change == "delete" else Shelf(engine).rename("wug", "blick")
    assert not outcome.failed
    assert (private / "run").is_dir()


@pytest.mark.parametrize("change", ["rename", "delete"])
def test_undo_leaves_the_name_to_a_newer_word(change: str, engine: FakeEngine) -> None:
    trained(engine, "wug")
    shelf, folder = Shelf(engine), engine.host.folders().embeddings
    assert not (shelf.delete("wug") if change == "delete" else shelf.rename("wug", "blick")).failed
    engine.create(NewEmbedding("WUG", "cat"))
    before = contents(folder)
    assert "already" in shelf.undo().text
    assert contents(folder) == before


def test_a_word_in_training_stays(engine: FakeEngine) -> None:
    engine.pace = 0.02
    assert not Actions(engine).train(train_values(engine, name="wug"), new_values(engine)).failed
    while not Actions(engine).card("wug"):
        time.sleep(0.01)
    assert "is being trained" in Shelf(engine).delete("wug").text
    engine.job.interrupt()
    assert engine.job.wait(30)


def test_a_word_of_the_model_is_asked_about_before_anything_is_trained(engine: FakeEngine) -> None:
    actions, values = Actions(engine), train_values(engine, name="cat")
    asked = actions.train(values, new_values(engine))
    assert (asked.kind, asked.setting) == ("ask", "name")
    assert "a word that the checkpoint knows already" in asked.text
    assert actions.names() == []
    assert not engine.job.running
    assert actions.train(values, new_values(engine), asked.text).kind == "done"
    assert engine.job.wait(30)
    engine.job.interrupt()
    assert actions.train({**values, "steps": "300"}, new_values(engine)).kind == "done", "an embedding of that name is not asked about"
    assert engine.job.wait(30)


def test_a_run_says_what_it_takes(engine: FakeEngine) -> None:
    values = train_values(engine, name="wug")
    said = Actions(engine).train(values, new_values(engine, initializer_text="a shape", num_vectors="3")).text
    assert "3 vectors from “a shape”" in said
    assert str(engine.host.folders().pictures) in said
    assert engine.job.wait(30)
    assert engine.job.snapshot()["messages"][0] == said


@pytest.mark.browser
def test_rename_delete_and_undo_on_the_page(engine: FakeEngine, serve: Callable[[Any], Any], open_tab: Callable[..., Any]) -> None:
    chosen = "document.querySelector('#ti_train_name input')?.value"
    engine.create(NewEmbedding("wug", "cat"))
    with serve(engine) as address:
        tab = open_tab(address)
        tab.until(f"{chosen} === 'wug'")
        tab.page.get_by_role("button", name="Rename or delete").click()
        tab.page.wait_for_selector("#ti_rename", state="visible")
        tab.fill("train_new_name", "blick")
        tab.page.click("#ti_rename")
        tab.until(f"{chosen} === 'blick'")
        tab.page.click("#ti_delete")
        tab.until(f"{chosen} === 'my-concept'")
        tab.until("document.querySelector('#ti_standing')?.innerText.includes('does not exist yet')")
        assert "1 vector from “picture”" in tab.text("#ti_standing")
        tab.page.click("#ti_undo_shelf")
        tab.until(f"{chosen} === 'blick'")
    assert [card.name for card in engine.cards()] == ["blick"]
