"""The layouts' decisions where a file could mean two things, and what people put among embeddings by mistake."""

from __future__ import annotations

import itertools
from collections import OrderedDict, defaultdict

import numpy
import pytest
import safetensors.torch
import torch

from tests.support.embeddings import load_all
from textual_inversion.embedding import family_of
from textual_inversion.errors import EmbeddingError, UnknownLayoutError
from textual_inversion.formats import describe, describe_all, load

L, G, H = torch.ones(2, 768), torch.ones(2, 1280), torch.ones(2, 1024)
T5 = torch.ones(2, 4096)


@pytest.fixture
def saved(tmp_path):
    """Writes a tree as a pickle or, where it can be one, as a safetensors file."""
    numbers = itertools.count()

    def save(tree, container="pickle"):
        path = tmp_path / f"{next(numbers)}.pt"
        if container == "pickle":
            torch.save(tree, path)
        else:
            safetensors.torch.save_file({key: value.clone() for key, value in tree.items()}, path)
        return path

    return save


BOTH = pytest.mark.parametrize("container", ["pickle", "safetensors"])


@BOTH
@pytest.mark.parametrize(
    ("tree", "widths", "family"),
    [
        ({"clip_l": L}, {"clip_l": 768}, "SD1"),
        ({"clip_g": G}, {"clip_g": 1280}, "SDXL"),
        ({"clip_h": H}, {"clip_h": 1024}, "SD2"),
        ({"clip_l": H}, {"clip_h": 1024}, "SD2"),  # the width tells
        ({"clip_g": L}, {"clip_l": 768}, "SD1"),
        ({"clip_l": L, "clip_g": G, "clip_g_out": G}, {"clip_l": 768, "clip_g": 1280}, "SDXL"),
        ({"emb_params": H}, {"clip_h": 1024}, "SD2"),
        ({"emb_params": L, "something": torch.ones(3)}, {"clip_l": 768}, "SD1"),
        ({"emp_params": L, "emp_params_out": L}, {"clip_l": 768}, "SD1"),
        ({"text_encoders_0": L, "text_encoders_1": G}, {"clip_l": 768, "clip_g": 1280}, "SDXL"),
        ({"text_encoders_0": L}, {"clip_l": 768}, "SD1"),
        ({"<cat>": G}, {"clip_g": 1280}, "SDXL"),
        ({"weight": torch.ones(2, 64)}, {"clip_l": 64}, "64 wide"),  # one tensor under any key, as A1111 takes it
    ],
)
def test_the_same_keys_mean_the_same_in_every_container(saved, container, tree, widths, family):
    (info,) = describe_all(saved(tree, container))
    assert (info.widths, info.family, info.unusable, info.word) == (widths, family, "", None)
    assert set(load(info.path).vectors) == set(widths)


@BOTH
@pytest.mark.parametrize(
    ("tree", "family", "says"),
    [
        ({"clip_l": L, "clip_g": G, "t5xxl": T5}, "SD3", "made for SD3"),
        ({"clip_l": L, "t5": T5, "t5_out": T5}, "Flux", "made for Flux"),
        ({"text_encoders_0": L, "text_encoders_1": T5}, "Flux", "made for Flux"),
        ({"clip_g": G, "t5": T5}, "a model with clip_g and t5", "no prompt here"),
        ({"gemma": torch.ones(1, 2304)}, "Sana", "made for Sana"),
        ({"clip_l_out": L, "clip_g_out": G}, "", "outputs of the text encoder"),
        ({"clip_l": L, "clip_g_out": G}, "SD1", r"outputs of the text encoder \(clip_g\)"),
        ({"emp_params_out": L}, "", "outputs of the text encoder"),
    ],
)
def test_what_no_prompt_can_use_is_named_and_not_loaded(saved, container, tree, family, says):
    path = saved(tree, container)
    info = describe(path)
    assert info.family == family
    assert not info.unusable.endswith(".")
    with pytest.raises(EmbeddingError, match=says):
        load(path)


