"""The command `train`: trains an embedding, or says what a run would be."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from textual_inversion.cli.common import (
    Result,
    add_checkpoint,
    add_device,
    add_folder,
    add_switch,
    add_value,
    check_pictures,
    checkpoint_path,
    command,
    embeddings_folder,
    field_help,
    load_model,
    tell,
)
from textual_inversion.cli.report import Report
from textual_inversion.settings.training import CLIP_MODES, SAMPLING_METHODS, TrainingConfig

if TYPE_CHECKING:
    from textual_inversion.embedding import Embedding

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


def add_train(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "train", _train, "train an embedding on a folder of pictures", "NAME --images DIR")
    parser.epilog = "Example: textual-inversion train my-cat --images photos --steps 1000 --preview-every 100 --log-dir runs"
    parser.add_argument("name", metavar="NAME", help="the embedding, made with create")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of pictures; .txt files beside them are their captions")
    parser.add_argument("--check", action="store_true", help="only say what the run would be: pictures, crops, prompts, time and memory")
    add_folder(parser)
    add_checkpoint(parser)
    add_device(parser)
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
        from textual_inversion.diffusion.checkpoint import checkpoint_facts

        native = checkpoint_facts(checkpoint_path(options)).picture_size
        config = TrainingConfig(**{**values, **{key: values[key] or native for key in sizes}})
        return _check(options, config, embedding)
    model = load_model(options)
    config = TrainingConfig(**{**values, **{key: values[key] or model.default_size for key in sizes}})
    report = Report(as_json=options.json)
    try:
        train(config, model, folder, listener=report, should_stop=report.interruptible())
    finally:
        report.close()
    return report.result


def _check(options: argparse.Namespace, config: TrainingConfig, embedding: Embedding) -> Result:
    from textual_inversion.training.preflight import preflight

    found = preflight(config, embedding.num_vectors, checkpoint_path(options), first_step=embedding.provenance.step or 0)
    for finding in found.findings:
        tell(options, finding.text)
    options.status = 0 if found.ready else 1
    return found.to_dict()
