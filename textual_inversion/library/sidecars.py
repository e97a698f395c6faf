"""Sidecars: the pictures, notes and metadata that people and galleries keep beside an embedding `X.pt`.

X.png, X.preview.png      a picture, also .jpg, .jpeg and .webp
X.txt, X.description.txt  notes
X.json                    A1111's metadata: description, notes, sd version, preferred weight, negative text
X.civitai.info            Civitai's record of a version of a model, as JSON; {} for a model that it does not have
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import unescape
from pathlib import Path
from typing import Any

from textual_inversion.files import open_regular
from textual_inversion.text import legible

PREVIEW_ENDINGS = tuple(f"{middle}.{ending}" for ending in ("png", "jpg", "jpeg", "webp") for middle in ("", ".preview"))
TEXT_ENDINGS = (".txt", ".description.txt", ".json", ".civitai.info")
_MAX_TEXT_BYTES = 65_536
_MAX_JSON_BYTES = 2**20
_MAX_WORDS = 50
_BLOCKS = {"p", "br", "div", "li", "ul", "ol", "h1", "h2", "h3", "h4", "h5", "h6", "tr", "pre", "blockquote"}
_HIDDEN = {"script", "style", "template"}
_COMMENT = "!--"
_TAG = re.compile(r"[!?]|/?[a-zA-Z][a-zA-Z0-9]*")


@dataclass(frozen=True)
class About:
    """The contents of an embedding's sidecars as plain text. The text is untrusted: escape it for HTML.

    Attributes:
        description: what the embedding is.
        notes: how to use it.
        base_model: the model that it was made for, such as `SD 1.5`; not checked.
        preferred_weight: recommended strength in a prompt; None when no file has one.
        negative_text: recommended words for the negative prompt.
        model_name: its name in its gallery.
        trained_words: the words that the gallery recommends for a prompt.
        problems: a sentence for each file that cannot be read.
    """

    description: str = ""
    notes: str = ""
    base_model: str = ""
    preferred_weight: float | None = None
    negative_text: str = ""
    model_name: str = ""
    trained_words: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All contents, a line for each fact."""
        facts = {
            "Gallery name": self.model_name,
            "Made for": self.base_model,
            "Trained words": ", ".join(self.trained_words),
            "Preferred weight": "" if self.preferred_weight is None else f"{self.preferred_weight:g}",
            "Negative text": self.negative_text,
        }
        lines = [self.description, self.notes, *(f"{key}: {value}" for key, value in facts.items() if value), *self.problems]
        return "\n".join(line for line in lines if line)


def read_sidecars(paths: Sequence[Path]) -> About:
    """Read the files at `paths`. For each field the first file with a value counts. A broken file becomes one of the `problems`."""
    about = About()
    for path in paths:
        try:
            values = _read(path)
        except FileNotFoundError:
            continue  # deleted after the folder was listed
        except (OSError, ValueError, RecursionError) as error:
            about = replace(about, problems=(*about.problems, _problem(path, error)))
            continue
        about = replace(about, **{key: value for key, value in values.items() if value and not getattr(about, key)})
    return about


def _read(path: Path) -> dict[str, Any]:
    name = path.name.lower()
    if name.endswith(".txt"):
        return {"description" if name.endswith(".description.txt") else "notes": _read_bytes(path, _MAX_TEXT_BYTES)[0]}
    text, whole = _read_bytes(path, _MAX_JSON_BYTES)
    if not whole:
        raise ValueError(f"it is larger than {_MAX_JSON_BYTES // 2**20} MB")
    tree = json.loads(text) if text else {}
    if not isinstance(tree, dict):
        raise ValueError("it is not a JSON object")
    return _from_civitai(tree) if name.endswith(".civitai.info") else _from_metadata(tree)


def _read_bytes(path: Path, limit: int) -> tuple[str, bool]:
    """The file's first `limit` bytes as text, and whether these are the whole file."""
    with open_regular(path) as file:
        data = file.read(limit + 1)
    return data[:limit].decode("utf-8-sig", errors="replace").strip(), len(data) <= limit


def _from_metadata(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A1111's `X.json`."""
    weight = tree.get("preferred weight")
    finite = isinstance(weight, (int, float)) and not isinstance(weight, bool) and math.isfinite(weight)
    return {
        "description": _text(tree.get("description")),
        "notes": _text(tree.get("notes")),
        "base_model": _line(tree.get("sd version")),
        "preferred_weight": float(weight) if finite and weight else None,  # A1111 writes 0 where the user chose none
        "negative_text": _text(tree.get("negative text")),
    }


def _from_civitai(tree: Mapping[str, Any]) -> dict[str, Any]:
    """One version of a model with its `model` inside, or a model with its versions, of which the first is the newest."""
    versions = tree.get("modelVersions")
    model: Any = tree.get("model")
    version: Any = tree
    if isinstance(versions, list) and versions:
        model, version = tree, versions[0]
    model = model if isinstance(model, dict) else {}
    version = version if isinstance(version, dict) else {}
    words = version.get("trainedWords")
    listed = [_line(word) for word in words[:_MAX_WORDS]] if isinstance(words, list) else []
    about = dict.fromkeys(_plain(source.get("description")) for source in (model, version))
    return {
        "description": "\n".join(text for text in about if text),
        "base_model": _line(version.get("baseModel")),
        "model_name": _line(model.get("name")),
        "trained_words": tuple(word for word in listed if word),
    }


def _text(value: object) -> str:
    return value[:_MAX_TEXT_BYTES].strip() if isinstance(value, str) else ""


def _line(value: object) -> str:
    return re.sub(r"\s+", " ", _text(value))[:200]


def _plain(value: object) -> str:
    """Convert HTML to text, a line for each block. A single pass, because Python's own parser needs minutes for unclosed tags."""
    first, *parts = _text(value).split("<")
    texts, hidden_by = [first], ""
    for part in parts:
        text, hidden_by = _visible(part, hidden_by)
        texts.append(text)
    lines = (re.sub(r"\s+", " ", line).strip() for line in unescape("".join(texts)).split("\n"))
    return "\n".join(line for line in lines if line)


def _visible(part: str, hidden_by: str) -> tuple[str, str]:
    """The visible text of one part of HTML, and the element that hides the text after the part.

    Args:
        part: the HTML from behind a `<` up to the next one.
        hidden_by: the open element that hides the text before the part: a comment or one of `_HIDDEN`; empty for none.
    """
    if hidden_by == _COMMENT or (not hidden_by and part.startswith(_COMMENT)):
        _, ends, text = part.partition("-->")
        return text, "" if ends else _COMMENT
    inside, ends, text = part.partition(">")
    tag = _TAG.match(inside) if ends else None
    name = tag[0].lower() if tag else ""
    if hidden_by:
        return (text, "") if name == f"/{hidden_by}" else ("", hidden_by)
    if not tag:
        return f"<{part}", ""
    if name in _HIDDEN:
        return "", name
    return ("\n" if name.strip("/") in _BLOCKS else "") + text, ""


def _problem(path: Path, error: Exception) -> str:
    name = legible(path.name)
    if isinstance(error, OSError):
        return f"{name} cannot be read: {error.strerror or error}."
    reason = "it is not valid JSON" if isinstance(error, (json.JSONDecodeError, RecursionError)) else str(error)
    return f"{name} is left out because {reason}."
