"""`<name>` and `<name:1.2>` in every prompt of one generation, as the host keeps them. Knows no WebUI; its objects come as they are."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from textual_inversion.formats import PICTURE_ENDINGS
from textual_inversion.prompts.names import rewrite_names

if TYPE_CHECKING:
    from textual_inversion.library import Entry

_SAME_CHECKPOINT = ("", "Use same checkpoint")
_EVERYTHING = slice(None)


def rewrite_all(p: Any, known: Collection[str], known_in_hires: Collection[str] | None = None, part: slice = _EVERYTHING) -> None:
    """Rewrite the prompts of a generation in place, as often as it is called; see `rewrite_names`.

    Lists stay the same objects, since the host hands them to other extensions too; what a kind of generation lacks is passed over.

    Args:
        p: the host's `StableDiffusionProcessing`, its prompts set up.
        known: names of embeddings for the first pass.
        known_in_hires: those for the hires pass, where they differ.
        part: which pictures of the generation; those of the batch at hand always.
    """
    for prefix, names in (("", known), ("hr_", known if known_in_hires is None else known_in_hires)):
        rewrite = _rewriter(names)
        for kind in ("prompts", "negative_prompts"):
            _rewrite_list(p, f"all_{prefix}{kind}", rewrite, part)
            _rewrite_list(p, f"{prefix}{kind}", rewrite, _EVERYTHING)
    for attribute in ("main_prompt", "main_negative_prompt"):  # a grid's infotext shows these
        if isinstance(text := getattr(p, attribute, None), str):
            setattr(p, attribute, rewrite_names(text, known))


def _rewriter(known: Collection[str]) -> Callable[[str], str]:
    """`rewrite_names` for prompts of which most are the same."""
    return lru_cache(maxsize=None)(lambda text: rewrite_names(text, known))


def _rewrite_list(p: Any, attribute: str, rewrite: Callable[[str], str], part: slice) -> None:
    texts = getattr(p, attribute, None)
    if isinstance(texts, tuple):
        texts = list(texts)
        setattr(p, attribute, texts)
    if isinstance(texts, list):
        texts[part] = [rewrite(text) if isinstance(text, str) else text for text in texts[part]]


def has_own_hires_checkpoint(p: Any) -> bool:
    """Whether the hires pass is drawn with another checkpoint, which may know other names."""
    return bool(getattr(p, "enable_hr", False)) and (getattr(p, "hr_checkpoint_name", None) or "") not in _SAME_CHECKPOINT


def spellings(entry: Entry) -> list[str]:
    """The words by which a WebUI may know an entry, its own before the library's: it keeps characters
    that the library replaces, and calls a picture by the name inside."""
    info = entry.info
    if info is None:
        return list(dict.fromkeys([entry.path.stem, entry.name]))
    if info.word is not None:
        return [entry.name]
    inside = info.stored_name if entry.path.suffix.lower() in PICTURE_ENDINGS else None
    return list(dict.fromkeys([entry.path.stem, entry.name, *([inside] if inside else [])]))


def word_of(entry: Entry, known: Collection[str]) -> str:
    """The word by which the WebUI knows an entry; the one by which it would, where it does not."""
    words = spellings(entry)
    return next((word for word in words if word in known), words[0])
