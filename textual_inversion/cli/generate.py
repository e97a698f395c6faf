"""The command `generate`: draws pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from textual_inversion.cli.common import (
    SIZE,
    Result,
    add_checkpoint,
    add_device,
    add_folder,
    add_setting,
    command,
    library_of,
    load_model,
    option_help,
    sized,
    tell,
    values_of,
)
from textual_inversion.cli.report import Bar, save_picture, say
from textual_inversion.settings.generation import GenerationSettings
from textual_inversion.settings.schema import settings_of


def add_generate(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "generate", _generate, "draw pictures; <name> and <name:weight> mean embeddings", "PROMPT")
    parser.epilog = "Example: textual-inversion generate 'a painting of <my cat:1.2>' --count 4 --out pictures"
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw")
    texts = option_help(GenerationSettings)
    for each in settings_of(GenerationSettings):
        if not each.required:
            add_setting(parser, each, texts[each.name], native=each.name in SIZE)
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="folder for the pictures; default: the current one")
    add_folder(parser)
    add_checkpoint(parser)
    add_device(parser)


def _generate(options: argparse.Namespace) -> Result:
    for side in SIZE:
        setattr(options, side, getattr(options, side) or None)  # 0 is the checkpoint's size too
    settings = GenerationSettings(**values_of(options, GenerationSettings))  # refuses bad settings before torch is imported
    from textual_inversion.diffusion.generate import generate
    from textual_inversion.prompts.names import about_unknown, unknown_names

    options.out.mkdir(parents=True, exist_ok=True)  # fails before anything is drawn
    model = load_model(options)
    for note in model.notes:
        say(note, error=True)
    settings = sized(options, settings, model.default_size)
    library = library_of(options, model.widths)
    embeddings = library.as_mapping()
    unknown = unknown_names((settings.prompt, settings.negative_prompt), embeddings)
    if unknown:
        say(about_unknown(unknown), error=True)
    bar = Bar()
    pictures = generate(
        model, settings, embeddings, progress=lambda done, total: bar.move(done, total, "drawing"), hash_of=library.short_hash_of
    )
    bar.close()
    paths = [save_picture(picture, options.out, str(settings.seed + index)) for index, picture in enumerate(pictures)]
    for path in paths:
        tell(options, str(path))
    return {"pictures": [str(path) for path in paths], "prompt": settings.prompt, "seed": settings.seed, "unknown": unknown}
