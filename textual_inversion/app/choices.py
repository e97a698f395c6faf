"""Which pictures a person has left out and which captions they have typed while looking at a folder: kept on disk for each folder.

A file of choices may be damaged or come from another version, so every value is checked when it is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from textual_inversion.files import read_regular, remove_quietly, replace_file

if TYPE_CHECKING:
    from textual_inversion.preprocess.plan import Planned

_MAX_BYTES = 64 * 2**20
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """A person's choice about one result of a picture: whether it is wanted, and its caption; None = no caption was typed."""

    chosen: bool = True
    caption: str | None = None


#: (file name of the picture, part of it) -> choice; what is not in it is wanted, with the caption of the plan.
Choices = Mapping[tuple[str, int], Choice]


def choices_of(planned: Iterable[Planned]) -> Choices:
    """The choices in a plan that a person has changed."""
    views = ((item.source.name, view) for item in planned for view in item.views)
    return {
        (name, view.part): Choice(view.chosen, (view.caption or "") if view.edited else None)
        for name, view in views
        if view.edited or not view.chosen
    }


def apply(planned: Iterable[Planned], choices: Choices) -> list[Planned]:
    """The plan with the choices, as far as it has these pictures and parts."""
    changed = []
    for item in planned:
        for view in item.views:
            choice = choices.get((item.source.name, view.part), Choice())
            item = item if choice.chosen else item.choose(False, view.part)
            item = item if choice.caption is None else item.with_caption(choice.caption, view.part)
        changed.append(item)
    return changed


def without_written(choices: Choices) -> Choices:
    """The choices that still count when the results are written: what is left out. Typed captions lie beside the results by then."""
    return {key: choice for key, choice in choices.items() if not choice.chosen}


class ChoiceFiles:
    """The files of choices in one folder; each source folder has one.

    Args:
        folder: made with the first file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, source: Path) -> Choices:
        """The choices for the pictures of the folder `source`; empty where none are kept or the file cannot be read."""
        try:
            rows = json.loads(read_regular(self._file(source), _MAX_BYTES).decode("ascii"))["choices"]
            return {(str(name), int(part)): Choice(chosen is not False, _text(caption)) for name, part, chosen, caption in rows}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return {}

    def save(self, source: Path, choices: Choices) -> None:
        """Keep the choices for the pictures of the folder `source`; without any, the file is deleted. A failure is logged only."""
        path = self._file(source)
        if not choices:
            remove_quietly(path)
            return
        rows = [[name, part, choice.chosen, choice.caption] for (name, part), choice in choices.items()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, json.dumps({"source": str(source), "choices": rows}).encode("ascii"), fixed_name=True, follow_links=False)
        except OSError:
            _log.exception("The choices for %s were not kept", source)

    def _file(self, source: Path) -> Path:
        name = os.path.normcase(os.path.realpath(source.expanduser()))
        return self.folder / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.json"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
