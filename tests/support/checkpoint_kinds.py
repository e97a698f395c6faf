"""Checkpoints in every form that people have: files that must compute like the plain one, and files that must be refused with a reason.

Each maker gets an empty folder and returns the path of the checkpoint. The names of the kinds are those of docs/checkpoints.md.
"""

from __future__ import annotations

import json
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from safetensors.torch import save_file

from tests.support.checkpoints import checkpoint_tensors
from tests.support.diffusers_folders import copy_of_folder, rewrite_part
from textual_inversion.diffusion.checkpoint import TEXT, UNET, VAE
from textual_inversion.diffusion.clip import CLIPConfig
from textual_inversion.diffusion.unet import UNetConfig
from textual_inversion.diffusion.vae import VAEConfig

UNET_CONFIG = UNetConfig(model_channels=32, channel_mult=(1, 2), num_res_blocks=(1, 1), transformer_depth=(1, 0), context_dim=64)
VAE_CONFIG = VAEConfig(32, (1, 1), 1)
CLIP_CONFIG = CLIPConfig(vocab_size=100, width=64, layers=2)
State = dict[str, torch.Tensor]
PLAIN: State = checkpoint_tensors(UNET_CONFIG, VAE_CONFIG, CLIP_CONFIG)


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint.

    Attributes:
        make: writes one.
        refused: part of the sentence that refuses it; empty where it is computed.
        like: the tensors of the plain file that must give the same outputs.
    """

    make: Callable[[Path], Path]
    refused: str = ""
    like: Callable[[], Mapping[str, torch.Tensor]] = lambda: PLAIN


KINDS: dict[str, Kind] = {}


def computed(name: str, like: Callable[[], State] = lambda: PLAIN) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Add a kind that must be computed like a plain file with other tensors."""

    def add(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        KINDS[name] = Kind(make, like=like)
        return make

    return add


def refused(name: str, reason: str) -> Callable[[Callable[[Path], Path]], Callable[[Path], Path]]:
    """Add a kind that must be refused for a reason."""

    def add(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        KINDS[name] = Kind(make, reason)
        return make

    return add


def _cast(dtype: torch.dtype) -> State:
    return {key: value if key == "alphas_cumprod" else value.to(dtype) for key, value in PLAIN.items()}


def _matrices(dtype: torch.dtype) -> State:
    """Only the matrices in eight bits, as programs store them."""
    return {key: value.to(dtype) if value.ndim > 1 else value for key, value in PLAIN.items()}


def _halves(state: Mapping[str, torch.Tensor]) -> State:
    return {key: value.half() if "float8" in str(value.dtype) else value for key, value in state.items()}


def _safetensors(state: Mapping[str, torch.Tensor]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        save_file({key: value.contiguous() for key, value in state.items()}, folder / "odd.safetensors")
        return folder / "odd.safetensors"

    return make


def _torch(value: object, name: str = "odd.ckpt", *, legacy: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save(value, folder / name, _use_new_zipfile_serialization=not legacy)
        return folder / name

    return make


def _bytes(data: bytes, name: str = "odd.safetensors") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def _named(*names: str) -> Callable[[Path], Path]:
    return _safetensors({name: torch.zeros(1) for name in names})


computed("`.safetensors`, fp16")(_safetensors(PLAIN))
computed("`.safetensors`, fp32", lambda: _cast(torch.float32))(_safetensors(_cast(torch.float32)))
computed("`.safetensors`, bf16", lambda: _cast(torch.bfloat16))(_safetensors(_cast(torch.bfloat16)))
computed("`.ckpt` of `torch.save` with `state_dict`")(_torch({"state_dict": PLAIN, "epoch": 3, "global_step": 470000}))
computed("`.pt` of `torch.save` without `state_dict`")(_torch(PLAIN, "odd.pt"))
computed("`.pth` in PyTorch's stream format of before 1.6")(_torch({"state_dict": PLAIN}, "odd.pth", legacy=True))
computed("`.ckpt` in fp64")(_torch({"state_dict": _cast(torch.float64)}))
computed("`.bin` whose tensors are parameters")(_torch(OrderedDict((k, torch.nn.Parameter(v)) for k, v in PLAIN.items()), "odd.bin"))
computed("fp8 (e4m3) without scales", lambda: _halves(_matrices(torch.float8_e4m3fn)))(_safetensors(_matrices(torch.float8_e4m3fn)))
computed("fp8 (e5m2) without scales, `.ckpt`", lambda: _halves(_matrices(torch.float8_e5m2)))(
    _torch({"state_dict": _matrices(torch.float8_e5m2)})
)


@computed("a `.ckpt` with the optimizer and the callbacks of its training")
def _with_trainer(folder: Path) -> Path:
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    made = type("ModelCheckpoint", (), {"__module__": module.__name__})
    vars(module)["ModelCheckpoint"] = made
    value = {
        "state_dict": PLAIN,
        "callbacks": {made: {"best_model_score": torch.tensor(1.0), "made": made()}},
        "optimizer_states": [{"state": {0: {"step": 5, "exp_avg": torch.zeros(3)}}}],
    }
    parts = {"pytorch_lightning": ModuleType("pytorch_lightning"), "pytorch_lightning.callbacks": ModuleType("callbacks")}
    with mock.patch.dict("sys.modules", {**parts, module.__name__: module}):
        return _torch(value)(folder)


@computed("a `.ckpt` whose tensors share their data, or lie in it with strides")
def _shared(folder: Path) -> Path:
    state = dict(PLAIN)
    for key in [key for key, value in PLAIN.items() if value.ndim == 2][::2]:
        rows, columns = PLAIN[key].shape
        store = torch.zeros(columns, 2 * rows + 1, dtype=PLAIN[key].dtype)
        state[key] = store[:, 1:].t()[::2]  # rows that are every other column of another tensor
        state[key].copy_(PLAIN[key])
    pair = torch.stack([PLAIN[UNET + "out.0.weight"], PLAIN[UNET + "out.0.bias"]])
    state[UNET + "out.0.weight"], state[UNET + "out.0.bias"] = pair[0], pair[1]
    return _torch({"state_dict": state})(folder)


@computed("a `.ckpt` from 4 GB on, whose zip counts in 64 bits")
def _zip64(folder: Path) -> Path:
    """The same entries in a zip whose writer takes everything for too large; each begins where PyTorch would put it."""
    small = _torch({"state_dict": PLAIN})(folder)
    with zipfile.ZipFile(small) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    small.unlink()
    with mock.patch("zipfile.ZIP64_LIMIT", 1000), zipfile.ZipFile(folder / "large.ckpt", "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return folder / "large.ckpt"


@computed("a file of `torch.save` in the tar format of PyTorch 0.1")
def _tar(folder: Path) -> Path:
    """What `legacy_load` of PyTorch reads: storages, the tensors in them, and an object that refers to these by number."""
    storages, tensors = BytesIO(), BytesIO()
    pickle.dump(len(PLAIN), storages, 2)
    pickle.dump(len(PLAIN), tensors, 2)
    for number, value in enumerate(PLAIN.values()):
        kind = "HalfStorage" if value.dtype == torch.float16 else "FloatStorage"
        pickle.dump((number, "cpu", getattr(torch, kind)), storages, 2)
        storages.write(struct.pack("<q", value.numel()) + value.numpy().tobytes())
        pickle.dump((1000 + number, number, torch.FloatTensor), tensors, 2)
        tensors.write(struct.pack(f"<ii{2 * value.ndim + 1}q", value.ndim, 0, *value.shape, *value.stride(), 0))
    pickle.dump([], storages, 2)
    numbers = {id(value): 1000 + number for number, value in enumerate(PLAIN.values())}
    with tarfile.open(folder / "old.pt", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (
            ("storages", storages.getvalue()),
            ("tensors", tensors.getvalue()),
            ("pickle", _with_references({"state_dict": PLAIN}, numbers)),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    return folder / "old.pt"


def _with_references(value: object, numbers: Mapping[int, int]) -> bytes:
    target = BytesIO()
    pickler = pickle.Pickler(target, 2)
    pickler.persistent_id = lambda one: str(numbers[id(one)]) if id(one) in numbers else None  # type: ignore[method-assign]
    pickler.dump(value)
    return target.getvalue()


def _scaled(ending: str, rows: bool) -> tuple[State, State]:
    """Weights of eight bits with scales, and what they stand for."""
    stored, meant = {}, {}
    for key, value in PLAIN.items():
        stored[key] = meant[key] = value
        if value.ndim == 2 and key.startswith(UNET) and key.endswith(".weight"):
            scale = torch.linspace(0.5, 2, value.shape[0])[:, None] if rows else torch.tensor(0.75)
            stored[key] = (value.float() / scale).to(torch.float8_e4m3fn)
            stored[key.removesuffix(".weight") + ending] = scale
            meant[key] = stored[key].float() * scale
    return stored, meant


computed("fp8 with a scale for each layer", lambda: _scaled(".scale_weight", False)[1])(_safetensors(_scaled(".scale_weight", False)[0]))
computed("fp8 with a scale for each row", lambda: _scaled(".weight_scale", True)[1])(_safetensors(_scaled(".weight_scale", True)[0]))


def _averaged(factor: float) -> State:
    unet = {key: value for key, value in PLAIN.items() if key.startswith(UNET)}
    names = {key: "model_ema." + key.removeprefix("model.").replace(".", "") for key in unet}
    return {"model_ema.decay": torch.tensor(0.999), **{names[key]: value * factor for key, value in unet.items()}}


computed("averaged weights (EMA) beside the others: the others are taken")(_torch({"state_dict": PLAIN | _averaged(0.5)}))
computed("averaged weights (EMA) only")(_safetensors({k: v for k, v in PLAIN.items() if not k.startswith(UNET)} | _averaged(1.0)))
computed("names that begin with `state_dict.`")(_safetensors({"state_dict." + key: value for key, value in PLAIN.items()}))
computed("names that begin with `module.`")(_torch({"module." + key: value for key, value in PLAIN.items()}))
computed("the text encoder's names of 2022")(_safetensors({key.replace("text_model.", ""): value for key, value in PLAIN.items()}))
computed("position ids and other whole numbers beside the weights")(
    _safetensors(PLAIN | {TEXT + "text_model.embeddings.position_ids": torch.arange(77)[None], "step": torch.tensor(3)})
)
computed("the VAE's attention as linear layers")(
    _safetensors({key: value[:, :, 0, 0] if "mid.attn_1" in key and value.ndim == 4 else value for key, value in PLAIN.items()})
)


def _with_channels(channels: int) -> State:
    """Tensors whose UNet sees more, or less, than noisy latents."""
    return checkpoint_tensors(replace(UNET_CONFIG, in_channels=channels), VAE_CONFIG, CLIP_CONFIG)


computed("an inpainting checkpoint (9 channels)", lambda: _with_channels(9))(_torch({"state_dict": _with_channels(9)}))
computed("an instruct-pix2pix checkpoint (8 channels)", lambda: _with_channels(8))(_torch({"state_dict": _with_channels(8)}))
refused("a depth checkpoint (5 channels)", "a UNet for 5 channels")(_safetensors(_with_channels(5)))
computed("a `.safetensors` file that is called `.ckpt`")(lambda folder: _safetensors(PLAIN)(folder).rename(folder / "odd.ckpt"))
computed("a file of `torch.save` that is called `.safetensors`")(_torch({"state_dict": PLAIN}, "odd.safetensors"))


@computed("a folder in diffusers' layout, SD1")
def _folder(folder: Path) -> Path:
    return copy_of_folder(folder / "model-v1.5")


@computed("a folder with `.bin` files")
def _folder_of_bins(folder: Path) -> Path:
    path = copy_of_folder(folder / "model")
    for part, name in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")):
        rewrite_part(path / part, lambda state, target: torch.save(state, target), f"{name}.bin")
    return path


@computed("a folder with the variant `fp16` only")
def _folder_of_halves(folder: Path) -> Path:
    path = copy_of_folder(folder / "model")
    for part, name in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        rewrite_part(
            path / part, lambda state, target: save_file({k: v.half() for k, v in state.items()}, target), f"{name}.fp16.safetensors"
        )
    return path


@computed("a folder with the variant `non_ema` only")
def _folder_not_averaged(folder: Path) -> Path:
    path = copy_of_folder(folder / "model")
    rewrite_part(path / "unet", save_file, "diffusion_pytorch_model.non_ema.safetensors")
    return path


@computed("a folder with `non_ema` beside the plain files: the plain ones are taken")
def _folder_of_both(folder: Path) -> Path:
    path = copy_of_folder(folder / "model")
    save_file({"conv_in.weight": torch.zeros(1)}, path / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    return path


def _sharded(folder: Path, *, missing: bool = False) -> Path:
    path = copy_of_folder(folder / "model")

    def write(state: State, target: Path) -> None:
        names = sorted(state)
        files = {name: f"diffusion_pytorch_model-0000{1 + (i % 3)}-of-00003.safetensors" for i, name in enumerate(names)}
        for file in sorted(set(files.values()))[int(missing) :]:
            save_file({name: state[name] for name in names if files[name] == file}, target.parent / file)
        target.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))

    rewrite_part(path / "unet", write, "diffusion_pytorch_model.safetensors.index.json")
    return path


computed("a folder whose UNet is in shards")(_sharded)


@computed("a folder whose VAE has the names and the linear attention of 2022")
def _folder_with_old_vae(folder: Path) -> Path:
    path = copy_of_folder(folder / "model")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def write(state: State, target: Path) -> None:
        for new, old in names.items():
            state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value for key, value in state.items()}
        torch.save(state, target)

    rewrite_part(path / "vae", write, "diffusion_pytorch_model.bin")
    return path


@computed("a folder whose text encoder has `text_model.` in its names, or has not")
def _folder_with_other_text(folder: Path) -> Path:
    path = copy_of_folder(folder / "model")

    def write(state: State, target: Path) -> None:
        has = any(key.startswith("text_model.") for key in state)
        save_file({key.removeprefix("text_model.") if has else "text_model." + key: value for key, value in state.items()}, target)

    rewrite_part(path / "text_encoder", write, "model.safetensors")
    return path


@computed("a folder of links, as downloads keep them")
def _folder_of_links(folder: Path) -> Path:
    path = copy_of_folder(folder / "real")
    linked = folder / "linked"
    for file in path.rglob("*"):
        if file.is_file():
            (target := linked / file.relative_to(path)).parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)
    return linked


def _json_change(name: str, **changes: object) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = copy_of_folder(folder / "model")
        settings = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(settings | changes))
        return path

    return make


refused("a folder of another pipeline, such as Flux", "FluxPipeline")(
    _json_change("model_index.json", _class_name="FluxPipeline", unet=["diffusers", "FluxTransformer2DModel"])
)
refused("a folder of ONNX models", "OnnxRuntimeModel")(_json_change("model_index.json", unet=["diffusers", "OnnxRuntimeModel"]))
refused("a folder whose UNet computes otherwise, such as LCM's", "time_cond_proj_dim")(
    _json_change("unet/config.json", time_cond_proj_dim=256)
)
refused("a folder with other heads of attention", "attention_head_dim")(_json_change("unet/config.json", attention_head_dim=16))
refused("a folder whose scheduler is one for flows, or predicts the picture", "prediction_type")(
    _json_change("scheduler/scheduler_config.json", prediction_type="sample")
)
refused("a folder with a shard missing", "not there")(lambda folder: _sharded(folder, missing=True))


@refused("a folder without the weights of a part", "no weights of its vae")
def _folder_without_weights(folder: Path) -> Path:
    path = copy_of_folder(folder / "model")
    rewrite_part(path / "vae", lambda _state, target: target.write_bytes(b""), "flax_model.msgpack")
    return path


@refused("a folder that is something else", "without model_index.json")
def _other_folder(folder: Path) -> Path:
    (folder / "pictures").mkdir()
    return folder / "pictures"


@refused("a folder that is a download's cache", "download's cache")
def _cache(folder: Path) -> Path:
    copy_of_folder(folder / "models--a--b" / "snapshots" / "0123abc")
    return folder / "models--a--b"


@refused("a part of a folder, such as `unet/`", "only the unet of a diffusers folder")
def _part_folder(folder: Path) -> Path:
    return copy_of_folder(folder / "model") / "unet"


@refused("a file of a folder, such as `diffusion_pytorch_model.safetensors`", "only the UNet of a diffusers folder; give the whole folder")
def _part_file(folder: Path) -> Path:
    return copy_of_folder(folder / "model") / "unet" / "diffusion_pytorch_model.safetensors"


refused("a GGUF file", "is a GGUF file")(_bytes(b"GGUF\3\0\0\0" + bytes(64), "odd.gguf"))
refused("an ONNX file", "is an ONNX file")(_bytes(b"\x08\x07\x12\x07pytorch" + bytes(64), "odd.onnx"))
refused("weights in nf4 or fp4", "nf4 or fp4")(
    _safetensors(PLAIN | {UNET + "out.2.weight.quant_state.bitsandbytes__nf4": torch.zeros(3, dtype=torch.uint8)})
)
refused("weights in int8 of bitsandbytes", "int8 of bitsandbytes")(_safetensors(PLAIN | {UNET + "time_embed.0.SCB": torch.zeros(3)}))
refused("weights in nvfp4", "nvfp4")(_safetensors(PLAIN | {UNET + "time_embed.0.weight_scale_2": torch.zeros(())}))
refused("fp8 with scales for blocks", "scales for blocks")(
    _safetensors(PLAIN | {UNET + "time_embed.0.weight_scale_inv": torch.zeros(2, 2)})
)
refused("fp8 with scales of an unknown shape", "scales of an unknown kind")(
    _safetensors(PLAIN | {UNET + "time_embed.0.scale_weight": torch.zeros(7)})
)
refused("weights as whole numbers", "stores model.diffusion_model.out.2.bias as int8")(
    _safetensors(PLAIN | {UNET + "out.2.bias": torch.zeros(4, dtype=torch.int8)})
)
refused("weights that are no numbers (NaN)", "no finite numbers")(
    _torch({"state_dict": PLAIN | {UNET + "out.2.bias": torch.full((4,), torch.nan)}})
)
refused("a LoRA", "is a LoRA")(_named("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"))
refused("a LoRA for Flux", "is a LoRA")(_named("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"))
refused("a ControlNet", "is a ControlNet")(_named("control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"))
refused("a VAE alone", "is a VAE")(_safetensors({key.removeprefix(VAE): value for key, value in PLAIN.items() if key.startswith(VAE)}))
refused("a VAE alone, `.pt`", "is a VAE")(
    _torch({"state_dict": {key.removeprefix(VAE): value for key, value in PLAIN.items() if key.startswith(VAE)}}, "vae.pt")
)
refused("a UNet alone", "only the UNet of a checkpoint")(
    _safetensors({key.removeprefix(UNET): value for key, value in PLAIN.items() if key.startswith(UNET)})
)
refused("a text encoder alone", "only a text encoder")(
    _safetensors({key.removeprefix(TEXT): value for key, value in PLAIN.items() if key.startswith(TEXT)})
)
refused("a checkpoint without its VAE", "has no VAE")(_safetensors({key: value for key, value in PLAIN.items() if not key.startswith(VAE)}))
refused("a hypernetwork", "is a hypernetwork")(_torch({"layer_structure": [1, 2, 1], 320: [{}, {}], "step": 5}, "odd.pt"))
refused("an upscaler", "is an upscaler")(_torch({"params_ema": {"conv_first.weight": torch.zeros(1)}}, "odd.pth"))
refused("an embedding, `.safetensors`", "is an embedding")(_safetensors({"emb_params": torch.ones(2, 768)}))
refused("an embedding, `.pt`", "is an embedding")(
    _torch({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}, "name": "x", "step": 3}, "odd.pt")
)
refused("a web page", "is a web page")(_bytes(b"\n<!DOCTYPE html><html><head><title>Log in</title></head></html>"))
refused("the error message of a server", "error message of a server")(_bytes(b'{"error":"Unauthorized","message":"log in"}', "odd.ckpt"))
refused("a Git LFS pointer", "Git LFS pointer")(_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 4265380512\n"))
refused("an empty file", "it is empty")(_bytes(b""))
refused("a download that has not ended, zeros so far", "begins with zeros")(_bytes(bytes(4096)))
refused("a download under its passing name", "has not ended")(_bytes(b"\1\2\3\4" * 9, "odd.safetensors.crdownload"))
refused("a picture", "is a picture")(_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64)))
refused("a packed archive", "is a packed archive")(_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(64), "odd.ckpt"))
refused("a file of unknown bytes", "no file of torch.save")(_bytes(b"hello, world" * 9, "README"))


