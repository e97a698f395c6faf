"""Embeddings that come as two files, and files with several of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from textual_inversion.audit.scan import scan_folder, to_safetensors
from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError
from textual_inversion.formats import save
from textual_inversion.library import EmbeddingLibrary, Entry

SD1 = {"clip_l": 768}
SDXL = {"clip_l": 768, "clip_g": 1280}


def put(path: Path, width: int = 768, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(Embedding(path.stem, {"clip_l" if width == 768 else "clip_h": torch.full((1, width), value)}), path)


def half(path: Path, width: int, count: int = 2, token: str = "<cat>") -> Path:
    save_file({token: torch.full((count, width), float(width))}, path)
    return path


def by_file(library: EmbeddingLibrary) -> dict[str, Entry]:
    return {entry.path.name: entry for entry in library.entries()}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("learned_embeds", "learned_embeds_2"),
        ("learned_embeds-steps-500", "learned_embeds_2-steps-500"),
        ("my_cat", "my_cat_2"),
    ],
)
def test_the_two_files_of_an_sdxl_embedding_are_one(tmp_path: Path, first: str, second: str) -> None:
    half(tmp_path / f"{first}.safetensors", 768)
    half(tmp_path / f"{second}.safetensors", 1280)
    library = EmbeddingLibrary([tmp_path], SDXL)
    assert library.names() == [first]
    found = by_file(library)
    info = found[f"{first}.safetensors"].info
    assert info is not None
    assert (info.family, info.widths, info.num_vectors) == ("SDXL", SDXL, 2)
    assert found[f"{second}.safetensors"].reason == f"it is the second half of {first!r}, which is listed as one SDXL embedding."
    embedding = library.get(first)
    assert embedding.name == first
    assert {key: (tuple(rows.shape), rows[0, 0].item()) for key, rows in embedding.vectors.items()} == {
        "clip_l": ((2, 768), 768.0),
        "clip_g": ((2, 1280), 1280.0),
    }
    assert library.get(first) is embedding
    library.set_width(SD1)
    assert by_file(library)[f"{first}.safetensors"].reason == "made for SDXL: 768 + 1280 wide; this checkpoint takes 768."


def test_a_pair_stays_one_when_both_its_files_are_converted(tmp_path: Path) -> None:
    for name, width in (("learned_embeds", 768), ("learned_embeds_2", 1280)):
        torch.save({"<cat>": torch.full((2, width), float(width))}, tmp_path / f"{name}.bin")
    assert EmbeddingLibrary([tmp_path], SDXL).names() == ["learned_embeds"]
    for file in list(scan_folder(tmp_path)):
        to_safetensors(file, replace=True)
    library = EmbeddingLibrary([tmp_path], SDXL)
    assert library.names() == ["learned_embeds"]
    assert library.get("learned_embeds").widths == SDXL


def test_a_pair_follows_both_of_its_files(tmp_path: Path) -> None:
    half(tmp_path / "cat.safetensors", 768)
    second = half(tmp_path / "cat_2.safetensors", 1280)
    library = EmbeddingLibrary([tmp_path], SDXL)
    library.get("cat")
    save_file({"<cat>": torch.zeros(2, 1280), "other": torch.zeros(1, 1280)}, second)
    library.rescan()
    assert library.names() == []
    half(second, 1280, count=2)
    library.rescan()
    assert library.get("cat").widths == SDXL
    second.unlink()
    library.rescan()
    assert by_file(library)["cat.safetensors"].reason == "made for SD1: 768 wide; this checkpoint takes 768 + 1280."


@pytest.mark.parametrize(
    ("name", "width", "count", "token"),
    [
        ("cat_2", 768, 2, "<cat>"),
        ("cat_2", 1280, 3, "<cat>"),
        ("cat_2", 1280, 2, "<dog>"),
        ("cat_3", 1280, 2, "<cat>"),
        ("cat_2-steps-5", 1280, 2, "<cat>"),
        ("sub/cat_2", 1280, 2, "<cat>"),
    ],
)
def test_a_file_that_only_looks_like_a_second_half_stands_alone(tmp_path: Path, name: str, width: int, count: int, token: str) -> None:
    half(tmp_path / "cat.safetensors", 768)
    (tmp_path / "sub").mkdir()
    half(tmp_path / f"{name}.safetensors", width, count, token)
    assert all("half" not in entry.reason for entry in EmbeddingLibrary([tmp_path], SDXL).entries())
    assert "cat" in EmbeddingLibrary([tmp_path], SD1).names()


def test_dreamartists_negative_belongs_to_its_positive(tmp_path: Path) -> None:
    for name in ("cat", "cat-neg", "dog-neg", "sub/bird", "bird-neg"):
        put(tmp_path / f"{name}.pt")
    put(tmp_path / "old.pt")
    put(tmp_path / "old-neg.pt", width=1024)
    found = by_file(EmbeddingLibrary([tmp_path], SD1))
    assert {name: entry.negative for name, entry in found.items() if entry.negative} == {"cat.pt": "cat-neg"}
    assert [name for name, entry in found.items() if entry.is_negative] == ["cat-neg.pt"]
    assert all(entry.usable for name, entry in found.items() if name != "old-neg.pt")


def test_a_pair_is_none_when_another_file_takes_one_of_its_names(tmp_path: Path) -> None:
    put(tmp_path / "b" / "cat.pt")
    put(tmp_path / "b" / "cat-neg.pt")
    put(tmp_path / "a" / "cat-neg.pt")
    found = {str(entry.path.relative_to(tmp_path)): entry for entry in EmbeddingLibrary([tmp_path / "a", tmp_path / "b"]).entries()}
    assert not any(entry.negative or entry.is_negative for entry in found.values())
    assert "comes first" in found[str(Path("b", "cat-neg.pt"))].reason


def test_a_pair_keeps_together_when_another_folder_has_one_of_its_names(tmp_path: Path) -> None:
    for name in ("a/cat", "a/cat-neg", "b/cat-neg"):
        put(tmp_path / f"{name}.pt")
    library = EmbeddingLibrary([tmp_path / "a", tmp_path / "b"])
    assert library.find("cat").negative == "cat-neg"
    assert [entry.is_negative for entry in library.entries() if entry.name == "cat-neg"] == [True, False]


def test_each_word_of_a_file_is_an_entry(tmp_path: Path) -> None:
    save_file(
        {"<cat-toy>": torch.ones(1, 768), "<x/y>": torch.full((2, 768), 2.0), "BREAK": torch.ones(1, 768)}, tmp_path / "pack.safetensors"
    )
    library = EmbeddingLibrary([tmp_path], SD1)
    assert library.names() == ["break", "cat-toy", "x_y"]
    assert library.get("<x/y>").vectors["clip_l"][:, 0].tolist() == [2.0, 2.0]
    assert library.get("<cat-toy>").name == "cat-toy"


def test_a_single_word_goes_by_the_files_name(tmp_path: Path) -> None:
    save_file({"<anything>": torch.ones(1, 768)}, tmp_path / "cat.safetensors")
    assert EmbeddingLibrary([tmp_path], SD1).names() == ["cat"]


def test_words_that_read_the_same_in_one_file(tmp_path: Path) -> None:
    save_file({"<a b>": torch.ones(1, 768), "a b": torch.ones(1, 768), "a/b": torch.ones(1, 768)}, tmp_path / "pack.safetensors")
    library = EmbeddingLibrary([tmp_path], SD1)
    assert library.names() == ["a b", "a_b"]
    assert [entry.reason for entry in library.entries() if not entry.usable] == [
        "another word in its file gives the same name and comes first; rename one of them."
    ]


def test_an_embedding_that_no_prompt_can_use_is_listed_with_the_reason(tmp_path: Path) -> None:
    layers = [
        f"{side}{index:02}" for side, indices in (("IN", (1, 2, 4, 5, 7, 8)), ("MID", (0,)), ("OUT", range(3, 12))) for index in indices
    ]
    save_file({("MID" if name == "MID00" else name): torch.ones(1, 768) for name in layers}, tmp_path / "xti.safetensors")
    library = EmbeddingLibrary([tmp_path], SD1)
    (entry,) = library.entries()
    assert entry.info is not None
    assert "XTI" in entry.reason
    assert entry.reason.endswith(".")
    with pytest.raises(EmbeddingError) as error:
        library.get("xti")
    assert error.value.path == entry.path
