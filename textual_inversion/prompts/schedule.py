r"""Prompts that change while a picture is drawn, as A1111's users write them: `[a:b:0.5]`, `[a:0.5]`, `[a::0.5]`, `[a|b]`; and `AND`.

Only text comes in and goes out; emphasis and the names of embeddings in it are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_PIECE = re.compile(r"(?P<mark>[\[\]():|])|(?P<text>(?:[^\\\[\]():|]|\\.)+)")
_WHEN = re.compile(r"\s*(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*")
_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*:\s*(?P<weight>[-+]?(?:\d+\.?|\d*\.\d+))\s*\Z")
_DEEPEST = 100  # brackets inside one another; Python's own limit is not far above
_MOST_STEPS = 10_000  # of the number behind a colon; more says the same


@dataclass(frozen=True)
class Subprompt:
    """One of the prompts that `AND` joins.

    Attributes:
        text: the prompt.
        weight: factor of its part of the guidance; 1.0 unless told, negative is allowed.
    """

    text: str
    weight: float = 1.0


def subprompts(text: str) -> list[Subprompt]:
    """The prompts that `AND` joins in one text, at least one, each with the weight behind its last colon."""
    found = []
    for part in _AND.split(text):
        weight = _WEIGHT.search(part)
        found.append(Subprompt(part[: weight.start()], float(weight["weight"])) if weight else Subprompt(part.rstrip()))
    return found


def schedule(text: str, steps: int) -> list[tuple[int, str]]:
    """The texts that a prompt stands for, one after the other.

    `[a:b:when]` is a, then b after the step `when`; `[b:when]` begins and `[a::when]` ends there. A number with a point is a share of the
    steps. `[a|b|c]` takes the next one at each step. They nest. What is not well formed stays as it is.

    Args:
        steps: how many there are, at least 1.

    Returns:
        (last step of the text, text), by rising step; the last one is `steps`. Neighbours may be equal.
    """
    tree = _parse(text)
    if tree is None:
        return [(steps, text)]
    ends = sorted({steps, *tree.ends(steps)})
    return [(end, tree.at(end, steps)) for end in ends]


def changes(text: str) -> bool:
    """Whether a prompt changes while a picture is drawn, or is several joined by `AND`."""
    tree = _parse(text)
    return bool(_AND.search(text)) or (tree is not None and any(True for _ in tree.marks()))


@dataclass(frozen=True)
class _Sequence:
    """Texts and changing parts in a row."""

    parts: tuple[str | _Group | _Switch | _Turns, ...]

    def at(self, step: int, steps: int) -> str:
        return "".join(part if isinstance(part, str) else part.at(step, steps) for part in self.parts)

    def ends(self, steps: int) -> Iterator[int]:
        for part in self.parts:
            if not isinstance(part, str):
                yield from part.ends(steps)

    def marks(self) -> Iterator[object]:
        for part in self.parts:
            if not isinstance(part, str):
                yield from part.marks()


@dataclass(frozen=True)
class _Group:
    """A well-formed pair of brackets that is emphasis, which stays in the text."""

    opened: str
    closed: str
    sides: tuple[_Sequence, ...]

    def at(self, step: int, steps: int) -> str:
        return f"{self.opened}{':'.join(side.at(step, steps) for side in self.sides)}{self.closed}"

    def ends(self, steps: int) -> Iterator[int]:
        for side in self.sides:
            yield from side.ends(steps)

    def marks(self) -> Iterator[object]:
        for side in self.sides:
            yield from side.marks()


@dataclass(frozen=True)
class _Switch:
    """`[before:after:when]`."""

    before: _Sequence
    after: _Sequence
    when: str

    def last(self, steps: int) -> int:
        """The last step of `before`."""
        number = float(self.when)
        reached = number * steps if "." in self.when else number
        return min(steps, int(max(-_MOST_STEPS, min(_MOST_STEPS, reached))))

    def at(self, step: int, steps: int) -> str:
        return (self.before if step <= self.last(steps) else self.after).at(step, steps)

    def ends(self, steps: int) -> Iterator[int]:
        if (last := self.last(steps)) >= 1:
            yield last
        yield from self.before.ends(steps)
        yield from self.after.ends(steps)

    def marks(self) -> Iterator[object]:
        yield self


@dataclass(frozen=True)
class _Turns:
    """`[a|b|c]`."""

    sides: tuple[_Sequence, ...]

    def at(self, step: int, steps: int) -> str:
        return self.sides[(step - 1) % len(self.sides)].at(step, steps)

    def ends(self, steps: int) -> Iterator[int]:
        yield from range(1, steps + 1)

    def marks(self) -> Iterator[object]:
        yield self


@dataclass
class _Open:
    """A bracket that is not closed yet.

    Attributes:
        sides: what stands between its colons and bars.
        marks: those colons and bars.
        is_broken: it holds a bracket that is plain text, and so is plain text itself.
    """

    bracket: str
    sides: list[list[str | _Group | _Switch | _Turns]] = field(default_factory=lambda: [[]])
    marks: list[str] = field(default_factory=list)
    is_broken: bool = False

    def flat(self, closed: str = "") -> list[str | _Group | _Switch | _Turns]:
        """Everything in it as plain text and finished parts."""
        parts = [self.bracket, *self.sides[0]]
        for mark, side in zip(self.marks, self.sides[1:]):
            parts += [mark, *side]
        return [*parts, closed]


def _parse(text: str) -> _Sequence | None:
    """The prompt's tree; None where A1111 leaves the whole text alone, as with a bar outside of brackets."""
    stack = [_Open("")]
    end = 0
    for piece in _PIECE.finditer(text):
        if piece.start() != end:
            return None  # a backslash with nothing behind it
        end = piece.end()
        mark = piece["mark"]
        if mark is None:
            stack[-1].sides[-1].append(piece[0])
        elif mark in "[(":
            stack.append(_Open(mark))
            if len(stack) > _DEEPEST:
                return None
        elif mark in ":|":
            stack[-1].marks.append(mark)
            stack[-1].sides.append([])
        elif len(stack) > 1 and stack[-1].bracket + mark in ("[]", "()"):
            _close(stack, mark)
        else:
            _break(stack)
            stack[-1].sides[-1].append(mark)
    _break(stack)
    return None if end != len(text) or "|" in stack[0].marks else _Sequence(tuple(stack[0].flat()))