def _cut(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def cut(folder: Path) -> Path:
        path = make(folder)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        return path

    return cut


refused("a `.safetensors` file that is cut off", "is cut off")(_cut(_safetensors(PLAIN)))
refused("a `.ckpt` file that is cut off", "cut off or damaged")(_cut(_torch({"state_dict": PLAIN})))
refused("a `.ckpt` in the stream format that is cut off", "cut off or damaged")(_cut(_torch({"state_dict": PLAIN}, legacy=True)))


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("echo run > must-not-exist",)


refused("a `.ckpt` with code in it", "code, not data; it was not run")(_torch({"state_dict": PLAIN, "callbacks": _Code()}))


@refused("a TorchScript program", "which PyTorch does not write")
def _script(folder: Path) -> Path:
    torch.save({"state_dict": {}}, folder / "odd.pt")
    with zipfile.ZipFile(folder / "odd.pt", "a") as archive:
        archive.writestr("odd/code/__torch__.py", "pass")
    return folder / "odd.pt"


_FAMILIES = {
    "SDXL's refiner": ("SDXL refiner", "conditioner.embedders.0.model.ln_final.weight"),
    "SD3": ("SD3", UNET + "joint_blocks.0.x_block.attn.qkv.weight"),
    "Flux": ("Flux", UNET + "double_blocks.0.img_mod.lin.weight"),
    "Flux.2": ("Flux.2", "double_blocks.0.img_attn.qkv.weight", "double_stream_modulation_img.lin.weight"),
    "Chroma": ("Chroma", "double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.in_proj.weight"),
    "Stable Cascade": ("Stable Cascade", "clip_txt_mapper.weight", "clf.1.weight"),
    "Stable Video Diffusion": ("Stable Video", UNET + "input_blocks.1.1.time_stack.0.norm1.weight"),
    "Sana": ("Sana", "blocks.0.mlp.inverted_conv.conv.weight", "t_block.1.weight", "y_embedder.y_proj.fc1.weight"),
    "Z-Image": ("Z-Image", "cap_embedder.1.weight", "cap_pad_token", "noise_refiner.0.attention.qkv.weight"),
    "Lumina 2": ("Lumina", "cap_embedder.1.weight", "noise_refiner.0.attention.qkv.weight"),
    "Qwen-Image": ("Qwen", "transformer_blocks.0.attn.add_q_proj.weight", "txt_norm.weight"),
    "PixArt": ("PixArt", "t_block.1.weight", "y_embedder.y_proj.fc1.weight"),
    "AuraFlow": ("AuraFlow", "double_layers.0.attn.w1q.weight", "cond_seq_linear.weight"),
    "Kolors": ("Kolors", "encoder_hid_proj.weight", "conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
    "HunyuanDiT": ("HunyuanDiT", "mlp_t5.0.weight", "blocks.0.attn1.Wqkv.weight"),
    "HunyuanVideo": ("HunyuanVideo", "double_blocks.0.img_attn_qkv.weight", "txt_in.individual_token_refiner.blocks.0.norm1.weight"),
}
for _family, (_said, *_names) in _FAMILIES.items():
    refused(f"{_family}", f"{_said}")(_named(*_names))
