"""Make the golden files: one tiny file as each program writes it, and expected.json, which says what must be read from it.

    python tests/golden/make_golden.py             everything that the running torch writes
    python tests/golden/make_golden.py --torch     only the files named after the running torch's version

Needs torch, safetensors and numpy, and nothing of this project: what is expected is what went in. The same versions make the same
bytes; other versions of torch make other bytes that must be read as the same values. The keys, shapes and types are those that
each program's own saving code has; the values are a pattern. The pictures of pictures/ have a script of their own.
"""

from __future__ import annotations

import argparse
import copyreg
import hashlib
import json
import re
import warnings
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy
import safetensors.torch
import torch

FOLDER = Path(__file__).resolve().parent
VERSION = ".".join(torch.__version__.split(".")[:2])
WIDTHS = {"clip_l": 768, "clip_h": 1024, "clip_g": 1280, "t5": 4096, "llama": 4096, "gemma": 2304}
SHOWN = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
FOREIGN = "no prompt here"


def rows(count: int, encoder: str = "clip_l", seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A pattern [n, d] of 97 values about as large as a token table's, which a compressed repository holds in little."""
    width = WIDTHS[encoder]
    return (((torch.arange(count * width) * (seed + 3)) % 97 - 48) / 1024).reshape(count, width).to(dtype)


def digest(vectors: dict[str, torch.Tensor]) -> str:
    """sha256 over the fp32 values of each text encoder, in the alphabet's order."""
    whole = hashlib.sha256()
    for _, tensor in sorted(vectors.items()):
        whole.update(tensor.detach().float().contiguous().numpy().astype("<f4").tobytes())
    return whole.hexdigest()


def embedding(vectors: dict[str, torch.Tensor], family: str, **more: Any) -> dict[str, Any]:
    """What must be read of one embedding."""
    vectors = {key: value if value.ndim == 2 else value[None] for key, value in vectors.items()}
    found = {
        "counts": {key: value.shape[0] for key, value in vectors.items()},
        "widths": {key: value.shape[1] for key, value in vectors.items()},
        "family": family,
        "dtype": ", ".join(sorted({SHOWN[value.dtype] for value in vectors.values()})),
        "step": None,
        "word": None,
        "stored_name": None,
        "unusable": "",
        "sha256": digest(vectors) if vectors else None,
    }
    assert set(more) <= set(found)
    return {**found, **more}


class Golden:
    """Writes files into a folder and remembers what is expected of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expected: dict[str, dict[str, Any]] = {}

    def pickle(self, name: str, tree: Any, layout: str, *embeddings: dict[str, Any], legacy: bool = False) -> None:
        # without the source text of torch's classes, which the legacy format adds with its path where it finds it
        with patch.object(torch.serialization, "get_source_lines_and_file", side_effect=OSError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(tree, self.folder / name, _use_new_zipfile_serialization=not legacy)
        if legacy:
            number_storages(self.folder / name)
        elif "torch-" not in name:
            drop_entries(self.folder / name, r"/\.(format_version|storage_alignment)$")  # newer than the torch of these programs
        self.expected[name] = {"layout": layout, "embeddings": list(embeddings)}

    def tensors(self, name: str, tree: dict[str, torch.Tensor], layout: str, *embeddings: dict[str, Any], **metadata: str) -> None:
        safetensors.torch.save_file(tree, self.folder / name, metadata=metadata or None)
        self.expected[name] = {"layout": layout, "embeddings": list(embeddings)}

    def foreign(self, name: str, tree: Any, says: str) -> None:
        if name.endswith(".safetensors"):
            safetensors.torch.save_file({key: value.clone() for key, value in tree.items()}, self.folder / name)
        else:
            torch.save(tree, self.folder / name)
        self.expected[name] = {"refused": says}


def number_storages(path: Path) -> None:
    """Rename the storages of a legacy file, which are named after their addresses, so that each run writes the same."""
    data = path.read_bytes()
    keys = dict.fromkeys(key for length, key in re.findall(rb"X(.)\0\0\0(\d{10,19})", data, re.DOTALL) if length[0] == len(key))
    for index, key in enumerate(keys):
        data = data.replace(key, b"%0*d" % (len(key), index))
    path.write_bytes(data)


def a1111(vectors: Any, name: str | None = "cat", step: Any = 500) -> dict[str, Any]:
    """The dict of A1111's `Embedding.save`."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": name,
        "step": step,
        "sd_checkpoint": "cc6cb27103",
        "sd_checkpoint_name": "v1-5-pruned-emaonly",
    }


