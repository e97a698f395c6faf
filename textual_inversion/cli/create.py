"""The command `create`: makes a new embedding."""

from __future__ import annotations

import argparse
from typing import Any

from textual_inversion.cli.common import (
    Result,
    add_checkpoint,
    add_folder,
    add_setting,
    checkpoint_path,
    command,
    embeddings_folder,
    option_help,
    tell,
)
from textual_inversion.settings.creation import FOUND_WORDS, NewEmbedding, wants_search
from textual_inversion.settings.schema import settings_of


def add_create(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "create", _create, "make a new embedding that starts from the meaning of some words")
    texts = option_help(NewEmbedding)
    parser.add_argument("name", help=texts["name"])
    for each in settings_of(NewEmbedding):
        if not each.required:
            add_setting(parser, each, texts[each.name])
    add_folder(parser)
    add_checkpoint(parser)


def _create(options: argparse.Namespace) -> Result:
    from textual_inversion import formats
    from textual_inversion.embedding import check_name
    from textual_inversion.prompts.names import about_name
    from textual_inversion.training.embedding_file import STARTS_FROM_ZEROS, about_words, create_embedding, starts_from_zeros

    check_name(options.name)
    folder = embeddings_folder(options)
    text, count = options.initializer_text, options.num_vectors
    path = create_embedding(checkpoint_path(options), options.name, text, count, folder, overwrite=options.overwrite)
    description = formats.describe(path).description
    origin = FOUND_WORDS if wants_search(text) else repr(text)
    hint = f"; {STARTS_FROM_ZEROS}" if starts_from_zeros(path, text) else ""
    tell(options, f"{path}: {description.vectors} from {origin}{hint}")
    for remark in (about_words(text, description.num_vectors), about_name(options.name)):
        if remark:
            tell(options, remark)
    return {"embedding": str(path), "name": options.name, "num_vectors": description.num_vectors}
