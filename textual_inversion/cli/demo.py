"""The command `demo`: trains a word on the pictures that ship, and measures it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from textual_inversion.cli.common import Result, add_device, add_value, command, load_model, tell
from textual_inversion.cli.report import Report
from textual_inversion.text import counted


def add_demo(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "demo", _demo, "train a word on pictures that ship, and draw it before and after")
    add_value(parser, "--seed", 0, "of the training")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps; default: what the demonstration needs")
    text = "folder for the results; default: textual-inversion-demo"
    parser.add_argument("--out", type=Path, default=Path("textual-inversion-demo"), metavar="DIR", help=text)
    add_value(parser, "--family", "sd1", "of the tiny checkpoint that learns", choices=("sd1", "sd2", "sdxl"))
    add_device(parser)
    parser.set_defaults(checkpoint=None)


def _demo(options: argparse.Namespace) -> Result:
    from textual_inversion.demo.run import STEPS, demo_config, run_demo
    from textual_inversion.diffusion.model import TINY_CHECKPOINTS

    steps = STEPS if options.steps is None else options.steps
    demo_config(steps, options.seed)  # refuses bad settings before the checkpoint is read
    options.checkpoint = TINY_CHECKPOINTS[options.family]
    report = Report(as_json=options.json)
    try:
        result = run_demo(load_model(options), options.out, steps=steps, seed=options.seed, listener=report)
    finally:
        report.close()
    for when, concept, following in (
        ("before", result.concept_before, result.prompt_following_before),
        ("after", result.concept_after, result.prompt_following_after),
    ):
        tell(options, f"{when:<7} shows the concept in {concept:.0%} of the pictures, follows the rest of the prompt in {following:.0%}")
    tell(options, f"{counted(result.steps, 'step')} in {result.seconds:.0f} s; look at {result.pictures}")
    return result.to_dict()
