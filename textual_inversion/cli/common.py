"""Shared by the commands: options and their help, the checks before slow imports, the folder of embeddings, the checkpoint."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from textual_inversion.cli.report import say
from textual_inversion.errors import ConfigError, DatasetError
from textual_inversion.settings.schema import Setting, Settings, grouped, setting_of, settings_of
from textual_inversion.settings.training import TrainingConfig

if TYPE_CHECKING:
    from textual_inversion.diffusion.model import StableDiffusion
    from textual_inversion.library import EmbeddingLibrary

Result = dict[str, Any]
SIZE = ("width", "height")  # settings whose default is the checkpoint's native size
_PLACEHOLDERS = {int: "N", float: "X"}
_Config = TypeVar("_Config", bound=Settings)


def command(commands: Any, name: str, run: Callable[[argparse.Namespace], Result], text: str, usage: str = "") -> argparse.ArgumentParser:
    """Add a command.

    Args:
        commands: argparse's subparsers.
        name: the command's name.
        run: does the command and returns its JSON; it may set `status` of the options to another exit status than 0.
        text: the command in one clause, for `--help`.
        usage: the required arguments, for a command with too many options to list them in the usage line.
    """
    about = text[0].upper() + text[1:] + "."
    short = f"%(prog)s {usage} [OPTIONS]" if usage else None
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=about, usage=short)
    parser.set_defaults(run=run, status=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    return parser


def add_value(group: Any, flag: str, default: Any, text: str, *, metavar: str = "", choices: Sequence[str] = (), **more: Any) -> None:
    """Add an option that takes a value of its default's type; its help ends with the default, and shows the choices where there are some.

    Args:
        metavar: what stands for the value; by default `N` for whole numbers, `X` for others, `TEXT`, or the choices.
        choices: the allowed values. The help shows them; the settings class refuses other values in one sentence.
        more: goes to argparse as it is.
    """
    kind = str if default is None else type(default)
    shown = metavar or ("{" + ",".join(choices) + "}" if choices else _PLACEHOLDERS.get(kind, "TEXT"))
    group.add_argument(flag, type=kind, default=default, metavar=shown, help=with_default(text, default), **more)


def with_default(text: str, default: object) -> str:
    """An option's help with its default; None where the text says what it is."""
    if default is None:
        return text
    words: dict[object, str] = {"": "empty", " ": "a space", ", ": "a comma and a space", True: "on", False: "off"}
    shown = words.get(default) if isinstance(default, (str, bool)) else f"{default:g}" if isinstance(default, float) else None
    return f"{text}; default: {default if shown is None else shown}"


def add_switch(group: Any, flag: str, text: str, *, default: bool = False, **more: Any) -> None:
    """Add an option without a value; one that is on by default can be turned off by `--no-…`."""
    group.add_argument(
        flag, action=argparse.BooleanOptionalAction if default else "store_true", default=default, help=with_default(text, default), **more
    )


def option_help(settings: type[Settings]) -> dict[str, str]:
    """Setting -> its help; names of other settings in it are replaced by their options."""
    flags = {each.name: f"--{each.flag}" for each in settings_of(settings)}

    def as_option(match: re.Match[str]) -> str:
        return flags.get(match[1], match[1])

    return {each.name: re.sub("`([^`]*)`", as_option, each.described).replace("%", "%%") for each in settings_of(settings)}


def add_settings(parser: argparse.ArgumentParser, settings: type[Settings], *, native: Sequence[str] = ()) -> dict[str, Any]:
    """Add an option for every setting that has a group, under the heading of its group.

    Args:
        native: settings whose default is the checkpoint's native value; without a value, their options are None.

    Returns:
        Group -> argparse's group, for further options.
    """
    texts, groups = option_help(settings), {}
    for title, members in grouped(settings).items():
        if title:
            groups[title] = parser.add_argument_group(title)
            for each in members:
                add_setting(groups[title], each, texts[each.name], native=each.name in native)
    return groups


def add_setting(group: Any, setting: Setting, text: str, *, native: bool = False) -> None:
    """Add the option of one setting; `native` as for `add_settings`. The settings judge the value, in one sentence."""
    flag, choices = f"--{setting.flag}", "{" + ",".join(setting.choices) + "}"
    shown = setting.metavar or (choices if setting.choices else _PLACEHOLDERS.get(setting.type, "TEXT"))
    if setting.type is bool:
        add_switch(group, flag, text, default=setting.default, dest=setting.name)
    elif setting.type is tuple:
        several = {"nargs": "*", "choices": setting.choices} if setting.choices else {"nargs": "+", "metavar": shown}
        group.add_argument(flag, dest=setting.name, default=(), help=f"{text}; default: none", **several)
    elif native:
        text = f"{text}; default: what the checkpoint was made for"
        group.add_argument(flag, dest=setting.name, type=setting.type, metavar=shown, help=text)
    else:
        kind = partial(_number_or_text, setting.type) if setting.word else setting.type
        text = with_default(text, setting.default)
        action = group.add_argument(flag, dest=setting.name, type=kind, default=setting.default, metavar=shown, help=text)
        action.known_values = setting.choices  # for completion; the settings class judges the value