@BOTH
@pytest.mark.parametrize(
    "tree",
    [
        {"emb_params": L, "clip_l": L},
        {"emb_params": L, "t5": T5},
        {"clip_l": L, "unknown": L},
        {"a": L, "b": torch.ones(2, 5)},
        {"a": L, "b": torch.ones(2, 768, dtype=torch.int64)},
        {"a": torch.ones(1, 1, 768), "b": L},
        {"IN01": L, "IN02": L, "MID": T5},
        {"text_encoders_0": L, "text_encoder_1": T5},
    ],
)
def test_what_contradicts_itself_is_unknown_and_says_what_it_holds(saved, container, tree):
    with pytest.raises(UnknownLayoutError, match=next(iter(tree))):
        load(saved(tree, container))


@pytest.mark.parametrize(
    "tree",
    [
        {"clip_l": L, "clip_g": "text"},
        {"clip_l": L, "clip_g": torch.ones(2, 2, 2)},
        {"t5": L, "t5xxl": L},
        {"text_encoders_0": L, "text_encoders_1": L},
    ],
)
def test_a_wrong_value_under_a_known_key_is_an_error_and_nothing_else_is_tried(saved, tree):
    with pytest.raises(EmbeddingError):
        load(saved(tree))


def test_unequal_counts_are_told_and_the_larger_counts(saved):
    path = saved({"clip_l": torch.ones(1, 768), "clip_g": torch.ones(3, 1280)})
    info = describe(path)
    assert info.counts == {"clip_l": 1, "clip_g": 3}
    assert info.num_vectors == load(path).num_vectors == 3


@pytest.mark.parametrize("extra", [{"name": "cat", "step": 7}, {"sd_checkpoint": None, "something": torch.ones(2, 2)}])
def test_pickles_of_sdxl_may_hold_more(saved, extra):
    info = describe(saved({"clip_g": G, "clip_l": L, **extra}))
    assert info.widths == {"clip_l": 768, "clip_g": 1280}
    assert (info.stored_name, info.provenance.step) == (extra.get("name"), extra.get("step"))


def test_several_words_are_several_embeddings_in_the_files_order(saved):
    tree = {"string_to_param": torch.nn.ParameterDict(OrderedDict([("@", torch.zeros(1, 768)), ("*", torch.ones(2, 768))]))}
    path = saved(tree)
    assert [(info.word, info.num_vectors, info.layout) for info in describe_all(path)] == [
        ("@", 1, "original .pt"),
        ("*", 2, "original .pt"),
    ]
    assert torch.equal(load(path, word="*").vectors["clip_l"], torch.ones(2, 768))
    assert torch.equal(load(path).vectors["clip_l"], torch.zeros(1, 768))
    plain = saved({"string_to_param": {"a": torch.ones(1, 768), "b": torch.ones(1, 768)}})
    assert [embedding.name for embedding in load_all(plain)] == ["a", "b"]


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        ({"<t>": (1, 768), "<t>_1": (1, 768), "<t>_2": (1, 768)}, {None: 3}),
        ({"<t>_2": (1, 768), "<t>": (1, 768), "<t>_1": (1, 768)}, {None: 3}),
        ({"<t>": (1, 768), "<t>_2": (1, 768)}, {"<t>": 1, "<t>_2": 1}),  # a gap
        ({"<t>": (2, 768), "<t>_1": (1, 768)}, {"<t>": 2, "<t>_1": 1}),  # not one row each
        ({"<t>": (1, 768), "<t>_1": (1, 1280)}, {"<t>": 1, "<t>_1": 1}),
        ({"<t>": (1, 768), "<t>_1": (1, 768), "<u>": (4, 768)}, {"<t>": 2, "<u>": 4}),
        ({"<s0>": (768,), "<s1>": (768,)}, {"<s0>": 1, "<s1>": 1}),
    ],
)
def test_numbered_tokens_of_one_row_are_one_word(saved, shapes, found):
    path = saved({key: torch.full(shape, float(index)) for index, (key, shape) in enumerate(shapes.items())})
    assert {info.word: info.num_vectors for info in describe_all(path)} == found
    values = sorted(embedding.vectors[key][:, 0].tolist() for embedding in load_all(path) for key in embedding.vectors)
    assert sorted(itertools.chain(*values)) == sorted(
        float(index) for index, shape in enumerate(shapes.values()) for _ in range(shape[0] if len(shape) == 2 else 1)
    )