def _close(stack: list[_Open], mark: str) -> None:
    """Put the innermost bracket, which `mark` closes, into the one around it."""
    inner = stack.pop()
    whole = None if inner.is_broken else _closed(inner, mark)
    if whole is not None:
        stack[-1].sides[-1].append(whole)
    else:
        _put_flat(inner, stack[-1], mark)


def _break(stack: list[_Open]) -> None:
    """Make plain text of all brackets that are open."""
    while len(stack) > 1:
        inner = stack.pop()
        _put_flat(inner, stack[-1])


def _put_flat(inner: _Open, outer: _Open, closed: str = "") -> None:
    outer.is_broken = True
    first, *rest = inner.sides
    outer.sides[-1] += [inner.bracket, *first]
    outer.marks += inner.marks
    outer.sides += rest
    outer.sides[-1].append(closed)


def _closed(inner: _Open, mark: str) -> _Group | _Switch | _Turns | None:
    """What a closed bracket means; None where it is none that A1111 knows."""
    sides = tuple(_Sequence(tuple(side)) for side in inner.sides)
    kinds = set(inner.marks)
    if not kinds or (mark == ")" and inner.marks == [":"]):
        return _Group(inner.bracket, mark, sides)
    if mark == "]" and kinds == {"|"}:
        return _Turns(sides)
    when = _number(inner.sides[-1])
    if mark == "]" and kinds == {":"} and len(sides) <= 3 and when:
        return _Switch(sides[0] if len(sides) == 3 else _Sequence(()), sides[-2], when)
    return None


def _number(side: Sequence[object]) -> str:
    """The number that a side consists of; empty where it is none."""
    text = side[0] if len(side) == 1 else None
    found = _WHEN.fullmatch(text) if isinstance(text, str) else None
    return found["number"] if found else ""
