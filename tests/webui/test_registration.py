"""What is registered with a WebUI: everything once, under the extension's own script, without the WebUI looking for its name."""

from __future__ import annotations

import sys
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
        from textual_inversion.hosts.webui import current

        monkeypatch.setattr(current, "_host", [])
        yield inside
        if current.is_registered():
            current.current_host().remove()


def registered() -> Any:
    """The host that everything was registered for."""
    from textual_inversion.hosts.a1111.adapter import A1111Host
    from textual_inversion.hosts.webui import registration

    drawn: list[Any] = []
    registration.register(A1111Host, drawn.append)
    return drawn[0]


def test_everything_is_registered_once(inside: Any) -> None:
    host = registered()
    assert {kind: len(inside.callbacks.callback_map[f"callbacks_{kind}"]) for kind in ONCE} == dict.fromkeys(ONCE, 1)
    assert registered() is host  # the page was reloaded
    assert set(inside.callbacks.files) == {inside.script}
    assert SCRIPT.is_file()


@pytest.mark.parametrize(
    ("option", "value", "stays"),
    [
        ("disabled_extensions", [], True),
        ("disabled_extensions", ["another"], True),
        ("disabled_extensions", [SCRIPT.parents[1].name], False),
        ("disable_all_extensions", "none", True),
        ("disable_all_extensions", "extra", False),
        ("disable_all_extensions", "all", False),
    ],
)
def test_between_two_loads_of_the_scripts_the_webui_does_not_read_files_unless_this_is_turned_off(
    inside: Any, option: str, value: Any, stays: bool
) -> None:
    host = registered()
    setattr(inside.options(), option, value)
    (unloaded,) = inside.callbacks.callback_map["callbacks_script_unloaded"]
    unloaded()
    assert host.tables.installed is stays
    registered()
    assert host.tables.installed


def test_a_removed_extension_leaves_the_webui_as_it_was(inside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from textual_inversion.hosts.webui import registration

    host = registered()
    monkeypatch.setattr(registration, "_SCRIPT", tmp_path / "gone" / "scripts" / "textual_inversion_tab.py")
    inside.callbacks.callback_map["callbacks_script_unloaded"][0]()
    assert not host.tables.installed


def test_another_extension_that_unwraps_the_webuis_methods_does_not_leave_ours_out(inside: Any) -> None:
    (cls,) = inside.classes
    theirs = cls.load_from_file
    registered()
    cls.load_from_file = theirs  # it had wrapped them first, and puts back what it had found then
    registered()
    assert cls.load_from_file.__module__.startswith("textual_inversion.")
