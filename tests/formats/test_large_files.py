"""Files that are large for a reason that does not matter, and files that are no embeddings at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from textual_inversion import formats
from textual_inversion.errors import EmbeddingError, UnsafeFileError
from textual_inversion.formats.containers import file_bytes, torch_file


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four megabytes count as large, so that the test needs no gigabytes."""
    for module in (file_bytes, torch_file):
        monkeypatch.setattr(module, "MAX_READ_BYTES", 2**22)


def row_of_a_table(path: Path, *, zipped: bool = True) -> torch.Tensor:
    """One row of a whole token table, as training on a CPU saved it."""
    table = torch.arange(2000 * 768, dtype=torch.float32).reshape(2000, 768) / 1e6
    torch.save({"<thing>": table[100]}, path, _use_new_zipfile_serialization=zipped)
    return table[100:101].clone()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_row_of_a_whole_table_is_read_alone(tmp_path: Path, small_limit: None, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    row = row_of_a_table(tmp_path / "thing.bin", zipped=zipped)
    longest = []
    read = file_bytes.FileBytes.read
    monkeypatch.setattr(file_bytes.FileBytes, "read", lambda self, begin, end: (longest.append(end - begin), read(self, begin, end))[1])
    assert formats.describe(tmp_path / "thing.bin").counts == {"clip_l": 1}
    assert torch.equal(formats.load(tmp_path / "thing.bin").vectors["clip_l"], row)
    assert max(longest) <= 2**22
    formats.save(formats.load(tmp_path / "thing.bin"), tmp_path / "small.safetensors")
    assert (tmp_path / "small.safetensors").stat().st_size < 10_000


def test_damage_in_a_large_table_is_noticed(tmp_path: Path, small_limit: None) -> None:
    row_of_a_table(tmp_path / "thing.bin")
    data = bytearray((tmp_path / "thing.bin").read_bytes())
    data[len(data) // 2] ^= 255
    (tmp_path / "thing.bin").write_bytes(data)
    with pytest.raises(EmbeddingError, match="cut off or damaged"):
        formats.load(tmp_path / "thing.bin")
    (tmp_path / "cut.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(EmbeddingError, match="cut off or damaged"):
        formats.describe(tmp_path / "cut.bin")


def test_a_checkpoint_is_named_and_code_is_still_refused(tmp_path: Path, small_limit: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "EMBEDDING_LIMITS", replace(torch_file.EMBEDDING_LIMITS, elements=2**18))
    torch.save({f"layer.{index}": torch.randn(512, 512) for index in range(4)}, tmp_path / "model.ckpt")
    with pytest.raises(EmbeddingError, match="more in it than an embedding has, so this may be a LoRA or a checkpoint") as caught:
        formats.describe(tmp_path / "model.ckpt")
    assert not isinstance(caught.value, UnsafeFileError)

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("ran",)

    torch.save({"<thing>": torch.randn(2000, 768), "x": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(UnsafeFileError):
        formats.describe(tmp_path / "evil.bin")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n  <HTML lang=en>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "error message of a server"),
        (b'\xef\xbb\xbf{"error": "Unauthorized"}', "error message of a server"),
        (b'{"steps": 3}', "JSON text"),
        (b"%PDF-1.7", "a PDF; it holds no embedding"),
        (b"Rar!\x1a\x07\x01\x00", "a packed archive .RAR.; unpack it"),
        (b"7z\xbc\xaf\x27\x1c", "a packed archive .7z.; unpack it"),
        (b"\x1f\x8b\x08\x00", "a packed archive .gzip.; unpack it"),
        (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
        (b"\0" * 5000, "download was not finished"),
        (b"hello there", "no safetensors file, PyTorch file or picture"),
    ],
)
def test_what_is_no_embedding_is_named_as_what_it_is(tmp_path: Path, data: bytes, words: str) -> None:
    for ending in (".safetensors", ".pt", ".bin"):
        (tmp_path / f"x{ending}").write_bytes(data)
        with pytest.raises(EmbeddingError, match=words):
            formats.describe(tmp_path / f"x{ending}")
