"""The command `serve`: starts the WebUI."""

from __future__ import annotations

import argparse
from typing import Any

from textual_inversion.cli.common import Result, add_checkpoint, add_switch, add_value, command, tell

_LISTEN_HELP = (
    "let other computers open the page; there is no password: whoever opens it can see small pictures of any folder that you can read, "
    "and can write embeddings, pictures and logs where you can write"
)


def add_serve(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "serve", _serve, "start the WebUI")
    add_value(parser, "--port", 7870, "port of the page")
    add_switch(parser, "--listen", _LISTEN_HELP)
    add_switch(parser, "--no-browser", "do not open the page")
    add_checkpoint(parser)
    parser.add_argument("--data", metavar="DIR", help="folder for embeddings and pictures; default: textual-inversion-data")


def _serve(options: argparse.Namespace) -> Result:
    from textual_inversion.hosts.standalone import serve

    def announce(page: str) -> None:
        tell(options, f"The page is at {page} (Ctrl+C ends it).")

    serve(options.port, options.listen, options.checkpoint, not options.no_browser, options.data, announce=announce)
    return {}
