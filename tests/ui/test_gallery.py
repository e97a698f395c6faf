"""Pictures of the txt2img page: each tells how it was made, keeps its name, outlives a reload, and gives its settings back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from textual_inversion.app.job import Drawing
from textual_inversion.errors import DatasetError
from textual_inversion.hosts.fake import FakeEngine
from textual_inversion.pictures.parameters import parameters_in, with_parameters
from textual_inversion.settings.generation import GenerationSettings
from textual_inversion.settings.infotext import settings_in
from textual_inversion.settings.schema import defaults_of
from textual_inversion.ui.txt2img import _Page, drawing_values

OF_A1111 = """a (cat:1.2), in a hat
and a coat
Negative prompt: dog, blurry
Steps: 23, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 4294967295, Size: 640x448, Model hash: 1234, \
Model: "a, b", Clip skip: 2, TI hashes: "x: 12, y: 34", Version: v1.10.1"""


def test_the_settings_of_a_webuis_picture() -> None:
    assert settings_in(OF_A1111) == {
        "prompt": "a (cat:1.2), in a hat\nand a coat",
        "negative_prompt": "dog, blurry",
        "steps": "23",
        "cfg_scale": "6.5",
        "seed": "4294967295",
        "clip_skip": "2",
        "width": "640",
        "height": "448",
        "sampler": "DPM++ 2M Karras",
    }


def test_what_cannot_be_used_here_is_left_out() -> None:
    found = settings_in("a cat\nSteps: 999, Sampler: Restart, CFG scale: 7, Seed: -5, Size: 33x64")
    assert found == {"prompt": "a cat", "negative_prompt": "", "cfg_scale": "7", "height": "64"}
    assert settings_in("only words") == {"prompt": "only words", "negative_prompt": ""}


@given(st.text(max_size=400))
def test_any_text_gives_settings_that_can_be_used(text: str) -> None:
    values = settings_in(text)
    assert set(values) <= set(defaults_of(GenerationSettings))


def test_the_text_is_found_in_png_and_jpeg(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    picture.info["parameters"] = OF_A1111
    picture.save(tmp_path / "a.png", pnginfo=with_parameters(picture))
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + OF_A1111.encode("utf-16-be")
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert parameters_in(tmp_path / "a.png") == parameters_in(tmp_path / "a.jpg") == OF_A1111
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, said in (("plain.png", "does not say how it was made"), ("text.png", "is no picture")):
        with pytest.raises(DatasetError, match=said):
            parameters_in(tmp_path / name)


@pytest.fixture
def page(engine: FakeEngine) -> _Page:
    engine.pace = 0
    return _Page(engine, Drawing(), list(defaults_of(GenerationSettings)))


def drawn(page: _Page, **changed: Any) -> tuple[list[str], str, list[str]]:
    values = {**defaults_of(GenerationSettings), **drawing_values(page.engine), "steps": 1, "width": 64, "height": 64, **changed}
    return page.generate(*[values[key] for key in page.keys])


def test_each_picture_has_its_own_seed_and_name(page: _Page) -> None:
    files, note, texts = drawn(page, prompt="a cat", count=3, seed="7")
    assert [Path(file).name for file in files] == ["00001-7.png", "00002-8.png", "00003-9.png"]
    assert [parameters_in(Path(file)) for file in files] == texts
    assert "Seed: 7" in note
    for index in range(3):
        assert f"Seed: {7 + index}" in page.about(texts, SimpleNamespace(index=index))  # type: ignore[arg-type]
    assert "Picture 3 of 3" in page.about(texts, SimpleNamespace(index=2))  # type: ignore[arg-type]
    assert isinstance(page.about(texts, SimpleNamespace(index=9)), dict)  # type: ignore[arg-type]


@pytest.mark.parametrize("restarted", [False, True])
def test_the_last_pictures_are_shown_again(restarted: bool, page: _Page) -> None:
    drawn(page, prompt="a dog", count=1, seed="1")
    _, _, texts = drawn(page, prompt="a cat", count=2, seed="5")
    (page.folder / "favourites").mkdir()  # the user's own, beside those of the days
    later = _Page(page.engine, Drawing(), page.keys) if restarted else page
    files, note, restored = later.restore()
    assert restored[-2:] == texts
    assert [Path(file).name for file in files[-2:]] == ["00002-5.png", "00003-6.png"]
    assert "Seed: " in note


def test_without_pictures_nothing_is_restored(page: _Page) -> None:
    assert "value" not in page.restore()[0]


def test_a_picture_fills_the_form(page: _Page, tmp_path: Path) -> None:
    files, _, _ = drawn(page, prompt="a cat", seed="7")
    note, *updates = page.read(files[0])
    assert "has the settings" in note
    values = dict(zip(page.keys, updates, strict=True))
    assert (values["prompt"]["value"], values["seed"]["value"], values["steps"]["value"]) == ("a cat", "7", 1)
    (tmp_path / "no.png").write_text("no picture")
    note, *updates = page.read(str(tmp_path / "no.png"))
    assert "is no picture" in note
    assert all("value" not in update for update in updates)


@pytest.mark.browser
def test_a_reload_keeps_the_gallery_and_a_click_tells_of_each_picture(
    engine: FakeEngine, serve: Callable[[Any], Any], open_tab: Callable[..., Any]
) -> None:
    with serve(engine) as address:
        tab = open_tab(address)
        tab.open("txt2img")
        tab.page.wait_for_selector("#ti_generate", state="visible")
        tab.fill("txt2img_seed", "7")
        tab.page.click("#ti_generate")
        tab.until("document.querySelectorAll('#ti_gallery img').length >= 4")
        again = open_tab(address)
        again.open("txt2img")
        again.until("document.querySelectorAll('#ti_gallery img').length >= 4")
        again.page.locator("#ti_gallery img").nth(2).click()
        again.until("document.querySelector('#ti_generate_note')?.innerText.includes('Seed: 9')")
        assert "Picture 3 of 4" in again.text("#ti_generate_note")
