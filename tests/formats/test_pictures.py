"""Pictures that carry an embedding: A1111's own are read, ours are read back to the bit, and by A1111's own functions."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
from io import BytesIO
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, PngImagePlugin

from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import EmbeddingError, NoEmbeddingError
from textual_inversion.formats import describe, load, save
from textual_inversion.formats.containers.picture_data import MAX_PIXELS, hide, tree_from_json, tree_to_json
from textual_inversion.formats.layouts.a1111_picture import draw_card

GOLDEN = Path(__file__).parents[1] / "golden" / "pictures"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
ORIGIN = Provenance(3000, "tiny", "0123456789", "a cat")
FAMILIES = {"SD1": {"clip_l": 768}, "SD2": {"clip_h": 1024}, "clip_g": {"clip_g": 1280}, "SDXL": {"clip_l": 768, "clip_g": 1280}}
slow_each = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _embedding(widths: dict[str, int], n: int = 2, name: str = "my-cat", seed: int = 0) -> Embedding:
    generator = torch.Generator().manual_seed(seed)
    return Embedding(name, {key: torch.randn(n, d, generator=generator) * 0.02 for key, d in widths.items()}, ORIGIN)


def _check_same_bits(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(wanted)
    for key, rows in wanted.items():
        assert torch.equal(found[key].float().view(torch.int32), rows.view(torch.int32))


def _without_texts(path: Path, ending: str = ".png", **how: object) -> Path:
    """A copy of the same pixels, without PNG texts."""
    copy = path.with_name(f"copy{ending}")
    with Image.open(path) as image:
        Image.fromarray(numpy.asarray(image)).save(copy, **how)
    return copy


@pytest.mark.parametrize("name", EXPECTED)
def test_pictures_of_a1111_are_read(name: str) -> None:
    wanted = EXPECTED[name]
    generator = numpy.random.RandomState(wanted["seed"])
    values = {key: generator.standard_normal(shape).astype(numpy.float32) * 0.05 for key, shape in wanted["shapes"].items()}
    _check_same_bits(load(GOLDEN / name).vectors, {key: torch.from_numpy(rows) for key, rows in values.items()})
    info = describe(GOLDEN / name)
    assert (info.layout, info.stored_name, info.dtype) == (wanted["layout"], wanted.get("name"), "fp64")
    assert {key: [info.counts[key], info.widths[key]] for key in info.widths} == wanted["shapes"]
    assert info.provenance == Provenance(wanted.get("step"), wanted.get("sd_checkpoint_name"), wanted.get("sd_checkpoint"))


@pytest.mark.parametrize("name", ["lost-lossy.webp", "lost-scaled.png"])
def test_copies_that_lost_it_are_ordinary_pictures(name: str) -> None:
    with pytest.raises(NoEmbeddingError, match="ordinary picture"):
        load(GOLDEN / name)


@slow_each
@given(family=st.sampled_from(list(FAMILIES)), n=st.integers(1, 75), seed=st.integers(0, 2**31), webp=st.booleans())
def test_what_is_written_reads_back_from_the_text_and_from_the_pixels(tmp_path: Path, family: str, n: int, seed: int, webp: bool) -> None:
    embedding = _embedding(FAMILIES[family], n, seed=seed)
    path = save(embedding, tmp_path / "x.png", overwrite=True)
    back = load(path)
    _check_same_bits(back.vectors, embedding.vectors)
    assert back.provenance == ORIGIN
    assert (describe(path).layout, describe(path).stored_name) == ("PNG chunk", "my-cat")
    copy = _without_texts(path, ".webp", lossless=True, method=0) if webp and n < 20 else _without_texts(path, compress_level=1)
    _check_same_bits(load(copy).vectors, embedding.vectors)
    assert describe(copy).layout == "hidden picture data"
    assert describe(copy).counts == dict.fromkeys(FAMILIES[family], n)


fp32 = arrays.arrays(
    numpy.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@given(values=fp32, words=st.dictionaries(st.text(), st.none() | st.integers() | st.text(), max_size=4))
def test_json_keeps_every_bit_and_every_word(values: numpy.ndarray, words: dict[str, object]) -> None:
    words.pop("TORCHTENSOR", None)
    tree = {"words": words, "rows": {"*": torch.from_numpy(values)}}
    text = tree_to_json(tree)
    back = tree_from_json(text)
    assert back["words"] == words
    assert back["rows"]["*"].shape == values.shape
    _check_same_bits({"*": back["rows"]["*"].read()}, {"*": torch.from_numpy(values)})
    plain = json.loads(text)["rows"]["*"]["TORCHTENSOR"]
    assert all(type(value) is float for row in plain for value in row)


@pytest.mark.parametrize(
    "text", ['{"TORCHTENSOR": [1, 2.5, -3e2]}', '{ "TORCHTENSOR" :\n[ [1, 2.5, -3E2 ] ] }', '{"TORCHTENSOR":[[1,2.5,-300]]}']
)
def test_json_of_other_spacing_and_of_whole_numbers_is_read(text: str) -> None:
    tensor = tree_from_json(text.encode())
    assert tensor.read().flatten().tolist() == [1, 2.5, -300]
    assert tensor.shape == tensor.read().shape


def test_names_that_look_like_tensors_stay_names() -> None:
    name = '{"TORCHTENSOR": [[1]]} \\"TORCHTENSOR": ['
    tree = {"name": name, "*": torch.ones(1, 2)}
    assert tree_from_json(tree_to_json(tree))["name"] == name


def test_equal_embeddings_give_equal_bytes_and_others_another_pattern() -> None:
    first, same, other = _embedding({"clip_l": 768}), _embedding({"clip_l": 768}), _embedding({"clip_l": 768}, seed=1)
    assert draw_card(first) == draw_card(same)
    assert draw_card(first) != draw_card(other)


@pytest.mark.parametrize("name", ["x", "W" * 100, "слово", "猫と犬", "😀", "שלום", "a\nb\0c", "\ud800", "", " ", "i" * 3000, "ß" * 60, "٣"])
@pytest.mark.parametrize("checkpoint", [None, "y" * 300])
def test_any_name_can_be_drawn(tmp_path: Path, name: str, checkpoint: str | None) -> None:
    embedding = Embedding(name, {"clip_l": torch.ones(1, 4)}, Provenance(1, checkpoint))
    (tmp_path / "x.png").write_bytes(draw_card(embedding))
    assert torch.equal(load(tmp_path / "x.png").vectors["clip_l"], torch.ones(1, 4))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (3000, 40), (40, 3000), (640, 400)])
def test_a_card_is_drawn_over_any_picture(tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    embedding = _embedding({"clip_l": 768}, 1)
    (tmp_path / "x.png").write_bytes(draw_card(embedding, Image.new(mode, size)))
    with Image.open(tmp_path / "x.png") as card:
        assert 384 <= card.height <= 1024
        assert 384 <= card.width <= 1100
    _check_same_bits(load(_without_texts(tmp_path / "x.png")).vectors, embedding.vectors)


def test_the_card_shows_its_texts() -> None:
    def face(**changes: object) -> numpy.ndarray:
        origin = Provenance(**{"step": 5, "checkpoint_name": "m", **changes})  # type: ignore[arg-type]
        with Image.open(BytesIO(draw_card(Embedding("word", {"clip_l": torch.ones(1, 8)}, origin)))) as card:
            return numpy.asarray(card)[-170:]

    usual = face()
    assert (usual.min(axis=2) > 230).mean() > 0.005  # white letters
    assert (face(step=6) != usual).any()
    assert (face(checkpoint_name="n") != usual).any()


def test_unusual_encoders_and_too_many_values_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(EmbeddingError, match="one text encoder, or clip_l and clip_g"):
        save(Embedding("x", {"clip_l": torch.ones(1, 4), "clip_h": torch.ones(1, 4)}), tmp_path / "x.png")
    noise = numpy.random.default_rng(0).bytes(MAX_PIXELS * 2)
    with pytest.raises(EmbeddingError, match="too many values for a picture"):
        hide(numpy.zeros((512, 512, 3), numpy.uint8), noise, numpy.ones(1))


@pytest.mark.hosts
@pytest.mark.parametrize("family", FAMILIES)
def test_a1111_reads_ours(tmp_path: Path, family: str) -> None:
    """`A1111` in the environment names the folder of a copy of A1111."""
    if "A1111" not in os.environ:
        pytest.skip("A1111 is not set to the folder of a copy of A1111")
    path = Path(os.environ["A1111"], "modules/textual_inversion/image_embedding.py")
    spec = importlib.util.spec_from_file_location("a1111_image_embedding", path)
    a1111 = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(a1111)
    embedding = _embedding(FAMILIES[family], 8)
    with Image.open(save(embedding, tmp_path / "x.png")) as image:
        for tree in (a1111.embedding_from_b64(image.text["sd-ti-embedding"]), a1111.extract_image_data_embed(image)):
            assert tree == tree | ({} if family == "SDXL" else {"name": "my-cat", "step": 3000, "sd_checkpoint_name": "tiny"})
            found = tree if family == "SDXL" else dict(zip(FAMILIES[family], tree["string_to_param"].values()))
            _check_same_bits(found, embedding.vectors)


def test_old_pillow_draws_with_its_font_of_dots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("textual_inversion.formats.layouts.picture_card._open_font", lambda name, size: None)
    (tmp_path / "x.png").write_bytes(draw_card(_embedding({"clip_l": 768}, name="Füße und 猫")))
    assert load(tmp_path / "x.png").num_vectors == 2


def test_metadata_that_is_damaged_or_false_is_left_out(tmp_path: Path) -> None:
    tree = tree_to_json({"string_to_param": {"*": torch.ones(1, 4)}, "step": 7})
    for metadata in ("{", "[1]", '{"ti_step": "9", "ti_name": 5, "initializer_text": "a cat"}', "[" * 60_000, "ü"):
        texts = PngImagePlugin.PngInfo()
        texts.add_text("sd-ti-embedding", base64.b64encode(tree).decode())
        texts.add_text("sd-ti-metadata", metadata)
        Image.new("RGB", (2, 2)).save(tmp_path / "x.png", pnginfo=texts)
        info = describe(tmp_path / "x.png")
        assert info.provenance.step == 7  # A1111's dict comes first
        assert info.provenance.initializer_text == ("a cat" if "a cat" in metadata else None)
