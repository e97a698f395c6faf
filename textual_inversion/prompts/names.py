"""Rewrites `<name>` and `<name:1.2>` in a prompt to the syntax that every host understands."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

from textual_inversion.prompts.emphasis import NUMBER
from textual_inversion.prompts.tokenizer import default_tokenizer

_TAG = re.compile(r"<([^<>]+)>")
_WEIGHT = re.compile(NUMBER)
_NETWORK = re.compile(r"(?i)\s*(?:lora|lyco|hypernet)\s*:")
_SPECIAL = re.compile(r"[()\[\]\\]")
_MARKUP = rf"(?:[()\[\]]|:\s*{NUMBER}\s*\))*"
_LEADING_MARKUP = re.compile(r"\A" + _MARKUP)
_TRAILING_MARKUP = re.compile(_MARKUP + r"\Z")
_WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")
_IGNORED = re.compile(r"[\s\\<>]+")
_LONGEST_SHOWN, _MOST_SHOWN = 60, 5  # characters of a tag and tags in one sentence
_LONGEST_MARKUP = 64  # limits the search for the neighbour, so a prompt with many brackets stays fast


def rewrite_names(text: str, known: Collection[str]) -> str:
    r"""Replace `<name>` by `name` and `<name:1.2>` by `(name:1.2)` wherever the name is known; everything else stays as it is.

    A name is looked up as written, then without regard to case; the result has the known spelling, its brackets and backslashes
    escaped. A space separates the name from a neighbour that the tokenizer would otherwise join to it.

    Args:
        text: a prompt.
        known: names of embeddings, of any spelling. `<lora:…>`, `<lyco:…>` and `<hypernet:…>` are never names.
    """
    if "<" not in text:
        return text
    lookup = _Names(known)
    pieces: list[str] = []
    end = 0
    for tag in _TAG.finditer(text):
        match = lookup.resolve(tag)
        if match is None:
            continue
        name, weight = match
        pieces.append(text[end : tag.start()])
        before, after = _letters_before(pieces), _letters_after(text[tag.end() : tag.end() + _LONGEST_MARKUP])
        escaped = _SPECIAL.sub(r"\\\g<0>", name)
        word = f"({escaped}:{weight})" if weight is not None else escaped
        pieces.append((" " if any(_would_join(letter, name[0]) for letter in before) else "") + word)
        pieces.append(" " if any(_would_join(name[-1], letter) for letter in after) else "")
        end = tag.end()
    return "".join([*pieces, text[end:]])


def tag_of(name: str) -> str:
    """`<name>`, which names the embedding whatever its neighbours are. The tokenizer would join a plain `cat-` and a comma to one word."""
    return f"<{name}>"


def about_name(name: str) -> str:
    """A sentence for the user about a name that prompts hold without meaning the embedding; empty for a word that means nothing yet."""
    tokenizer = default_tokenizer()
    words = name.split()
    if all(word.isdigit() for word in words):
        kind = "a number"
    elif len(name) == 1:
        kind = "a single letter or sign"
    elif all(word.isalpha() and len(tokenizer.encode(word)) == 1 for word in words):
        kind = "a word that the checkpoint knows already" if len(words) == 1 else "made of words that the checkpoint knows already"
    else:
        return ""
    return (
        f"“{name}” is {kind}: every prompt with it means the embedding from now on, in other WebUIs as well. "
        f"A name that means nothing yet, such as “my-{words[0]}”, leaves other prompts alone."
    )


def words_in_prompts(name: str) -> tuple[str, ...]:
    """The words that the tokenizer reads in a name. Names with the same words are one for prompts: `Zorb` and `zorb`, `a_b` and `a_ b`."""
    return tuple(_WORDS.findall(unicodedata.normalize("NFC", name).lower()))


def names_in(texts: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names of `known` that the prompts may contain. This quick search may return extra names but never misses one.

    The exact search then needs vectors and token ids for these embeddings only, not for thousands.
    """
    haystack = "\n".join(map(_letters, texts))
    return [name for name in known if _letters(name) in haystack]


def unknown_names(texts: Iterable[str], known: Collection[str]) -> list[str]:
    """The `<…>` tags of the prompts that are no name of `known`, as written, each once; `<lora:…>` is one of them."""
    lookup = _Names(known)
    tags = (tag for text in texts for tag in _TAG.finditer(text))
    return list(dict.fromkeys(tag[0] for tag in tags if lookup.resolve(tag) is None))


def about_unknown(tags: Sequence[str]) -> str:
    """A sentence for the user about tags that `unknown_names` returned; empty when there are none."""
    if not tags:
        return ""
    shown = ", ".join(tag if len(tag) <= _LONGEST_SHOWN else f"{tag[:_LONGEST_SHOWN]}…" for tag in tags[:_MOST_SHOWN])
    more = f" and {len(tags) - _MOST_SHOWN} more" if len(tags) > _MOST_SHOWN else ""
    verdict = "is no name of an embedding that fits, and was" if len(tags) == 1 else "are no names of embeddings that fit, and were"
    return f"{shown}{more} {verdict} taken as plain text."


def _letters(text: str) -> str:
    """`text` without everything that the exact search may ignore: case, white space, escapes, angle brackets, accents."""
    letters = _IGNORED.sub("", text).casefold()
    if letters.isascii():
        return letters
    return "".join(letter for letter in unicodedata.normalize("NFD", letters) if not unicodedata.combining(letter))


class _Names:
    """Known names, found by exact spelling first and then by case-folded spelling (the first of several)."""

    def __init__(self, known: Iterable[str]) -> None:
        self._exact = {name for name in known if name}
        self._folded: dict[str, str] = {}
        for name in sorted(self._exact):
            self._folded.setdefault(name.casefold(), name)

    def resolve(self, tag: re.Match[str]) -> tuple[str, str | None] | None:
        """The known name and the weight as written (None without a weight) of a tag; None if it names no embedding."""
        if _NETWORK.match(tag[1]):
            return None
        # a stored name may itself contain the angle brackets
        for spelling in (tag[1], tag[1].strip(), tag[0]):
            if name := self._find(spelling):
                return name, None
        plain, weight = (part.strip() for part in tag[1].rpartition(":")[::2])
        if not _WEIGHT.fullmatch(weight):
            return None
        name = self._find(plain) or self._find(f"<{plain}>")
        return (name, weight) if name else None

    def _find(self, spelling: str) -> str | None:
        return spelling if spelling in self._exact else self._folded.get(spelling.casefold())


def _letters_after(text: str) -> str:
    """The characters that the tokenizer may see after a name: the first, and the first that is not emphasis."""
    return text[:1] + _LEADING_MARKUP.sub("", text, count=1)[:1]


def _letters_before(pieces: list[str]) -> str:
    """The characters that the tokenizer may see before a name: the last of `pieces`, and the last that is not emphasis."""
    tail = "".join(pieces[-3:])[-_LONGEST_MARKUP:]
    return tail[-1:] + _TRAILING_MARKUP.sub("", tail, count=1)[-1:]


def _would_join(left: str, right: str) -> bool:
    """Whether the tokenizer may join two neighbouring characters to one word. True in doubt, because a space does no harm."""
    if left.isspace() or right.isspace():
        return False
    if not (left + right).isascii() or "'" in left + right or "\\" in left + right:
        return True
    if left.isdigit() or right.isdigit():
        return False
    return left.isalpha() == right.isalpha()
