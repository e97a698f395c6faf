"""Checkpoint files: what loads, what is listed by key, and one clear sentence for everything else."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import TINY_CLIP, TINY_UNET, TINY_VAE, checkpoint_tensors, write_checkpoint
from textual_inversion.diffusion.checkpoint import TEXT, UNET, VAE, CheckpointFile, token_tables
from textual_inversion.diffusion.clip import CLIPConfig
from textual_inversion.diffusion.model import StableDiffusion, load_checkpoint
from textual_inversion.diffusion.noise import NoiseSchedule
from textual_inversion.diffusion.unet import UNetConfig
from textual_inversion.diffusion.vae import VAEConfig
from textual_inversion.errors import CheckpointError, UnsupportedCheckpointError

SMALL_CLIP = CLIPConfig(vocab_size=49408, width=64, layers=1)
SMALL_UNET = UNetConfig(model_channels=32, channel_mult=(1,), num_res_blocks=(1,), transformer_depth=(1,), context_dim=64)
SMALL_VAE = VAEConfig(32, (1, 1, 1, 1), 1)
ROOT = Path(__file__).resolve().parents[2]
SIZES = (UNET + "input_blocks.0.0.weight", VAE + "encoder.conv_in.weight", TEXT + "text_model.embeddings.token_embedding.weight")
SMALL = {"unet": SMALL_UNET, "vae": SMALL_VAE, "clip": SMALL_CLIP}


def load(path: Path, precision: str = "fp32") -> StableDiffusion:
    return load_checkpoint(path, device="cpu", precision=precision)


def refusal(path: Path, kind: type[CheckpointError] = CheckpointError) -> str:
    """The message of a checkpoint that does not load: one sentence that names the file."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert path.name in message
    assert caught.value.path == path
    assert message.endswith(".")
    assert "\n" not in message
    return message


def loads_or_is_refused(path: Path) -> bool:
    """Whether it is a whole checkpoint or one sentence says why not; no other error comes out."""
    try:
        return load(path).family == "SD1"
    except CheckpointError as error:
        return path.name in str(error)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small.safetensors", **SMALL)


def test_a_checkpoint_loads_with_its_sizes(tiny: Path) -> None:
    model = load(tiny)
    assert (model.unet.config, model.vae.config, model.text_encoder.config) == (TINY_UNET, TINY_VAE, TINY_CLIP)
    assert (model.name, model.family, model.prediction.name) == ("tiny", "SD1", "epsilon")
    assert model.widths == {"clip_l": 64}
    assert not any(weight.requires_grad for part in (model.unet, model.vae, model.text_encoder) for weight in part.parameters())


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("auto", torch.float32)]
)
def test_weights_are_those_of_the_file_in_the_precision_asked_for(small: Path, precision: str, dtype: torch.dtype) -> None:
    model = load(small, precision)
    assert model.dtype is dtype
    stored = load_file(small)
    for prefix, part, expected in ((UNET, model.unet, dtype), (VAE, model.vae, torch.float32), (TEXT, model.text_encoder, dtype)):
        for key, value in part.state_dict().items():
            assert value.dtype is expected, key
            assert torch.equal(value, stored[prefix + key].to(expected)), key


