"""This extension's settings as the WebUI's Settings page shows them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class OptionInfo:
    """`modules.options.OptionInfo`, as A1111 had it before categories."""

    def __init__(self, default: Any = None, label: str = "", component: Any = None, section: Any = None) -> None:
        self.default, self.label, self.section = default, label, section
        self.comment_after = ""

    def info(self, text: str) -> OptionInfo:
        self.comment_after += text
        return self


def test_the_settings_are_a_section_under_training(webui: SimpleNamespace) -> None:
    from textual_inversion.hosts.webui import options

    added: dict[str, Any] = {}
    webui.shared.OptionInfo = OptionInfo
    webui.shared.opts.add_option = added.__setitem__
    options.add_options()
    assert set(added) == {f"textual_inversion_{name}" for name in options.OPTIONS}
    assert {info.category_id for info in added.values()} == {"training"}
    assert {info.section for info in added.values()} == {options.SECTION}


def test_tokens_are_hidden_and_the_api_cannot_change_them(webui: SimpleNamespace) -> None:
    from textual_inversion.hosts.webui import options

    added: dict[str, Any] = {}
    webui.shared.OptionInfo = OptionInfo
    webui.shared.opts.add_option = added.__setitem__
    options.add_options()
    hidden = {name for name, info in added.items() if getattr(info, "restrict_api", False)}
    assert hidden == {"textual_inversion_civitai_token", "textual_inversion_hub_token"}
    assert all(added[name].component_args == {"type": "password"} for name in hidden)
    assert options.tokens() == {}
    webui.shared.opts.textual_inversion_hub_token = " secret "
    assert options.tokens() == {"hub": "secret"}
