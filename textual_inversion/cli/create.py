"""The command `create`: makes a new embedding."""

from __future__ import annotations

import argparse
from typing import Any

from textual_inversion.cli.common import (
    Result,
    add_checkpoint,
    add_folder,
    add_switch,
    add_value,
    checkpoint_path,
    command,
    embeddings_folder,
    tell,
)


def add_create(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "create", _create, "make a new embedding that starts from the meaning of some words")
    parser.add_argument("name", help="the new word; letters, digits, '.', '_', '-' and spaces")
    add_value(parser, "--init", "*", "words to start from, such as 'cat'; empty = zeros")
    add_value(parser, "--vectors", "auto", "how many, 1 to 75, or auto: as many as TEXT has tokens", metavar="N")
    add_switch(parser, "--overwrite", "replace an embedding of that name, a .pt or .bin of that name too")
    add_folder(parser)
    add_checkpoint(parser)


def _create(options: argparse.Namespace) -> Result:
    from textual_inversion import formats
    from textual_inversion.embedding import check_name
    from textual_inversion.training.embedding_file import STARTS_FROM_ZEROS, create_embedding, starts_from_zeros

    check_name(options.name)
    folder = embeddings_folder(options)
    path = create_embedding(checkpoint_path(options), options.name, options.init, options.vectors, folder, overwrite=options.overwrite)
    description = formats.describe(path).description
    hint = f"; {STARTS_FROM_ZEROS}" if starts_from_zeros(path, options.init) else ""
    tell(options, f"{path}: {description.vectors} from {options.init!r}{hint}")
    return {"embedding": str(path), "name": options.name, "num_vectors": description.num_vectors}
