"""The command `generate`: draws pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from textual_inversion.cli.common import Result, add_checkpoint, add_device, add_folder, add_value, command, library_of, load_model, tell
from textual_inversion.cli.report import Bar, save_picture, say


def add_generate(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "generate", _generate, "draw pictures; <name> and <name:weight> mean embeddings", "PROMPT")
    parser.epilog = "Example: textual-inversion generate 'a painting of <my cat:1.2>' --count 4 --out pictures"
    parser.add_argument("prompt", metavar="PROMPT", help="what to draw")
    add_value(parser, "--negative", "", "what to lead away from")
    add_value(parser, "--steps", 20, "sampler steps (1 to 150)")
    add_value(parser, "--sampler", "DPM++ 2M Karras", "Euler, Euler a or DPM++ 2M Karras", metavar="NAME")
    add_value(parser, "--cfg-scale", 7.0, "guidance (1 to 30)")
    for side in ("width", "height"):
        text = f"{side} in pixels (multiple of 8, 64 to 2048); default: what the checkpoint was made for"
        parser.add_argument(f"--{side}", type=int, metavar="N", help=text)
    add_value(parser, "--seed", 0, "of the first picture (0 to 2**32 - 1); each further one takes the next")
    add_value(parser, "--count", 1, "pictures (1 to 64)")
    add_value(parser, "--clip-skip", 1, "layers left out at the end of the text encoder, as A1111 counts (1 to 12, 1 = none)")
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="folder for the pictures; default: the current one")
    add_folder(parser)
    add_checkpoint(parser)
    add_device(parser)


def _generate(options: argparse.Namespace) -> Result:
    from textual_inversion.diffusion.generate import GenerationSettings, generate
    from textual_inversion.prompts.names import about_unknown, unknown_names

    options.out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is told before anything is drawn
    model = load_model(options)
    settings = GenerationSettings(
        prompt=options.prompt,
        negative_prompt=options.negative,
        steps=options.steps,
        sampler=options.sampler,
        cfg_scale=options.cfg_scale,
        width=options.width or model.default_size,
        height=options.height or model.default_size,
        seed=options.seed,
        count=options.count,
        clip_skip=options.clip_skip,
    )
    embeddings = library_of(options, model.widths).as_mapping()
    unknown = unknown_names((settings.prompt, settings.negative_prompt), embeddings)
    if unknown:
        say(about_unknown(unknown), error=True)
    bar = Bar()
    pictures = generate(model, settings, embeddings, progress=lambda done, total: bar.move(done, total, "drawing"))
    bar.close()
    paths = [save_picture(picture, options.out, str(settings.seed + index)) for index, picture in enumerate(pictures)]
    for path in paths:
        tell(options, str(path))
    return {"pictures": [str(path) for path in paths], "prompt": settings.prompt, "seed": settings.seed, "unknown": unknown}
