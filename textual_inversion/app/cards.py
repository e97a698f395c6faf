"""The card that a page shows for an embedding, and the card picture that training writes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from textual_inversion.description import EmbeddingDescription
from textual_inversion.files import open_regular, replace_file
from textual_inversion.text import legible
from textual_inversion.training.events import Message

if TYPE_CHECKING:
    from textual_inversion.app.job import Listener
    from textual_inversion.library import Entry

_OURS = "textual-inversion"  # PNG text chunk that marks card pictures written by training; training may replace these


@dataclass(frozen=True)
class Card:
    """An embedding as a page shows it.

    Attributes:
        name: the word for prompts.
        description: the facts in its file; empty when the file cannot be read.
        picture: the picture beside the file; None where there is none.
        reason: why it does not fit the checkpoint, in one sentence; empty when it does.
        negative: name of its partner, the embedding that belongs into the negative prompt.
        is_negative: whether it belongs into the negative prompt itself.
        verdict: how well its last training run went, in one sentence; empty where that is not known.
        level: `good`, `fair` or `bad`; empty without a verdict.
        untrainable: why training cannot continue with its file, in one sentence; empty when it can.
        changed: when its file was written, in seconds since 1970; 0 where that is not known.
    """

    name: str
    description: EmbeddingDescription = field(default_factory=EmbeddingDescription)
    picture: Path | None = None
    reason: str = ""
    negative: str = ""
    is_negative: bool = False
    untrainable: str = ""
    verdict: str = ""
    level: str = ""
    changed: float = 0.0


def card_of(entry: Entry) -> Card:
    """The card of an entry of the library."""
    if entry.info is None:
        return Card(entry.name, picture=entry.preview, reason=entry.reason or "It cannot be read.")
    run = entry.last_run
    return Card(
        entry.name,
        entry.description,
        picture=entry.preview,
        reason=entry.reason,
        negative=entry.negative,
        is_negative=entry.is_negative,
        untrainable=_untrainable(entry),
        verdict=run.verdict,
        level=run.level,
        changed=entry.changed,
    )


def _untrainable(entry: Entry) -> str:
    """Why training cannot continue with this entry; empty when it can. Training needs a file named after the embedding."""
    own, where = entry.path.stem == entry.name, f"it lies in {legible(entry.path.name)}"
    if own and entry.info and entry.info.word is not None:
        return f"{where} beside other data, which training would write over; convert it to a file of another name to train it further."
    own = own and entry.path.suffix.lower() in (".safetensors", ".pt") and entry.second is None
    return "" if own else f"{where}; convert it to {entry.name}.safetensors to train it further."


def keep_card_picture(preview: Path, target: Path, listener: Listener) -> None:
    """Copy the preview to `target` as the card's picture, marked as ours. A picture that the user put there stays."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text(_OURS, "preview")
    try:
        if target.exists() and not _is_ours(target):
            return
        with open_regular(preview) as file, Image.open(file) as picture:
            # a new file, so that programs that watch the folder notice the change
            replace_file(target, lambda file: picture.save(file, "PNG", pnginfo=mark), durable=False, fixed_name=True, follow_links=False)
    except (OSError, SyntaxError, ValueError) as error:
        listener(Message(f"The card's picture {target.name} was not written: {error}"))


def _is_ours(picture: Path) -> bool:
    from PIL import Image

    with open_regular(picture) as file, Image.open(file) as opened:
        return _OURS in opened.info
