"""The command `train`: trains an embedding, or describes the run without training."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
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
    tell,
    values_of,
)
from textual_inversion.cli.report import Report
from textual_inversion.errors import ConfigError, TrainingError
from textual_inversion.files import read_regular
from textual_inversion.settings.creation import wants_search
from textual_inversion.settings.training import TrainingConfig, check_trained_together

if TYPE_CHECKING:
    from textual_inversion.embedding import Embedding


def add_train(commands: Any) -> None:
    """Add the command."""
    parser = command(commands, "train", _train, "train an embedding on a folder of pictures", "NAME... --images DIR")
    parser.epilog = (
        "Example: textual-inversion train my-cat --images photos --steps 1000 --preview-every 100 --log-dir runs. Several names learn in "
        "the same steps, which is faster on a large card: textual-inversion train my-cat my-dog --images photos, with the pictures in "
        "photos/my-cat and photos/my-dog."
    )
    parser.add_argument("name", nargs="*", metavar="NAME", help="the embedding, made with create; several are trained together")
    images = option_help(TrainingConfig)["images"]
    parser.add_argument(
        "--images", default="", metavar="DIR", help=f"{images}. For several names: the folder that has a folder for each; default: none"
    )
    parser.add_argument(
        "--together",
        metavar="FILE",
        help="train several embeddings with settings of their own: a JSON list of objects such as"
        ' {"name": "my-cat", "images": "cats", "steps": 500}; what an object leaves out is taken from the options; default: none',
    )
    parser.add_argument("--check", action="store_true", help="only say what the run would be: pictures, crops, prompts, time and memory")
    add_folder(parser)
    add_checkpoint(parser)
    add_device(parser)
    add_settings(parser, TrainingConfig, native=SIZE)


def _train(options: argparse.Namespace) -> Result:
    entries = _entries(options)  # refuses bad settings before torch is imported
    configs = [entry.config for entry in entries]
    check_trained_together(configs)
    for config in configs:
        check_pictures(config.images)

    from textual_inversion.diffusion.checkpoint import checkpoint_facts
    from textual_inversion.training import train_together
    from textual_inversion.training.embedding_file import find_embedding

    folder = embeddings_folder(options)
    embeddings = [find_embedding(folder, config.name)[1] for config in configs]
    if options.check:
        native = checkpoint_facts(checkpoint_path(options)).picture_size
        results = [_check(options, entry.sized(native), each) for entry, each in zip(entries, embeddings)]
        return results[0] if len(results) == 1 else {"embeddings": results}
    model = load_model(options, configs[0])  # a list of --together may name the device and the precision
    configs = [entry.sized(model.default_size) for entry in entries]
    with reports_of(configs, as_json=options.json) as reports:
        stop = reports[configs[0].name].interruptible()
        try:
            train_together(configs, model, folder, listener=lambda name, event: reports[name](event), should_stop=stop)
        except TrainingError:
            if len(configs) == 1:
                raise
            options.status = 1  # each report has said what happened to its embedding
    results = [report.result for report in reports.values()]
    return results[0] if len(results) == 1 else {"embeddings": results}


@contextmanager
def reports_of(configs: Sequence[TrainingConfig], *, as_json: bool) -> Iterator[dict[str, Report]]:
    """Name -> its report. The longest run has the progress bar."""
    longest = max(configs, key=lambda config: config.with_steps(0, full_size=True).total_steps)
    reports = {
        config.name: Report(as_json=as_json, prefix=f"{config.name}: " if len(configs) > 1 else "", quiet=config is not longest)
        for config in configs
    }
    try:
        yield reports
    finally:
        for report in reports.values():
            report.close()


@dataclass(frozen=True)
class _Entry:
    """The settings of one embedding, and the sides that are left to the checkpoint."""

    config: TrainingConfig
    native: tuple[str, ...]

    def sized(self, native: int) -> TrainingConfig:
        """The settings with the checkpoint's native size for each side that was not given."""
        return replace(self.config, **dict.fromkeys(self.native, native))  # type: ignore[arg-type]


def _entries(options: argparse.Namespace) -> list[_Entry]:
    """The settings of each embedding: from the list in a file, or for the names on the command line.

    Raises:
        ConfigError: settings that cannot be used, no name, no pictures, or a file that is no such list.
    """
    shared = {name: value for name, value in values_of(options, TrainingConfig).items() if name != "images"}
    if options.together:
        if options.name:
            raise ConfigError("Give the names on the command line or in the file of --together, not in both.", setting="name")
        listed = _listed(Path(options.together).expanduser())
    elif not options.name:
        raise ConfigError("Which embedding is to be trained? Give its name, or a list with --together.", setting="name")
    else:
        listed = [{"name": name} for name in options.name]
    several = len(listed) > 1
    entries = []
    for entry in listed:
        folder = options.images and (str(Path(options.images) / str(entry["name"])) if several else options.images)
        values = {**shared, "images": folder, **entry}
        if not values["images"]:
            raise ConfigError(f"Where are the pictures of {entry['name']!r}? Give their folder with --images.", setting="images")
        if values.get("log_dir") and several and "log_dir" not in entry:
            values["log_dir"] = str(Path(values["log_dir"]) / str(values["name"]))
        entries.append(_Entry(TrainingConfig.from_dict(values), tuple(side for side in SIZE if side not in values)))
    return entries


_MOST_LIST_BYTES = 2**20


def _listed(path: Path) -> list[dict[str, Any]]:
    """The objects in the file of --together."""
    try:
        entries = json.loads(read_regular(path, _MOST_LIST_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}.", path=path, setting="together") from error
    if not (isinstance(entries, list) and entries and all(isinstance(entry, dict) and entry.get("name") for entry in entries)):
        sentence = f'{path} is no list of objects with a name; expected for example [{{"name": "my-cat", "images": "cats"}}].'
        raise ConfigError(sentence, path=path, setting="together")
    return entries


def _check(options: argparse.Namespace, config: TrainingConfig, embedding: Embedding) -> Result:
    from textual_inversion.training.preflight import preflight

    origin = embedding.provenance
    finds_words = wants_search(origin.initializer_text)
    count, checkpoint = embedding.num_vectors, checkpoint_path(options)
    result = preflight(config, count, checkpoint, first_step=origin.step, finds_words=finds_words, embedding=embedding)
    for finding in result.findings:
        tell(options, finding.text)
    options.status = max(options.status, 0 if result.ready else 1)
    return result.to_dict()
