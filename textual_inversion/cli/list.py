"""The command `list`: shows the embeddings of a folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from textual_inversion.cli.common import Result, add_folder, command, embeddings_folder, library_of, tell
from textual_inversion.text import counted


def add_list(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "list", _list, "show the embeddings, and why some do not fit the checkpoint")
    parser.add_argument("--checkpoint", metavar="FILE", help="judge by this checkpoint; default: by none")
    add_folder(parser)


def _list(options: argparse.Namespace) -> Result:
    from textual_inversion.diffusion.checkpoint import checkpoint_facts

    widths = checkpoint_facts(Path(options.checkpoint)).widths if options.checkpoint else None
    entries = library_of(options, widths).entries()
    rows = []
    for entry in entries:
        info = entry.info
        row: Result = {"name": entry.name, "path": str(entry.path), "reason": entry.reason}
        if info:
            row |= {"vectors": info.num_vectors, "family": info.family, "step": info.provenance.step, "word": info.word}
        rows.append(row)
        facts = ""
        if info and info.counts:
            facts = f"{counted(info.num_vectors, 'vector'):>10}  {info.family:<8} step {info.provenance.step or 0}"
        inside = f"  in {entry.path.name}" if info and info.word is not None else ""
        tell(options, f"{entry.name:<30} {facts}{inside}{'  - ' if facts and entry.reason else ''}{entry.reason}")
    if not entries:
        tell(options, f"There are no embeddings in {embeddings_folder(options)}; create one with: textual-inversion create NAME")
    return {"embeddings": rows}
