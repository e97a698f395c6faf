"""Names of results, and their numbers from run to run."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.pictures.folder import caption_for
from textual_inversion.preprocess.destination import caption_stem, number_sources, place_of, result_name
from textual_inversion.preprocess.layout import FLIPS

STEM = st.text(alphabet="ab01-_ .", min_size=1, max_size=5).filter(lambda text: not text.startswith(".") and not text.endswith("."))


@given(STEM, st.integers(0, 200_000), st.integers(0, 20), st.sampled_from(list(FLIPS)))
def test_a_result_has_the_caption_of_its_source_and_a_place_of_its_own(stem: str, number: int, part: int, flip: str) -> None:
    folder, name = Path("nowhere"), result_name(number, stem, part, flip)
    assert caption_for(folder / name) == caption_for(folder / f"{stem}.jpg")
    assert place_of(name) == (number, part * 4 + FLIPS[flip])
    assert place_of(f"{stem}.jpg") is None


@given(st.lists(st.tuples(STEM, st.sampled_from([".png", ".jpg"])), unique=True, max_size=8), st.data())
def test_a_second_run_finds_the_results_of_the_first(names: list[tuple[str, str]], data: st.DataObject) -> None:
    sources = [Path(stem + ending) for stem, ending in names]
    first = number_sources(sources, [])
    assert first == list(range(len(sources)))
    results = {(number, source.stem) for number, source in zip(first, sources)}
    assert number_sources(sources, results) == first

    added = list(sources)
    for place in range(data.draw(st.integers(0, 3))):
        added.insert(data.draw(st.integers(0, len(added))), Path(f"new{place}.png"))
    numbers = number_sources(added, results)
    assert len(set(numbers)) == len(added)
    again = {(number, source.stem) for number, source in zip(numbers, added)}
    assert results <= again


@given(st.text(max_size=300))
def test_a_caption_makes_a_file_name(caption: str) -> None:
    stem = caption_stem(caption)
    assert len(result_name(0, stem or "x").encode("utf-8", errors="ignore")) < 255
    assert not set(stem) & set('<>:"/\\|?*\0\n')
    assert stem == stem.strip(" ")
