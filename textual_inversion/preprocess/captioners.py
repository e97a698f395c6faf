"""Brings the captioners that the settings name: BLIP, a tagger, or what a WebUI offers. Loads nothing that is not named."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from textual_inversion.errors import ConfigError
from textual_inversion.preprocess.blip import load_blip
from textual_inversion.preprocess.captioning import Captioner
from textual_inversion.preprocess.download import Progress
from textual_inversion.preprocess.tagger import load_tagger
from textual_inversion.settings.preprocessing import PreprocessConfig

BLIP, TAGGER = "blip", "tagger"


def load_captioners(
    config: PreprocessConfig,
    offered: Mapping[str, Captioner] | None = None,
    *,
    device: str = "cpu",
    may_download: bool = False,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Captioner]:
    """Name -> captioner, for those in `config.captioners`.

    Args:
        offered: name -> function of the WebUI's own interrogators; these names are in the user's hands, ours are `blip` and `tagger`.
        device: torch device for BLIP.
        may_download: bring a BLIP model from the hub when it is not on this machine.
        progress: told (bytes done, bytes in all, file name) meanwhile.
        should_stop: asked during that download.

    Raises:
        ConfigError: a name that nobody has, or a model that cannot be loaded; the sentence says what to do.
    """
    loaded: dict[str, Captioner] = {}
    for name in config.captioners:
        if name == BLIP:
            loaded[name] = load_blip(
                config.blip_model, device=device, may_download=may_download, progress=progress, should_stop=should_stop
            )
        elif name == TAGGER:
            loaded[name] = load_tagger(config.tagger_folder, config.tag_threshold)
        elif offered and name in offered:
            loaded[name] = offered[name]
        else:
            raise ConfigError(f"There is no captioner {name!r}; choose among {', '.join([BLIP, TAGGER, *(offered or {})])}.")
    return loaded
