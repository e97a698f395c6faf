"""The command `train`: trains an embedding, or describes the run without training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from textual_inversion.cli.common import (
    SIZE,
    Result,
    add_checkpoint,
    add_device,
    add_folder,
    add_settings,
    check_pictures,
    checkpoint_path,
    command,
    embeddings_folder,
    load_model,
    option_help,
    sized,
    tell,
    values_of,
)
from textual_inversion.cli.report import Report
from textual_inversion.settings.training import TrainingConfig

if TYPE_CHECKING:
    from textual_inversion.embedding import Embedding


def add_train(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "train", _train, "train an embedding on a folder of pictures", "NAME --images DIR")
    parser.epilog = "Example: textual-inversion train my-cat --images photos --steps 1000 --preview-every 100 --log-dir runs"
    parser.add_argument("name", metavar="NAME", help="the embedding, made with create")
    parser.add_argument("--images", required=True, metavar="DIR", help=option_help(TrainingConfig)["images"])
    parser.add_argument("--check", action="store_true", help="only say what the run would be: pictures, crops, prompts, time and memory")
    add_folder(parser)
    add_checkpoint(parser)
    add_device(parser)
    add_settings(parser, TrainingConfig, native=SIZE)


def _train(options: argparse.Namespace) -> Result:
    config = TrainingConfig(**values_of(options, TrainingConfig))  # refuses bad settings before torch is imported
    check_pictures(config.images)

    from textual_inversion.diffusion.checkpoint import checkpoint_facts
    from textual_inversion.training import train
    from textual_inversion.training.embedding_file import find_embedding

    folder = embeddings_folder(options)
    _, embedding = find_embedding(folder, options.name)
    if options.check:
        return _check(options, sized(options, config, checkpoint_facts(checkpoint_path(options)).picture_size), embedding)
    model = load_model(options)
    report = Report(as_json=options.json)
    try:
        train(sized(options, config, model.default_size), model, folder, listener=report, should_stop=report.interruptible())
    finally:
        report.close()
    return report.result


def _check(options: argparse.Namespace, config: TrainingConfig, embedding: Embedding) -> Result:
    from textual_inversion.training.preflight import preflight

    result = preflight(config, embedding.num_vectors, checkpoint_path(options), first_step=embedding.provenance.step or 0)
    for finding in result.findings:
        tell(options, finding.text)
    options.status = 0 if result.ready else 1
    return result.to_dict()
