"""The command line: reads arguments, calls the package, prints. Every command's work is done elsewhere."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.cli_common import Result, add_folder, command, embeddings_folder, library_of, tell
from textual_inversion.cli_files import add_files
from textual_inversion.cli_preprocess import add_preprocess
from textual_inversion.cli_report import Bar, Report, logged, save_picture, say
from textual_inversion.errors import TextualInversionError, TrainingError
from textual_inversion.hosts.engine import checkpoint_facts, enough_memory
from textual_inversion.training.config import TrainingConfig

if TYPE_CHECKING:
    from textual_inversion.diffusion import StableDiffusion
    from textual_inversion.embedding import Embedding

_LISTEN_HELP = (
    "let other computers open the page; there is no password: whoever opens it can see small pictures of any folder that you can read, "
    "and can write embeddings, pictures and logs where you can write"
)
_TRAINING_SIZE_HELP = "training {} in pixels, a multiple of 8 (default: what the checkpoint was made for)"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for training that had to stop or bad files, 2 for bad input, 130 after Ctrl+C."""
    options = build_parser().parse_args(arguments)
    try:
        with logged(), enough_memory("do this", "choose a smaller size, batch size or checkpoint, or close other programs"):
            result = options.run(options)
    except TextualInversionError as error:
        return _refuse(options, str(error), 1 if isinstance(error, TrainingError) else 2)
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
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_create(commands)
    add_preprocess(commands)
    _add_train(commands)
    _add_generate(commands)
    add_files(commands)
    _add_serve(commands)
    _add_demo(commands)
    return parser


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="a Stable Diffusion 1.x checkpoint, .safetensors (default: the tiny one that ships)"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser)
    parser.add_argument("--device", default="", help="torch device such as cuda or cpu (default: the best there is)")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="compute type of the frozen model")


# create ---------------------------------------------------------------------------------------------------------------


def _add_create(commands: Any) -> None:
    parser = command(commands, "create", _create, "make a new embedding that starts from the meaning of some words")
    parser.add_argument("name", help="the new word; letters, digits, '.', '_', '-' and spaces")
    parser.add_argument("--init", default="*", metavar="TEXT", help="words to start from, such as 'cat'; empty = zeros (default: *)")
    parser.add_argument("--vectors", default="auto", metavar="N", help="vectors, 1 to 75, or auto: as many as TEXT has tokens")
    parser.add_argument("--overwrite", action="store_true", help="replace an embedding of that name")
    add_folder(parser)
    _add_checkpoint(parser)


def _create(options: argparse.Namespace) -> Result:
    from textual_inversion import formats
    from textual_inversion.embedding import check_name
    from textual_inversion.training.create import create_embedding

    check_name(options.name)
    folder = embeddings_folder(options)
    path = create_embedding(_checkpoint(options), options.name, options.init, options.vectors, folder, overwrite=options.overwrite)
    made = formats.load(path)
    vectors = made.num_vectors
    known = not options.init or any(bool(rows.any()) for rows in made.vectors.values())
    hint = "" if known else "; this checkpoint knows none of these words, so it starts from zeros: other words would help"
    tell(options, f"{path}: {vectors} vector{'s' * (vectors != 1)} from {options.init!r}{hint}")
    return {"embedding": str(path), "name": options.name, "vectors": vectors}


# train ----------------------------------------------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    parser = command(commands, "train", _train, "train an embedding on a folder of pictures")
    parser.add_argument("name", help="the embedding, made with create")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of pictures; .txt files beside them are their captions")
    documented = _field_help()
    for field in fields(TrainingConfig):
        if field.name in ("name", "images", "device", "precision"):
            continue
        flag, text = "--" + field.name.replace("_", "-"), documented[field.name]
        if field.type == "bool":
            parser.add_argument(flag, action="store_true", help=text)
        else:
            size = field.name in ("width", "height")
            kind = {"int": int, "float": float}.get(str(field.type), str)
            given = None if size or field.default is MISSING else field.default
            parser.add_argument(flag, type=kind, default=given, help=_TRAINING_SIZE_HELP.format(field.name) if size else text)
    parser.add_argument("--check", action="store_true", help="only say what the run would be: pictures, crops, prompts, time and memory")
    add_folder(parser)
    _add_model(parser)


def _field_help() -> dict[str, str]:
    """Field -> its sentence in the docstring of `TrainingConfig`, so that each is written once."""
    lines = (TrainingConfig.__doc__ or "").splitlines()
    entries = (line.strip().partition(": ") for line in lines if line.startswith("        "))
    return {name: text.replace("`", "").replace("%", "%%") for name, _, text in entries}


def _train(options: argparse.Namespace) -> Result:
    from textual_inversion.training import train
    from textual_inversion.training.trainer import find_embedding

    folder = embeddings_folder(options)
    _, embedding = find_embedding(folder, options.name)
    values = {field.name: getattr(options, field.name) for field in fields(TrainingConfig)}
    sizes = {key: values[key] or 512 for key in ("width", "height")}
    TrainingConfig(**{**values, **sizes})  # bad settings are told before the checkpoint is read
    if options.check:
        native = checkpoint_facts(_checkpoint(options))[1]
        config = TrainingConfig(**{**values, **{key: values[key] or native for key in sizes}})
        return _check(options, config, embedding)
    model = _load_model(options)
    config = TrainingConfig(**{**values, **{key: values[key] or model.default_size for key in sizes}})
    report = Report(as_json=options.json)
    try:
        train(config, model, folder, listener=report, should_stop=report.interruptible())
    finally:
        report.close()
    return report.result


