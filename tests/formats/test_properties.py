"""For any embedding: what is written reads back exactly; for any damage: an error of this package or an embedding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textual_inversion.embedding import Embedding, Provenance, check_name, clean_name
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats import describe, load, save
from textual_inversion.formats.layout import as_text

LAYOUTS = pytest.mark.parametrize("ending", [".safetensors", ".pt"])
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.none() | st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"]), min_size=1, max_size=80).filter(
    lambda t: as_text(t) == t
)
provenances = st.builds(Provenance, st.none() | st.integers(0, 2**53), texts, texts, texts)
names = st.text(max_size=120).map(clean_name)


@st.composite
def embeddings(draw: st.DrawFn, sdxl: bool) -> Embedding:
    n = draw(st.integers(1, 75))
    seed = draw(st.integers(0, 2**31))
    scale = draw(st.sampled_from([1e-40, 1.0, 1e38]))  # denormal, usual, near the largest
    generator = torch.Generator().manual_seed(seed)
    widths = {"clip_l": draw(st.sampled_from([1, 7, 64, 768]))} if not sdxl else {"clip_l": 768, "clip_g": 1280}
    return Embedding(
        draw(names), {key: torch.rand(n, d, generator=generator) * 2 * scale - scale for key, d in widths.items()}, draw(provenances)
    )


def _same(left: Embedding, right: Embedding) -> bool:
    return left.widths == right.widths and all(torch.equal(left.vectors[key], right.vectors[key]) for key in left.vectors)


@quick
@given(embedding=embeddings(sdxl=False) | embeddings(sdxl=True))
def test_safetensors_reads_back_exactly(tmp_path: Path, embedding: Embedding) -> None:
    path = save(embedding, tmp_path / "x.safetensors", overwrite=True)
    back = load(path, embedding.name)
    assert _same(back, embedding)
    assert (back.name, back.provenance) == (embedding.name, embedding.provenance)
    assert describe(path).stored_name == embedding.name


@quick
@given(embedding=embeddings(sdxl=False))
def test_a1111_pt_reads_back_all_but_the_initialization_text(tmp_path: Path, embedding: Embedding) -> None:
    back = load(save(embedding, tmp_path / "x.pt", overwrite=True), embedding.name)
    assert _same(back, embedding)
    assert back.provenance == embedding.with_vectors(embedding.vectors, initializer_text=None).provenance


@quick
@given(embedding=embeddings(sdxl=False))
def test_diffusers_reads_back_exactly(tmp_path: Path, embedding: Embedding) -> None:
    path = save(embedding, tmp_path / "x.safetensors", layout="diffusers", overwrite=True)
    back = load(path, embedding.name)
    assert _same(back, embedding)
    assert (back.name, back.provenance) == (embedding.name, embedding.provenance)


@pytest.mark.parametrize(
    "name",
    [
        "t5",
        "clip_l",
        "clip_g_out",
        "emb_params",
        "lora_unet_x",
        "text_encoders_0",
        "params",
        "hash",
        "__metadata__",
        "x_1",
        "my.lora_up.cat",
    ],
)
@pytest.mark.parametrize("layout", ["safetensors", "diffusers"])
def test_a_name_that_is_a_key_elsewhere_reads_back_all_the_same(tmp_path: Path, name: str, layout: str) -> None:
    embedding = Embedding(name, {"clip_l": torch.rand(2, 768)})
    path = save(embedding, tmp_path / f"{name}.safetensors", layout=layout)
    assert _same(load(path), embedding)
    assert (load(path).name, describe(path).layout) == (name, layout)


@quick
@given(text=st.text(), step=st.none() | st.integers(-(10**40), 10**40))
def test_any_text_can_be_written_and_comes_back_harmless(tmp_path: Path, text: str, step: int | None) -> None:
    origin = Provenance(step, text, text, text)
    for ending in (".safetensors", ".pt"):
        back = load(save(Embedding(text, {"clip_l": torch.ones(1, 4)}, origin), tmp_path / f"x{ending}", overwrite=True))
        assert back.provenance.checkpoint_name == as_text(text)
        assert back.provenance.step is None or back.provenance.step == step


@settings(deadline=None)
@given(text=st.text())
def test_a_cleaned_name_is_a_name_and_stays_as_it_is(text: str) -> None:
    name = clean_name(text)
    assert check_name(name) == name == clean_name(name)


@pytest.fixture(params=["safetensors", "zip", "legacy"])
def small_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    embedding = Embedding("x", {"clip_l": torch.rand(1, 4)}, Provenance(3, "m", "ab", "a cat"))
    path = tmp_path / "x.pt"
    if request.param == "safetensors":
        return save(embedding, path.with_suffix(".safetensors"))
    torch.save({"string_to_param": {"*": embedding.vectors["clip_l"]}}, path, _use_new_zipfile_serialization=request.param == "zip")
    return path


def _check_errors_or_embeddings(path: Path, data: bytes) -> None:
    """Any other exception than the package's fails the test."""
    path.write_bytes(data)
    try:
        outcome: Embedding | EmbeddingError = load(path)
    except EmbeddingError as error:
        outcome = error
    assert isinstance(outcome, Embedding) or (outcome.path == path and "\n" not in outcome.reason)


def test_truncation_at_every_byte(small_file: Path) -> None:
    data = small_file.read_bytes()
    for length in range(len(data)):
        small_file.write_bytes(data[:length])
        with pytest.raises(EmbeddingError):
            load(small_file)


def test_every_flipped_byte(small_file: Path) -> None:
    data = small_file.read_bytes()
    for position in range(len(data)):
        for flip in (0xFF, 1 << position % 8):
            _check_errors_or_embeddings(small_file, data[:position] + bytes([data[position] ^ flip]) + data[position + 1 :])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage(small_file: Path, data: st.DataObject) -> None:
    path = small_file.with_name("damaged.pt")
    content = bytearray(small_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    _check_errors_or_embeddings(path, bytes(content))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(head=st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04", b"\x10\0\0\0\0\0\0\0{"]), rest=st.binary(max_size=200))
def test_random_bytes(tmp_path: Path, head: bytes, rest: bytes) -> None:
    _check_errors_or_embeddings(tmp_path / "x.pt", head + rest)
