"""The command line: reads arguments, calls the package, prints. Every command's work is done elsewhere."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.app.engine import checkpoint_facts, enough_memory
from textual_inversion.cli.common import (
    Result,
    add_folder,
    add_switch,
    add_value,
    check_pictures,
    command,
    embeddings_folder,
    field_help,
    library_of,
    tell,
)
from textual_inversion.cli.files import add_files
from textual_inversion.cli.preprocess import add_preprocess
from textual_inversion.cli.report import Bar, Report, logged, save_picture, say
from textual_inversion.errors import TextualInversionError, TrainingError
from textual_inversion.settings.training import CLIP_MODES, PRECISIONS, SAMPLING_METHODS, TrainingConfig
from textual_inversion.text import counted

if TYPE_CHECKING:
    from textual_inversion.diffusion.model import StableDiffusion
    from textual_inversion.embedding import Embedding

_LISTEN_HELP = (
    "let other computers open the page; there is no password: whoever opens it can see small pictures of any folder that you can read, "
    "and can write embeddings, pictures and logs where you can write"
)
_TRAINING_SIZE_HELP = "training {} in pixels (multiple of 8, 64 to 2048); default: what the checkpoint was made for"
#: Title -> settings, by the fields of `TrainingConfig`; those of every command are added by themselves.
_TRAIN_GROUPS = {
    "learning": (
        *("steps", "learning_rate", "batch_size", "gradient_accumulation_steps", "seed", "clip_mode", "clip_schedule"),
        *("weight_decay", "save_optimizer"),
    ),
    "pictures": (
        *("subfolders", "width", "height", "buckets", "bucket_step", "no_resize", "crops", "flip", "alpha_weight", "background"),
        *("latent_cache", "latent_sampling"),
    ),
    "prompts": (
        *("template", "filename_regex", "filename_join", "shuffle_tags", "tag_dropout", "keep_tags", "caption_dropout", "clip_skip"),
    ),
    "what a run leaves": (
        *("log_dir", "csv_every", "copy_every", "preview_every", "preview_prompt", "preview_negative_prompt", "preview_steps"),
        *("preview_cfg_scale", "preview_seed", "preview_sampler", "preview_width", "preview_height"),
    ),
}
_CHOSEN = {"clip_mode": CLIP_MODES, "latent_sampling": SAMPLING_METHODS}
_PLACEHOLDERS = {
    **{"learning_rate": "RATE", "clip_schedule": "RATE", "preview_sampler": "NAME"},
    **{"template": "FILE", "latent_cache": "DIR", "log_dir": "DIR"},
}


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
        "--checkpoint", metavar="FILE", help="a Stable Diffusion 1.x checkpoint, .safetensors; default: the tiny one that ships"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="", help="torch device such as cuda or cpu; default: the best there is")
    text = "compute type of the frozen model, auto: fp32 on the CPU, bf16 or else fp16 on CUDA; default: auto"
    parser.add_argument("--precision", default="auto", choices=PRECISIONS, help=text)


# create ---------------------------------------------------------------------------------------------------------------


def _add_create(commands: Any) -> None:
    parser = command(commands, "create", _create, "make a new embedding that starts from the meaning of some words")
    parser.add_argument("name", help="the new word; letters, digits, '.', '_', '-' and spaces")
    add_value(parser, "--init", "*", "words to start from, such as 'cat'; empty = zeros")
    add_value(parser, "--vectors", "auto", "how many, 1 to 75, or auto: as many as TEXT has tokens", metavar="N")
    add_switch(parser, "--overwrite", "replace an embedding of that name, a .pt or .bin of that name too")
    add_folder(parser)
    _add_checkpoint(parser)


def _create(options: argparse.Namespace) -> Result:
    from textual_inversion import formats
    from textual_inversion.embedding import check_name
    from textual_inversion.training.create import UNKNOWN_WORDS, create_embedding, knows_no_word

    check_name(options.name)
    folder = embeddings_folder(options)
    path = create_embedding(_checkpoint(options), options.name, options.init, options.vectors, folder, overwrite=options.overwrite)
    vectors = formats.load(path).num_vectors
    hint = f"; {UNKNOWN_WORDS}" if knows_no_word(path, options.init) else ""
    tell(options, f"{path}: {counted(vectors, 'vector')} from {options.init!r}{hint}")
    return {"embedding": str(path), "name": options.name, "vectors": vectors}


# train ----------------------------------------------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    parser = command(commands, "train", _train, "train an embedding on a folder of pictures", "NAME --images DIR")
    parser.epilog = "Example: textual-inversion train my-cat --images photos --steps 1000 --preview-every 100 --log-dir runs"
    parser.add_argument("name", metavar="NAME", help="the embedding, made with create")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of pictures; .txt files beside them are their captions")
    parser.add_argument("--check", action="store_true", help="only say what the run would be: pictures, crops, prompts, time and memory")
    add_folder(parser)
    _add_checkpoint(parser)
    _add_device(parser)
    known, documented = {field.name: field for field in fields(TrainingConfig)}, field_help(TrainingConfig)
    for title, names in _TRAIN_GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names:
            flag, text, default = "--" + name.replace("_", "-"), documented[name], known[name].default
            if isinstance(default, bool):
                add_switch(group, flag, text)
            elif name in ("width", "height"):
                group.add_argument(flag, type=int, metavar="N", help=_TRAINING_SIZE_HELP.format(name))
            else:
                add_value(group, flag, default, text, metavar=_PLACEHOLDERS.get(name, ""), choices=_CHOSEN.get(name, ()))


def _train(options: argparse.Namespace) -> Result:
    values = {field.name: getattr(options, field.name) for field in fields(TrainingConfig)}
    sizes = {key: 512 if values[key] is None else values[key] for key in ("width", "height")}
    TrainingConfig(**{**values, **sizes})  # bad settings are told before torch is imported and the checkpoint is read
    check_pictures(options.images)

    from textual_inversion.training import train
    from textual_inversion.training.trainer import find_embedding

    folder = embeddings_folder(options)
    _, embedding = find_embedding(folder, options.name)
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
    _add_checkpoint(parser)
    _add_device(parser)


def _generate(options: argparse.Namespace) -> Result:
    from textual_inversion.diffusion.generate import GenerationSettings, generate
    from textual_inversion.prompts.names import about_unknown, unknown_names

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


# serve, demo ----------------------------------------------------------------------------------------------------------


def _add_serve(commands: Any) -> None:
    parser = command(commands, "serve", _serve, "start the WebUI")
    add_value(parser, "--port", 7870, "port of the page")
    add_switch(parser, "--listen", _LISTEN_HELP)
    add_switch(parser, "--no-browser", "do not open the page")
    _add_checkpoint(parser)
    parser.add_argument("--data", metavar="DIR", help="folder for embeddings and pictures; default: textual-inversion-data")


def _serve(options: argparse.Namespace) -> Result:
    from textual_inversion.hosts.standalone import serve

    def announce(page: str) -> None:
        tell(options, f"The page is at {page} (Ctrl+C ends it).")

    serve(options.port, options.listen, options.checkpoint, not options.no_browser, options.data, announce=announce)
    return {}


def _add_demo(commands: Any) -> None:
    parser = command(commands, "demo", _demo, "train a word on pictures that ship, and draw it before and after")
    add_value(parser, "--seed", 0, "of the training")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps; default: what the demonstration needs")
    text = "folder for the results; default: textual-inversion-demo"
    parser.add_argument("--out", type=Path, default=Path("textual-inversion-demo"), metavar="DIR", help=text)
    _add_device(parser)
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
    tell(options, f"{counted(result.steps, 'step')} in {result.seconds:.0f} s; look at {result.pictures}")
    return result.to_dict()


# shared ---------------------------------------------------------------------------------------------------------------


def _checkpoint(options: argparse.Namespace) -> Path:
    from textual_inversion.diffusion.model import TINY_CHECKPOINT

    return Path(options.checkpoint or TINY_CHECKPOINT).expanduser()


def _load_model(options: argparse.Namespace) -> StableDiffusion:
    from textual_inversion.diffusion.model import TINY_CHECKPOINT, check_device, load_checkpoint

    check_device(options.device)
    return load_checkpoint(options.checkpoint or TINY_CHECKPOINT, device=options.device, precision=options.precision)