def test_numbered_tokens_come_in_order_whatever_the_files(saved):
    path = saved(
        {
            "t_10": torch.full((1, 768), 10.0),
            **{f"t_{i}": torch.full((1, 768), float(i)) for i in range(9, 0, -1)},
            "t": torch.zeros(1, 768),
        }
    )
    assert load(path).vectors["clip_l"][:, 0].tolist() == list(map(float, range(11)))


@pytest.mark.parametrize(
    ("tree", "found"),
    [
        ([{"<a>": L}], [{"clip_l": 2}]),
        ([{"<a>": L}, {"<b>": L[0]}], [{"clip_l": 3}]),
        ([{"<a>": G, "<b>": L}], [{"clip_l": 2, "clip_g": 2}]),
        ([{"<a>": torch.ones(2, 3, 768)}], [{"clip_l": 6}]),
        ([{"<a>": L}, {"<a>": H}], [{"clip_l": 2}, {"clip_h": 2}]),
    ],
)
def test_lists_are_read_as_the_widths_fit(saved, tree, found):
    assert [info.counts for info in describe_all(saved(tree))] == found
    assert [{key: len(rows) for key, rows in embedding.vectors.items()} for embedding in load_all(saved(tree))] == found


@pytest.mark.parametrize(
    "tree", [[], [{}], [L], [{"a": L}, "b"], [{"a": torch.ones(2, 5)}], torch.ones(5), torch.ones(()), "text", 3, None]
)
def test_other_lists_and_values_are_unknown(saved, tree):
    with pytest.raises(UnknownLayoutError):
        load(saved(tree))


@BOTH
def test_a_lora_with_embeddings_lists_them_and_only_them(saved, container):
    lora = {"lora_unet_x.lora_down.weight": torch.ones(4, 4), "lora_unet_x.alpha": torch.tensor(1.0)}
    bundle = {
        "bundle_emb.a.b.clip_l": L,
        "bundle_emb.a.b.clip_g": G,
        "bundle_emb.old.string_to_param.*": H,
        "bundle_emb.flux.clip_l": L,
        "bundle_emb.flux.t5_out": T5,
        "bundle_emb.alone.any": L,
        "bundle_emb.odd.x": L,
        "bundle_emb.odd.y": L,
    }
    path = saved({**lora, **bundle}, container)
    infos = {info.word: info for info in describe_all(path)}
    assert {word: info.widths for word, info in infos.items()} == {
        "a.b": {"clip_l": 768, "clip_g": 1280},
        "old": {"clip_h": 1024},
        "flux": {"clip_l": 768},
        "alone": {"clip_l": 768},
        "odd": {},
    }
    assert {word for word, info in infos.items() if info.unusable} == {"flux", "odd"}
    assert {info.layout for info in infos.values()} == {"in a LoRA"}
    assert load(path, word="old").name == "old"


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": L}, "a LoRA or LyCORIS .*models/Lora"),
        ({"lora_unet_x.hada_w1_a": L, "lora_unet_x.alpha": torch.tensor(1.0)}, "a LoRA or LyCORIS"),
        ({"unet.down_blocks.0.attn1.to_q.lora_A.weight": L}, "a LoRA or LyCORIS"),
        ({"unet.mid_block.attn.processor.to_k_lora.down.weight": L}, "a LoRA or LyCORIS"),
        ({"lora_unet_x.lokr_w1": L}, "a LoRA or LyCORIS"),
        ({"hash": "ab", "optimizer_state_dict": {"state": {}, "param_groups": []}}, r"optimizer's state .*X\.pt\.optim"),
        ({"step": 1, "name": "h", "layer_structure": [1, 2, 1], 768: [{"linear.0.weight": L}]}, "a hypernetwork"),
        ({"image_proj": {"proj.weight": L}, "ip_adapter": {"1.to_k_ip.weight": L}}, "an IP-Adapter"),
        ({"control_model.input_blocks.0.0.weight": L}, "a ControlNet"),
        ({"controlnet_cond_embedding.conv_in.weight": L, "controlnet_down_blocks.0.weight": L}, "a ControlNet"),
        ({"state_dict": {"model.diffusion_model.out.0.weight": L}, "global_step": 1}, "a checkpoint .*models/Stable-diffusion"),
        ({"down_blocks.0.resnets.0.norm1.weight": L, "conv_in.weight": L, "time_embedding.linear_1.weight": L}, "a UNet"),
        ({"encoder.conv_in.weight": L, "decoder.conv_in.weight": L, "quant_conv.weight": L}, "a VAE .*models/VAE"),
        ({"first_stage_model.encoder.down.0.block.0.norm1.weight": L, "first_stage_model.decoder.up.0.block.0.norm1.weight": L}, "a VAE"),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": L, "text_model.embeddings.token_embedding.weight": L}, "a text encoder"),
        ({"params_ema": {"conv_first.weight": L}}, "an upscaler .*models/ESRGAN"),
        ({"model.0.weight": L, "model.1.sub.0.RDB1.conv1.0.weight": L}, "an upscaler"),
    ],
)
def test_a_foreign_file_is_recognised_by_its_keys_and_sent_where_it_belongs(saved, tree, says):
    path = saved(tree)
    for call in (load, describe, load_all, describe_all):
        with pytest.raises(UnknownLayoutError, match=says) as caught:
            call(path)
        assert caught.value.path == path
        assert "\n" not in caught.value.reason


