"""What a word was trained with last time: values for the form, and whether a new run has other pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.errors import ConfigError, EmbeddingError
from textual_inversion.last_run import LastRun, read_last_run
from textual_inversion.prompts.templates import list_templates
from textual_inversion.settings.schema import settings_of
from textual_inversion.settings.training import TrainingConfig

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine

CHECKPOINT_SIZES = (128, 512, 768, 1024)  # native sizes of checkpoints, in pixels
#: Settings that belong to the machine, the checkpoint or one run rather than to the word.
_NOT_OF_THE_WORD = {"name", "log_dir", "device", "precision", "prediction_type", "latent_cache"}


def remembered(engine: Engine, name: str) -> dict[str, Any]:
    """Name of a setting -> its value in the last run of the word `name`; empty where none is kept or a value cannot be used.

    The template is the name of a file in the host's folder of templates; it is left out when that file is gone.
    """
    values = dict(_last_run(engine, name).settings)
    if not values.get("images"):
        return {}
    known = {each.name for each in settings_of(TrainingConfig)}
    try:
        checked = TrainingConfig.from_dict({**{key: value for key, value in values.items() if key in known}, "name": name}).to_dict()
    except (ConfigError, TypeError, ValueError):
        return {}  # the file comes from another version, or was edited
    kept = {key: checked[key] for key in values if key in known and key not in _NOT_OF_THE_WORD}
    if _is_of_another_machine(str(kept.get("images", ""))):
        return {}
    if _is_native_to_another(engine, kept.get("width"), kept.get("height")):
        del kept["width"], kept["height"]
    template, templates = Path(str(kept.pop("template", ""))).name, engine.host.folders().templates
    if templates.is_dir() and template in list_templates(templates):
        kept["template"] = template
    return kept


def _is_native_to_another(engine: Engine, width: Any, height: Any) -> bool:
    """Whether a size is the native size of other checkpoints than the chosen one, so that nobody has chosen it."""
    wanted = engine.picture_size()
    return wanted is not None and width == height and width in CHECKPOINT_SIZES and width != wanted


def _is_of_another_machine(path: str) -> bool:
    """Whether a path leads to a share of the network: looking at one sends the user's login to whoever wrote that path."""
    return path.startswith(("//", "\\\\"))


def question(engine: Engine, config: TrainingConfig) -> str:
    """What to ask before a word is trained on other pictures than last time; empty when it is not."""
    before = str(_last_run(engine, config.name).settings.get("images") or "")
    if not before or _is_of_another_machine(before) or _same_folder(before, str(config.images)):
        return ""
    return f"“{config.name}” was trained on the pictures in {before}, and this run would train it on those in {config.images}."


def _last_run(engine: Engine, name: str) -> LastRun:
    try:
        return read_last_run(engine.embedding_file(name)) if name else LastRun()
    except EmbeddingError:
        return LastRun()


def _same_folder(one: str, other: str) -> bool:
    try:
        return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        return one == other
