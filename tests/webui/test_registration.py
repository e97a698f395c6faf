"""What is registered with a WebUI: everything once, under the extension's own script, without the WebUI looking for its name."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support import webui_hosts

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


@pytest.mark.parametrize("new", [True, False])
def test_everything_is_registered_once(new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = webui_hosts.stand_ins("a1111", tmp_path / "a1111", tmp_path, 64)
    callbacks = Callbacks(new)
    for name, module in {**inside.modules, "modules.script_callbacks": callbacks}.items():
        monkeypatch.setitem(sys.modules, name, module)
    inside.modules["modules"].script_callbacks = callbacks
    with webui_hosts.forgetting():
        from textual_inversion.hosts.a1111.adapter import A1111Host
        from textual_inversion.hosts.webui import current, registration

        monkeypatch.setattr(current, "_host", [])
        drawn: list[Any] = []
        registration.register(A1111Host, drawn.append)
        host = drawn[0]
        assert {kind: len(callbacks.callback_map[f"callbacks_{kind}"]) for kind in ONCE} == dict.fromkeys(ONCE, 1)
        assert callbacks.callback_map["callbacks_script_unloaded"] == [host.remove]
        registration.register(A1111Host, drawn.append)  # the page was reloaded
        assert drawn == [host, host]
        script = Path(__file__).parents[2] / "scripts" / "textual_inversion_tab.py"
        assert set(callbacks.files) == ({str(script)} if new else {None})
        assert script.is_file()
        host.remove()
