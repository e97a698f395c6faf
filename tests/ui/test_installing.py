"""Embeddings installed from the page: only on a click, in the background, never from this computer's own network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.install_site import TOKEN, embedding_bytes, serving
from textual_inversion.app.engine import Engine
from textual_inversion.app.installing import Installing
from textual_inversion.hosts.standalone.adapter import StandaloneHost
from textual_inversion.install import Sites, Web


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return Engine(StandaloneHost(tmp_path / "data"))


def ended(engine: Engine) -> dict[str, Any]:
    assert engine.job.wait(60)
    return engine.job.snapshot()


def test_one_address_and_several(engine: Engine) -> None:
    with serving() as site, serving() as other:
        installing = Installing(engine, web=Web(Sites(site.address, "http://127.0.0.1:9"), {"civitai": TOKEN}))
        site.civitai(12, 34, embedding_bytes(vectors=40))
        assert not installing.begin(f" {site.address}/models/12 \n\n").failed
        state = ended(engine)
        assert state["phase"] == "finished"
        assert "dotted-star.safetensors is installed: 40 vectors for SD1" in state["reason"]
        assert state["step"] == state["last_step"] > 100  # kilobytes
        assert [card.name for card in engine.cards()] == ["dotted-star"]
        other.files["/b.pt"] = embedding_bytes(3)
        installing.begin(f"{site.address}/models/12\n{other.address}/b.pt\n{site.address}/models/99")
        state = ended(engine)
        assert state["reason"] == "2 embeddings installed or there already; 1 failed."
        assert len(state["messages"]) == 3
        assert sorted(card.name for card in engine.cards()) == ["b", "dotted-star"]


def test_failures_are_said(engine: Engine) -> None:
    installing = Installing(engine)
    assert installing.begin("  ").failed
    assert installing.begin("\n".join(f"https://a.test/{number}" for number in range(51))).failed
    assert installing.interrupt().kind == "hint"
    with serving() as site:
        installing.begin(f"{site.address}/x.pt")
        assert "in its own network, so it is not asked" in ended(engine)["reason"]
        assert site.requests == []
    installing.begin("/etc/hostname")
    state = ended(engine)
    assert state["failed"]
    assert "Give a web address" in state["reason"]


@pytest.mark.browser
def test_a_click_on_the_page_installs(
    engine: Engine, serve: Callable[[Any], Any], open_tab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as site, serve(engine) as address:
        monkeypatch.setenv("HF_ENDPOINT", site.address)
        site.hub("concepts/cat-toy", {"learned_embeds.bin": embedding_bytes()})
        tab = open_tab(address)
        tab.open("Create")
        tab.page.get_by_text("Install from an address instead").click()
        tab.fill("install_address", "https://huggingface.co/concepts/cat-toy")
        assert site.requests == []
        tab.page.click("#ti_install_button")
        tab.until("document.querySelector('.ti-live')?.innerText.includes('cat-toy.safetensors is installed')")
        assert tab.text(".ti-count").endswith("KB")
        tab.open("txt2img")
        tab.until("document.querySelector('.ti-card')?.innerText.includes('cat-toy')")
