"""The registry: which layout some contents are in does not depend on where the layouts are listed, for any tree of data."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from textual_inversion.errors import EmbeddingError
from textual_inversion.formats.containers.tensors import Contents, Parameters, StoredTensor
from textual_inversion.formats.layout import Layout
from textual_inversion.formats.layouts.foreign_files import XTI
from textual_inversion.formats.registry import LAYOUTS, in_order


def _stored(shape: tuple[int, ...], dtype: str) -> StoredTensor:
    return StoredTensor(shape, dtype, lambda: torch.zeros(shape))


KNOWN_KEYS = [
    "string_to_param",
    "emb_params",
    "emp_params",
    "clip_l",
    "clip_g",
    "clip_g_out",
    "t5",
    "text_encoders_0",
    "bundle_emb.a.clip_l",
    "bundle_emb.",
    "<t>",
    "<t>_1",
    "state_dict",
    "params_ema",
    "hash",
    "optimizer_state_dict",
    "MID",
    "lora_unet_a.lora_up.weight",
    "*",
    "name",
]
KEYS = st.sampled_from(KNOWN_KEYS) | st.text(max_size=5) | st.integers(0, 3)
TENSORS = st.builds(
    _stored,
    st.lists(st.sampled_from([1, 2, 64, 768, 1024, 1280, 4096]), max_size=3).map(tuple),
    st.sampled_from(["fp16", "fp32", "int64", "float8_e4m3fn"]),
)
TREES = st.recursive(
    TENSORS | st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(KEYS, inner, max_size=5) | st.lists(inner, max_size=3),
    max_leaves=8,
)
ROWS, WIDE = _stored((2, 768), "fp32"), _stored((2, 1280), "fp32")
#: Trees that fit a layout each; two of them joined may fit both layouts.
SAMPLES = [
    {"emb_params": ROWS},
    {"clip_l": ROWS, "clip_g": WIDE},
    {"clip_l": ROWS, "clip_g": WIDE, "clip_g_out": WIDE},
    {"clip_l": ROWS},
    {"emp_params": ROWS},
    {"emp_params_out": ROWS},
    {"string_to_param": {"*": ROWS}},
    {"string_to_param": Parameters({"*": ROWS})},
    {"string_to_param": {"a": ROWS, "b": ROWS}},
    {"text_encoders_0": ROWS},
    {"bundle_emb.cat.clip_l": ROWS},
    {"lora_unet_a.lora_up.weight": ROWS},
    dict.fromkeys(XTI.keys[0].has, ROWS),
    {"<cat>": ROWS},
]


@st.composite
def contents(draw: st.DrawFn) -> Contents:
    container = draw(st.sampled_from(["pickle", "safetensors", "picture chunk", "picture data"]))
    joined = st.builds(lambda *trees: {key: value for tree in trees for key, value in tree.items()}, *[st.sampled_from(SAMPLES)] * 2)
    tree = draw(TREES | joined)
    if container == "safetensors":
        tree = {str(key): value for key, value in tree.items() if isinstance(value, StoredTensor)} if isinstance(tree, dict) else {}
    return Contents(container, tree)


def _later(name: str) -> set[str]:
    """The names of the layouts that come after the one called `name` by declaration."""
    direct = next(layout.before for layout in LAYOUTS if layout.name == name)
    return {*direct, *(further for one in direct for further in _later(one))}


LATER = {layout.name: _later(layout.name) for layout in LAYOUTS}


@settings(max_examples=600)
@given(contents=contents())
def test_layouts_that_fit_the_same_contents_are_ordered_by_declaration(contents: Contents) -> None:
    first, *others = [layout.name for layout in LAYOUTS if layout.fits(contents)] or [""]
    assert set(others) <= LATER.get(first, set())


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_registration_respects_what_is_declared(seed: int) -> None:
    shuffled = random.Random(seed).sample(LAYOUTS, len(LAYOUTS))
    names = [layout.name for layout in in_order(shuffled)]
    assert all(names.index(layout.name) < names.index(later) for layout in LAYOUTS for later in layout.before)


@settings(max_examples=400)
@given(contents=contents())
def test_no_layout_raises_anything_but_its_own_errors(contents: Contents) -> None:
    for layout in LAYOUTS:
        if layout.fits(contents):
            try:
                embeddings = layout.read(contents)
            except EmbeddingError:
                continue
            assert embeddings
            assert all(parsed.vectors or parsed.unusable for parsed in embeddings)
            assert all(len(rows.shape) == 2 for parsed in embeddings for rows in parsed.vectors.values())


def _layout(name: str, *before: str) -> Layout:
    return Layout(name, lambda contents: [], before=before)


def test_layouts_come_ahead_of_those_that_they_name() -> None:
    layouts = [_layout("c"), _layout("a", "b"), _layout("b", "c"), _layout("d", "c")]
    assert [layout.name for layout in in_order(layouts)] == ["a", "d", "b", "c"]


@pytest.mark.parametrize(
    ("layouts", "problem"),
    [
        ([_layout("a", "b"), _layout("b", "c"), _layout("c", "a")], "cycle"),
        ([_layout("a", "a")], "cycle"),
        ([_layout("a", "z")], r"'a' is to come before \['z'\]"),
        ([_layout("a"), _layout("a")], "two layouts"),
    ],
)
def test_a_wrong_declaration_fails_at_once(layouts: list[Layout], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        in_order(layouts)
