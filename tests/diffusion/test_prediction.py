"""What the UNet of a checkpoint predicts, by what the file says, by what is beside it, and by a trial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.checkpoints import TINY_UNET, random_module
from textual_inversion.diffusion.checkpoint import CheckpointFile
from textual_inversion.diffusion.model import TINY_CHECKPOINT, StableDiffusion, load_checkpoint
from textual_inversion.diffusion.noise import NoiseSchedule
from textual_inversion.diffusion.prediction import about_checkpoint, find_prediction, probe, stated_prediction
from textual_inversion.errors import CheckpointError, UnsupportedCheckpointError


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_file(TINY_CHECKPOINT)


@pytest.fixture(scope="module")
def tiny() -> StableDiffusion:
    return load_checkpoint(device="cpu", precision="fp32")


def written(path: Path, *, keys: tuple[str, ...] = (), metadata: dict[str, str] | None = None, yaml: str = "") -> CheckpointFile:
    """A file with a header that says something, and nearly nothing else."""
    save_file({"x": torch.zeros(1), **{key: torch.zeros(0) for key in keys}}, path, metadata)
    if yaml:
        path.with_suffix(".yaml").write_text(yaml, encoding="utf-8")
    return CheckpointFile.open(path)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, None),
        ({"keys": ("v_pred",)}, "v_prediction"),
        ({"yaml": "model:\n  params:\n    parameterization: v\n"}, "v_prediction"),
        ({"yaml": 'model:\n  params:\n    parameterization: "v"  # as trained\n'}, "v_prediction"),
        ({"yaml": "model:\n  params:\n    parameterization: eps\n"}, "epsilon"),
        ({"yaml": "model:\n  params:\n    linear_start: 0.00085\n"}, None),
        ({"metadata": {"modelspec.prediction_type": "v"}}, "v_prediction"),
        ({"metadata": {"modelspec.prediction_type": "epsilon"}}, "epsilon"),
        ({"metadata": {"ss_v_parameterization": "True"}}, "v_prediction"),
        ({"metadata": {"ss_v_parameterization": "False"}}, "epsilon"),
        ({"metadata": {"modelspec.prediction_type": "unknown"}}, None),
        ({"metadata": {"modelspec.prediction_type": ""}}, None),
        ({"metadata": {"ss_v_parameterization": "None"}}, None),
        ({"yaml": "    parameterization: v-prediction\n"}, "v_prediction"),
        ({"yaml": "    parameterization: x0\n"}, None),
        ({"keys": ("v_pred",), "yaml": "parameterization: eps\n"}, "v_prediction"),
    ],
)
def test_what_a_file_says(tmp_path: Path, said: dict[str, object], expected: str | None) -> None:
    stated = stated_prediction(written(tmp_path / "some.safetensors", **said))  # type: ignore[arg-type]
    assert (stated and stated.prediction.name) == expected


class AsV(nn.Module):
    """A UNet that predicts v, made of one that predicts the noise."""

    def __init__(self, unet: nn.Module, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.unet, self.schedule, self.config = unet, schedule, unet.config

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        signal, spread = (values[timesteps][:, None, None, None] for values in (self.schedule.signal, self.schedule.spread))
        return (self.unet(x, timesteps, context) - spread * x) / signal


def test_a_trial_tells_the_two_apart(tiny: StableDiffusion) -> None:
    assert probe(tiny) == "epsilon"
    assert probe(replace(tiny, unet=AsV(tiny.unet, tiny.schedule))) == "v_prediction"  # type: ignore[arg-type]
    assert probe(replace(tiny, unet=random_module(TINY_UNET))) == "", "random weights predict neither"  # type: ignore[arg-type]


def test_a_file_that_says_v_is_computed_as_v(tmp_path: Path, weights: dict[str, torch.Tensor], tiny: StableDiffusion) -> None:
    path = tmp_path / "vkey.safetensors"
    save_file({**weights, "v_pred": torch.zeros(0)}, path)
    model = load_checkpoint(path, device="cpu", precision="fp32")
    assert model.prediction.name == "v_prediction"
    assert model.notes == ("vkey.safetensors predicts v, as its key v_pred says.",)
    chosen = load_checkpoint(path, device="cpu", precision="fp32", prediction_type="epsilon")
    assert (chosen.prediction.name, chosen.notes) == ("epsilon", ())
    assert (tiny.prediction.name, tiny.notes) == ("epsilon", ())


def test_the_trial_decides_where_nothing_is_said(weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "silent.safetensors"
    save_file(weights, path)
    monkeypatch.setattr("textual_inversion.diffusion.prediction.probe", lambda *_: "v_prediction")
    model = load_checkpoint(path, device="cpu", precision="fp32")
    assert model.prediction.name == "v_prediction"
    assert "set the prediction type" in model.notes[0]


def test_a_schedule_that_ends_in_noise(tmp_path: Path, weights: dict[str, torch.Tensor], tiny: StableDiffusion) -> None:
    diffusers = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    path = tmp_path / "noise.safetensors"
    save_file({**weights, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, path)
    schedule = load_checkpoint(path, device="cpu", precision="fp32").schedule
    theirs = 1 - diffusers.rescale_zero_terminal_snr(
        1 - tiny.schedule.alphas_cumprod / torch.cat((torch.ones(1), tiny.schedule.alphas_cumprod[:-1]))
    )
    expected = theirs.cumprod(0)
    assert torch.allclose(schedule.alphas_cumprod[:-1], expected[:-1], rtol=1e-3, atol=1e-7)
    assert 0 < schedule.alphas_cumprod[-1] < 1e-7


def test_a_schedule_that_was_rounded_is_the_usual_one(tmp_path: Path, weights: dict[str, torch.Tensor], tiny: StableDiffusion) -> None:
    usual = NoiseSchedule.scaled_linear()
    for dtype in (torch.bfloat16, torch.float16):
        path = tmp_path / f"{dtype}.safetensors"
        save_file({key: value.to(dtype) for key, value in weights.items()}, path)
        model = load_checkpoint(path, device="cpu", precision="fp32")
        assert torch.equal(model.schedule.alphas_cumprod, usual.alphas_cumprod)
        assert model.notes == ()
    stretched = usual.with_zero_terminal_snr(0.0).alphas_cumprod.bfloat16()
    save_file({**weights, "alphas_cumprod": stretched}, path)
    model = load_checkpoint(path, device="cpu", precision="fp32")
    assert model.schedule.alphas_cumprod[-1] < 1e-7
    assert model.notes == ()
    for steps in (1, 7):
        assert torch.isfinite(model.schedule.timestep_of(model.schedule.sigmas[-steps:])).all()
    save_file({**weights, "alphas_cumprod": torch.linspace(0, 1, 1000)}, path)
    model = load_checkpoint(path, device="cpu", precision="fp32")
    assert torch.equal(model.schedule.alphas_cumprod, usual.alphas_cumprod)
    assert "Stable Diffusion's own takes its place" in model.notes[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, weights: dict[str, torch.Tensor], value: float) -> None:
    name = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    path = tmp_path / "bad.safetensors"
    save_file({**weights, name: weights[name].index_fill(0, torch.tensor([0]), value)}, path)
    with pytest.raises(CheckpointError, match="no finite numbers") as caught:
        load_checkpoint(path, device="cpu")
    assert name in caught.value.reason


def test_a_token_table_with_too_few_rows_is_refused(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    (key,) = (key for key in weights if key.endswith("token_embedding.weight"))
    path = tmp_path / "small.safetensors"
    save_file({**weights, key: weights[key][:32000].clone()}, path)
    with pytest.raises(UnsupportedCheckpointError, match="32000 rows"):
        load_checkpoint(path, device="cpu")


def test_a_folder_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder without model_index\.json"):
        CheckpointFile.open(tmp_path)
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="download it again"):
        CheckpointFile.open(tmp_path)


@pytest.mark.parametrize(("family", "digits", "expected"), [
    ("SD2", "ad2a33c361", "v_prediction"), ("SD2", "88ecb78256", "epsilon"), ("SD2", "0123456789", "trial"), ("SD1", "ad2a33c361", "trial"),
    ("SD2", None, "trial"),
])  # fmt: skip
def test_sd2s_own_files_are_known_by_their_hash(
    tiny: StableDiffusion, monkeypatch: pytest.MonkeyPatch, family: str, digits: str | None, expected: str
) -> None:
    tried: list[StableDiffusion] = []
    monkeypatch.setattr("textual_inversion.diffusion.prediction.probe", lambda model: tried.append(model) or "epsilon")
    monkeypatch.setattr(CheckpointFile, "hash", digits)
    prediction, sentence = find_prediction(replace(tiny, family=family))
    assert bool(tried) == (expected == "trial")
    assert prediction.name == ("epsilon" if expected == "trial" else expected)
    assert ("by its hash" in sentence) == (expected == "v_prediction")


def test_what_is_said_of_a_checkpoint_before_and_after_it_is_loaded(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    silent, stated = tmp_path / "silent.safetensors", tmp_path / "stated.safetensors"
    save_file(weights, silent)
    save_file({**weights, "v_pred": torch.zeros(0)}, stated)
    assert about_checkpoint(silent) == "SD1, 128 x 128 pixels; a trial tells what it predicts."
    assert about_checkpoint(stated) == "SD1, 128 x 128 pixels; it predicts v, as its key v_pred says."
    for path, expected in (
        (silent, "; it predicts the noise."),
        (stated, ". stated.safetensors predicts v, as its key v_pred says."),
    ):
        model = load_checkpoint(path, device="cpu", precision="fp32")
        assert about_checkpoint(path, model) == f"SD1, 128 x 128 pixels{expected}"
