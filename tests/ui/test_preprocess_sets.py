"""Sets of pictures stay apart on the Preprocess tab, and what a person chose while looking stays chosen, also after a restart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ui.test_preprocessing import looked, noise, place_of, sent, values
from textual_inversion.app.job import Job
from textual_inversion.app.preprocessing import Preprocessing
from textual_inversion.app.review import LEFT_OUT
from textual_inversion.hosts.fake import FakeEngine


def folder_of(place: Path, *names: str) -> Path:
    place.mkdir(parents=True)
    for number, name in enumerate(names):
        noise(number, (200, 160)).save(place / name)
    return place


def written(actions: Preprocessing, source: Path, target: Path, **changed: Any) -> dict[str, Any]:
    outcome = actions.write(values(source, target, **changed))
    assert (outcome.failed, outcome.kind) == (False, "done"), outcome.text
    assert actions.engine.job.wait(30)
    return actions.engine.job.snapshot()


def test_each_source_gets_a_folder_of_its_own(engine: FakeEngine, tmp_path: Path) -> None:
    actions = Preprocessing(engine)
    cats, dogs = folder_of(tmp_path / "one" / "pets", "a.png"), folder_of(tmp_path / "two" / "pets", "b.png")
    for source in (cats, dogs, cats):
        written(actions, source, actions.parent)
    assert sorted(path.name for path in actions.parent.iterdir()) == ["pets", "pets 2"]
    assert [len(list(place.glob("*.png"))) for place in sorted(actions.parent.iterdir())] == [1, 1]
    assert actions.destination_for(dogs).name == "pets 2"
    assert actions.destination_for(actions.parent / "pets").name == "pets 3", "never the source itself"


def test_joining_other_pictures_is_asked_about(engine: FakeEngine, tmp_path: Path) -> None:
    actions, target = Preprocessing(engine), tmp_path / "set"
    written(actions, folder_of(tmp_path / "cats", "a.png"), target)
    dogs = folder_of(tmp_path / "dogs", "b.png")
    asked = actions.write(values(dogs, target))
    assert (asked.kind, asked.setting) == ("ask", "destination")
    assert "holds 1 picture that is not from this source, such as 00000-0-a.png" in asked.text
    assert len(list(target.glob("*.png"))) == 1
    assert actions.write(values(dogs, target), "", asked.text).kind == "done"
    assert engine.job.wait(30)
    assert len(list(target.glob("*.png"))) == 2


@pytest.mark.parametrize("again", ["press", "look", "restart"])
def test_what_was_left_out_stays_left_out(again: str, engine: FakeEngine, tmp_path: Path) -> None:
    source, target = folder_of(tmp_path / "cats", "a.png", "b.png"), tmp_path / "set"
    actions, review = looked(engine, source, target)
    review.take(sent(review, {"do": "choose", "item": place_of(review, "b.png"), "part": None, "chosen": False}))
    written(actions, source, target)
    if again == "restart":
        engine.job = Job()
    if again != "press":
        actions, review = looked(engine, source, target)
        assert review.counts()[LEFT_OUT] == 1
    state = written(Preprocessing(engine), source, target)
    assert not list(target.glob("*-b.png"))
    assert "1 left out as you chose" in state["reason"]


def test_typed_captions_are_on_disk_before_anything_is_written(engine: FakeEngine, tmp_path: Path) -> None:
    source, target = folder_of(tmp_path / "cats", "a.png", "b.png"), tmp_path / "set"
    _, review = looked(engine, source, target)
    review.take(sent(review, {"do": "caption", "item": place_of(review, "a.png"), "part": 0, "text": "a sleeping cat"}))
    engine.job = Job()  # the program was started again
    written(Preprocessing(engine), source, target)
    assert [path.read_text() for path in target.glob("*.txt")] == ["a sleeping cat"]
    next(target.glob("*.txt")).write_text("edited in the destination")
    written(Preprocessing(engine), source, target)
    assert [path.read_text() for path in target.glob("*.txt")] == ["edited in the destination"], "the typed one was written once"


def test_a_picture_that_is_away_for_one_look_keeps_its_caption(engine: FakeEngine, tmp_path: Path) -> None:
    source, target = folder_of(tmp_path / "cats", "a.png", "b.png"), tmp_path / "set"
    _, review = looked(engine, source, target)
    review.take(sent(review, {"do": "caption", "item": place_of(review, "b.png"), "part": 0, "text": "a sleeping cat"}))
    (source / "b.png").rename(tmp_path / "b.png")
    _, review = looked(engine, source, target)
    review.take(sent(review, {"do": "caption", "item": 0, "part": 0, "text": "a cat"}, first=2))
    (tmp_path / "b.png").rename(source / "b.png")
    _, review = looked(engine, source, target)
    assert [item.views[0].caption for item in review.planned] == ["a cat", "a sleeping cat"]


def test_closing_forgets_the_choices(engine: FakeEngine, tmp_path: Path) -> None:
    source, target = folder_of(tmp_path / "cats", "a.png"), tmp_path / "set"
    _, review = looked(engine, source, target)
    review.take(sent(review, {"do": "choose", "item": 0, "part": None, "chosen": False}))
    review.take(sent(review, {"do": "forget"}, first=2))
    _, review = looked(engine, source, target)
    assert review.planned[0].chosen


@pytest.mark.parametrize("text", ["", "{", "[]", '{"choices": 3}', '{"choices": [[1]]}', json.dumps({"choices": [["a.png", "x", 1, 2]]})])
def test_a_damaged_file_of_choices_is_no_choice(text: str, engine: FakeEngine, tmp_path: Path) -> None:
    source, target = folder_of(tmp_path / "cats", "a.png"), tmp_path / "set"
    _, review = looked(engine, source, target)
    review.take(sent(review, {"do": "choose", "item": 0, "part": None, "chosen": False}))
    next((engine.host.folders().outputs / "reviews").iterdir()).write_text(text)
    engine.job = Job()
    _, review = looked(engine, source, target)
    assert review.planned[0].chosen


@pytest.mark.browser
def test_the_page_gives_each_source_its_folder(
    engine: FakeEngine, serve: Callable[[Any], Any], open_tab: Callable[..., Any], tmp_path: Path
) -> None:
    cats, dogs = folder_of(tmp_path / "cats", "a.png"), folder_of(tmp_path / "dogs", "b.png")
    field = "document.querySelector('#ti_preprocess_destination textarea, #ti_preprocess_destination input')?.value"
    with serve(engine) as address:
        tab = open_tab(address)
        tab.open("Preprocess")
        tab.page.wait_for_selector("#ti_look_button", state="visible")
        for source in (cats, dogs):
            tab.fill("preprocess_source", str(source))
            tab.until(f"{field}?.endsWith('{source.name}')")
        tab.fill("preprocess_destination", str(tmp_path / "own"))
        tab.fill("preprocess_source", str(cats))
        tab.until("document.querySelector('#ti_source_strip')?.innerText.includes('1 picture')")
        assert tab.value("preprocess_destination") == str(tmp_path / "own"), "a destination of the user's stays"
        tab.page.click("#ti_preprocess_button")
        tab.until("document.querySelector('.ti-phase')?.textContent === 'Preprocessed'")
        tab.open("Train")
        tab.until(f"document.querySelector('#ti_train_images textarea, #ti_train_images input')?.value === {str(tmp_path / 'own')!r}")


@pytest.mark.browser
def test_a_picture_left_out_is_in_view(
    engine: FakeEngine, serve: Callable[[Any], Any], open_tab: Callable[..., Any], tmp_path: Path
) -> None:
    cats = folder_of(tmp_path / "cats", "a.png")
    (cats / "broken.jpg").write_text("no picture")
    with serve(engine) as address:
        written(Preprocessing(engine), cats, tmp_path / "own")
        tab = open_tab(address)
        tab.until("document.querySelector('.ti-remarks')?.innerText.includes('broken.jpg')")
        assert tab.page.locator(".ti-remarks").is_visible()
