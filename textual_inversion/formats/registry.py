"""The list of all layouts, and the choice of the layout for the contents of a file.

To add a layout, write a module in `layouts/` with a `Layout` and add it to `LAYOUTS` below. When the same contents may fit several
layouts, their `before` fields decide which layout is tried first.
"""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import TopologicalSorter

from textual_inversion.errors import UnknownLayoutError
from textual_inversion.formats.containers.tensors import Contents
from textual_inversion.formats.layout import Layout, Parsed, summarize
from textual_inversion.formats.layouts import a1111_picture, a1111_pt, bundles, diffusers_tokens, emb_params, encoder_tensors, foreign_files

_EXPECTED = "expected string_to_param, emb_params, clip_l and clip_g, text_encoders_0, or vectors under their own tokens"


def in_order(layouts: Iterable[Layout]) -> tuple[Layout, ...]:
    """Sort the layouts: each one comes ahead of the layouts that its `before` names.

    Raises:
        ValueError: two layouts have the same name, a `before` names no layout, or the `before` fields form a cycle.
    """
    by_name: dict[str, Layout] = {}
    for layout in layouts:
        if layout.name in by_name:
            raise ValueError(f"two layouts are called {layout.name!r}")
        by_name[layout.name] = layout
    sorter: TopologicalSorter[str] = TopologicalSorter({name: () for name in by_name})
    for layout in by_name.values():
        if unknown := set(layout.before) - set(by_name):
            raise ValueError(f"the layout {layout.name!r} is to come before {sorted(unknown)}, which are no layouts")
        for later in layout.before:
            sorter.add(later, layout.name)
    return tuple(by_name[name] for name in sorter.static_order())  # raises CycleError, a ValueError, with the names in the cycle


LAYOUTS = in_order(
    [
        emb_params.SAFETENSORS,
        emb_params.EMB_PARAMS,
        emb_params.ONETRAINER,
        a1111_picture.IN_CHUNK,
        a1111_picture.IN_PIXELS,
        a1111_pt.A1111,
        a1111_pt.ORIGINAL,
        encoder_tensors.LAYOUT,
        encoder_tensors.REPLICATE,
        diffusers_tokens.LAYOUT,
        bundles.IN_LORA,
        bundles.COMFYUI_LIST,
        bundles.TENSOR_ALONE,
        foreign_files.XTI,
        foreign_files.FOREIGN,
    ]
)


def parse(contents: Contents) -> tuple[Layout, list[Parsed]]:
    """Find the layout of `contents` and read the embeddings, at least one.

    Raises:
        UnknownLayoutError: no layout fits, or the keys belong to another kind of file.
        EmbeddingError: the contents fit a layout but break its rules.
    """
    for layout in LAYOUTS:
        if layout.fits(contents):
            return layout, layout.read(contents)
    raise UnknownLayoutError(f"it holds {summarize(contents.tree)}, which is no embedding layout that is known; {_EXPECTED}.")


def writable_layouts() -> dict[str, tuple[str, ...]]:
    """Name of each layout that `save` writes -> the endings of its files."""
    return {layout.name: layout.endings for layout in LAYOUTS if layout.write and layout.endings}