def _check(options: argparse.Namespace, config: TrainingConfig, embedding: Embedding) -> Result:
    from textual_inversion.training.preflight import preflight

    found = preflight(config, embedding.num_vectors, _checkpoint(options), first_step=embedding.provenance.step or 0)
    for finding in found.findings:
        tell(options, finding.text)
    options.status = 0 if found.ready else 1
    return found.to_dict()


# generate -------------------------------------------------------------------------------------------------------------


def _add_generate(commands: Any) -> None:
    parser = command(commands, "generate", _generate, "draw pictures; <name> and <name:weight> mean embeddings")
    parser.add_argument("prompt", help="what to draw")
    parser.add_argument("--negative", default="", metavar="TEXT", help="what to lead away from")
    parser.add_argument("--steps", type=int, default=20, help="sampler steps, 1 to 150 (default: 20)")
    parser.add_argument("--sampler", default="DPM++ 2M Karras", help="Euler, Euler a or DPM++ 2M Karras (default)")
    parser.add_argument("--cfg-scale", type=float, default=7.0, help="guidance, 1 to 30 (default: 7)")
    parser.add_argument("--width", type=int, help="pixels (default: what the checkpoint was made for)")
    parser.add_argument("--height", type=int, help="pixels (default: what the checkpoint was made for)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; each further one takes the next (default: 0)")
    parser.add_argument("--count", type=int, default=1, help="pictures, 1 to 64 (default: 1)")
    parser.add_argument("--clip-skip", type=int, default=1, help="1 to 12, as A1111 counts (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="folder for the pictures (default: the current one)")
    add_folder(parser)
    _add_model(parser)


def _generate(options: argparse.Namespace) -> Result:
    from textual_inversion.diffusion import GenerationSettings, generate

    options.out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is told before anything is drawn
    model = _load_model(options)
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
    bar = Bar()
    pictures = generate(model, settings, embeddings, progress=lambda done, total: bar.move(done, total, "drawing"))
    bar.close()
    paths = [save_picture(picture, options.out, str(settings.seed + index)) for index, picture in enumerate(pictures)]
    for path in paths:
        tell(options, str(path))
    return {"pictures": [str(path) for path in paths], "prompt": settings.prompt, "seed": settings.seed}


# serve, demo ----------------------------------------------------------------------------------------------------------


def _add_serve(commands: Any) -> None:
    parser = command(commands, "serve", _serve, "start the WebUI")
    parser.add_argument("--port", type=int, default=7870, help="port of the page (default: 7870)")
    parser.add_argument("--listen", action="store_true", help=_LISTEN_HELP)
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    parser.add_argument("--checkpoint", metavar="FILE", help="a Stable Diffusion 1.x checkpoint (default: the tiny one that ships)")
    parser.add_argument("--data", metavar="DIR", help="folder for embeddings and pictures")


def _serve(options: argparse.Namespace) -> Result:
    from textual_inversion.hosts.standalone import serve

    def announce(page: str) -> None:
        tell(options, f"The page is at {page} (Ctrl+C ends it).")

    serve(options.port, options.listen, options.checkpoint, not options.no_browser, options.data, announce=announce)
    return {}


def _add_demo(commands: Any) -> None:
    parser = command(commands, "demo", _demo, "train a word on pictures that ship, and draw it before and after")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0)")
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: what the demonstration needs)")
    parser.add_argument("--out", type=Path, default=Path("textual-inversion-demo"), metavar="DIR", help="folder for the results")
    parser.add_argument("--device", default="", help="torch device such as cuda or cpu (default: the best there is)")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="compute type of the frozen model")
    parser.set_defaults(checkpoint=None)


def _demo(options: argparse.Namespace) -> Result:
    from textual_inversion.demo.run import STEPS, demo_config, run_demo

    steps = STEPS if options.steps is None else options.steps
    demo_config(steps, options.seed)  # bad settings are told before the checkpoint is read
    report = Report(as_json=options.json)
    try:
        result = run_demo(_load_model(options), options.out, steps=steps, seed=options.seed, listener=report)
    finally:
        report.close()
    for when, concept, following in (
        ("before", result.concept_before, result.prompt_following_before),
        ("after", result.concept_after, result.prompt_following_after),
    ):
        tell(options, f"{when:<7} shows the concept in {concept:.0%} of the pictures, follows the rest of the prompt in {following:.0%}")
    tell(options, f"{result.steps} steps in {result.seconds:.0f} s; look at {result.pictures}")
    return result.to_dict()


# shared ---------------------------------------------------------------------------------------------------------------


def _checkpoint(options: argparse.Namespace) -> Path:
    from textual_inversion.diffusion import TINY_CHECKPOINT

    return Path(options.checkpoint or TINY_CHECKPOINT).expanduser()


def _load_model(options: argparse.Namespace) -> StableDiffusion:
    from textual_inversion.diffusion import TINY_CHECKPOINT, load_checkpoint
    from textual_inversion.diffusion.model import check_device

    check_device(options.device)
    return load_checkpoint(options.checkpoint or TINY_CHECKPOINT, device=options.device, precision=options.precision)


if __name__ == "__main__":
    sys.exit(main())