def _number_or_text(kind: type, text: str) -> Any:
    """A number, or the text where it is none: a word that the setting takes, or what the setting will refuse."""
    try:
        return kind(text)
    except ValueError:
        return text.strip().lower()


def values_of(options: argparse.Namespace, settings: type[Settings]) -> dict[str, Any]:
    """Values of the settings that were given or have a default; settings left to the checkpoint are missing."""
    values = {each.name: getattr(options, each.name) for each in settings_of(settings)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if value is not None}


def sized(options: argparse.Namespace, config: _Config, native: int) -> _Config:
    """The settings, with the checkpoint's native size for each side that was not given."""
    return replace(config, **{name: native for name in SIZE if getattr(options, name) is None})  # type: ignore[type-var]


def check_pictures(folder: str) -> None:
    """Refuse a folder of pictures that does not exist, before slow imports; the reader of the pictures checks the rest.

    Raises:
        DatasetError: no such folder.
    """
    path = Path(os.path.expanduser(folder))
    if folder.strip() and not os.path.isdir(path):  # not Path.is_dir, which raises where a parent may not be entered
        fault = "is a file, not a folder" if os.path.exists(path) else "does not exist"
        raise DatasetError(f"The folder of pictures {path} {fault}; choose a folder with pictures in it.", path=path)


def check_embeddings(folder: str | Path) -> None:
    """Refuse a folder of embeddings that does not exist, before slow imports.

    Raises:
        ConfigError: no such folder.
    """
    if not os.path.isdir(folder):
        raise ConfigError(f"There is no folder {folder}; give the folder of your embeddings.", path=folder)


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add the option for the folder of embeddings."""
    parser.add_argument("--embeddings", metavar="DIR", help="folder of embeddings; default: the page's, textual-inversion-data/embeddings")


def tell(options: argparse.Namespace, text: str) -> None:
    """Print a line for people, on standard error when standard output is for JSON."""
    say(text, as_json=options.json)


def embeddings_folder(options: argparse.Namespace) -> Path:
    """The folder given by `--embeddings`, or the WebUI's."""
    if options.embeddings:
        return Path(options.embeddings).expanduser()
    from textual_inversion.hosts.standalone.adapter import default_data_folder

    return default_data_folder() / "embeddings"


def library_of(options: argparse.Namespace, widths: dict[str, int] | None) -> EmbeddingLibrary:
    """The library of that folder, judged by a checkpoint's widths; raises `ConfigError` when the folder does not exist."""
    folder = embeddings_folder(options)
    if options.embeddings:
        check_embeddings(folder)
    from textual_inversion.library import EmbeddingLibrary

    return EmbeddingLibrary([folder], widths)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add the option for the checkpoint."""
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="an SD1, SD2 or SDXL checkpoint: .safetensors, .ckpt or a diffusers folder; default: the tiny one that ships",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the options for the device and the precision, as training has them."""
    texts = option_help(TrainingConfig)
    add_setting(parser, setting_of(TrainingConfig, "device"), texts["device"])
    for name in ("precision", "prediction_type"):
        declared = setting_of(TrainingConfig, name)
        text = with_default(texts[name], declared.default)
        parser.add_argument(f"--{declared.flag}", default=declared.default, choices=declared.choices, help=text)


def checkpoint_path(options: argparse.Namespace) -> Path:
    """The checkpoint given by `--checkpoint`, or the tiny one."""
    from textual_inversion.diffusion.model import TINY_CHECKPOINT

    return Path(options.checkpoint or TINY_CHECKPOINT).expanduser()


def load_model(options: argparse.Namespace, config: TrainingConfig | None = None) -> StableDiffusion:
    """The model of that checkpoint, on the device and in the precision of `config`, or of the options where that is None."""
    from textual_inversion.diffusion.model import TINY_CHECKPOINT, check_device, load_checkpoint

    source = options if config is None else config
    check_device(source.device)
    wanted = {"device": source.device, "precision": source.precision, "prediction_type": source.prediction_type}
    return load_checkpoint(options.checkpoint or TINY_CHECKPOINT, **wanted)


def named_file(options: argparse.Namespace, name: str) -> tuple[Path, str | None]:
    """The file with the path `name`, or of the embedding called `name`; for a name, also its word when the file holds several."""
    from textual_inversion.formats import READ_ENDINGS

    if os.path.lexists(name) or Path(name).name != name:
        return Path(name), None
    if entry := library_of(options, None).find(name):
        return entry.path, entry.info.word if entry.info else None
    if name.lower().endswith(READ_ENDINGS):
        return Path(name), None  # the reader reports a missing file
    raise ConfigError(f"There is no file {name!r}, and no embedding of that name in {embeddings_folder(options)}; give a path.")
