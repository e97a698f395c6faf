"""This extension's settings in the WebUI's Settings page, and the WebUI's own training options."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from modules import shared

from textual_inversion.errors import ConfigError
from textual_inversion.settings.training import TrainingConfig

SECTION = ("textual_inversion", "Textual Inversion")
CATEGORY = "training"  # the WebUI's own heading in the list of sections
PREFIX = "textual_inversion_"
#: Name without prefix -> default, label, explanation.
OPTIONS: dict[str, tuple[Any, str, str]] = {
    "own_reader": (
        True,
        "Load embedding files through Textual Inversion's reader",
        "it reads every known layout, runs no code, and changes no file; off = the WebUI's own loading",
    ),
    "rewrite_prompts": (True, "Understand <name> and <name:weight> in prompts", "rewritten to (name:weight), also in infotext"),
    "offer_check": (True, "Offer on the Train page to check the embedding files for code", "turns itself off once that was answered"),
    "civitai_token": ("", "API token of Civitai, for installing embeddings", "empty = the variable CIVITAI_API_TOKEN"),
    "hub_token": (
        "",
        "API token of Hugging Face, for installing embeddings",
        "empty = the variable HF_TOKEN",
    ),
    "card_as_tag": (False, "A click on an embedding's card inserts <name:1> instead of name", ""),
}
#: Site -> the setting with its API token.
TOKENS = {"civitai": "civitai_token", "hub": "hub_token"}
_log = logging.getLogger(__name__)


def add_options() -> None:
    """Put the settings into the WebUI's Settings page; called when it asks for them."""
    for name, (default, label, info) in OPTIONS.items():
        option = shared.OptionInfo(default, label, section=SECTION)
        if name in TOKENS.values():
            option.component_args = {"type": "password"}
            option.restrict_api = True  # where a WebUI has this: its API cannot change it
        option.category_id = CATEGORY  # no argument, as older WebUIs have none
        shared.opts.add_option(PREFIX + name, option.info(info) if info else option)


def option(name: str) -> Any:
    """The value of one of our settings, by its name without prefix."""
    return getattr(shared.opts, PREFIX + name, OPTIONS[name][0])


def tokens() -> dict[str, str]:
    """Site -> API token of the user's settings; those that are empty are left out."""
    return {site: token for site, name in TOKENS.items() if (token := str(option(name) or "").strip())}


def turn_off(name: str) -> None:
    """Set one of our settings to off, and keep that in the WebUI's `config.json`."""
    shared.opts.set(PREFIX + name, False)
    shared.opts.save(shared.config_filename)


def host_option(name: str, default: Any) -> Any:
    """The value of one of the WebUI's own options; `default` where this WebUI has none."""
    return getattr(shared.opts, name, default)


def with_host_options(config: TrainingConfig) -> TrainingConfig:
    """`config` with the WebUI's Training options for settings that the form left at their defaults."""
    word_regex = config.filename_regex or str(host_option("dataset_filename_word_regex", "") or "")
    join = config.filename_join if config.filename_join != " " else str(host_option("dataset_filename_join_string", " ") or "")
    keeps_state = config.save_optimizer or bool(host_option("save_optimizer_state", False))
    try:
        return replace(config, filename_regex=word_regex, filename_join=join, save_optimizer=keeps_state)
    except ConfigError as error:
        raise ConfigError(f"{error} It is set in Settings, Training.", setting=error.setting) from error