def test_the_file_can_be_replaced_while_the_model_is_in_use(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model.safetensors", **SMALL, dtype=torch.float32)
    model = load(path)
    before = model.unet.out[2].weight.clone()
    size = path.stat().st_size
    with path.open("r+b") as file:  # a copy of the weights does not see what happens to a mapped file
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    assert torch.equal(model.unet.out[2].weight, before)


def test_its_hash_is_a1111s(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    assert CheckpointFile.open(path).hash == hashlib.sha256(path.read_bytes()).hexdigest()[:10]


def test_missing_tensors_are_listed_by_key(tmp_path: Path) -> None:
    missing = [UNET + "out.2.bias", VAE + "decoder.conv_out.weight", TEXT + "text_model.final_layer_norm.bias"]
    for key in missing:
        assert f"{key} is missing" in refusal(write_checkpoint(tmp_path / "m.safetensors", **SMALL, drop=[key]))


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    message = refusal(write_checkpoint(tmp_path / "m.safetensors", **SMALL, drop=[VAE + "decoder.mid."]))
    assert "and 21 more" in message


@pytest.mark.parametrize("key", SIZES)
def test_a_missing_tensor_that_gives_a_size_is_named(tmp_path: Path, key: str) -> None:
    assert key in refusal(write_checkpoint(tmp_path / "m.safetensors", **SMALL, drop=[key]))


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    message = refusal(write_checkpoint(tmp_path / "m.safetensors", **SMALL, extra={UNET + "out.2.bias": torch.zeros(5)}))
    assert f"{UNET}out.2.bias is [5], expected [4]" in message


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("shape", [(), (7,), (0, 0, 0, 0), (33, 4, 3, 3), (2, 3)])
def test_a_size_that_makes_no_model_is_refused(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors", **SMALL, extra={key: torch.zeros(shape)})
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert error.value.path == path


def test_tensors_of_other_programs_are_passed_over(tmp_path: Path) -> None:
    names = ("optimizer.state", UNET + "control.weight", VAE + "loss.weight", TEXT + "head.weight", "model_ema.decay", "betas")
    strange = {name: torch.zeros(2) for name in (*names, TEXT + "text_model.embeddings.position_ids")}
    assert load(write_checkpoint(tmp_path / "u.safetensors", **SMALL, extra=strange)).family == "SD1"


def test_vae_attention_may_be_stored_as_linear_layers(tmp_path: Path, small: Path) -> None:
    convolutions = {
        key: value for key, value in checkpoint_tensors(**SMALL).items() if key.startswith(VAE) and ".attn_1." in key and value.ndim == 4
    }
    assert len(convolutions) == 8
    linear = write_checkpoint(
        tmp_path / "l.safetensors", **SMALL, extra={key: value[:, :, 0, 0].contiguous() for key, value in convolutions.items()}
    )
    ours, theirs = load(linear).vae.state_dict(), load(small).vae.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_text_encoders_of_the_first_files_load(tmp_path: Path, small: Path) -> None:
    """Their names lack `text_model.`."""
    prefix = TEXT + "text_model."
    old = {TEXT + key.removeprefix(prefix): value for key, value in checkpoint_tensors(**SMALL).items() if key.startswith(prefix)}
    old[TEXT + "embeddings.position_ids"] = torch.arange(77)[None]
    model = load(write_checkpoint(tmp_path / "old.safetensors", **SMALL, drop=[TEXT], extra=old))
    expected = load(small).text_encoder.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.text_encoder.state_dict().items())


def test_the_noise_schedule_is_the_files(tmp_path: Path, small: Path) -> None:
    other = NoiseSchedule.scaled_linear(0.001, 0.02).alphas_cumprod
    assert torch.equal(
        load(write_checkpoint(tmp_path / "a.safetensors", **SMALL, extra={"alphas_cumprod": other})).schedule.alphas_cumprod, other
    )
    usual = NoiseSchedule.scaled_linear().alphas_cumprod
    assert torch.equal(load(small).schedule.alphas_cumprod, usual)
    assert torch.equal(load(write_checkpoint(tmp_path / "b.safetensors", **SMALL, drop=["alphas_cumprod"])).schedule.alphas_cumprod, usual)


def with_tensors(path: Path, *names: str) -> Path:
    save_file({name: torch.zeros(2, 2) for name in names}, path)
    return path


def test_other_families_and_files_are_named(tmp_path: Path) -> None:
    sdxl = with_tensors(tmp_path / "xl.safetensors", UNET + "label_emb.0.0.weight", "conditioner.embedders.0.transformer.x", VAE + "x")
    assert "has no text encoder clip_g" in refusal(sdxl)
    sd2 = with_tensors(tmp_path / "v2.safetensors", UNET + "x", "cond_stage_model.model.ln_final.weight", VAE + "x")
    assert "misses model.diffusion_model." in refusal(sd2)
    flux = with_tensors(tmp_path / "flux.safetensors", UNET + "double_blocks.0.img_attn.qkv.weight", VAE + "x")
    assert "is a Flux checkpoint" in refusal(flux, UnsupportedCheckpointError)
    sd3 = with_tensors(tmp_path / "sd3.safetensors", UNET + "joint_blocks.0.x_block.attn.qkv.weight")
    assert "is an SD3 checkpoint" in refusal(sd3, UnsupportedCheckpointError)
    nf4 = with_tensors(tmp_path / "nf4.safetensors", UNET + "out.2.weight", UNET + "out.2.weight.quant_state.bitsandbytes__nf4", TEXT + "x")
    assert "quantized weights" in refusal(nf4, UnsupportedCheckpointError)
    for path in (flux, sd3, nf4):
        with pytest.raises(UnsupportedCheckpointError):
            token_tables(path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "GGUF" in refusal(tmp_path / "model.gguf", UnsupportedCheckpointError)
    lora = with_tensors(tmp_path / "lora.safetensors", "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha")
    assert "is a LoRA or LyCORIS, no checkpoint; it belongs into models/Lora" in refusal(lora)
    diffusers = with_tensors(tmp_path / "diffusion_pytorch_model.safetensors", "conv_in.weight", "down_blocks.0.resnets.0.conv1.weight")
    assert "only the UNet of a diffusers folder" in refusal(diffusers)
    assert "holds 0 tensors" in refusal(with_tensors(tmp_path / "empty.safetensors"))
    depth = write_checkpoint(tmp_path / "i.safetensors", **SMALL | {"unet": UNetConfig(5, 4, 32, (1,), (1,), (1,), context_dim=64)})
    assert "5 channels" in refusal(depth, UnsupportedCheckpointError)


@pytest.mark.parametrize(("left_out", "named"), [((VAE,), "no VAE"), ((UNET,), "no UNet"), ((VAE, TEXT), "no VAE and no text encoder")])
def test_a_part_of_a_checkpoint_is_not_enough(tmp_path: Path, left_out: tuple[str, ...], named: str) -> None:
    assert named in refusal(write_checkpoint(tmp_path / "part.safetensors", **SMALL, drop=left_out))


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "q.safetensors", **SMALL, extra={UNET + "out.2.bias": torch.zeros(4, dtype=torch.int8)})
    assert "int8" in refusal(path, UnsupportedCheckpointError)


def test_paths_that_are_no_checkpoint_files(tmp_path: Path) -> None:
    assert "no checkpoint file" in refusal(tmp_path / "absent.safetensors")
    folder = tmp_path / "folder.safetensors"
    folder.mkdir()
    assert "is a folder without model_index.json" in refusal(folder)
    for name, content, said in (("model.ckpt", b"PK\x03\x04", "damaged"), ("model.pt", b"", "empty"), ("README", b"hello", "torch.save")):
        (tmp_path / name).write_bytes(content)
        assert said in refusal(tmp_path / name)


NOT_SAFETENSORS = {
    "nothing": b"",
    "zeros": bytes(4096),
    "text": b"This is no checkpoint, it is the page of a login form.\n" * 50,
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8,
    "a huge length": struct.pack("<Q", 2**63 + 5) + b"{}" * 50,
    "a length past the end": struct.pack("<Q", 5000) + b"{}" * 50,
    "a list": struct.pack("<Q", 4) + b"[12]" + bytes(64),
    "no JSON": struct.pack("<Q", 8) + b"{'a': 1}" + bytes(64),
    "no UTF-8": struct.pack("<Q", 8) + b'{"\xff":1}' + bytes(64),
    "deep nesting": struct.pack("<Q", 200_000) + b"[" * 200_000 + bytes(64),
    "no shape": struct.pack("<Q", 13) + b'{"a":{"b":1}}' + bytes(64),
}


@pytest.mark.parametrize("kind", NOT_SAFETENSORS)
def test_files_that_are_something_else(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(NOT_SAFETENSORS[kind])
    assert path.name in refusal(path)


def rewritten(source: Path, target: Path, change: dict[str, object]) -> Path:
    """A copy of a checkpoint in whose header one tensor is described otherwise."""
    data = source.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header[UNET + "out.2.bias"] |= change
    text = json.dumps(header).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return target


@pytest.mark.parametrize("change", [
    {"data_offsets": [0, 8]}, {"data_offsets": [0, 2**62]}, {"data_offsets": [8, 0]}, {"data_offsets": [-8, 0]},
    {"shape": [2**40]}, {"shape": [-4]}, {"shape": 4}, {"shape": ["4"]}, {"shape": None}, {"shape": [4.0]},
    {"dtype": "F99"}, {"dtype": 16}, {"dtype": "F64"},
], ids=str)  # fmt: skip
def test_headers_that_lie(tmp_path: Path, small: Path, change: dict[str, object]) -> None:
    kind = UnsupportedCheckpointError if change == {"dtype": "F99"} else CheckpointError  # a type of a newer format
    assert "lie.safetensors" in refusal(rewritten(small, tmp_path / "lie.safetensors", change), kind)


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9, 0.999999])
def test_a_download_that_was_cut_off(tmp_path: Path, small: Path, share: float) -> None:
    data = small.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: int(len(data) * share)])
    assert path.name in refusal(path)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(1, 12))