class DeviceTensor:
    """Pickled as PyTorch pickles a tensor of a device that it cannot save, such as DirectML's."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_device_tensor_from_numpy, (self.tensor.numpy(), self.tensor.dtype, "privateuseone:0", False)


class OldParameterDict:
    """Pickled as torch 1.11 pickles its `ParameterDict`, whose tensors later versions do not find."""

    def __init__(self, words: dict[str, torch.Tensor]) -> None:
        self.words = words

    @property
    def __class__(self) -> type:  # the pickler compares it with the class that it writes
        return torch.nn.ParameterDict

    def __reduce_ex__(self, protocol: Any) -> Any:
        state: dict[str, Any] = {"training": True}
        state["_parameters"] = OrderedDict((key, torch.nn.Parameter(value)) for key, value in self.words.items())
        state["_buffers"], state["_non_persistent_buffers_set"] = OrderedDict(), set()
        state["_backward_hooks"], state["_is_full_backward_hook"] = OrderedDict(), None
        names = ("_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks", "_modules")
        state.update((name, OrderedDict()) for name in names)
        return copyreg.__newobj__, (torch.nn.ParameterDict,), {**state, "_initialized": True}


def drop_entries(path: Path, unwanted: str) -> None:
    """Leave out the entries of the zip at `path` whose names match `unwanted`."""
    source = BytesIO(path.read_bytes())
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            if not re.search(unwanted, info.filename):
                new.writestr(zipfile.ZipInfo(info.filename), old.read(info))


def make_a1111(golden: Golden) -> None:
    known = {"step": 500, "stored_name": "cat"}
    one = rows(1)
    golden.pickle("a1111.pt", a1111(one), "A1111 .pt", embedding({"clip_l": one}, "SD1", **known))
    golden.pickle("a1111-legacy.pt", a1111(one), "A1111 .pt", embedding({"clip_l": one}, "SD1", **known), legacy=True)
    parameter = torch.nn.Parameter(rows(2, seed=1))
    golden.pickle("a1111-parameter.pt", a1111(parameter), "A1111 .pt", embedding({"clip_l": parameter}, "SD1", **known))
    half = rows(2, seed=2, dtype=torch.float16)
    golden.pickle("a1111-fp16.pt", a1111(half), "A1111 .pt", embedding({"clip_l": half}, "SD1", **known))
    double = rows(1, seed=3, dtype=torch.float64)
    golden.pickle("a1111-fp64.pt", a1111(double), "A1111 .pt", embedding({"clip_l": double}, "SD1", **known))
    sd2 = rows(2, "clip_h")
    golden.pickle("a1111-sd2.pt", a1111(sd2), "A1111 .pt", embedding({"clip_h": sd2}, "SD2", **known))
    view = rows(4, seed=4)[1:3]
    golden.pickle("a1111-view.pt", a1111(view), "A1111 .pt", embedding({"clip_l": view}, "SD1", **known))
    numbers = a1111(one, step=numpy.int64(500))
    golden.pickle("a1111-numpy-step.pt", numbers, "A1111 .pt", embedding({"clip_l": one}, "SD1", **known))
    device = rows(1, seed=5)
    golden.pickle("a1111-directml.pt", a1111(DeviceTensor(device)), "A1111 .pt", embedding({"clip_l": device}, "SD1", **known))
    for name, seed in (("dreamartist.pt", 6), ("dreamartist-neg.pt", 7)):
        golden.pickle(name, a1111(rows(3, seed=seed)), "A1111 .pt", embedding({"clip_l": rows(3, seed=seed)}, "SD1", **known))
    merged = {"string_to_param": {"*": one}}
    golden.pickle("embedding-merge.pt", merged, "A1111 .pt", embedding({"clip_l": one}, "SD1"))
    halves = {"clip_g": rows(2, "clip_g"), "clip_l": torch.zeros(2, 768)}
    golden.pickle("embedding-merge-sdxl.pt", halves, "text encoders", embedding(halves, "SDXL"))


def make_original(golden: Golden) -> None:
    old = golden.folder / "original-torch-1.11.pt"
    tree = {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": OldParameterDict({"*": rows(1)})}
    golden.pickle(old.name, tree, "original .pt", embedding({"clip_l": rows(1)}, "SD1"))
    drop_entries(old, r"/(\..*|byteorder)$")
    words = {"*": rows(1), "@": rows(2, seed=1)}
    tree = {"string_to_token": {"*": torch.tensor(265), "@": torch.tensor(287)}, "string_to_param": torch.nn.ParameterDict(words)}
    several = [embedding({"clip_l": value}, "SD1", word=key, stored_name=key) for key, value in words.items()]
    golden.pickle("original-several.pt", tree, "original .pt", *several)


def make_for_this_torch(golden: Golden) -> None:
    for legacy in (False, True):
        name = f"original-torch-{VERSION}{'-legacy' * legacy}.pt"
        params = torch.nn.ParameterDict({"*": torch.nn.Parameter(rows(1))})
        # of several storages in the legacy format, the order would be random
        tree = {"string_to_token": {"*": 265 if legacy else torch.tensor(265)}, "string_to_param": params}
        golden.pickle(name, tree, "original .pt", embedding({"clip_l": rows(1)}, "SD1"), legacy=legacy)
        name = f"a1111-torch-{VERSION}{'-legacy' * legacy}.pt"
        golden.pickle(name, a1111(rows(1)), "A1111 .pt", embedding({"clip_l": rows(1)}, "SD1", step=500, stored_name="cat"), legacy=legacy)


def make_diffusers(golden: Golden) -> None:
    token, two = "<cat-toy>", rows(2)
    golden.pickle("learned_embeds.bin", {token: two}, "diffusers", embedding({"clip_l": two}, "SD1", stored_name=token))
    flat = rows(1)[0]
    golden.pickle("learned_embeds-1d.bin", {token: flat}, "diffusers", embedding({"clip_l": flat}, "SD1", stored_name=token))
    golden.tensors("learned_embeds.safetensors", {token: two}, "diffusers", embedding({"clip_l": two}, "SD1", stored_name=token))
    for name, encoder, family in (
        ("sdxl/learned_embeds.safetensors", "clip_l", "SD1"),
        ("sdxl/learned_embeds_2.safetensors", "clip_g", "SDXL"),
    ):
        (golden.folder / "sdxl").mkdir(exist_ok=True)
        half = rows(2, encoder)
        golden.tensors(name, {token: half}, "diffusers", embedding({encoder: half}, family, stored_name=token))
    words = {"<s0>": rows(1), "<s1>": rows(2, seed=1)}
    several = [embedding({"clip_l": value}, "SD1", word=key, stored_name=key) for key, value in words.items()]
    golden.tensors("diffusers-several.safetensors", words, "diffusers", *several)
    split = {f"{token}{ending}": rows(1, seed=seed) for seed, ending in enumerate(("", "_1", "_2"))}
    joined = embedding({"clip_l": torch.cat(list(split.values()))}, "SD1", stored_name=token)
    golden.pickle("diffusers-split.bin", split, "diffusers", joined)


def make_kohya(golden: Golden) -> None:
    half = rows(3, dtype=torch.float16)
    golden.tensors("kohya.safetensors", {"emb_params": half}, "safetensors", embedding({"clip_l": half}, "SD1"))
    brain = rows(2, seed=1, dtype=torch.bfloat16)
    texts = {"modelspec.architecture": "stable-diffusion-v1/textual-inversion"}  # of several, the order would be random
    golden.tensors("kohya-bf16.safetensors", {"emb_params": brain}, "safetensors", embedding({"clip_l": brain}, "SD1"), **texts)
    golden.pickle("kohya.pt", {"emb_params": half}, "emb_params", embedding({"clip_l": half}, "SD1"))
    sdxl = {"clip_l": rows(2), "clip_g": rows(2, "clip_g")}
    golden.tensors("kohya-sdxl.safetensors", sdxl, "safetensors", embedding(sdxl, "SDXL"))
    golden.pickle("kohya-sdxl.pt", sdxl, "text encoders", embedding(sdxl, "SDXL"))
    sd2 = rows(1, "clip_h")
    golden.tensors("invoke-sd2.safetensors", {"emb_params": sd2}, "safetensors", embedding({"clip_h": sd2}, "SD2"))
    unequal = {"clip_l": rows(1), "clip_g": rows(3, "clip_g")}
    golden.tensors("sdxl-unequal.safetensors", unequal, "safetensors", embedding(unequal, "SDXL"))
    layers = ["MID", *(f"IN{index:02}" for index in (1, 2, 4, 5, 7, 8)), *(f"OUT{index:02}" for index in range(3, 12))]
    xti = {layer: rows(1, seed=seed, dtype=torch.float16) for seed, layer in enumerate(layers)}
    golden.tensors("xti.safetensors", xti, "XTI", embedding({}, "", unusable="XTI"))


def make_onetrainer(golden: Golden) -> None:
    words, wished = rows(2), rows(2, seed=9)
    one = embedding({"clip_l": words}, "SD1")
    golden.tensors("onetrainer.safetensors", {"emp_params": words}, "OneTrainer", one)
    golden.tensors("onetrainer-out.safetensors", {"emp_params": words, "emp_params_out": wished}, "OneTrainer", one)
    golden.tensors("onetrainer-only-out.safetensors", {"emp_params_out": wished}, "OneTrainer", embedding({}, "", unusable="outputs"))
    sdxl = {"clip_l": words, "clip_g": rows(2, "clip_g")}
    outs = {"clip_l_out": wished, "clip_g_out": rows(2, "clip_g", seed=9)}
    golden.tensors("onetrainer-sdxl-out.safetensors", {**sdxl, **outs}, "safetensors", embedding(sdxl, "SDXL"))
    golden.tensors("clip_l-alone.safetensors", {"clip_l": words}, "text encoders", one)
    half = {"clip_g": rows(2, "clip_g")}
    golden.tensors("clip_g-alone.safetensors", half, "text encoders", embedding(half, "SDXL"))
    for name, family, encoders in (
        ("sd3", "SD3", ("clip_l", "clip_g", "t5")),
        ("flux", "Flux", ("clip_l", "t5")),
        ("hidream", "HiDream", ("clip_l", "clip_g", "t5", "llama")),
        ("hunyuan", "HunyuanVideo", ("clip_l", "llama")),
        ("chroma", "PixArt or Chroma", ("t5",)),
        ("sana", "Sana", ("gemma",)),
    ):
        vectors = {encoder: rows(1, encoder, dtype=torch.bfloat16) for encoder in encoders}
        golden.tensors(f"{name}.safetensors", vectors, "text encoders", embedding(vectors, family, unusable=FOREIGN))
    spelt = {"clip_l": rows(1), "t5xxl": rows(1, "t5"), "t5xxl_out": rows(1, "t5", seed=9)}
    foreign = embedding({"clip_l": spelt["clip_l"], "t5": spelt["t5xxl"]}, "Flux", unusable=FOREIGN)
    golden.tensors("comfy-t5xxl.safetensors", spelt, "text encoders", foreign)
    lora = {
        "lora_unet_mid_block_attentions_0.lora_down.weight": rows(1),
        "lora_unet_mid_block_attentions_0.lora_up.weight": rows(1).T.contiguous(),
    }
    bundle = {f"bundle_emb.my.cat.{key}": value for key, value in {**sdxl, **outs}.items()}
    params = {"bundle_emb.dog.string_to_param.*": rows(1, seed=1)}
    found = [embedding({"clip_l": rows(1, seed=1)}, "SD1", word="dog", stored_name="dog")]
    found.append(embedding(sdxl, "SDXL", word="my.cat", stored_name="my.cat"))
    golden.tensors("lora-bundle.safetensors", {**lora, **bundle, **params}, "in a LoRA", *found)


def make_others(golden: Golden) -> None:
    sdxl = {"clip_l": rows(2), "clip_g": rows(2, "clip_g")}
    replicate = {"text_encoders_0": sdxl["clip_l"], "text_encoders_1": sdxl["clip_g"]}
    safetensors.torch.save_file(replicate, golden.folder / "replicate.pti")
    golden.expected["replicate.pti"] = {"layout": "Replicate .pti", "embeddings": [embedding(sdxl, "SDXL")]}
    listed = [{"<cat>": sdxl["clip_l"]}, {"<cat>": sdxl["clip_g"]}]
    golden.pickle("comfy-list.pt", listed, "ComfyUI list", embedding(sdxl, "SDXL"))
    golden.pickle("tensor-alone.bin", rows(2), "tensor alone", embedding({"clip_l": rows(2)}, "SD1"))


def make_foreign_files(golden: Golden) -> None:
    tiny = torch.zeros(2, 2)
    lora = {"lora_unet_down_blocks_0.lora_down.weight": tiny, "lora_unet_down_blocks_0.lora_up.weight": tiny}
    golden.foreign("stranger-lora.safetensors", lora, "a LoRA")
    parameter = torch.nn.Parameter(tiny)
    optimizer = torch.optim.AdamW([parameter], lr=0.005)
    parameter.sum().backward()
    optimizer.step()
    state = {"hash": "0a1b2c", "optimizer_state_dict": optimizer.state_dict()}
    golden.foreign("stranger.pt.optim", state, "the optimizer's state")
    layers = ({"linear.0.weight": tiny, "linear.0.bias": torch.zeros(2)}, {"linear.0.weight": tiny, "linear.0.bias": torch.zeros(2)})
    hypernetwork = {768: layers, "step": 10, "name": "h", "layer_structure": [1, 2, 1], "activation_func": "linear"}
    golden.foreign("stranger-hypernetwork.pt", hypernetwork, "a hypernetwork")
    vae = {"encoder.conv_in.weight": tiny, "decoder.conv_in.weight": tiny}
    golden.foreign("stranger-vae.pt", {"state_dict": vae}, "a VAE")
    checkpoint = {"model.diffusion_model.out.2.weight": tiny, "first_stage_model.encoder.conv_in.weight": tiny}
    golden.foreign("stranger-checkpoint.safetensors", checkpoint, "a checkpoint")
    golden.foreign("stranger-controlnet.safetensors", {"control_model.zero_convs.0.0.weight": tiny}, "a ControlNet")
    golden.foreign("stranger-upscaler.pt", {"params_ema": {"conv_first.weight": tiny}}, "an upscaler")


def make_all(folder: Path, *, only_torch: bool = False) -> dict[str, dict[str, Any]]:
    """Write the files into `folder`; returns file name -> what must be read from it."""
    golden = Golden(folder)
    make_for_this_torch(golden)
    if not only_torch:
        for make in (make_a1111, make_original, make_diffusers, make_kohya, make_onetrainer, make_others, make_foreign_files):
            make(golden)
    return golden.expected


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the golden files.")
    parser.add_argument("--torch", action="store_true", help="only the files named after the running torch's version")
    known = FOLDER / "expected.json"
    before = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    made = make_all(FOLDER, only_torch=parser.parse_args().torch)
    text = json.dumps({**before, **made}, indent=1, sort_keys=True, ensure_ascii=False)
    known.write_text(text + "\n", encoding="utf-8")
    print(f"{len(made)} files written by torch {torch.__version__}")


if __name__ == "__main__":
    main()
