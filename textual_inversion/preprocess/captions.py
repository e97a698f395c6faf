"""What a caption becomes: joined, with its prefix and suffix, without the words that name the concept. Knows nothing of pixels or files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_ARTICLE = r"(?:\b(?:an?|the)\s+)?"


@dataclass(frozen=True)
class CaptionRules:
    """How captions are put together; the fields are those of `PreprocessConfig`."""

    existing: str = "keep"
    join: str = ", "
    prefix: str = ""
    suffix: str = ""
    drop_words: str = ""

    def needs_new(self, old: str | None) -> bool:
        """Whether a new description would be used beside the old caption (None: there is none)."""
        return old is None or self.existing in ("prepend", "append", "replace")

    def caption(self, old: str | None, new: Sequence[str], name: str) -> str | None:
        """The caption, on one line; None where there is nothing to write.

        Args:
            old: the existing caption; None when there is none.
            new: what the captioners said, in order.
            name: what the file name says, for pictures that have neither when there is a prefix, a suffix or words to drop.
        """
        if old is not None and self.existing == "copy":
            return old
        body = self._body(old, self.join.join(text for text in (_one_line(text) for text in new) if text))
        if body is None:
            if not (self.prefix or self.suffix or self.drop_words):
                return None
            body = name
        kept = drop(_one_line(body), self.drop_words)
        # A second run over its own results must not add the ends again.
        start, end = _one_line(self.prefix), _one_line(self.suffix)
        if start and not kept.startswith(start):
            kept = f"{start} {kept}".rstrip()
        if end and not kept.endswith(end):
            kept = (kept if end[0] in ",.;:!?" else f"{kept} ").lstrip() + end
        return kept

    def _body(self, old: str | None, new: str) -> str | None:
        if old is None:
            return new or None
        if not new or not self.needs_new(old):
            return old
        if self.existing == "replace" or not old:
            return new
        if new in old:  # of an earlier run
            return old
        return self.join.join((old, new) if self.existing == "prepend" else (new, old))


def drop(caption: str, words: str) -> str:
    """`caption` without the words in `words` (separated by commas), their articles, and what is left dangling.

    A word is found whatever its case, and with spaces or underscores; only as a whole.
    """
    wanted = [word for word in (part.strip() for part in words.split(",")) if word]
    for word in sorted(wanted, key=len, reverse=True):
        spelled = r"[\s_]+".join(re.escape(part) for part in re.split(r"[\s_]+", word) if part)
        caption = re.sub(rf"{_ARTICLE}(?<![\w]){spelled}(?![\w])", " ", caption, flags=re.IGNORECASE)
    if not wanted:
        return caption
    tags = [" ".join(tag.split()) for tag in caption.split(",")]
    return ", ".join(tag for tag in tags if tag)


def _one_line(text: str) -> str:
    return " ".join(text.split())
