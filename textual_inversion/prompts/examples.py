"""Shows a few of many prompts or captions to the user, and the oddest one, so that rubbish among them is seen before it is learned."""

from __future__ import annotations

from collections.abc import Sequence

from textual_inversion.prompts.templates import CAPTION, fill
from textual_inversion.prompts.tokenizer import default_tokenizer

_SHOWN = 120  # letters of one of them


def show_prompts(lines: Sequence[str], captions: Sequence[str], name: str) -> str:
    """A sentence that shows three prompts as they are learned, and the one with the oddest caption of the others."""
    return _shown("Prompts", lines, captions, name)


def show_captions(captions: Sequence[str]) -> str:
    """A sentence that shows three captions and the oddest of the others; empty where there is none."""
    return _shown("Captions", [CAPTION], [caption for caption in captions if caption], "")


def oddness(text: str) -> float:
    """Tokens for each letter: high for what is no language, such as camera names, damaged encodings and codes."""
    tokens = len(default_tokenizer().encode(text))
    return tokens / max(1, sum(letter.isalpha() or letter.isspace() for letter in text))


def _shown(what: str, lines: Sequence[str], captions: Sequence[str], name: str) -> str:
    unique = list(dict.fromkeys(captions))
    if not unique:
        return ""
    chosen = [unique[place * (len(unique) - 1) // 2] for place in range(3)]
    shown = dict.fromkeys(fill(lines[place % len(lines)], name, caption) for place, caption in enumerate(chosen))
    sentence = f"{what}, such as {', '.join(map(_quoted, shown))}"
    others = [caption for caption in unique if caption and caption not in chosen]
    return f"{sentence}; the oddest is {_quoted(fill(lines[0], name, max(others, key=oddness)))}." if others else f"{sentence}."


def _quoted(text: str) -> str:
    return f"“{text[:_SHOWN]}…”" if len(text) > _SHOWN else f"“{text}”"