def test_a_header_with_broken_bytes_loads_or_is_refused(tmp_path: Path, small: Path, seed: int, count: int) -> None:
    data = bytearray(small.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    rng = random.Random(seed)
    for _ in range(count):
        data[rng.randrange(8 + length)] = rng.randrange(256)
    path = tmp_path / "broken.safetensors"
    path.write_bytes(data)
    assert loads_or_is_refused(path)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32))
def test_tensors_of_any_shape_load_or_are_refused(tmp_path: Path, seed: int) -> None:
    """A few tensors are left out or take another shape, those more often that sizes are read off."""
    rng = random.Random(seed)
    tensors = checkpoint_tensors(**SMALL)
    endings = ("conv_in.weight", "0.0.weight", "embedding.weight", "proj_in.weight", "to_k.weight", "conv1.weight")
    sizes = [key for key in tensors if key.endswith(endings)]
    for key in rng.sample(sizes, 2) + rng.sample(sorted(tensors), 1):
        shape = [rng.choice((0, 1, 2, 3, 32, 64)) for _ in range(rng.randrange(5))]
        tensors[key] = torch.zeros(shape, dtype=torch.float16)
        if rng.random() < 0.3:
            del tensors[key]
    path = tmp_path / "odd.safetensors"
    save_file(tensors, path)
    assert loads_or_is_refused(path)


