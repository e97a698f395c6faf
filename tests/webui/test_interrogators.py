"""The WebUI's interrogators as captioners: in its queue, with one sentence where they fail."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from tests.support import webui_hosts
from textual_inversion.errors import DatasetError

PICTURE = Image.new("RGB", (8, 8))


def nothing() -> None:
    """What a model does when it is loaded or put away here."""


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[Image.Image], str]], Any]]:
    """`offered(describe)`: the captioners in a WebUI both of whose interrogators are `describe`."""
    inside = webui_hosts.stand_ins("a1111", tmp_path / "a1111", tmp_path, 64)

    def with_both(describe: Callable[[Image.Image], str]) -> Any:
        deepbooru = ModuleType("modules.deepbooru")
        deepbooru.model = SimpleNamespace(start=nothing, stop=nothing, tag_multi=lambda image, force_disable_ranks: describe(image))  # type: ignore[attr-defined]
        for name, module in {**inside.modules, "modules.deepbooru": deepbooru}.items():
            monkeypatch.setitem(sys.modules, name, module)
        inside.modules["modules"].deepbooru = deepbooru  # type: ignore[attr-defined]
        inside.modules["modules.shared"].interrogator = SimpleNamespace(interrogate=describe)  # type: ignore[attr-defined]
        from textual_inversion.hosts.webui.host import interrogators

        return interrogators(lambda event: None, lambda: False)

    with webui_hosts.forgetting():
        yield with_both


def test_they_describe_while_the_queue_is_held(offered: Callable[..., Any]) -> None:
    held: list[bool] = []

    def describe(image: Image.Image) -> str:
        from modules.call_queue import queue_lock

        free = queue_lock.acquire(blocking=False)
        held.append(not free)
        if free:
            queue_lock.release()
        return f"{image.mode} picture"

    for describer in offered(describe).values():
        assert describer(PICTURE) == "RGB picture"
    assert held == [True, True]


@pytest.mark.parametrize("failing", ["raises", "says so"])
def test_what_they_cannot_describe_is_one_sentence(failing: str, offered: Callable[..., Any]) -> None:
    def describe(image: Image.Image) -> str:
        if failing == "raises":
            raise IndexError("list index out of range")
        return "<error>"

    names = list(offered(describe))
    describer = offered(describe)[names[0]]
    with pytest.raises(DatasetError, match="The WebUI could not describe it"):
        describer(PICTURE)
    from modules.call_queue import queue_lock

    assert queue_lock.acquire(blocking=False), "the queue goes on"
    queue_lock.release()
