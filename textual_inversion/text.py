"""Helpers for user messages: counts, lists, text that any page can encode."""

from __future__ import annotations

from collections.abc import Sequence


def legible(text: str) -> str:
    """`text`, such as a path, for pages and JSON. Undecodable bytes of a file name become `\\xNN`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def counted(number: int, thing: str) -> str:
    """`1 picture`, `2 pictures`."""
    return f"{number} {thing}{'s' * (number != 1)}"


def join_clauses(clauses: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(clauses[:-1]), clauses[-1]] if len(clauses) > 1 else clauses)
