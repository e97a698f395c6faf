"""Prompts for training: reads template files with `[name]` and `[filewords]`, and fills in the name and the caption tags."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from pathlib import Path

from textual_inversion.errors import ConfigError, PromptError
from textual_inversion.files import os_error_words, read_regular

_MOST_BYTES = 2**20

DEFAULT_TEMPLATE = "subject_filewords.txt"
NAME, CAPTION = "[name]", "[filewords]"
#: How other tools write the name: kohya, diffusers and InvokeAI `{}`, OneTrainer `<embedding>`, ai-toolkit `[trigger]` (in captions).
_OTHER_NAMES = re.compile(r"\{(?:0|name|token|placeholder(?:_token)?)?\}|<embedding>|\[trigger\]")
_OTHER_NAMES_IN_CAPTIONS = re.compile(r"<embedding>|\[trigger\]")
_CAPTION_AND_COMMA = re.compile(r"\s*,?\s*" + re.escape(CAPTION))


def template_folder() -> Path:
    """Folder of the templates that ship with the project, `textual_inversion_templates` beside the package."""
    return Path(__file__).resolve().parents[2] / "textual_inversion_templates"


def list_templates(folder: str | Path) -> list[str]:
    """File names of the templates (`*.txt`) in `folder`, sorted.

    Raises:
        PromptError: the folder cannot be read.
    """
    try:
        return sorted((path.name for path in Path(folder).iterdir() if path.suffix.lower() == ".txt" and path.is_file()), key=str.casefold)
    except OSError as error:
        sentence = f"The template folder {folder} cannot be read ({os_error_words(error)}); choose a folder of .txt files."
        raise PromptError(sentence, path=folder) from error


def read_template(path: str | Path) -> list[str]:
    """The prompts of a template file, one a line; blank lines and lines that begin with `#` are skipped.

    The marks for the name in other tools' templates, such as `{}`, become `[name]`.

    Raises:
        PromptError: the file cannot be read as UTF-8 text, has no prompt, or has one with neither `[name]` nor `[filewords]`, since a
            caption may hold the name.
    """
    try:
        text = read_regular(path, _MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        sentence = f"The template {path} cannot be read ({os_error_words(error)}); choose a text file with one prompt a line."
        raise PromptError(sentence, path=path, setting="template") from error
    except UnicodeDecodeError as error:
        sentence = f"The template {path} is not UTF-8 text (byte {error.start}); save it as UTF-8."
        raise PromptError(sentence, path=path, setting="template") from error
    lines: list[str] = []
    for number, line in enumerate((line.strip() for line in text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        line = _OTHER_NAMES.sub(NAME, line.strip("\"'").rstrip(",").strip("\"'")) if _OTHER_NAMES.search(line) else line
        if NAME not in line and CAPTION not in line:
            advice = f"write {NAME} where the new word goes"
            sentence = f"The template {path} has no {NAME} in line {number}, {line[:60]!r}; {advice}."
            raise PromptError(sentence, path=path, setting="template", field=f"line {number}")
        lines.append(line)
    if not lines:
        sentence = f"The template {path} holds no prompt; write one a line, such as 'a photo of {NAME}, {CAPTION}'."
        raise PromptError(sentence, path=path, setting="template")
    return lines


def fill(template_line: str, name: str, caption: str = "") -> str:
    """A prompt from a template line: `[filewords]` becomes the caption and `[name]` the name, in the caption too, where other tools'
    marks for the name are understood as well.

    Without a caption, `[filewords]` and the comma before it are removed.
    """
    text = template_line if caption.strip() else _CAPTION_AND_COMMA.sub("", template_line).lstrip(" ,")
    return text.replace(CAPTION, _OTHER_NAMES_IN_CAPTIONS.sub(NAME, caption.strip())).replace(NAME, name)


def has_caption_beside_name(lines: Iterable[str]) -> bool:
    """Whether a template line has the name and the caption, so that a caption with the name in it gives the name twice."""
    return any(NAME in line and CAPTION in line for line in lines)


def split_tags(caption: str) -> list[str]:
    """The tags between the commas of `caption`, trimmed, without empty ones."""
    return [tag for tag in (part.strip() for part in caption.split(",")) if tag]


def shuffle_tags(caption: str, rng: random.Random, keep: int = 0) -> str:
    """Shuffle the tags of `caption` with `rng` and join them by `, `. The first `keep` tags stay in place."""
    tags = split_tags(caption)
    rest = tags[keep:]
    rng.shuffle(rest)
    return ", ".join(tags[:keep] + rest)


def drop_tags(caption: str, probability: float, rng: random.Random, keep: int = 0) -> str:
    """Drop each tag of `caption` after the first `keep` with `probability` (0 to 1); join the rest by `, `. The result may be empty.

    Each of these tags takes one random number, so later numbers from `rng` do not depend on the probability.

    Raises:
        ConfigError: `probability` is not from 0 to 1.
    """
    if not 0 <= probability <= 1:
        raise ConfigError(f"The chance of leaving out a tag is {probability}; expected a number from 0 to 1.", setting="tag_dropout")
    tags = split_tags(caption)
    return ", ".join(tags[:keep] + [tag for tag in tags[keep:] if rng.random() >= probability])
