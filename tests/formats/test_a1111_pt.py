"""A1111's .pt: read from every form that PyTorch writes, written so that A1111 and PyTorch's own safe loading take it."""

from __future__ import annotations

import zipfile
from io import BytesIO

import numpy
import pytest
import torch

from textual_inversion.embedding import Embedding, Provenance
from textual_inversion.errors import EmbeddingError, UnknownLayoutError
from textual_inversion.formats import describe, load, save

ORIGIN = Provenance(step=300, checkpoint_name="tiny", checkpoint_hash="0123456789")
FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def _tree(vectors: object, **more: object) -> dict:
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "inner", "step": 7, **more}


@FORMS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_files_of_torch_save_are_read(tmp_path, zipped, dtype):
    vectors = torch.randn(2, 768).to(dtype)
    torch.save(_tree(vectors, sd_checkpoint="abc", sd_checkpoint_name="m"), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    back = load(tmp_path / "x.pt")
    assert back.name == "x"
    assert torch.equal(back.vectors["clip_l"], vectors.float())
    assert back.provenance == Provenance(7, "m", "abc", None)
    assert describe(tmp_path / "x.pt").stored_name == "inner"


@FORMS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(tmp_path, zipped, protocol):
    vectors = torch.nn.Parameter(torch.randn(2, 768))
    torch.save(_tree(vectors), tmp_path / "x.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert torch.equal(load(tmp_path / "x.pt").vectors["clip_l"], vectors.detach())


@FORMS
def test_a_parameter_dict_is_read(tmp_path, zipped):
    vectors = torch.randn(4, 768)
    tree = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})}
    torch.save(tree, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert torch.equal(load(tmp_path / "x.pt").vectors["clip_l"], vectors)


@FORMS
def test_views_strides_and_shared_storages_are_read(tmp_path, zipped):
    table = torch.randn(768, 9)
    view = table[:, 2:5].T  # 3 768, neither contiguous nor at the start
    torch.save(_tree(view, whole=table), tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert torch.equal(load(tmp_path / "x.pt").vectors["clip_l"], view)


@FORMS
def test_a_numpy_step_is_read_and_other_values_are_passed_over(tmp_path, zipped):
    tree = _tree(torch.ones(1, 768), loss=numpy.float64(0.1), model=torch.nn.Linear(2, 2).state_dict())
    tree["step"] = numpy.int64(5)
    torch.save(tree, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    assert load(tmp_path / "x.pt").provenance.step == 5


def test_written_files_load_in_pytorch_and_hold_what_a1111_writes(tmp_path):
    vectors = torch.randn(3, 768)
    path = save(Embedding("cat", {"clip_l": vectors}, ORIGIN), tmp_path / "cat.pt")
    tree = torch.load(path, weights_only=True)
    param = tree["string_to_param"].pop("*")
    assert torch.equal(param, vectors)
    assert param.dtype == torch.float32
    assert tree == {
        "string_to_token": {"*": 265},
        "string_to_param": {},
        "name": "cat",
        "step": 300,
        "sd_checkpoint": "0123456789",
        "sd_checkpoint_name": "tiny",
    }
    assert load(path).provenance == ORIGIN


def test_written_files_hold_only_the_entries_that_a1111s_check_allows(tmp_path):
    rows = torch.randn(500, 768)[:2]
    path = save(Embedding("cat", {"clip_l": rows}), tmp_path / "cat.pt")
    names = [name.partition("/")[2] for name in zipfile.ZipFile(path).namelist()]
    assert sorted(names) == ["data.pkl", "data/0", "version"]
    assert path.stat().st_size < 2 * 768 * 4 + 2000  # not the 500 rows that it is a view of
    again = save(Embedding("cat", {"clip_l": rows}), tmp_path / "again.pt")
    assert again.read_bytes() == path.read_bytes()


def test_sdxl_does_not_fit_and_says_what_to_do(tmp_path):
    sdxl = Embedding("cat", {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)})
    with pytest.raises(EmbeddingError, match=r"save it as \.safetensors") as error:
        save(sdxl, tmp_path / "cat.pt")
    assert error.value.path == tmp_path / "cat.pt"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("params", [{}, {"a": torch.ones(1, 8), "b": None}, {"*": "text"}, {"*": None}])
def test_string_to_param_without_tensors_is_refused(tmp_path, params):
    torch.save({"string_to_param": params}, tmp_path / "x.pt")
    with pytest.raises(EmbeddingError) as error:
        load(tmp_path / "x.pt")
    assert error.value.path == tmp_path / "x.pt"


@pytest.mark.parametrize("tree", [{"state_dict": {"w": torch.ones(2, 2)}}, [1, 2], "text", {"string_to_param": torch.ones(1, 8)}, None])
def test_other_pickles_are_an_unknown_layout(tmp_path, tree):
    torch.save(tree, tmp_path / "x.pt")
    with pytest.raises(UnknownLayoutError) as error:
        load(tmp_path / "x.pt")
    assert error.value.path == tmp_path / "x.pt"


def test_the_ending_does_not_matter_when_reading(tmp_path):
    buffer = BytesIO()
    torch.save(_tree(torch.ones(1, 768)), buffer)
    (tmp_path / "x.safetensors").write_bytes(buffer.getvalue())
    assert load(tmp_path / "x.safetensors").num_vectors == 1
    assert describe(tmp_path / "x.safetensors").layout == "A1111 .pt"
