"""The command `list`: shows the embeddings of a folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from textual_inversion.cli.common import Result, add_folder, command, embeddings_folder, library_of, tell


def add_list(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "list", _list, "show the embeddings, and why some do not fit the checkpoint")
    parser.add_argument("--checkpoint", metavar="FILE", help="judge by this checkpoint; default: by none")
    add_folder(parser)


def _list(options: argparse.Namespace) -> Result:
    widths = None
    if options.checkpoint:
        from textual_inversion.diffusion.checkpoint import checkpoint_facts

        widths = checkpoint_facts(Path(options.checkpoint)).widths
    entries = library_of(options, widths).entries()
    rows = []
    for entry in entries:
        facts, word = entry.description, entry.info.word if entry.info else None
        rows.append({"name": entry.name, "path": str(entry.path), "reason": entry.reason, "word": word, **facts.summary()})
        columns = f"{facts.vectors:>10}  {facts.family:<8} step {facts.step or 0}" if facts.num_vectors else ""
        inside = f"  in {entry.path.name}" if word is not None else ""
        tell(options, f"{entry.name:<30} {columns}{inside}{'  - ' if columns and entry.reason else ''}{entry.reason}")
    if not entries:
        tell(options, f"There are no embeddings in {embeddings_folder(options)}; create one with: textual-inversion create NAME")
    return {"embeddings": rows}
