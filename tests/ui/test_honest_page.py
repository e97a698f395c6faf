"""The page says how well a word was learned, lets an earlier step be used, and remembers what each word was trained with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ui.conftest import emptied
from textual_inversion.hosts.fake import FakeEngine, FakeHost
from textual_inversion.settings.creation import NewEmbedding

pytestmark = pytest.mark.browser

PHASE = "document.querySelector('.ti-job')?.dataset.phase"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> FakeEngine:
    return FakeEngine(FakeHost(tmp_path_factory.mktemp("host")), pace=0.001)


@pytest.fixture(scope="module")
def address(engine: FakeEngine, serve: Callable[[Any], Any]) -> Iterator[str]:
    with serve(engine) as address:
        yield address


@pytest.fixture(autouse=True)
def fresh(engine: FakeEngine) -> None:
    emptied(engine, pace=0.001)


def colour(tab: Any, selector: str) -> str:
    return str(tab.page.evaluate("selector => getComputedStyle(document.querySelector(selector)).color", selector))


@pytest.mark.parametrize("level", ["good", "fair", "bad"])
def test_only_a_good_word_is_green(level: str, address: str, open_tab: Callable[..., Any], engine: FakeEngine) -> None:
    engine.host.level = level
    tab = open_tab(address)
    tab.page.click("#ti_train_button")
    tab.until("document.querySelector('.ti-judged')?.innerText.includes('eans: purple, star')")
    tab.until(f"{PHASE} === 'finished'")
    tab.until(f"document.querySelector('.ti-verdict')?.dataset.level === '{level}'")
    green = tab.page.evaluate("""() => { const probe = document.createElement('i'); probe.style.color = 'var(--ti-good)';
        document.querySelector('.ti-job').append(probe); const found = getComputedStyle(probe).color; probe.remove(); return found; }""")
    assert (colour(tab, ".ti-verdict") == green) is (level == "good")
    assert (colour(tab, ".ti-notice") == green) is (level == "good")
    assert ("Learned" in tab.text(".ti-phase")) is (level == "good")
    assert tab.page.locator(".ti-evaluated").count() == 1
    tab.open("txt2img")
    card = tab.page.locator('.ti-card[data-name="my-concept"] .ti-verdict')
    card.wait_for(state="visible")
    assert card.get_attribute("data-level") == level


def test_an_earlier_step_can_be_used_and_taken_back(address: str, open_tab: Callable[..., Any], engine: FakeEngine) -> None:
    tab = open_tab(address)
    tab.page.click("#ti_train_button")
    tab.until(f"{PHASE} === 'finished'")
    tab.until("document.querySelectorAll('.ti-frame').length === 5")
    assert "Step 200" in tab.text(".ti-caption")
    assert "Step 0" in tab.text(".ti-frame")
    step = lambda: engine.cards()[0].description.step  # noqa: E731
    tab.page.click(".ti-frame >> nth=2")
    tab.page.click(".ti-use")
    tab.until("document.querySelector('#ti_train_note')?.innerText.includes('holds the vectors of step 100')")
    tab.until("document.querySelector('.ti-used')?.innerText.includes('holds this step')")
    assert step() == 100
    tab.page.click(".ti-used .ti-takeback")
    tab.until("document.querySelector('#ti_train_note')?.innerText.includes('of step 200 again')")
    assert step() == 200


def test_a_word_fills_the_form_with_what_it_was_trained_with(
    address: str, open_tab: Callable[..., Any], engine: FakeEngine, tmp_path: Path
) -> None:
    own = tmp_path / "tulips"
    shutil.copytree(engine.host.folders().pictures, own)
    engine.create(NewEmbedding("other", "cat"))
    engine.create(NewEmbedding("tulip", "flower"))
    tab = open_tab(address)
    tab.until("document.querySelector('#ti_train_name input')?.value === 'tulip'")
    tab.fill("train_images", str(own))
    tab.fill("train_steps", "60")
    tab.page.click("#ti_train_button")
    tab.until(f"{PHASE} === 'finished'")
    again = open_tab(address)
    again.until("document.querySelector('#ti_train_name input')?.value === 'tulip'")
    again.until(f"document.querySelector('#ti_train_images textarea, #ti_train_images input')?.value === {str(own)!r}")
    again.until("document.querySelector('#ti_train_steps textarea, #ti_train_steps input')?.value === '60'")
    # other pictures than last time are asked about first
    again.fill("train_images", str(engine.host.folders().pictures))
    again.fill("train_steps", "80")
    again.page.click("#ti_train_button")
    again.until("document.querySelector('.ti-note-ask')?.innerText.includes('Press “Train embedding” again')")
    assert not engine.job.running
    again.page.click("#ti_train_button")
    again.until("document.querySelector('.ti-count strong')?.textContent === '80'")
    # and the vectors from before that run can be taken back
    again.until("document.querySelector('#ti_standing .ti-takeback')")
    again.page.click("#ti_standing .ti-takeback")
    again.until("document.querySelector('#ti_standing')?.innerText.includes('is at step 60')")


@pytest.mark.parametrize(
    ("setting", "typed", "said"),
    [
        ("batch_size", "1.7", "Batch size is '1.7'; it must be a whole number"),
        ("steps", "abc", "Max steps is 'abc'; it must be a number, or auto"),
        ("seed", "123456789012345678901", "Seed is 123456789012345678901; it must be from 0 to"),
    ],
)
def test_a_number_is_judged_as_typed_beside_its_field(
    setting: str, typed: str, said: str, address: str, open_tab: Callable[..., Any], engine: FakeEngine
) -> None:
    tab = open_tab(address)
    field = f"#ti_train_{setting}"
    if setting == "seed":  # its group is opened to type, and closed again
        tab.page.get_by_role("button", name="How it learns").click()
        tab.page.wait_for_selector(field, state="visible")
    tab.fill(f"train_{setting}", typed)
    if setting == "seed":
        tab.page.get_by_role("button", name="How it learns").click()
        tab.page.wait_for_selector(field, state="hidden")
    tab.page.click("#ti_train_button")
    tab.until(f"document.querySelector('{field}.ti-fault')?.dataset.fault.startsWith({said!r})")
    assert tab.page.locator(field).is_visible()
    assert not engine.job.running