def test_other_errors_are_not_taken_for_a_bad_file(small: Path) -> None:
    """An error of the machine, such as memory that runs out while loading, must not send anyone to download the file again."""
    with pytest.raises(RuntimeError) as caught:
        load_checkpoint(small, device="no such device")
    assert not isinstance(caught.value, CheckpointError)


def test_loading_does_not_import_the_compiler(tiny: Path) -> None:
    """It takes more than a second, and drawing numbers on the meta device would do it."""
    code = """
import sys
from textual_inversion import load_checkpoint
load_checkpoint(sys.argv[1], device="cpu")
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tiny)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("prefix", ["", VAE])
def test_another_vae_stands_in_for_the_checkpoints_own(tiny: Path, tmp_path: Path, prefix: str) -> None:
    own = load(tiny)
    other = {key: value * 0.5 for key, value in own.vae.state_dict().items()}
    save_file({prefix + key: value for key, value in other.items()}, tmp_path / "other.vae.safetensors")
    model = load_checkpoint(tiny, vae=tmp_path / "other.vae.safetensors", device="cpu", precision="fp32")
    assert all(torch.equal(value, other[key]) for key, value in model.vae.state_dict().items())
    assert all(torch.equal(value, own.unet.state_dict()[key]) for key, value in model.unet.state_dict().items())
    assert model.name == own.name


def test_a_vae_that_is_none_is_refused(tiny: Path, tmp_path: Path) -> None:
    save_file({"lora_up.weight": torch.ones(2)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"lora\.safetensors is no VAE.*lora_up"):
        load_checkpoint(tiny, vae=tmp_path / "lora.safetensors", device="cpu")
