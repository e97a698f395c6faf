"""The command `convert`: writes an embedding in another layout, and lists the facts that this layout cannot store."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.cli.common import Result, add_folder, command, named_file, tell
from textual_inversion.errors import ConfigError
from textual_inversion.text import join_clauses

if TYPE_CHECKING:
    from textual_inversion.embedding import Embedding


def add_convert(commands: Any) -> None:
    """Add the command."""
    text = "write an embedding in another layout; says what that cannot hold; exit status 2 if nothing was written"
    parser = command(commands, "convert", _convert, text)
    parser.add_argument("source", metavar="SRC", help="a file, or the name of an embedding in the folder of embeddings")
    parser.add_argument("destination", type=Path, metavar="DST", help="a file, whose ending chooses the layout, or a folder")
    parser.add_argument("--layout", metavar="NAME", help="name of the layout, where several have one ending; a wrong one lists them all")
    parser.add_argument("--word", metavar="W", help="which embedding, where SRC holds several")
    parser.add_argument(
        "--for-sdxl", metavar="FILE", help="an SDXL checkpoint, for whose second text encoder an SD1 embedding gets vectors"
    )
    parser.add_argument("--words", metavar="TEXT", default="", help="with --for-sdxl, what SRC is; default: its initialization text")
    parser.add_argument("--overwrite", action="store_true", help="replace DST")
    add_folder(parser)


def _convert(options: argparse.Namespace) -> Result:
    from textual_inversion import formats

    source, entry_word = named_file(options, options.source)
    word, destination = options.word or entry_word, options.destination
    words = [info.word for info in formats.describe_all(source) if info.word is not None]
    if len(words) > 1 and word is None:
        raise ConfigError(f"{source} holds {len(words)} embeddings ({', '.join(words[:8])}); choose one with --word.", setting="word")
    embedding = formats.load(source, word=word)
    if options.for_sdxl:
        from textual_inversion.training.second_half import for_sdxl

        embedding = for_sdxl(embedding, Path(options.for_sdxl).expanduser(), options.words)
    elif options.words:
        raise ConfigError("--words belongs to --for-sdxl FILE, which is not given.", setting="words")
    if os.path.isdir(destination):
        endings = {name.casefold(): endings for name, endings in formats.writable_layouts().items()}
        ending = endings.get((options.layout or "").casefold(), (".safetensors",))[0]
        destination = destination / f"{embedding.name}{ending}"
    path = formats.save(replace(embedding, name=destination.stem), destination, overwrite=options.overwrite, layout=options.layout)
    tell(options, str(path))
    lost = _lost(embedding, formats.load(path))
    if lost:
        tell(options, f"{path.name} does not hold {join_clauses(lost)}, for which its layout has no place; {source} still does.")
    return {"source": str(source), "destination": str(path), "layout": formats.describe(path).layout, "lost": lost}


def _lost(before: Embedding, after: Embedding) -> list[str]:
    """The facts and vectors of an embedding that its copy does not have, in words."""
    import torch

    lost = [f"the vectors for {key}" for key in before.vectors if key not in after.vectors]
    lost += [
        f"the exact vectors for {key}"
        for key, rows in before.vectors.items()
        if key in after.vectors and not torch.equal(rows, after.vectors[key])
    ]
    names = {"step": "the step", "checkpoint_name": "the checkpoint's name", "checkpoint_hash": "the checkpoint's hash"}
    names["initializer_text"] = "the initialization text"
    return lost + [text for key, text in names.items() if getattr(before.provenance, key) not in (None, getattr(after.provenance, key))]
