"""The Preprocess tab without a browser: review, changing what was looked at, writing; what the page's script may send; the HTML."""

from __future__ import annotations

import io
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from textual_inversion.app.job import JobKind
from textual_inversion.app.preprocessing import Preprocessing, config_of, values_of, write
from textual_inversion.app.review import ALL, LEFT_OUT, ReviewSession, review_of, sent_for
from textual_inversion.hosts.fake import FakeEngine, FakeHost
from textual_inversion.preprocess.run import PreprocessConfig
from textual_inversion.ui import form, gallery
from textual_inversion.ui.routes import add_routes


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three landscapes, one of them there twice, one far too small, one that is no picture."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, seed in (("a.jpg", 1), ("b.jpg", 2), ("b-copy.jpg", 2)):
        noise(seed, (320, 200)).save(folder / name, quality=95)
    noise(3, (40, 30)).save(folder / "small.png")
    (folder / "z.png").write_text("not a picture")
    (folder / "a.txt").write_text("a cat on a mat")
    return folder


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture of coloured squares."""
    import random

    chance = random.Random(seed)
    small = Image.new("RGB", (16, 12))
    small.putdata([tuple(chance.randrange(256) for _ in range(3)) for _ in range(16 * 12)])
    return small.resize(size, Image.Resampling.NEAREST)


def values(source: Path, target: Path, **changed: Any) -> dict[str, Any]:
    """The form as gradio hands it over: whole numbers as floats, choices as lists."""
    given = form.preprocess_values(str(target), 128, 128, ["colours"])
    given = {key: float(value) if type(value) is int else value for key, value in given.items() if not key.endswith("_options")}
    return {**given, "use_result": True, "may_download": False, "source": f" {source} ", **changed}


def looked(engine: FakeEngine, source: Path, target: Path, **changed: Any) -> tuple[Preprocessing, ReviewSession]:
    actions = Preprocessing(engine)
    outcome = actions.look(values(source, target, **changed))
    assert not outcome.failed, outcome.text
    assert engine.job.wait(30)
    assert engine.job.snapshot()["phase"] == "finished", engine.job.snapshot()
    return actions, actions.review


def sent(review: ReviewSession, *commands: dict[str, Any], first: int = 1, client: str = "a page") -> str:
    return json.dumps(
        {"look": review.id, "client": client, "commands": [{"n": first + place, **what} for place, what in enumerate(commands)]}
    )


def place_of(review: ReviewSession, name: str) -> int:
    return next(place for place, item in enumerate(review.planned) if item.source.name == name)


def test_the_form_has_every_setting_and_its_defaults(tmp_path: Path) -> None:
    drawn = {setting.name for rows in form.preprocess_sections().values() for row in rows for setting in row}
    assert drawn == {field.name for field in fields(PreprocessConfig)} | {"use_result", "may_download"}
    config = config_of(values(tmp_path, tmp_path / "out"))
    assert config == PreprocessConfig(str(tmp_path), str(tmp_path / "out"), width=128, height=128)


def test_a_new_page_is_filled_with_what_was_looked_at(tmp_path: Path) -> None:
    config = PreprocessConfig(str(tmp_path), str(tmp_path / "out"), flips=("both",), captioners=("colours",), caption_prefix="photo,")
    assert config_of(values_of(config)) == config


def test_a_join_of_one_space_stays_and_ticks_have_no_order(tmp_path: Path) -> None:
    config = config_of(values(tmp_path, tmp_path / "out", flips=["both", "horizontal"], caption_join=" "))
    assert (config.flips, config.caption_join) == (("horizontal", "both"), " ")


def test_looking_writes_nothing_and_finds_what_is_wrong(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    _, review = looked(engine, photos, target)
    assert not target.exists()
    counts = review.counts()
    assert counts[ALL] == 5
    assert (counts["small"], counts["unreadable"]) == (1, 1)
    copy = next(item for item in review.planned if any(problem.kind == "duplicate" for problem in item.problems))
    assert copy.source.name in ("b.jpg", "b-copy.jpg")
    assert review.sizes() == {(128, 128): 4}
    assert "nothing is written yet" in engine.job.snapshot()["reason"]
    assert any("z.png" in said for said in engine.job.snapshot()["messages"])


def test_what_was_changed_is_what_is_written(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    actions, review = looked(engine, photos, target, flips=["horizontal"])
    a, small = place_of(review, "a.jpg"), place_of(review, "small.png")
    said = sent(
        review,
        {"do": "caption", "item": a, "part": 0, "text": "a dog on <b>a rug</b>"},
        {"do": "choose", "item": small, "part": None, "chosen": False},
    )
    assert not review.take(said), "the same pictures are shown: nothing that is being typed may be drawn over"
    assert review.counts()[LEFT_OUT] == 1
    outcome = actions.write(values(photos, target, flips=["horizontal"]), said)
    assert (outcome.text, outcome.name) == ("", str(target))
    assert engine.job.wait(30)
    assert "6 written" in engine.job.snapshot()["reason"]
    captions = {path.name: path.read_text() for path in target.glob("*.txt")}
    assert list(captions.values()) == ["a dog on <b>a rug</b>"] * 2
    assert not list(target.glob("*small*"))
    assert review.id == ""


def test_a_command_typed_just_before_the_click_counts(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    actions, review = looked(engine, photos, tmp_path / "out")
    a = place_of(review, "a.jpg")
    said = sent(review, {"do": "caption", "item": a, "part": 0, "text": "late"})
    assert not actions.write(values(photos, tmp_path / "out"), said).failed
    assert engine.job.wait(30)
    assert [path.read_text() for path in (tmp_path / "out").glob("*a.txt")] == ["late"]


def test_without_looking_it_writes_everything(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    outcome = Preprocessing(engine).write(values(photos, tmp_path / "out", use_result=False))
    assert (outcome.failed, outcome.name) == (False, "")
    assert engine.job.wait(30)
    state = engine.job.snapshot()
    assert (state["step"], state["last_step"], state["phase"]) == (5, 5, "finished")
    assert "4 written, 1 left out" in state["reason"]


def test_settings_changed_after_looking_are_not_mixed(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    actions, review = looked(engine, photos, tmp_path / "out")
    outcome = actions.write(values(photos, tmp_path / "out", width=64.0))
    assert outcome.failed
    assert "Look again" in outcome.text
    assert review.take(sent(review, {"do": "forget"}))
    assert not actions.write(values(photos, tmp_path / "out", width=64.0)).failed
    assert engine.job.wait(30)


def test_the_hosts_captioner_describes_before_anything_is_written(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    changed = {"captioners": ["colours"], "drop_words": "picture"}
    actions, review = looked(engine, photos, tmp_path / "out", **changed)
    captions = {item.source.name: item.views[0].caption for item in review.planned if item.views}
    assert captions["a.jpg"] == "a cat on a mat", "kept, for it had one"
    assert set(captions.values()) - {"a cat on a mat"} <= {"a red", "a green", "a blue"}
    assert "colours" in actions.captioners()
    assert not actions.write(values(photos, tmp_path / "out", **changed)).failed
    assert engine.job.wait(30)
    assert len(list((tmp_path / "out").glob("*.txt"))) == 4


def test_captions_only_writes_beside_the_sources(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    changed = {"captions_only": True, "captioners": ["colours"], "existing_captions": "replace"}
    actions, review = looked(engine, photos, tmp_path / "out", **changed)
    assert "captions only" in gallery.head(review)
    outcome = actions.write(values(photos, tmp_path / "out", **changed))
    assert (outcome.failed, outcome.name) == (False, ""), "the Train tab keeps its folder"
    assert engine.job.wait(30)
    assert engine.job.snapshot()["reason"].startswith("4 captions written"), engine.job.snapshot()
    assert (photos / "a.txt").read_text() != "a cat on a mat"
    assert (photos / "b.txt").is_file()
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_is_said(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    actions = Preprocessing(engine)
    assert "Source is empty" in actions.look({**values(photos, tmp_path), "source": ""}).text
    assert "Destination is empty" in actions.write(values(photos, tmp_path, destination="")).text
    assert actions.look(values(photos, tmp_path / "out", width=100.0)).text.startswith("Width is 100")
    assert not actions.look(values(photos, tmp_path / "out", captioners=["blip"], blip_model=str(tmp_path / "none"))).failed
    assert engine.job.wait(30)
    assert engine.job.snapshot()["failed"], "a model that is not there fails the job with a sentence"
    assert actions.review.id == ""


def test_commands_are_taken_once(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    _, review = looked(engine, photos, tmp_path / "out")
    first = sent(review, {"do": "choose", "item": 0, "part": None, "chosen": False})
    review.take(first)
    review.take(sent(review, {"do": "choose", "item": 0, "part": None, "chosen": True}, first=2))
    review.take(first)  # said again, late
    assert review.planned[0].chosen
    assert review.taken == {"a page": 2}
    assert sent_for(first) == review.id


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=6)
)
def test_nothing_that_is_sent_breaks_it(junk: Any) -> None:
    review = ReviewSession(id="x", config=PreprocessConfig("a", "b"))
    for said in (junk, json.dumps(junk), json.dumps({"look": "x", "commands": junk})):
        review.take(said)
    names = ["do", "item", "part", "page", "kind", "chosen", "text"]
    review.take(json.dumps({"look": "x", "commands": [{"n": 1, name: junk} for name in names]}))
    review.take(json.dumps({"look": "x", "commands": [{"n": 9, "do": "page", "page": junk}, {"n": 10, "do": "show", "kind": junk}]}))
    assert (review.planned, review.page) == ([], 0)
    assert gallery.head(review).startswith('<div class="ti-look-head">') or review.id == ""


def test_pages_and_filters(engine: FakeEngine, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(30):
        noise(number, (140, 130)).save(many / f"{number}.png")
    _, review = looked(engine, many, tmp_path / "out")
    assert (len(review.shown()), review.pages) == (24, 2)
    assert review.take(sent(review, {"do": "page", "page": 1}))
    assert review.shown() == list(range(24, 30))
    assert review.take(sent(review, {"do": "choose", "item": 3, "part": None, "chosen": False}, {"do": "show", "kind": "out"}, first=2))
    assert review.shown() == [3]
    assert review.take(sent(review, {"do": "choose_shown", "chosen": True}, first=4))
    assert review.places("out") == []
    assert "There is no such picture any more" in gallery.tiles(review)


def test_names_and_captions_are_text_on_the_page(engine: FakeEngine, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    noise(1, (140, 130)).save(folder / "<img src=x onerror=alert(1)>.png")
    (folder / "<img src=x onerror=alert(1)>.txt").write_text("</textarea><script>alert(1)</script>")
    _, review = looked(engine, folder, tmp_path / "out")
    html = gallery.tiles(review) + gallery.head(review)
    assert "<script>" not in html
    assert "<img src=x" not in html


def test_a_split_picture_has_a_caption_for_each_part(engine: FakeEngine, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    noise(1, (600, 130)).save(folder / "long.png")
    _, review = looked(engine, folder, tmp_path / "out", split=True)
    parts = len(review.planned[0].views)
    assert parts > 1
    html = gallery.tiles(review)
    assert html.count("<textarea") == html.count("ti-crop") == parts
    review.take(sent(review, {"do": "choose", "item": 0, "part": 0, "chosen": False}))
    assert [view.chosen for view in review.planned[0].views] == [False] + [True] * (parts - 1)
    assert review.sizes() == {(128, 128): parts - 1}


def test_the_pictures_come_by_a_route_and_no_other_file_does(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    _, review = looked(engine, photos, tmp_path / "out")
    app = Starlette()
    add_routes(app, engine)
    client = TestClient(app, base_url="http://localhost")
    answer = client.get(f"/textual-inversion/source?look={review.id}&item={place_of(review, 'a.jpg')}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert max(Image.open(io.BytesIO(answer.content)).size) == 320
    own = f"look={review.id}"
    for query in ("", own, f"{own}&item=99", f"{own}&item=-1", "look=other&item=0", "look=&item=0"):
        assert client.get(f"/textual-inversion/source?{query}").status_code == 404
    assert client.get(f"/textual-inversion/source?look={review.id}&item={place_of(review, 'z.png')}").status_code == 404


def test_one_set_for_all_pages_of_a_host(engine: FakeEngine) -> None:
    assert review_of(engine.job) is Preprocessing(engine).review


def test_interrupting_says_that_nothing_is_written(engine: FakeEngine) -> None:
    from textual_inversion.app.actions import Actions

    engine.job.start(JobKind.LOOK, "cats", lambda listener, stop: _until(stop))
    assert "nothing is written" in Actions(engine).interrupt().text
    assert engine.job.wait(5)


def _until(stop: Any) -> None:
    import time

    while not stop():
        time.sleep(0.005)


def test_what_was_changed_outlives_another_look(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    actions, review = looked(engine, photos, tmp_path / "out")
    a, b = place_of(review, "a.jpg"), place_of(review, "b.jpg")
    review.take(sent(review, {"do": "caption", "item": a, "part": 0, "text": "by hand"}, {"do": "choose", "item": b, "chosen": False}))
    first = review.id
    looked(engine, photos, tmp_path / "out", width=64.0, height=64.0)
    assert review.id != first
    view = review.planned[a].views[0]
    assert (view.caption, view.edited, view.size) == ("by hand", True, (64, 64))
    assert not review.planned[b].chosen
    assert not actions.look(values(tmp_path / "nowhere", tmp_path / "out")).failed
    assert engine.job.wait(30)
    assert engine.job.snapshot()["failed"]
    assert review.planned[a].views[0].caption == "by hand", "a look that failed changes nothing"


def test_an_interrupted_look_changes_nothing(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    review = ReviewSession()
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    said = review.look(config_of(values(photos, tmp_path / "out")), {}, lambda event: None, stop)
    assert said.startswith("Stopped after")
    assert review.id == ""


def test_an_interrupted_write_keeps_what_was_changed(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    actions, review = looked(engine, photos, target)
    a, b = place_of(review, "a.jpg"), place_of(review, "b.jpg")
    review.take(sent(review, {"do": "caption", "item": a, "part": 0, "text": "by hand"}, {"do": "choose", "item": b, "chosen": False}))
    planned = review.for_writing(config_of(values(photos, target)))
    told, whole = write(review.config, planned, {}, lambda event: None, lambda: True)  # type: ignore[arg-type]
    assert (whole, "still to be done" in told) == (False, True)
    assert not actions.write(values(photos, target)).failed
    assert engine.job.wait(30)
    assert not list(target.glob("*-b.png"))
    assert [path.read_text() for path in target.glob("*-a.txt")] == ["by hand"]
    assert review.id == "", "all of it is there now"


def test_each_page_counts_its_own_commands(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    _, review = looked(engine, photos, tmp_path / "out")
    a, b = place_of(review, "a.jpg"), place_of(review, "b.jpg")
    review.take(sent(review, {"do": "caption", "item": a, "part": 0, "text": "one"}, {"do": "show", "kind": "all"}, client="one"))
    review.take(sent(review, {"do": "caption", "item": b, "part": 0, "text": "two"}, client="two"))
    assert [review.planned[place].views[0].caption for place in (a, b)] == ["one", "two"]
    assert 'data-taken="1"' in gallery.acknowledged(review, "two")
    assert 'data-taken="2"' in gallery.acknowledged(review, "one")


def test_nothing_is_changed_while_it_is_written(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    _, review = looked(engine, photos, tmp_path / "out")
    review.writing = True
    review.take(sent(review, {"do": "choose", "item": 0, "chosen": False}))
    assert (review.planned[0].chosen, review.taken) == (True, {})
    review.writing = False
    review.take(sent(review, {"do": "choose", "item": 0, "chosen": False}))
    assert not review.planned[0].chosen, "it is said again, and taken then"


def test_what_changed_since_it_was_looked_at_is_left_alone(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    actions, review = looked(engine, photos, tmp_path / "out")
    noise(9, (130, 300)).save(photos / "b.jpg")
    (photos / "b-copy.jpg").unlink()
    assert not actions.write(values(photos, tmp_path / "out")).failed
    assert engine.job.wait(30)
    state = engine.job.snapshot()
    assert state["reason"].startswith("2 written, 3 left out"), state["reason"]
    assert any("b.jpg has changed since it was looked at" in said for said in state["messages"])
    assert review.id != "", "it can be looked at again, with what was changed by hand"


def test_a_caption_written_elsewhere_meanwhile_stays(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    changed = {"captions_only": True, "caption_prefix": "photo"}
    actions, _ = looked(engine, photos, tmp_path / "out", **changed)
    (photos / "a.txt").write_text("written in an editor")
    assert not actions.write(values(photos, tmp_path / "out", **changed)).failed
    assert engine.job.wait(30)
    assert (photos / "a.txt").read_text() == "written in an editor"


def test_a_captioner_that_fails_does_not_cost_the_picture(
    engine: FakeEngine, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fails(image: Image.Image) -> str:
        asked.append(1)
        raise ValueError("out of memory")

    monkeypatch.setattr(FakeHost, "captioners", lambda self, *given: {"colours": fails})
    _, review = looked(engine, photos, tmp_path / "out", captioners=["colours"])
    assert review.counts()["caption"] == 3
    assert len(asked) == 3, "and it is not asked for ever"
    assert review.sizes() == {(128, 128): 4}
    assert "out of memory" in gallery.tiles(review)


def test_what_is_done_shows_the_caption_that_is_there(engine: FakeEngine, photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    actions, review = looked(engine, photos, target)
    assert not actions.write(values(photos, target)).failed
    assert engine.job.wait(30)
    next(target.glob("*-a.txt")).write_text("changed by hand")
    _, review = looked(engine, photos, target)
    a = place_of(review, "a.jpg")
    assert (review.planned[a].done, review.planned[a].views[0].caption) == (True, "changed by hand")
    review.take(sent(review, {"do": "choose", "item": a, "chosen": False}))
    assert "stays in the destination" in gallery.tiles(review)
