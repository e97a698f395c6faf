r"""Emphasis in prompts, as A1111's users write it: `(a)`, `(a:1.2)`, `[a]`, `\(`, `BREAK`."""

from __future__ import annotations

import re
from dataclasses import dataclass

ROUND = 1.1  # factor of one pair of round brackets
SQUARE = 1 / 1.1  # factor of one pair of square brackets
NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"

_PIECE = re.compile(rf":\s*(?P<weight>{NUMBER})\s*\)|\\(?P<escaped>[()\[\]\\]?)|(?P<bracket>[()\[\]])|(?P<text>[^\\()\[\]:]+|:)")
_BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True)
class Span:
    """A part of a prompt with one weight.

    Attributes:
        text: the text, brackets and escapes resolved; empty for a break.
        weight: factor of the emphasis; 1.0 is neutral, negative is allowed.
        is_break: True where `BREAK` asked for a new chunk.
    """

    text: str
    weight: float = 1.0
    is_break: bool = False


BREAK = Span("", 1.0, is_break=True)


def parse_emphasis(text: str) -> list[Span]:
    r"""Split a prompt into spans of one weight each; at least one span, and neighbours differ in weight.

    A round bracket multiplies by 1.1, a square one divides by 1.1, `(a:1.3)` multiplies by 1.3; brackets nest. An unclosed
    bracket applies up to the end. A backslash makes the next bracket or backslash plain text; elsewhere it disappears. A bracket or
    a weight that closes nothing is plain text. BREAK works inside brackets too.
    """
    spans: list[Span] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    for piece in _PIECE.finditer(text):
        if piece["weight"] is not None and opened["("]:
            _multiply(spans, opened["("].pop(), float(piece["weight"]))
        elif piece["bracket"] in opened:
            opened[piece["bracket"]].append(len(spans))
        elif piece["bracket"] == ")" and opened["("]:
            _multiply(spans, opened["("].pop(), ROUND)
        elif piece["bracket"] == "]" and opened["["]:
            _multiply(spans, opened["["].pop(), SQUARE)
        elif piece["escaped"] is not None:
            spans.append(Span(piece["escaped"]))
        else:
            spans.extend(_split_breaks(piece[0]))
    for bracket, factor in (("(", ROUND), ("[", SQUARE)):
        for start in opened[bracket]:
            _multiply(spans, start, factor)
    return _merge(spans) or [Span("")]


def _split_breaks(text: str) -> list[Span]:
    first, *rest = _BREAK.split(text)
    spans = [Span(first.rstrip() if rest else first)]
    for number, part in enumerate(rest, start=1):
        spans += [BREAK, Span(part.lstrip() if number == len(rest) else part.strip())]
    return spans


def _multiply(spans: list[Span], start: int, factor: float) -> None:
    """Multiply the weights of the spans from `start` on; a break has no weight, so that it works inside brackets."""
    for i in range(start, len(spans)):
        if not spans[i].is_break:
            spans[i] = Span(spans[i].text, spans[i].weight * factor)


def _merge(spans: list[Span]) -> list[Span]:
    """Remove empty spans and join neighbours of equal weight, so that their words are tokenized as one text."""
    merged: list[Span] = []
    for span in spans:
        if not span.text and not span.is_break:
            continue
        last = merged[-1] if merged else BREAK
        if not last.is_break and not span.is_break and last.weight == span.weight:
            merged[-1] = Span(last.text + span.text, span.weight)
        else:
            merged.append(span)
    return merged
