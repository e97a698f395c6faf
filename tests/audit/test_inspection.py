"""Inspecting one file: the verdict, the lengths and the nearest words, for good files and for every kind of bad one."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file

from textual_inversion.audit.inspect import TokenTable, inspect_file
from textual_inversion.audit.judge import judge
from textual_inversion.diffusion.checkpoint import TEXT, token_tables
from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import CheckpointError
from textual_inversion.formats import save
from textual_inversion.prompts.tokenizer import default_tokenizer

TABLE = "text_model.embeddings.token_embedding.weight"
PROTOCOL_0_ATTACK = b"cposix\nsystem\n(S'echo ran'\ntR."


@pytest.fixture(scope="module")
def words() -> torch.Tensor:
    """A vocabulary of directions of length 0.4, with some rows of zeros as small checkpoints have."""
    table = torch.randn(49408, 32, generator=torch.Generator().manual_seed(1))
    table = 0.4 * torch.nn.functional.normalize(table, dim=1)
    table[:100] = 0
    return table.half()


@pytest.fixture(scope="module")
def vocabulary(words) -> TokenTable:
    return TokenTable("model.safetensors", {"clip_l": words})


def embedding_file(folder: Path, name: str = "x.safetensors", **vectors: torch.Tensor) -> Path:
    """An embedding file made without the checks of `save`, so that it may hold NaN."""
    vectors = {"emb_params": vectors.pop("clip_l")} if set(vectors) == {"clip_l"} else vectors
    save_file({key: value.contiguous() for key, value in vectors.items()}, folder / name)
    return folder / name


def row(words: torch.Tensor, text: str) -> torch.Tensor:
    (token,) = default_tokenizer().encode(text)
    return words[token].float()


def test_nearest_words_lengths_and_verdict(tmp_path, words, vocabulary):
    path = embedding_file(tmp_path, clip_l=torch.stack([row(words, "cat"), 2 * row(words, "dog")]))
    seen = inspect_file(path, vocabulary)
    (report,) = seen.embeddings
    first, second = report.vectors["clip_l"]
    assert (first.nearest[0], second.nearest[0]) == (("cat", 1.0), ("dog", 1.0))
    assert len(first.nearest) == 5
    assert first.nearest[1][1] < 0.95
    assert (first.norm, second.norm) == (pytest.approx(0.4, rel=1e-2), pytest.approx(0.8, rel=1e-2))
    length = report.words["clip_l"]
    assert length.low <= length.median <= length.high
    assert length.low == pytest.approx(0.4, rel=1e-2)  # the zero rows are left out
    assert (seen.kind, seen.verdict) == ("ok", "usable with checkpoints whose words are 32 wide.")
    assert report.misfit == report.without_nearest == ""
    assert seen.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert seen.infotext_hash == seen.sha256[:12]


def test_lengths_and_cosines_are_those_of_a_plain_computation(tmp_path, words, vocabulary):
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    (report,) = inspect_file(embedding_file(tmp_path, clip_l=rows), vocabulary).embeddings
    cosines = torch.nn.functional.cosine_similarity(rows[:, None].double(), words[None].double(), dim=2)
    for index, vector in enumerate(report.vectors["clip_l"]):
        assert [cosine for _, cosine in vector.nearest] == pytest.approx(cosines[index].topk(5).values.tolist(), abs=1e-3)
        assert vector.norm == pytest.approx(float(rows[index].norm()))
    norms = words.double().norm(dim=1)
    assert report.words["clip_l"].median == pytest.approx(float(norms[norms > 0].median()), abs=1e-4)


def test_a_token_that_begins_a_longer_word_ends_in_an_ellipsis(tmp_path, words, vocabulary):
    part = default_tokenizer().vocabulary.index("cat")
    (report,) = inspect_file(embedding_file(tmp_path, clip_l=words[part : part + 1].float()), vocabulary).embeddings
    assert report.vectors["clip_l"][0].nearest[0][0] == "cat…"


@pytest.mark.parametrize(
    ("times", "words_of_it"), [(5, ""), (12, "12 times longer than words: it may drown"), (40, "40 times longer than words: overtrained")]
)
def test_long_vectors_are_in_the_verdict(tmp_path, words, vocabulary, times, words_of_it):
    seen = inspect_file(embedding_file(tmp_path, clip_l=times * row(words, "cat")[None]), vocabulary)
    assert seen.kind == "ok"
    assert words_of_it in seen.verdict
    assert ("longer" in seen.verdict) is bool(words_of_it)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_damage_and_the_rest_is_shown(tmp_path, words, vocabulary, bad):
    rows = torch.stack([row(words, "cat"), torch.full((32,), bad), row(words, "dog")])
    seen = inspect_file(embedding_file(tmp_path, clip_l=rows), vocabulary)
    assert seen.kind == "damaged"
    assert seen.verdict == "damaged: vector 2 for clip_l holds NaN or infinity, so pictures would be black."
    vectors = seen.embeddings[0].vectors["clip_l"]
    assert [vector.norm is None for vector in vectors] == [False, True, False]
    assert vectors[1].nearest == ()
    assert vectors[2].nearest[0][0] == "dog"


def test_zero_vectors_a_zero_half_and_unequal_counts_are_in_the_verdict(tmp_path):
    assert "not trained yet" in inspect_file(embedding_file(tmp_path, clip_l=torch.zeros(2, 768))).verdict
    rows = torch.ones(3, 768)
    rows[1] = 0
    assert "1 of its 3 vectors is zero" in inspect_file(embedding_file(tmp_path, clip_l=rows)).verdict
    half = inspect_file(embedding_file(tmp_path, clip_l=torch.zeros(2, 768), clip_g=torch.ones(2, 1280)))
    assert (
        half.verdict
        == "usable with SDXL checkpoints, but its clip_l half is zero, as embedding-merge leaves it, and changes nothing there."
    )
    assert all(vector.zero for vector in half.embeddings[0].vectors["clip_l"])
    (tmp_path / "half").mkdir()
    save_file({"clip_g": torch.ones(1, 1280)}, tmp_path / "half" / "x.safetensors")
    assert "only one half" in inspect_file(tmp_path / "half" / "x.safetensors").verdict
    unequal = inspect_file(embedding_file(tmp_path, clip_l=torch.ones(1, 768), clip_g=torch.ones(2, 1280)))
    assert "1 vector for clip_l" in unequal.verdict
    assert "2 vectors for clip_g" in unequal.verdict


def test_an_embedding_that_does_not_fit_says_so_and_why_it_has_no_nearest_words(tmp_path, vocabulary):
    seen = inspect_file(embedding_file(tmp_path, clip_l=torch.ones(1, 768), clip_g=torch.ones(1, 1280)), vocabulary)
    (report,) = seen.embeddings
    assert "not with model.safetensors: made for SDXL" in seen.verdict
    assert report.without_nearest == report.misfit != ""
    assert report.vectors["clip_g"][0].nearest == ()
    (report,) = inspect_file(embedding_file(tmp_path, clip_l=torch.ones(1, 768))).embeddings
    assert (report.misfit, report.without_nearest) == ("", "give a checkpoint that it is for")


def test_an_sdxl_vocabulary_is_compared_encoder_by_encoder(tmp_path, words):
    other = words.roll(7, dims=0)
    table = TokenTable(
        "xl.safetensors", {"clip_l": torch.nn.functional.pad(words, (0, 736)), "clip_g": torch.nn.functional.pad(other, (0, 1248))}
    )
    rows = {
        "clip_l": torch.nn.functional.pad(row(words, "cat"), (0, 736))[None],
        "clip_g": torch.nn.functional.pad(row(other, "dog"), (0, 1248))[None],
    }
    (report,) = inspect_file(embedding_file(tmp_path, **rows), table).embeddings
    assert report.vectors["clip_l"][0].nearest[0][0] == "cat"
    assert report.vectors["clip_g"][0].nearest[0][0] == "dog"


def test_provenance_is_shown(tmp_path):
    origin = Provenance(500, "anything-v3", "6569e224c1", "small cat")
    path = save(Embedding("x", {"clip_l": torch.ones(1, 768)}, origin), tmp_path / "x.safetensors")
    assert inspect_file(path).embeddings[0].info.provenance == origin


# bad files ------------------------------------------------------------------------------------------------------------


def legacy(tree: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def tar_archive(name: str = "storages") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(PROTOCOL_0_ATTACK)
        archive.addfile(info, io.BytesIO(PROTOCOL_0_ATTACK))
    return buffer.getvalue()


def two_faced(marker: Path, before: bytes = b"") -> bytes:
    """A whole safetensors file that as a pickle makes the folder `marker`.

    The first byte of the header's length is `X`, a text of 200 bytes that ends inside the metadata; there short texts follow each
    other, each thrown away at once, and the last of them ends behind the header, where the tensor's data calls.
    """
    k = 200
    end = 8 + ord("X") + 256 * k
    body = bytearray((end - 8).to_bytes(8, "little"))
    body += b'{"emb_params":{"dtype":"F32","shape":[1,768],"data_offsets":[0,3072]},"__metadata__":{"m":"'
    body = body.ljust(5 + k, b"a") + b"0"
    while len(body) < end - 100:
        body += b"U " + b"a" * 32 + b"0"
    skipped = len(body) + 2 + 126
    body = (body + b"U~").ljust(end - 3, b"a") + b'"}}'
    return bytes(body.ljust(skipped, b"\0") + b"0" + before + b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR.").ljust(end + 3072, b"\0")


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("x.pt", b"", "damaged"),
        ("x.pt", b"<!DOCTYPE html><html>not found</html>", "not an embedding"),
        ("x.safetensors", b"<!DOCTYPE html><html>not found</html>", "not an embedding"),
        ("x.pt", legacy({"a": 1})[:-3], "damaged"),
        ("x.pt", legacy({"string_to_param": {"*": torch.ones(1, 768)}})[:-3], "damaged"),
        ("x.pt", legacy({"string_to_param": {"*": torch.ones(1, 768)}})[:200], "damaged"),  # the pickle itself is cut off
        ("x.pt", pickle.dumps(OrderedDict(a=1), 0), "not an embedding"),  # imports, but nothing that acts
        ("x.safetensors", (10**9).to_bytes(8, "little") + b"{}", "damaged"),
        ("x.pt", pickle.dumps(print), "unsafe"),
        ("x.pt", PROTOCOL_0_ATTACK, "unsafe"),
        ("x.bin", b"L119547037146038801333356L\n." + PROTOCOL_0_ATTACK, "unsafe"),
        ("x.pt", tar_archive(), "unsafe"),
        ("x.pt", b"\x80\x02NX\x01\0\0\0{0" + PROTOCOL_0_ATTACK, "unsafe"),  # its ninth byte is that of a safetensors header
        ("x.safetensors", PROTOCOL_0_ATTACK, "not an embedding"),  # no program unpickles that ending
        ("x.safetensors", pickle.dumps(print), "unsafe"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, name, data, kind):
    path = tmp_path / name
    path.write_bytes(data)
    seen = inspect_file(path)
    assert seen.kind == kind, seen.verdict
    assert seen.verdict.startswith(f"{kind}: ")
    assert seen.verdict.endswith(".")
    assert str(path) not in seen.verdict
    assert seen.embeddings == ()
    assert seen.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("ending", [".pt", ".bin"])
def test_data_here_that_is_a_program_elsewhere_is_unsafe(tmp_path, ending):
    marker = tmp_path / "ran"
    data = two_faced(marker)
    assert load_safetensors(data)["emb_params"].shape == (1, 768)  # an honest file to the library
    pickle.loads(data)
    marker.rmdir()  # and a program to Python
    (tmp_path / f"x{ending}").write_bytes(data)
    (tmp_path / "x.safetensors").write_bytes(data)
    seen = judge(tmp_path / f"x{ending}")
    assert (seen.kind, seen.dangerous, seen.embeddings) == ("unsafe", True, ())
    assert "to programs that go by its ending it is a pickle" in seen.verdict
    assert judge(tmp_path / "x.safetensors").kind == "ok"
    assert not marker.exists()


#: What the reader here takes for damage, and Python's unpickler passes over on its way to what follows.
PASSED_OVER = {
    "long number": b"\x8a\x20" + b"\1" * 32 + b"0",
    "long line": b"S'" + b"a" * 1200 + b"'\n0",
    "letters": "S'é'\n0".encode(),
    "hexadecimal": b"I0x10\n0",
    "zero byte": b"I5\0x\n0",
    "key": b"}(K\1K\2tK\1s0",
    "many": b"N0" * 26_000,
}


@pytest.mark.parametrize("trick", PASSED_OVER)
def test_a_pickle_that_only_this_reader_stops_at_is_unsafe(tmp_path, trick):
    marker = tmp_path / "ran"
    attack = PASSED_OVER[trick] + b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR."
    pickle.loads(attack, encoding="utf-8")
    marker.rmdir()
    for data in (attack, two_faced(marker, PASSED_OVER[trick][:2000])):
        (tmp_path / "x.pt").write_bytes(data)
        judged = judge(tmp_path / "x.pt")
        assert (judged.kind, judged.dangerous) == ("unsafe", True), judged.verdict
    assert not marker.exists()


@pytest.mark.parametrize(
    "said", [b"Invalid username or password.", b"Entry not found", b'{"error": 1}', b"version https://git-lfs", b"G", b"X\xff"]
)
def test_a_download_that_failed_is_no_pickle(tmp_path, said):
    (tmp_path / "x.pt").write_bytes(said)
    assert judge(tmp_path / "x.pt").kind == "not an embedding"


def test_a_tar_archive_is_recognised_by_its_first_block(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = b"x", 2**20  # Python takes hours over so many digits there
    (tmp_path / "x.pt").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + b"1" * 2**20)
    begun = time.monotonic()
    assert judge(tmp_path / "x.pt").kind == "unsafe"
    assert time.monotonic() - begun < 5


def test_the_beginning_of_a_large_file_is_judged_as_a_pickle_too(tmp_path):
    path = tmp_path / "x.pt"
    rows = b'{"bundle_emb.cat.emb_params":{"dtype":"F32","shape":[1,8],"data_offsets":[0,32]},'
    header = rows + b'"w":{"dtype":"U8","shape":[%d],"data_offsets":[32,%d]}}' % (66 * 2**20, 66 * 2**20 + 32)
    for length, kind in ((0x1058, "unsafe"), (0x1068, "ok")):  # the first begins as a text of 16 bytes, behind which a longer one begins
        text = header[:13] + b"X" + header[14:] if kind == "unsafe" else header
        with path.open("wb") as file:
            file.write(length.to_bytes(8, "little") + text.ljust(length))
            file.truncate(8 + length + 32 + 66 * 2**20)
        assert judge(path).kind == kind


def test_a_file_that_cannot_be_read_is_unchecked(tmp_path):
    for path in (tmp_path / "gone.pt", tmp_path, Path("a\0b.pt"), tmp_path / ("x" * 300 + ".pt")):
        seen = inspect_file(path)
        assert (seen.kind, seen.sha256, seen.size) == ("unchecked", "", seen.size)


def test_a_pickle_that_is_too_large_to_be_checked_is_not_called_harmless(tmp_path):
    path = tmp_path / "x.pt"
    with path.open("wb") as file:
        file.write(b"\x80\x02N0")
        file.truncate(65 * 2**20)
    judged = judge(path)
    assert judged.kind == "unchecked"
    assert not judged.dangerous  # it may be an honest checkpoint: said, not moved


def test_a_pickle_that_is_too_damaged_to_be_checked_is_dangerous(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(b"\x80\x02" + b"N0" * 60_000 + PROTOCOL_0_ATTACK)
    assert judge(path).dangerous
    path = tmp_path / "x.safetensors"
    path.write_bytes((10**9).to_bytes(8, "little") + b"{}")
    assert not judge(path).dangerous


# the token table ------------------------------------------------------------------------------------------------------


def test_token_tables_of_every_family_are_found(tmp_path):
    rows = torch.randn(10, 4)
    for keys in (
        {TEXT + TABLE: "clip_l"},
        {TEXT + TABLE.removeprefix("text_model."): "clip_l"},  # the first SD1 files
        {"cond_stage_model.model.token_embedding.weight": "clip_h"},
        {"conditioner.embedders.0.transformer." + TABLE: "clip_l", "conditioner.embedders.1.model.token_embedding.weight": "clip_g"},
    ):
        tensors = {key: rows + index for index, key in enumerate(keys)}
        save_file(tensors, tmp_path / "model.safetensors")
        tables = token_tables(tmp_path / "model.safetensors")
        assert {key: encoder for key, encoder in keys.items() if torch.equal(tables[encoder], tensors[key])} == keys
        assert len(tables) == len(keys)


@pytest.mark.parametrize(
    "tensors", [{"lora.weight": torch.ones(2, 2)}, {TEXT + TABLE: torch.ones(2, 2, dtype=torch.int8)}, {TEXT + TABLE: torch.ones(4)}]
)
def test_a_checkpoint_without_a_token_table_is_refused(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        TokenTable.read(tmp_path / "model.safetensors")
    assert error.value.path == tmp_path / "model.safetensors"
