"""Embeddings inside a LoRA file: `bundle_emb.<name>.clip_l` and the like, as OneTrainer writes them. Knows nothing of files.

Only these tensors are looked at; the rest of the LoRA stays unread.
"""

from __future__ import annotations

import re
from typing import Any

from textual_inversion.formats.layout import Contents, Layout, Parsed, as_text, as_vectors
from textual_inversion.formats.layouts.encoders import by_encoder, by_width, join_rows, names_encoder

#: A name may have dots in it, the parts other than `string_to_param.<placeholder>` have none.
_KEY = re.compile(r"bundle_emb\.(.+?)\.(string_to_param\..+|[^.]+)", re.DOTALL)
_PARAM = "string_to_param."


def detect(contents: Contents) -> bool:
    """Whether there is a key that begins with `bundle_emb.`."""
    return isinstance(contents.tree, dict) and any(_match(key) for key in contents.tree)


def read(contents: Contents) -> list[Parsed]:
    """An embedding for each name, in the file's order; each has its word, because the file's own name is the LoRA's."""
    bundles: dict[str, dict[str, Any]] = {}
    for key, value in contents.tree.items():
        if match := _match(key):
            bundles.setdefault(match[1], {})[match[2]] = value
    return [_parsed(name, parts) for name, parts in bundles.items()]


def _match(key: object) -> re.Match[str] | None:
    return _KEY.fullmatch(key) if isinstance(key, str) and key.startswith("bundle_emb.") else None


def _parsed(name: str, parts: dict[str, Any]) -> Parsed:
    params = {key: value for key, value in parts.items() if key.startswith(_PARAM)}
    if params:
        found = by_width(join_rows([as_vectors(value, key) for key, value in list(params.items())[:1]]))
    elif any(map(names_encoder, parts)):
        found = by_encoder(parts)
    elif len(parts) == 1:
        ((key, value),) = parts.items()
        found = by_width(as_vectors(value, key))
    else:
        found = Parsed({}, unusable=f"nothing is known of its parts {', '.join(sorted(parts))[:80]}")
    return Parsed(found.vectors, as_text(name), word=name[:200], unusable=found.unusable)


LAYOUT = Layout("in a LoRA", detect, read)
