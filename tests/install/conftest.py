"""A site on this machine, and an installer that knows it as Civitai and as Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.install_site import TOKEN, Site, serving
from textual_inversion.install import Installer, Sites, Web


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture
def waits() -> list[float]:
    """The pauses that were made, in seconds."""
    return []


@pytest.fixture
def installer(site: Site, waits: list[float], tmp_path: Path) -> Installer:
    web = Web(Sites(site.address, site.address), {"civitai": TOKEN, "hub": TOKEN}, wait=waits.append, timeout=20)
    return Installer(web, tmp_path / "embeddings")
