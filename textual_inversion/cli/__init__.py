"""The command line: one command, one module. `main` runs a command; the package does its work."""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from textual_inversion.app.memory import enough_memory
from textual_inversion.cli.completion import add_completion
from textual_inversion.cli.convert import add_convert
from textual_inversion.cli.create import add_create
from textual_inversion.cli.demo import add_demo
from textual_inversion.cli.generate import add_generate
from textual_inversion.cli.inspect import add_inspect
from textual_inversion.cli.install import add_install
from textual_inversion.cli.list import add_list
from textual_inversion.cli.preprocess import add_preprocess
from textual_inversion.cli.report import logged, say
from textual_inversion.cli.scan import add_scan
from textual_inversion.cli.serve import add_serve
from textual_inversion.cli.train import add_train
from textual_inversion.cli.version import ShowVersion
from textual_inversion.errors import TextualInversionError, TrainingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0, 1 for training that had to stop or for bad files, 2 for bad input, 130 after Ctrl+C, 141 where the reader of
        the output has gone (as after `| head`).
    """
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:  # as without a console
                sys.stdout.flush()  # here, also after --help, which exits
    except OSError as error:
        if sys.stdout is not None:
            with suppress(OSError, ValueError):  # Python writes what is left at its end, and would fail again
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno in (errno.EPIPE, errno.EINVAL):  # the second one on Windows
            return 141
        say(f"textual-inversion: the output cannot be written: {error.strerror or error}.", error=True)
        return 2


def _run(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    try:
        with logged(), enough_memory("do this", "choose a smaller size, batch size or checkpoint, or close other programs"):
            result = options.run(options)
    except TextualInversionError as error:
        return _refuse(options, str(error), 1 if isinstance(error, TrainingError) else 2)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _refuse(options, f"{error.filename or 'a file'}: {error.strerror or error}.", 2)
    except KeyboardInterrupt:
        return 130
    if options.json:
        print(json.dumps(result))
    return options.status


def _refuse(options: argparse.Namespace, reason: str, status: int) -> int:
    say(f"textual-inversion: {reason}", error=True)
    if options.json:
        print(json.dumps({"error": reason}))
    return status


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = argparse.ArgumentParser(
        prog="textual-inversion",
        description="Teaches Stable Diffusion new words: creates, trains, draws and looks at embeddings.",
        epilog="Each command explains itself: textual-inversion COMMAND --help",
    )
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    adders = (add_create, add_preprocess, add_train, add_generate, add_list, add_inspect, add_convert, add_install, add_scan, add_serve)
    for add in (*adders, add_demo, add_completion):
        add(commands)
    return parser
