"""What the commands share: their parsers, their lines for people, the folder of embeddings. Knows no command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.cli_report import say
from textual_inversion.errors import ConfigError

if TYPE_CHECKING:
    from textual_inversion.library import EmbeddingLibrary

Result = dict[str, Any]


def command(commands: Any, name: str, run: Callable[[argparse.Namespace], Result], text: str) -> argparse.ArgumentParser:
    """Add a command that `run` does; it may set `status` of its options to another exit status than 0."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run, status=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    return parser


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add the option for the folder of embeddings."""
    parser.add_argument("--embeddings", metavar="DIR", help="folder of embeddings (default: the WebUI's)")


def tell(options: argparse.Namespace, text: str) -> None:
    """A line for people."""
    say(text, as_json=options.json)


def embeddings_folder(options: argparse.Namespace) -> Path:
    """The folder of embeddings that was asked for, or the WebUI's."""
    from textual_inversion.hosts.standalone.adapter import default_data_folder

    return Path(options.embeddings).expanduser() if options.embeddings else default_data_folder() / "embeddings"


def library_of(options: argparse.Namespace, widths: dict[str, int] | None) -> EmbeddingLibrary:
    """The embeddings of that folder, judged by a checkpoint's widths; raises `ConfigError` when the folder is not there."""
    from textual_inversion.library import EmbeddingLibrary

    folder = embeddings_folder(options)
    if options.embeddings and not folder.is_dir():
        raise ConfigError(f"There is no folder {folder}; give the folder of your embeddings.")
    return EmbeddingLibrary([folder], widths)
