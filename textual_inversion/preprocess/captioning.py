"""Who describes pictures, and how they are asked in turn. Knows no model: each is only called."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

from PIL import Image

from textual_inversion.errors import ConfigError
from textual_inversion.preprocess.captions import CaptionRules
from textual_inversion.settings.preprocessing import PreprocessConfig

_FAILURES = 3  # pictures in a row that could not be described, after which a captioner is not asked any more


class Captioner(Protocol):
    """Describes a picture; a plain function of a WebUI's own interrogator will do. It is called by one thread at a time."""

    def __call__(self, image: Image.Image, /) -> str:
        """Words for an RGB picture: a sentence, or tags joined by `, `."""


def rules_of(config: PreprocessConfig) -> CaptionRules:
    """The rules for captions among the settings."""
    return CaptionRules(
        existing=config.existing_captions,
        join=config.caption_join,
        prefix=config.caption_prefix,
        suffix=config.caption_suffix,
        drop_words=config.drop_words,
    )


class Describer:
    """Asks the wanted captioners, one picture after the other: a model has room for one.

    Args:
        config: names the captioners that are wanted.
        captioners: name -> captioner; None where everything is described already, and nobody is to be asked.

    Raises:
        ConfigError: one that is wanted is not among them.
    """

    def __init__(self, config: PreprocessConfig, captioners: Mapping[str, Captioner] | None) -> None:
        wanted = () if captioners is None else config.captioners
        captioners = captioners or {}
        for name in wanted:
            if name not in captioners:
                offered = f"there are {', '.join(captioners)}" if captioners else "none is loaded"
                raise ConfigError(f"There is no captioner {name!r} ({offered}); choose another one.")
        self.rules = rules_of(config)
        self._wanted = [captioners[name] for name in wanted]
        self._turn = threading.Lock()
        self._failures = 0
        self._failure: Exception | None = None

    @property
    def wanted(self) -> bool:
        """Whether any is to be asked."""
        return bool(self._wanted)

    def describe(self, image: Image.Image) -> list[str]:
        """What each says of an RGB picture, in order.

        What a captioner raises comes out, and from the third picture in a row on that fails, at once: nobody waits 10,000 times.
        """
        with self._turn:
            if self._failure is not None and self._failures >= _FAILURES:
                raise self._failure
            try:
                said = [captioner(image) for captioner in self._wanted]
            except Exception as error:
                self._failures, self._failure = self._failures + 1, error
                raise
            self._failures = 0
            return said
