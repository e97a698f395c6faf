"""The command `serve`: starts the WebUI."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from textual_inversion.cli.common import Result, add_checkpoint, add_switch, add_value, command, tell

_LISTEN_HELP = (
    "let other computers open the page, if they know the token that is printed with the address; whoever has it can see small pictures of "
    "any folder that you can read, and can write embeddings, pictures and logs where you can write"
)
_NO_TOKEN_HELP = "with --listen: let everybody who can reach this computer use the page as you can, without a token"


def add_serve(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "serve", _serve, "start the WebUI")
    add_value(parser, "--port", 7870, "port of the page")
    add_switch(parser, "--listen", _LISTEN_HELP)
    add_switch(parser, "--no-token", _NO_TOKEN_HELP)
    parser.add_argument("--tls-cert", metavar="FILE", help="serve https with this certificate (PEM); default: http")
    parser.add_argument("--tls-key", metavar="FILE", help="the certificate's private key (PEM); default: it is in the certificate's file")
    add_switch(parser, "--no-browser", "do not open the page")
    add_checkpoint(parser)
    parser.add_argument("--data", metavar="DIR", help="folder for embeddings and pictures; default: textual-inversion-data")


def _serve(options: argparse.Namespace) -> Result:
    from textual_inversion.hosts.standalone import serve
    from textual_inversion.hosts.standalone.gate import Access, new_token

    certificate, key = (Path(name).expanduser() if name else None for name in (options.tls_cert, options.tls_key))
    token = new_token() if options.listen and not options.no_token else ""
    access = Access(options.listen, token, certificate, key)

    def announce(page: str) -> None:
        tell(options, f"The page is at {page} (Ctrl+C ends it).")
        if token:
            tell(options, "On other computers, put this computer's name or address in the place of 127.0.0.1.")
        elif options.listen:
            tell(options, "Everybody who can reach this computer can use the page: there is no token.")

    serve(options.port, access, options.checkpoint, not options.no_browser, options.data, announce=announce)
    return {}
