"""The standalone page without a browser: its shared files, what a checkpoint changes on it, what Generate answers."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from textual_inversion.app.job import Drawing
from textual_inversion.errors import CheckpointError, ConfigError
from textual_inversion.hosts.fake import FakeEngine, FakeHost
from textual_inversion.hosts.standalone import app
from textual_inversion.settings.generation import GenerationSettings
from textual_inversion.settings.schema import defaults_of
from textual_inversion.ui.txt2img import _Page, checked, drawing_values


def make(folder: Path) -> Path:
    (folder / "javascript").mkdir(parents=True)
    (folder / "javascript" / "textual_inversion.js").write_text("", encoding="utf-8")
    (folder / "style.css").write_text("", encoding="utf-8")
    return folder


def test_shared_files_are_found_beside_the_package_and_among_a_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (app.shared_folder() / "launch.py").is_file()
    data = make(tmp_path / "environment" / "share" / "textual-inversion")

    class File(type(Path())):  # type: ignore[misc]
        def locate(self) -> Path:
            return tmp_path / "environment" / "lib" / ".." / self

    monkeypatch.setattr(app, "PACKAGE", tmp_path / "environment" / "lib" / "textual_inversion")
    monkeypatch.setattr(metadata, "files", lambda name: [File("share/textual-inversion/style.css")])
    assert app.shared_folder() == data.resolve()
    monkeypatch.setattr(metadata, "files", lambda name: None)
    with pytest.raises(ConfigError, match="complete copy"):
        app.shared_folder()


def test_a_wheel_is_told_of_every_shared_file() -> None:
    root = app.shared_folder()
    told = (root / "pyproject.toml").read_text(encoding="utf-8")
    for line in ('= ["style.css"]', '= ["javascript/*.js"]', 'textual_inversion_templates = ["*.txt"]'):
        assert line in told
    assert all(path.suffix == ".js" for path in (root / "javascript").iterdir())
    assert all(path.suffix == ".txt" for path in (root / "textual_inversion_templates").iterdir())


@pytest.fixture
def chooser(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> Any:
    kept: list[Any] = []
    monkeypatch.setattr(app, "_follow_checkpoint", lambda chooser, *parts: kept.append(chooser))
    app.build_blocks(engine, engine.host, Drawing(), None, {})
    return kept[0]


def value_of(chooser: Any, updates: list[Any], elem_id: str) -> Any:
    place = next(index for index, field in enumerate(chooser.fields) if field.elem_id == elem_id)
    return updates[place].get("value")


def test_a_page_opened_after_another_checkpoint_was_chosen_has_its_values(chooser: Any, engine: FakeEngine) -> None:
    built = [field.value for field in chooser.fields]
    assert all("value" not in update for update in chooser.afresh(*built)[1:])
    engine.host.choose_checkpoint("fake-512")
    listed, *updates = chooser.afresh(*built)
    assert (listed["value"], listed["choices"]) == ("fake-512", ["fake-128", "fake-512"])
    assert value_of(chooser, updates, "ti_train_width") == 512
    assert value_of(chooser, updates, "ti_txt2img_height") == 512


def test_the_page_says_what_the_chosen_checkpoint_is(chooser: Any) -> None:
    assert "fake-128 stands for a checkpoint." in chooser.about()
    note, *_ = chooser.choose("fake-512", *[field.value for field in chooser.fields])
    assert "fake-512 stands for a checkpoint." in note
    assert chooser.about() == note


def test_a_checkpoint_that_cannot_be_chosen_leaves_the_list_at_the_one_before(
    chooser: Any, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: FakeHost, name: str) -> None:
        raise CheckpointError(f"{name} is no checkpoint.")

    monkeypatch.setattr(FakeHost, "choose_checkpoint", refuse)
    note, listed, *updates = chooser.choose("broken", *[None for _ in chooser.fields])
    assert "broken is no checkpoint" in note
    assert listed["value"] == "fake-128"
    assert all("value" not in update for update in updates)


@pytest.fixture
def generate(engine: FakeEngine) -> Any:
    keys = list(defaults_of(GenerationSettings))
    page = _Page(engine, Drawing(), keys)
    small = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64}
    values = {**defaults_of(GenerationSettings), **drawing_values(engine), **small}
    return page, lambda: page.generate(*[values[key] for key in keys])


def test_pictures_are_shown_although_they_cannot_be_kept(engine: FakeEngine, generate: Any) -> None:
    (engine.host.folders().outputs / "txt2img").write_text("a file where the folder should be", encoding="utf-8")
    drawn, note, _ = generate[1]()
    assert len(drawn) == 1
    assert "ti-note-error" in note


def test_an_interrupt_before_the_first_picture_keeps_the_gallery(
    engine: FakeEngine, generate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "generate", lambda *given: [])
    drawn, note, _ = generate[1]()
    assert "value" not in drawn
    assert "Stopped before the first picture" in note


def test_an_error_while_drawing_is_one_sentence_and_the_next_click_works(generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page, click = generate

    def broken(*given: Any) -> None:
        raise RuntimeError("odd")

    with monkeypatch.context() as patch:
        patch.setattr(FakeEngine, "generate", broken)
        drawn, note, _ = click()
    assert "value" not in drawn
    assert "Something unexpected happened (RuntimeError: odd)" in note
    assert not page.drawing.snapshot()["busy"]
    assert len(click()[0]) == 1


def test_a_seed_below_zero_is_another_one_each_time(engine: FakeEngine) -> None:
    values = {"prompt": "", "negative_prompt": None, **defaults_of(GenerationSettings), **drawing_values(engine), "seed": -1}
    assert checked(values)["seed"] != checked(values)["seed"]


def test_another_checkpoint_leaves_the_seed_and_the_number_of_pictures_alone(engine: FakeEngine) -> None:
    assert {"seed", "count"}.isdisjoint(drawing_values(engine))
