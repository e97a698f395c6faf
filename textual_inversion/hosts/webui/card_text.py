"""What a card of the WebUI's Textual Inversion page says and does, as text. Knows no WebUI beyond the names of its scripts' functions."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual_inversion.text import legible

if TYPE_CHECKING:
    from textual_inversion.library import Entry

_SPECIAL = re.compile(r"[()\[\]\\]")
#: Characters with which the WebUI's own click fails, as it looks for the text by a regular expression.
_NO_PLAIN_PATTERN = re.compile(r"[\\()\[\]{}*+?^$|.]")


def unique_names(entries: Sequence[Entry], word: Callable[[Entry], str], folders: Sequence[Path]) -> dict[str, Entry]:
    """A name for each card, since the WebUI keeps one card a name: the word, and for a second file of that word its path as well."""
    named: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda entry: not entry.usable):  # the one that prompts mean keeps the plain word
        name = word(entry)
        if name in named:
            name = f"{name} ({path_below(entry.path, folders)})"
        number = 2
        plain = name
        while name in named:
            name, number = f"{plain} {number}", number + 1
        named[name] = entry
    position = {id(entry): index for index, entry in enumerate(entries)}
    return dict(sorted(named.items(), key=lambda item: position[id(item[1])]))


def path_below(path: Path, folders: Sequence[Path]) -> str:
    """The path as seen from the embeddings folder that it is in, with `/`; legible, so that it can be shown and sent."""
    below = next((path.relative_to(folder).as_posix() for folder in folders if folder in path.parents), path.name)
    return legible(below)


def facts(entry: Entry) -> str:
    """Vectors, family, steps and checkpoint in one line; empty for what cannot be read."""
    info = entry.info
    if info is None:
        return ""
    provenance = info.provenance
    told = [f"{info.num_vectors} vector{'' if info.num_vectors == 1 else 's'}" if info.num_vectors else "", info.family]
    told += [f"step {provenance.step}" if provenance.step else "", provenance.checkpoint_name or ""]
    told += ["negative" if entry.is_negative else f"with {entry.negative}" if entry.negative else ""]
    return " · ".join(part for part in told if part)


def search_terms(entry: Entry) -> list[str]:
    """Words that the page's search finds the card by, besides its path, hash and description."""
    return [entry.name, *facts(entry).split(" · "), "does not fit" if entry.reason else ""]


def metadata(entry: Entry) -> dict[str, Any]:
    """What the card's ⓘ shows: everything that the file tells about itself."""
    info = entry.info
    if info is None:
        return {"problem": entry.reason}
    provenance = info.provenance
    told: dict[str, Any] = {
        "vectors": info.num_vectors,
        "family": info.family,
        "width": ", ".join(f"{encoder} {width}" for encoder, width in sorted(info.widths.items())),
        "layout": info.layout,
        "stored as": info.dtype,
        "name inside": info.stored_name,
        "step": provenance.step,
        "checkpoint": provenance.checkpoint_name,
        "checkpoint hash": provenance.checkpoint_hash,
        "initialization text": provenance.initializer_text,
        "problem": entry.reason,
    }
    return {key: legible(value) if isinstance(value, str) else value for key, value in told.items() if value not in (None, "")}


def description(line: str, reason: str, theirs: str, shown: bool) -> str:
    """HTML for the place of a card's description: the facts, why it does not fit, and then `theirs`, which is HTML already.

    Args:
        shown: whether the WebUI shows descriptions; without them only the reason remains.
    """
    parts = [f'<span class="ti-card-facts">{html.escape(line)}</span>' if line and shown else ""]
    parts += [f'<span class="ti-card-reason">{html.escape(reason)}</span>' if reason else "", theirs]
    return "".join(parts)


def inserted(word: str, weight: float | None) -> str:
    """What a click puts into a prompt: the word with its brackets escaped or, with a weight, `<word:1>`."""
    return _SPECIAL.sub(r"\\\g<0>", word) if weight is None else f"<{word}:{weight:g}>"


def preferred_weight(user_metadata: Mapping[str, Any]) -> float:
    """The weight that the user noted beside the file, under the key that the WebUI uses for other networks; else 1."""
    try:
        weight = float(user_metadata.get("preferred weight") or 1)
    except (TypeError, ValueError):
        return 1.0
    return weight if math.isfinite(weight) and abs(weight) < 100 else 1.0


def is_no_plain_pattern(text: str) -> bool:
    """Whether the WebUI's own click would misread the text."""
    return bool(_NO_PLAIN_PATTERN.search(text))


def insert(tabname: str, text: str, negative_text: str) -> str:
    """JavaScript that puts the texts into the prompts or takes them out again, whatever is in them."""
    return f"textualInversion.insert({_quoted(tabname)}, {_quoted(text)}, {_quoted(negative_text)})"


def explain(name: str, reason: str) -> str:
    """JavaScript that says in the WebUI's own popup why a click puts nothing into the prompt."""
    text = f"{name} cannot be used in prompts now: {reason}"
    return f"popup(Object.assign(document.createElement('p'), {{className: 'ti-card-why', textContent: {_quoted(text)}}}))"


def _quoted(text: str) -> str:
    return json.dumps(text)
