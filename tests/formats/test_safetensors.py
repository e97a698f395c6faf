"""The safetensors layout: what is written reads back, other libraries agree, and damaged headers say so."""

from __future__ import annotations

import json
import struct

import pytest
import safetensors
import safetensors.torch
import torch

from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import EmbeddingError, UnknownLayoutError
from textual_inversion.formats import describe, load, save

ORIGIN = Provenance(step=300, checkpoint_name="tiny", checkpoint_hash="0123456789", initializer_text="a red cat")


def test_emb_params_is_what_the_safetensors_library_reads(tmp_path):
    vectors = torch.randn(3, 768)
    path = save(Embedding("cat", {"clip_l": vectors}, ORIGIN), tmp_path / "cat.safetensors")
    with safetensors.safe_open(str(path), "pt") as file:
        assert list(file.keys()) == ["emb_params"]
        assert torch.equal(file.get_tensor("emb_params"), vectors)
        assert file.metadata() == {
            "format": "pt",
            "ti_name": "cat",
            "ti_step": "300",
            "sd_checkpoint_name": "tiny",
            "sd_checkpoint": "0123456789",
            "initializer_text": "a red cat",
        }


def test_sdxl_is_written_as_clip_l_and_clip_g_and_reads_back(tmp_path):
    vectors = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}
    path = save(Embedding("cat", vectors, ORIGIN), tmp_path / "cat.safetensors")
    assert set(safetensors.torch.load_file(path)) == {"clip_l", "clip_g"}
    back = load(path)
    assert back.family == "SDXL"
    assert all(torch.equal(back.vectors[key], value) for key, value in vectors.items())
    assert back.provenance == ORIGIN


def test_the_same_embedding_gives_the_same_bytes(tmp_path):
    embedding = Embedding("cat", {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}, ORIGIN)
    first, second = (save(embedding, tmp_path / name).read_bytes() for name in ("a.safetensors", "b.safetensors"))
    assert first == second


@pytest.mark.parametrize(
    ("dtype", "shown"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16"), (torch.float32, "fp32"), (torch.float64, "fp64")]
)
def test_every_float_type_is_read_as_fp32_and_described_as_stored(tmp_path, dtype, shown):
    vectors = torch.randn(2, 1024).to(dtype)
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"emb_params": vectors}, path)
    back = load(path)
    assert back.vectors["clip_h"].dtype == torch.float32
    assert torch.equal(back.vectors["clip_h"], vectors.float())
    assert describe(path).dtype == shown


def test_onetrainers_encoder_outputs_are_left_out(tmp_path):
    path = tmp_path / "x.safetensors"
    rows = {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280), "clip_g_out": torch.zeros(1, 1280)}
    safetensors.torch.save_file(rows, path)
    assert set(load(path).vectors) == {"clip_l", "clip_g"}


@pytest.mark.parametrize("step", ["-1", "many", "1e3", "9" * 30, "²"])
def test_a_step_that_is_no_count_is_unknown(tmp_path, step):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"emb_params": torch.ones(1, 768)}, path, metadata={"ti_step": step})
    assert load(path).provenance.step is None


def test_the_name_inside_the_file_is_only_shown(tmp_path):
    path = tmp_path / "my cat.safetensors"
    safetensors.torch.save_file({"emb_params": torch.ones(1, 768)}, path, metadata={"ti_name": "../../x\n<b>"})
    assert load(path).name == "my cat"
    assert describe(path).stored_name == "../../x<b>"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"lora_up.weight": torch.ones(4, 4)}, r"'lora_up.weight' \[4, 4\]"),
        ({"clip_l": torch.ones(1, 768), "emb_params": torch.ones(1, 768)}, "clip_l"),
        ({"emb_params": torch.ones(1, 768), "t5": torch.ones(1, 4096)}, "t5"),
    ],
)
def test_other_tensors_are_an_unknown_layout_with_its_keys(tmp_path, tensors, says):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(UnknownLayoutError, match=says):
        load(path)


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(1, 768, dtype=torch.int64), torch.ones(2, 2, 768), torch.tensor(1.0), torch.ones(76, 8), torch.full((1, 8), torch.nan)],
)
def test_a_tensor_that_cannot_be_vectors_is_refused_with_the_files_name(tmp_path, tensor):
    path = tmp_path / "odd.safetensors"
    safetensors.torch.save_file({"emb_params": tensor}, path)
    with pytest.raises(EmbeddingError) as error:
        load(path)
    assert error.value.path == path


def test_a_single_vector_without_its_first_dimension_is_one_row(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"emb_params": torch.ones(768)}, path)
    assert load(path).vectors["clip_l"].shape == (1, 768)


def _file(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def _entry(shape: list, offsets: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "data",
    [
        _file({"emb_params": _entry([1, 4], [0, 16])}, b"\0" * 16, length=2**63),
        _file({"emb_params": _entry([1, 4], [0, 16])}, b"\0" * 15),
        _file({"emb_params": _entry([1, 4], [0, 16])}, b"\0" * 17),
        _file({"emb_params": _entry([2**20, 2**20], [0, 16])}, b"\0" * 16),
        _file({"emb_params": _entry([-1, -4], [0, 16])}, b"\0" * 16),
        _file({"emb_params": _entry([1, 4], [16, 0])}, b"\0" * 16),
        _file({"emb_params": _entry([1, 4.0], [0, 16])}, b"\0" * 16),
        _file({"emb_params": _entry([0, 4], [0, 0])}),
        _file({"emb_params": _entry([1, 4], [0, 16], "F8_E4M3")}, b"\0" * 16),
        _file({"a": _entry([1, 4], [0, 16]), "b": _entry([1, 4], [8, 24])}, b"\0" * 24),
        _file({"emb_params": 3}, b"\0" * 16),
        _file({"__metadata__": {"a": 1}, "emb_params": _entry([1, 4], [0, 16])}, b"\0" * 16),
        _file(b'{"a":{},"a":{}}'),
        _file(b'{"a":' * 100_000),
        _file(b"{\xff}"),
        b"\0\0\0\0\0\0\0\0{",
    ],
)
def test_a_lying_header_is_one_sentence(tmp_path, data):
    path = tmp_path / "liar.safetensors"
    path.write_bytes(data)
    with pytest.raises(EmbeddingError) as error:
        load(path)
    assert error.value.path == path
    assert "\n" not in error.value.reason
