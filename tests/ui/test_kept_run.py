"""The last training run is shown again after a restart: its curve, previews and copies; and the page keeps its layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ui.test_actions import new_values, train_values
from textual_inversion.app.actions import Actions
from textual_inversion.app.job import Job, for_page
from textual_inversion.app.remembered import remembered
from textual_inversion.hosts.fake import FakeEngine


def restarted(engine: FakeEngine) -> FakeEngine:
    again = FakeEngine(engine.host, pace=0)
    again.job.keep_in(engine.host.folders().outputs)
    return again


@pytest.fixture
def trained(engine: FakeEngine) -> FakeEngine:
    engine.job.keep_in(engine.host.folders().outputs)
    prompts = "a [name]\na red [name] --d 5"
    assert not Actions(engine).train(train_values(engine, name="wug", preview_prompt=prompts), new_values(engine)).failed
    assert engine.job.wait(30)
    return engine


def test_a_restart_shows_the_last_run(trained: FakeEngine) -> None:
    before, again = trained.job.snapshot(), restarted(trained)
    after = again.job.snapshot()
    assert {key: value for key, value in after.items() if key != "version"} == {k: v for k, v in before.items() if k != "version"}
    assert len(after["points"]) == 200
    file = again.job.picture(after["job"], after["previews"][-1]["file"])
    assert file is not None
    assert file.is_file()
    assert not Actions(again).exchange(json.dumps({"use": 100, "job": after["job"]})).failed
    assert restarted(trained).job.snapshot()["used_step"] == 100
    assert not again.job.running


def test_the_next_run_takes_its_place(trained: FakeEngine) -> None:
    again = restarted(trained)
    assert not Actions(again).train(train_values(again, name="wug", steps="300"), new_values(again)).failed
    assert again.job.wait(30)
    assert restarted(trained).job.snapshot()["step"] == 300


def broken(kept: dict[str, Any], tmp_path: Path) -> list[Any]:
    elsewhere = {**kept, "folder": str(tmp_path / "elsewhere")}
    other = {**kept, "state": {**kept["state"], "phase": "working"}}
    return [
        "",
        "[]",
        "{}",
        elsewhere,
        other,
        {**kept, "state": {**kept["state"], "messages": 3}},
        {**kept, "points": [["x"]]},
        {**kept, "copies": 1},
        *({**kept, "state": {**kept["state"], "previews": rows}} for rows in (None, [1], [{"step": "1"}])),
        {**kept, "state": {**kept["state"], "loss": float("nan")}},
        {**kept, "state": {**kept["state"], "name": None}},
    ]


def test_a_file_that_cannot_be_used_shows_nothing(trained: FakeEngine, tmp_path: Path) -> None:
    path = trained.host.folders().outputs / "last-run.json"
    kept = json.loads(path.read_text())
    for contents in broken(kept, tmp_path):
        path.write_text(contents if isinstance(contents, str) else json.dumps(contents))
        assert restarted(trained).job.snapshot()["phase"] == "idle", contents
    path.write_text(json.dumps({**kept, "previews": ["../../secret.png"], "state": kept["state"]}))
    job = Job()
    job.keep_in(path.parent)
    assert all(found.parent == Path(kept["folder"]) for found in job._preview_paths.values())


def test_a_page_has_no_options_of_the_command_line() -> None:
    assert for_page("Allow overwriting (--overwrite), or read subfolders (--subfolders).") == "Allow overwriting, or read subfolders."


def test_a_step_that_is_taken_back_has_its_verdict_and_picture_again(trained: FakeEngine) -> None:
    def card() -> tuple[str, str, bytes]:
        found = Actions(trained).card("wug")
        assert found is not None
        picture = trained.embedding_file("wug").with_name("wug.preview.png")
        return found.level, found.verdict, picture.read_bytes() if picture.is_file() else b""

    job = trained.job.snapshot()["job"]
    use = lambda step: Actions(trained).exchange(json.dumps({"use": step, "job": job}))  # noqa: E731
    assert not use(150).failed
    assert not Actions(trained).exchange(json.dumps({"back": "wug"})).failed
    before = card()
    assert before[0] == "good"
    assert not use(100).failed
    assert card()[:2] == ("", ""), "it was judged with other vectors"
    assert card()[2] != before[2]
    assert not Actions(trained).exchange(json.dumps({"back": "wug"})).failed
    assert card() == before


@pytest.mark.parametrize(("checkpoint", "kept"), [("fake-128", {128}), ("fake-512", set())])
def test_a_size_that_nobody_chose_is_the_checkpoints(checkpoint: str, kept: set[int], trained: FakeEngine) -> None:
    trained.host.choose_checkpoint(checkpoint)
    values = remembered(trained, "wug")
    assert {values[key] for key in ("width", "height") if key in values} == kept


@pytest.mark.browser
def test_the_layout_stays_under_the_mouse_and_at_200_percent(
    trained: FakeEngine, serve: Callable[[Any], Any], open_tab: Callable[..., Any]
) -> None:
    with serve(restarted(trained)) as address:
        tab = open_tab(address)
        tab.until("document.querySelector('.ti-job')?.dataset.phase === 'finished'")
        tab.until("document.querySelectorAll('.ti-frame').length === 5")
        place = "document.querySelector('.ti-chart').getBoundingClientRect().top"
        before = tab.page.evaluate(place)
        tab.page.hover(".ti-chart")
        tab.until("document.querySelector('.ti-readout')?.innerText.startsWith('step')")
        assert tab.page.evaluate(place) == before
        marked = "Number(document.querySelector('.ti-marked')?.getAttribute('x1'))"
        last = tab.page.evaluate(marked)
        assert tab.page.locator(".ti-frame img").count() == 10, "a row for each prompt"
        tab.page.locator(".ti-frame").nth(1).locator("img").nth(1).click()
        tab.until("document.querySelector('.ti-caption')?.innerText.includes('Step 50')")
        assert "a red [name]" in tab.text(".ti-caption")
        assert 0 < tab.page.evaluate(marked) < last, "the curve shows where that step is"
        tab.page.click(".ti-chart", position={"x": 60, "y": 100})
        tab.until("document.querySelector('.ti-caption')?.innerText.includes('Step 0')")
        tab.page.select_option(".ti-against", "200")
        tab.until("document.querySelector('.ti-other')?.naturalWidth > 0 && !document.querySelector('.ti-other').hidden")
        tab.page.locator(".ti-split").fill("25")
        assert tab.page.evaluate("getComputedStyle(document.querySelector('.ti-other')).clipPath").startswith("inset(0px 75%")
        half = open_tab(address, width=700, height=450)  # as a window of 1400 is at 200 %
        half.until("document.querySelector('.ti-job')?.dataset.phase === 'finished'")
        box = "part => { const box = document.querySelector(part).getBoundingClientRect(); return [box.left, box.top, box.bottom]; }"
        boxes = [half.page.evaluate(box, part) for part in (".ti-stage", ".ti-forms")]
        assert abs(boxes[0][0] - boxes[1][0]) < 2, "they stand in one column"
        assert boxes[0][2] <= boxes[1][1] + 1
        assert half.page.evaluate("document.documentElement.scrollWidth") <= 700
