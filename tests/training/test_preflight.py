"""What is said of a run before it starts, and that nothing is changed or loaded for it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from textual_inversion import formats
from textual_inversion.diffusion.checkpoint import CheckpointFile
from textual_inversion.diffusion.conditioning import VectorTable
from textual_inversion.embedding import Embedding
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training import estimate
from textual_inversion.training.data.batches import Batch
from textual_inversion.training.estimate import DeviceSpeed, MemoryCost, StepCost, step_cost
from textual_inversion.training.preflight import FATAL, GOOD, HINT, PROBLEM, preflight
from textual_inversion.training.step import TrainingStep
from textual_inversion.training.trainer import train


def texts(found, kind=None) -> str:
    return " | ".join(finding.text for finding in found.findings if kind in (None, finding.kind))


def test_a_good_run_is_told_in_figures(config, checkpoint, pictures):
    for index in (3, 4):
        Image.effect_noise((80, 64), 90).save(pictures / f"{index}.png")
    before = {path: path.read_bytes() for path in pictures.iterdir()}
    found = preflight(replace(config, steps=50), 2, checkpoint)
    assert found.ready
    assert (found.pictures, found.sizes, found.chunks) == (5, (((64, 64), 5),), 1)
    assert found.cropped == pytest.approx(0.2)
    assert found.seconds > 0
    assert found.memory > checkpoint.stat().st_size
    said = texts(found, GOOD)
    for words in ("5 pictures, each shown about 20 times in 50 steps", "5 at 64 x 64", "Every prompt holds the name", "of 75 tokens", "GB"):
        assert words in said
    assert texts(found, PROBLEM) == texts(found, FATAL) == ""
    assert json.loads(json.dumps(found.to_dict()))["pictures"] == 5
    assert {path: path.read_bytes() for path in pictures.iterdir()} == before


def test_one_of_a_thing_is_told_as_one(config, pictures):
    for index in (1, 2):
        (pictures / f"{index}.png").unlink()
    one = preflight(replace(config, steps=1, batch_size=1), 2)
    assert "1 picture, each shown about once in 1 step." in texts(one, GOOD)
    Image.effect_noise((64, 128), 90).save(pictures / "tall.png")
    two = preflight(replace(config, buckets=True, width=128, height=128, batch_size=1, steps=4), 2)
    assert "2 pictures, each shown about 2 times in 4 steps." in texts(two, GOOD)


def test_everything_that_is_worth_a_word_gets_one(config, pictures):
    (pictures / "copy.png").write_bytes((pictures / "1.png").read_bytes())
    Image.effect_noise((400, 64), 90).save(pictures / "wide.png")
    Image.effect_noise((32, 32), 90).save(pictures / "small.png")
    (pictures / "bad.png").write_text("text")
    (pictures / "0.txt").write_text("word " * 90)
    found = preflight(config, 2)
    assert found.ready
    assert "84% of wide.png is cropped away; aspect buckets would keep more" in texts(found, HINT)
    assert "small.png is smaller than the training size and enlarged up to 2.0 times" in texts(found, HINT)
    assert "1.png, copy.png are the same file" in texts(found, PROBLEM)
    assert "bad.png cannot be read: its contents are not" in texts(found, PROBLEM)
    assert "every prompt takes 2 chunks of 75" in texts(found, HINT)
    assert (found.chunks, found.seconds, found.memory) == (2, None, None)
    assert [finding.kind for finding in found.findings] == sorted((f.kind for f in found.findings), key=(FATAL, PROBLEM, HINT, GOOD).index)
    wide = preflight(replace(config, buckets=True, batch_size=4, width=128, height=128), 2)
    assert len(wide.sizes) > 1
    assert wide.cropped < found.cropped
    assert "fewer pictures than a batch (4)" in texts(wide, HINT)


def test_what_would_stop_or_teach_nothing(config, pictures, tmp_path):
    template = tmp_path / "template.txt"
    template.write_text("a photo of nothing\n")
    assert "has no [name]" in texts(preflight(replace(config, template=str(template)), 2), FATAL)
    template.write_text("a photo of (nothing:1.2)\n[name]\n")
    assert not preflight(replace(config, template=str(template)), 2).ready
    assert "at step 9 already" in texts(preflight(config, 2, first_step=9), FATAL)
    gone = preflight(replace(config, images=str(tmp_path / "gone")), 2)
    assert not gone.ready
    assert "does not exist" in texts(gone, FATAL)


def test_a_checkpoint_that_cannot_be_read_costs_the_estimate_only(config, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    found = preflight(config, 2, tmp_path / "bad.safetensors")
    assert found.ready
    assert found.seconds is None
    assert "Time and memory are not estimated" in texts(found, HINT)


def test_captions_that_are_missing_are_counted(config, pictures):
    for path in pictures.glob("*.txt"):
        path.write_text("")
    assert "3 pictures without a caption" in texts(preflight(config, 2), HINT)


def test_the_count_is_that_of_a_real_step(model, checkpoint):
    """Operations counted on shapes alone are those that a step does, but for the fused attention that some PyTorchs do not count."""
    vectors = torch.randn(2, 64) * 0.1
    table = VectorTable.of({"x": Embedding("x", {"clip_l": vectors})}, {"clip_l": 64}, "cpu")
    step = TrainingStep(model, vectors, TrainingConfig("x", "y"))
    batch = Batch(torch.randn(1, 4, 8, 16), torch.randn(1, 4, 8, 16), torch.tensor([5]), model.conditioner.tokenize(["an x"], table))
    with FlopCounterMode(display=False) as counter:
        step.loss(batch).backward()
    counted = step_cost(CheckpointFile.open(checkpoint), (128, 64), torch.float32)
    assert counted.flops == pytest.approx(counter.get_total_flops(), rel=0.08)
    sizes = [sum(p.numel() * p.element_size() for p in part.parameters()) for part in (model.unet, model.text_encoder, model.vae)]
    assert counted.memory.weights == sizes[0] + sizes[1]
    assert counted.memory.vae == sizes[2]
    larger = step_cost(CheckpointFile.open(checkpoint), (256, 128), torch.float32)
    assert 2 < larger.memory.activations / counted.memory.activations < 6  # the text encoder's part stays
    assert 3.9 < larger.memory.encoding / counted.memory.encoding < 4.1


def test_full_size_activations_are_those_that_were_measured(tmp_path):
    """SD1.5 at 512: 1.67 TFLOP for the UNet and 0.74 GB kept for the backward pass were measured for one picture; the peak has more."""
    from textual_inversion.diffusion.clip import CLIPConfig, CLIPTextEncoder
    from textual_inversion.diffusion.unet import UNet, UNetConfig
    from textual_inversion.diffusion.vae import VAE, VAEConfig

    shapes = {}
    with torch.device("meta"):
        for prefix, part in (
            ("model.diffusion_model.", UNet(UNetConfig())),
            ("first_stage_model.", VAE(VAEConfig())),
            ("cond_stage_model.transformer.", CLIPTextEncoder(CLIPConfig())),
        ):
            shapes |= {prefix + key: tuple(value.shape) for key, value in part.state_dict().items()}
    file = CheckpointFile.of_shapes(tmp_path / "sd15.safetensors", shapes)
    cost = step_cost(file, (512, 512), torch.bfloat16)
    assert cost.flops == pytest.approx(1.69e12, rel=0.02)
    assert cost.memory.activations == pytest.approx(0.78e9, rel=0.05)
    assert cost.memory.weights + cost.memory.vae == pytest.approx(2.30e9, rel=0.03)
    fused = step_cost(file, (512, 512), torch.bfloat16, fused=True)
    both = step_cost(file, (512, 512), torch.bfloat16, fused=True, checkpointing=True)
    memories = [each.memory for each in (both, fused, cost)]
    assert memories[0].activations < 0.4 * memories[1].activations < 0.4 * 0.8 * memories[2].activations
    assert memories[0].peak(1) < memories[1].peak(1) < memories[2].peak(1) < 4 * 2**30  # on a card with 4 GB


def test_time_and_memory_follow_the_batch():
    memory = MemoryCost(activations=1e9, weights=2e9, vae=0.3e9, encoding=5e8)
    assert DeviceSpeed(1e14, 5e-6).seconds(StepCost(1e12, 3000, memory), 8) == pytest.approx(8 * 0.02 + 0.015)
    assert memory.peak(8) == pytest.approx(0.25 * 2**30 + 2.3e9 + 8 * 1.07e9)
    assert memory.training(8, vae_stays=False) == pytest.approx(memory.peak(8) - 0.3e9)
    assert memory.peak(1, 4) == pytest.approx(0.25 * 2**30 + 2.3e9 + 2e9)  # the peak is at the encoding


def test_steps_of_the_embedding_count(config, folder, checkpoint):
    formats.load(folder / "thing.safetensors")
    whole, rest = preflight(replace(config, steps=100), 2, checkpoint), preflight(replace(config, steps=100), 2, checkpoint, first_step=90)
    assert rest.seconds < whole.seconds / 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "directional", "learning_rate": "0.005"}, "is little for the method “directional”"),
        ({"learning_rate": "0.3"}, "is much for the method “pulled”"),
        ({"method": "classic", "learning_rate": "0.1"}, "is much for the method “classic”"),
        ({"learning_rate": "auto"}, ""),
        ({"method": "classic", "learning_rate": "0.005:50, 1e-3"}, ""),
    ],
)
def test_a_rate_of_the_other_method_is_noticed(config, changes, said):
    hints = texts(preflight(replace(config, **{"method": "pulled", **changes}), 2), HINT)
    assert (said in hints) if said else ("learning rate" not in hints)


def test_searches_and_evaluations_count_as_time(config, checkpoint, monkeypatch):
    monkeypatch.setattr(estimate, "device_speed", lambda *_: estimate.DeviceSpeed(1e12, 1e-6))
    bare = replace(config, method="pulled", learning_rate="auto", steps=100, batch_size=4, vocabulary_search=False, evaluate_every=0)
    seconds = preflight(bare, 4, checkpoint).seconds

    def share(changes, **options):
        return preflight(replace(bare, **changes), 4, checkpoint, **options).seconds / seconds - 1

    assert share({"evaluate_every": 10}) == pytest.approx(16 * 10 / (100 * 4 * 3))
    assert share({"vocabulary_search": True}) == pytest.approx(3 * int(8 * (1 + 3 + 4 * 10 * 0.45)) / (100 * 4 * 3))
    assert share({}, finds_words=True) == pytest.approx(0.2)
    assert share({"vocabulary_search": True}, first_step=50) == pytest.approx(-0.5)


def test_what_is_changed_to_fit_is_told(config, checkpoint, monkeypatch):
    monkeypatch.setattr(estimate, "_WORKSPACE", 0)  # which is nearly all that the tiny model needs
    config = replace(config, batch_size=8, width=128, height=128)
    whole = preflight(config, 2, checkpoint)
    monkeypatch.setattr(estimate, "free_memory", lambda device: 0.9 * whole.memory)
    assert "To fit into the device's memory" in texts(preflight(config, 2, checkpoint), HINT)
    monkeypatch.setattr(estimate, "free_memory", lambda device: 1e6)
    assert "Only 0.0 GB are free" in texts(preflight(config, 2, checkpoint), PROBLEM)


@pytest.mark.parametrize("batch", [1, 4, 400, 1024])
def test_the_automatic_rate_is_never_doubted(config, batch):
    assert "learning rate" not in texts(preflight(replace(config, method="pulled", learning_rate="auto", batch_size=batch), 2), HINT)


def test_captions_that_hold_the_word_itself_are_good_for_both(config, model, folder, pictures, tmp_path):
    for file in pictures.glob("*.txt"):
        file.write_text("a photo of thing on a table", encoding="utf-8")
    template = tmp_path / "own.txt"
    template.write_text("[filewords]\n", encoding="utf-8")
    config = replace(config, template=str(template), steps=1)
    assert preflight(config, 2).ready
    assert train(config, model, folder).provenance.step == 1


def test_prompts_are_shown_as_they_are_learned_and_files_are_accounted_for(config, pictures):
    for path in pictures.glob("*.txt"):
        path.unlink()
    for number in range(6):
        Image.effect_noise((80, 64), 40 + number).save(pictures / f"IMG_2023010{number}.png")
        caption = "ÃƒÂ©tÃƒÂ© QX7-00193-ZZ" if number == 4 else f"a red star on the {'left' if number % 2 else 'right'} {number}"
        (pictures / f"IMG_2023010{number}.caption").write_text(caption, encoding="utf-8")
    Image.effect_noise((80, 64), 90).save(pictures / "DSC00001.png")
    (pictures / "notes.docx").write_text("x")
    (pictures / "clip.mp4").write_text("x")
    found = preflight(config, 2)
    assert "6 from .caption files" in texts(found, GOOD)
    assert "a red star on the" in texts(found, GOOD)
    assert "the oddest is “" in texts(found, GOOD)
    assert "ÃƒÂ©tÃƒÂ© QX7-00193-ZZ" in texts(found, GOOD)
    assert "such as DSC00001" in texts(found, HINT)
    assert "clip.mp4: videos" in texts(found, HINT)
    assert "notes.docx: not a kind of file that is read" in texts(found, HINT)
