"""XTI: one set of vectors for each cross-attention layer of the UNet; named, but of no use here. Knows nothing of files.

https://arxiv.org/abs/2303.09522
"""

from __future__ import annotations

from textual_inversion.formats.layout import Contents, Layout, Parsed
from textual_inversion.formats.layouts.metadata import beside

_LAYERS = {"MID", *(f"IN{index:02}" for index in (1, 2, 4, 5, 7, 8)), *(f"OUT{index:02}" for index in range(3, 12))}


def detect(contents: Contents) -> bool:
    """Whether the keys are SD1's sixteen cross-attention layers."""
    return isinstance(contents.tree, dict) and set(contents.tree) == _LAYERS


def read(contents: Contents) -> list[Parsed]:
    """No vectors: a prompt gives all layers the same ones."""
    reason = "it is an XTI embedding with its own vectors for each attention layer, which no prompt here can use"
    return [beside(contents, Parsed({}, unusable=reason))]


LAYOUT = Layout("XTI", detect, read)
