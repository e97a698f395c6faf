"""The offer to check every embedding file: what it finds, what it moves, and that it is made once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from textual_inversion.app.checking import Checking
from textual_inversion.app.job import Job, JobKind
from textual_inversion.hosts.fake import FakeEngine, FakeHost
from textual_inversion.ui import render


class _Runs:
    def __reduce__(self) -> Any:
        return (os.system, ("true",))


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    """Four files, two of them dangerous, one of those in a subfolder with markup in its name."""
    engine = FakeEngine(FakeHost(tmp_path / "host", asks=True), pace=0.0005)
    folder = engine.host.folders().embeddings
    (folder / "deep <b>").mkdir()
    save_file({"emb_params": torch.zeros(1, 768) + 0.1}, folder / "good.safetensors")
    torch.save({"string_to_param": {"*": torch.zeros(2, 768) + 0.1}}, folder / "honest.pt")
    torch.save({"string_to_param": _Runs()}, folder / "hostile.pt")
    torch.save({"string_to_param": _Runs()}, folder / "deep <b>" / "hidden.bin")
    return engine


def checked(engine: FakeEngine) -> Checking:
    checking = Checking(engine, engine.host)
    assert not checking.begin().failed
    assert engine.job.wait(20)
    return checking


def test_a_check_names_what_is_dangerous_and_changes_nothing(engine: FakeEngine) -> None:
    before = sorted(engine.host.folders().embeddings.rglob("*"))
    assert Checking(engine, engine.host).phase == "offer"
    checking = checked(engine)
    assert (checking.phase, checking.dangerous, engine.host.asks) == ("found", 2, False)
    assert engine.job.snapshot()["reason"] == "4 files checked; 2 could run code in a program that loads them."
    shown = render.check_box(checking)
    assert "<strong>2</strong> can be used" in shown
    assert "hostile.pt" in shown
    assert "deep &lt;b&gt;/hidden.bin" in shown
    assert "posix.system" in shown or "nt.system" in shown
    assert sorted(engine.host.folders().embeddings.rglob("*")) == before


def test_only_dangerous_files_are_moved_and_the_host_looks_again(engine: FakeEngine) -> None:
    checking = checked(engine)
    folder = engine.host.folders().embeddings
    assert not checking.move().failed
    assert engine.host.changes == 1
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "good.safetensors", "hidden.bin.unsafe", "honest.pt", "hostile.pt.unsafe",
    ]  # fmt: skip
    assert checking.dangerous == 0
    assert "2 files were moved" in render.check_box(checking)
    assert "4 files checked; 2 could run code" in render.check_box(checking)
    assert checking.move().kind == "hint"
    checking.refuse()
    assert render.check_box(checking) == ""


def test_a_file_that_changed_since_stays_and_is_named(engine: FakeEngine) -> None:
    checking = checked(engine)
    hostile = engine.host.folders().embeddings / "hostile.pt"
    hostile.write_bytes(hostile.read_bytes() + b" ")
    checking.move()
    assert hostile.exists()
    assert "hostile.pt: it changed since it was judged" in render.check_box(checking)
    assert "1 file was moved" in render.check_box(checking)


def test_it_is_offered_until_it_is_answered(engine: FakeEngine) -> None:
    Checking(engine, engine.host).refuse()
    assert Checking(engine, engine.host).phase == ""
    assert render.check_box(Checking(engine, engine.host)) == ""


def test_a_check_that_is_stopped_is_offered_again(engine: FakeEngine) -> None:
    checking = Checking(engine, engine.host)
    stopped = checking._check(lambda event: None, lambda: True)
    assert "stopped" in stopped
    assert checking.phase == "offer"


def test_it_waits_while_something_else_is_at_work(engine: FakeEngine) -> None:
    engine.job = Job()
    engine.job.start(JobKind.TRAIN, "x", lambda listener, stop: None if stop() else __import__("time").sleep(0.5))
    outcome = Checking(engine, engine.host).begin()
    assert outcome.failed
    assert "still at work" in outcome.text
    engine.job.wait(5)


@pytest.mark.browser
def test_the_offer_on_the_page(engine: FakeEngine, serve: Callable[[Any], Any], open_tab: Callable[..., Any]) -> None:
    with serve(engine) as address:
        tab = open_tab(address)
        tab.until("document.querySelector('#ti_check')?.innerText.includes('Check your embedding files?')")
        assert not tab.page.locator("#ti_check_move").is_visible()
        tab.page.click("#ti_check_button")
        tab.until("document.querySelectorAll('.ti-dangers tbody tr').length === 2")
        assert "4 files checked; 2 could run code" in tab.text("#ti_check")
        assert tab.text("#ti_check_move") == "Move 2 dangerous files aside"
        assert not tab.page.locator("#ti_check_button").is_visible()
        tab.page.click("#ti_check_move")
        tab.until("document.querySelector('#ti_check')?.innerText.includes('2 files were moved')")
        tab.until("document.querySelector('#ti_check_move')?.offsetParent === null")
        tab.page.click("#ti_check_done")
        tab.until("document.querySelector('#ti_check')?.offsetParent === null")
        again = open_tab(address)  # it was answered
        again.until("document.querySelector('.ti-live')?.innerText.includes('Checked')")
        again.until("document.querySelector('#ti_check')?.offsetParent === null")
        assert tab.page.locator("#ti_train_button").is_visible()


@pytest.mark.browser
def test_not_now_is_remembered(engine: FakeEngine, serve: Callable[[Any], Any], open_tab: Callable[..., Any]) -> None:
    with serve(engine) as address:
        tab = open_tab(address)
        tab.page.click("#ti_check_refuse")
        tab.until("document.querySelector('#ti_check')?.offsetParent === null")
        assert not engine.host.asks
        assert not engine.job.id