def test_honest_pickles_of_every_kind_are_read(saved):
    shared = torch.randn(6, 768)
    tree = {
        "string_to_param": {"*": shared[2:4]},
        "step": numpy.int32(9),
        "loss": numpy.float64(0.5),
        "array": numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
        "whole": shared,
        "turned": shared.T[1:3],
        "frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "size": torch.Size([2, 3]),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "sets": [{1, 2}, frozenset({3}), {"a": set()}],
        "storage": torch.ones(3).untyped_storage(),
        "eight": torch.ones(2, dtype=torch.float8_e4m3fn),
        "unsigned": torch.ones(2, dtype=torch.uint16),
        "bytes": b"abc",
        "array of bytes": bytearray(b"abc"),
        "complex": 1j,
        "range": range(3),
        "ordered": OrderedDict(a=1),
        "default": defaultdict(list, a=[1]),
        "brain": torch.ones(2, 2, dtype=torch.bfloat16),
    }
    attribute = torch.ones(2)
    attribute.note = "a"
    tree["attribute"] = attribute
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = "a"
    tree["parameter"] = parameter
    path = saved(tree)
    assert torch.equal(load(path).vectors["clip_l"], shared[2:4])
    assert load(path).provenance.step == 9


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("legacy", [False, True])
def test_honest_pickles_are_read_in_both_formats(tmp_path, protocol, legacy):
    tree = {"string_to_param": {"*": L}, "sets": [{1}, frozenset({2})], "storage": torch.ones(3).untyped_storage(), "n": numpy.int64(3)}
    tree["turned"] = torch.ones(4, 3).T
    torch.save(tree, tmp_path / "x.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    assert load(tmp_path / "x.pt").num_vectors == 2


@pytest.mark.parametrize(
    ("encoders", "family"),
    [
        (("clip_l", "clip_g"), "SDXL"),
        (("clip_g",), "SDXL"),
        (("clip_l", "clip_g", "t5"), "SD3"),
        (("clip_l", "t5"), "Flux"),
        (("clip_l", "clip_g", "t5", "llama"), "HiDream"),
        (("clip_l", "llama"), "HunyuanVideo"),
        (("t5",), "PixArt or Chroma"),
        (("gemma",), "Sana"),
        (("clip_l", "gemma"), "a model with clip_l and gemma"),
        ((), ""),
    ],
)
def test_the_text_encoders_tell_the_family(encoders, family):
    assert family_of(dict.fromkeys(encoders, 64)) == family


def test_one_word_too_long_for_a_prompt_does_not_spoil_the_others(tmp_path):
    torch.save({"<short>": torch.ones(2, 768), "<long>": torch.ones(76, 768)}, tmp_path / "two.bin")
    infos = describe_all(tmp_path / "two.bin")
    assert {info.word: bool(info.unusable) for info in infos} == {"<short>": False, "<long>": True}
    assert load(tmp_path / "two.bin", word="<short>").name == "short"
    with pytest.raises(EmbeddingError, match="76 vectors"):
        load(tmp_path / "two.bin", word="<long>")
