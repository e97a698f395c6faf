"""What is registered with a WebUI: everything once, under the extension's own script, without the WebUI looking for its name."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support import webui_hosts

SCRIPT = Path(__file__).parents[2] / "scripts" / "textual_inversion_tab.py"
ONCE = ("ui_settings", "before_ui", "before_token_counter", "model_loaded", "app_started", "script_unloaded")


class Callbacks(ModuleType):
    """`modules.script_callbacks`: of 1.10, or an older one whose `add_callback` finds the file by itself."""

    def __init__(self, new: bool) -> None:
        super().__init__("modules.script_callbacks")
        self.callback_map: dict[str, list[Any]] = {f"callbacks_{kind}": [] for kind in (*ONCE, "ui_tabs")}
        self.files: list[str | None] = []
        self.add_callback = self.add if new else (lambda callbacks, fun: self.add(callbacks, fun))
        for kind in ONCE:
            setattr(self, f"on_{kind}", lambda callback, kind=kind: self.add_callback(self.callback_map[f"callbacks_{kind}"], callback))

    def add(self, callbacks: list[Any], fun: Any, *, name: str | None = None, category: str = "", filename: str | None = None) -> None:
        callbacks.append(fun)
        self.files.append(filename)


@pytest.fixture(params=[True, False], ids=["1.10", "older"])
def inside(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    inside = webui_hosts.stand_ins("a1111", tmp_path / "a1111", tmp_path, 64)
    inside.callbacks = Callbacks(request.param)
    for name, module in {**inside.modules, "modules.script_callbacks": inside.callbacks}.items():
        monkeypatch.setitem(sys.modules, name, module)
    inside.modules["modules"].script_callbacks = inside.callbacks
    inside.script = str(SCRIPT) if request.param else None
    with webui_hosts.forgetting():
        from textual_inversion.hosts import webui

        monkeypatch.setattr(webui, "_current", [])
        yield inside
        if webui.is_registered():
            webui.current_host().remove()


def registered() -> Any:
    """The host that everything was registered for."""
    from textual_inversion.hosts.a1111 import A1111Host
    from textual_inversion.hosts.webui import registration

    drawn: list[Any] = []
    registration.register(A1111Host, lambda host, engine: drawn.append(host))
    return drawn[0]


def test_everything_is_registered_once(inside: Any) -> None:
    host = registered()
    assert {kind: len(inside.callbacks.callback_map[f"callbacks_{kind}"]) for kind in ONCE} == dict.fromkeys(ONCE, 1)
    assert registered() is host  # the page was reloaded
    assert set(inside.callbacks.files) == {inside.script}
    assert SCRIPT.is_file()


@pytest.mark.parametrize(
    ("option", "value", "comes_back"),
    [
        ("disabled_extensions", [], True),
        ("disabled_extensions", ["another"], True),
        ("disabled_extensions", [SCRIPT.parents[1].name], False),
        ("disable_all_extensions", "none", True),
        ("disable_all_extensions", "extra", False),
        ("disable_all_extensions", "all", False),
    ],
)
def test_a_job_that_ends_while_scripts_are_loaded_again_holds_the_queue_until_this_extension_is(
    inside: Any, option: str, value: Any, comes_back: bool
) -> None:
    from textual_inversion.hosts.webui import turn

    host = registered()
    setattr(inside.options(), option, value)
    ending, ended = threading.Event(), threading.Event()

    def job() -> None:
        with turn.queue_turn():
            ending.wait(10)
        ended.set()

    thread = threading.Thread(target=job)
    thread.start()
    (unloaded,) = inside.callbacks.callback_map["callbacks_script_unloaded"]
    unloaded()
    assert not host.tables.installed
    ending.set()
    assert ended.wait(0.3 if comes_back else 10) is not comes_back
    registered()
    thread.join(10)
    assert ended.is_set()
    assert host.tables.installed


def test_a_removed_extension_keeps_no_job_waiting(inside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from textual_inversion.hosts.webui import registration, turn

    registered()
    monkeypatch.setattr(registration, "_SCRIPT", tmp_path / "gone" / "scripts" / "textual_inversion_tab.py")
    inside.callbacks.callback_map["callbacks_script_unloaded"][0]()
    assert turn.scripts_loaded.is_set()
