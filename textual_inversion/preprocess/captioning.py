"""Captions of results: who describes pictures, and how old and new words become one caption."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from PIL import Image

from textual_inversion.errors import ConfigError
from textual_inversion.preprocess.download import Progress
from textual_inversion.settings.preprocessing import PreprocessConfig

BLIP, TAGGER = "blip", "tagger"

_FAILURES = 3  # pictures in a row that could not be described, after which the captioners are not asked any more
_ARTICLE = r"(?:\b(?:an?|the)\s+)?"


class Captioner(Protocol):
    """Describes a picture; a plain function of a WebUI's own interrogator will do. It is called by one thread at a time."""

    def __call__(self, image: Image.Image, /) -> str:
        """Words for an RGB picture: a sentence, or tags joined by `, `."""


def load_captioners(
    config: PreprocessConfig,
    offered: Mapping[str, Captioner] | None = None,
    *,
    device: str = "cpu",
    may_download: bool = False,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, Captioner]:
    """Name -> captioner, for those in `config.captioners`; no other is loaded.

    Args:
        offered: name -> function of the WebUI's own interrogators; users write these names, ours are `blip` and `tagger`.
        device: torch device for BLIP.
        may_download: bring a BLIP model from the hub when it is not on this machine.
        progress: called with (bytes done, bytes in all, file name) during the download.
        should_stop: asked during the download.

    Raises:
        ConfigError: an unknown name, or a model that cannot be loaded; the sentence says what to do.
    """
    captioners: dict[str, Captioner] = {}
    for name in config.captioners:
        if name == BLIP:
            from textual_inversion.preprocess.blip import load_blip  # brings torch

            captioners[name] = load_blip(
                config.blip_model, device=device, may_download=may_download, progress=progress, should_stop=should_stop
            )
        elif name == TAGGER:
            from textual_inversion.preprocess.tagger import load_tagger

            captioners[name] = load_tagger(config.tagger_folder, config.tag_threshold)
        elif offered and name in offered:
            captioners[name] = offered[name]
        else:
            choices = ", ".join([BLIP, TAGGER, *(offered or {})])
            raise ConfigError(f"There is no captioner {name!r}; choose among {choices}.", setting="captioners")
    return captioners


class Describer:
    """Calls the chosen captioners for one picture at a time, because a model handles one at a time.

    Args:
        config: names the captioners that are wanted, and says what becomes of their words.
        captioners: name -> captioner; None when every picture is described already.

    Raises:
        ConfigError: one that is wanted is not among them.
    """

    def __init__(self, config: PreprocessConfig, captioners: Mapping[str, Captioner] | None) -> None:
        wanted = () if captioners is None else config.captioners
        captioners = captioners or {}
        for name in wanted:
            if name not in captioners:
                offer = f"there are {', '.join(captioners)}" if captioners else "none is loaded"
                raise ConfigError(f"There is no captioner {name!r} ({offer}); choose another one.", setting="captioners")
        self.config = config
        self._wanted = [captioners[name] for name in wanted]
        self._turn = threading.Lock()
        self._failures = 0
        self._failure: Exception | None = None

    def is_needed(self, old: str | None) -> bool:
        """Whether captioners are wanted and their words would be used beside the old caption (None: there is none)."""
        return bool(self._wanted) and _uses_new(self.config, old)

    def describe(self, image: Image.Image) -> list[str]:
        """The words of each captioner for an RGB picture, in order.

        A captioner's error is raised. After three failures in a row, it is raised again without a call, so that a folder of 10,000
        pictures does not wait for each failure.
        """
        with self._turn:
            if self._failure is not None and self._failures >= _FAILURES:
                raise self._failure
            try:
                descriptions = [captioner(image) for captioner in self._wanted]
            except Exception as error:
                self._failures, self._failure = self._failures + 1, error
                raise
            self._failures = 0
            return descriptions


def compose_caption(config: PreprocessConfig, old: str | None, new: Sequence[str], name: str) -> str | None:
    """The caption of a result, on one line; None where there is nothing to write.

    Args:
        config: its rules for captions.
        old: the existing caption; None when there is none.
        new: descriptions by the captioners, in order.
        name: words of the file name, for pictures that have neither when there is a prefix, a suffix or words to drop.
    """
    if old is not None and config.existing_captions == "copy":
        return old
    described = config.caption_join.join(text for text in map(_one_line, new) if text)
    body = _join_old_and_new(config, old, described) if old is not None else described or None
    if body is None:
        if not (config.caption_prefix or config.caption_suffix or config.drop_words):
            return None
        body = name
    caption = drop_words(_one_line(body), config.drop_words)
    # A second run over its own results must not add the ends again.
    start, end = _one_line(config.caption_prefix), _one_line(config.caption_suffix)
    if start and not caption.startswith(start):
        caption = f"{start} {caption}".rstrip()
    if end and not caption.endswith(end):
        caption = (caption if end[0] in ",.;:!?" else f"{caption} ").lstrip() + end
    return caption


def drop_words(caption: str, words: str) -> str:
    """`caption` without the words in `words` (separated by commas), their articles, and empty tags.

    Only whole words go, whatever their case, and with spaces or underscores in them.
    """
    unwanted = [word for word in (part.strip() for part in words.split(",")) if word]
    for word in sorted(unwanted, key=len, reverse=True):
        spelled = r"[\s_]+".join(re.escape(part) for part in re.split(r"[\s_]+", word) if part)
        caption = re.sub(rf"{_ARTICLE}(?<![\w]){spelled}(?![\w])", " ", caption, flags=re.IGNORECASE)
    if not unwanted:
        return caption
    return ", ".join(tag for tag in map(_one_line, caption.split(",")) if tag)


def _uses_new(config: PreprocessConfig, old: str | None) -> bool:
    return old is None or config.existing_captions in ("prepend", "append", "replace")


def _join_old_and_new(config: PreprocessConfig, old: str, new: str) -> str:
    if not new or not _uses_new(config, old):
        return old
    if config.existing_captions == "replace" or not old:
        return new
    if new in old:  # of an earlier run
        return old
    return config.caption_join.join((old, new) if config.existing_captions == "prepend" else (new, old))


def _one_line(text: str) -> str:
    return " ".join(text.split())
