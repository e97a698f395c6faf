"""One training step against the same step in diffusers and transformers, and that nothing in it waits for the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.checkpoints import write_checkpoint
from tests.support.references import apart, diffusers_unet, transformers_clip
from textual_inversion.diffusion.clip import CLIPConfig, Embeddings, TokenBatch
from textual_inversion.diffusion.conditioning import VectorTable
from textual_inversion.diffusion.model import StableDiffusion, load_checkpoint
from textual_inversion.embedding import Embedding
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.data.batches import Batch
from textual_inversion.training.step import TrainingStep

WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.masked_select", "aten.unique")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="module")
def model(path: Path) -> StableDiffusion:
    return load_checkpoint(path, device="cpu", precision="fp32")


FP16 = pytest.param("fp16", marks=pytest.mark.skipif(torch.__version__ < "2.3", reason="this torch has no fp16 on the processor"))
VECTORS = torch.randn(2, 64, generator=torch.Generator().manual_seed(4)) * 0.1


def batch_for(model: StableDiffusion, seed: int = 0, prompts: tuple[str, ...] = ("a photo of mine on grass", "mine")) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    table = VectorTable.of({"mine": Embedding("mine", {"clip_l": VECTORS})}, {"clip_l": 64}, "cpu")
    latents, noise = (torch.randn(len(prompts), 4, 8, 8, generator=generator) for _ in range(2))
    timesteps = torch.randint(1000, (len(prompts),), generator=generator)
    return Batch(latents, noise, timesteps, model.conditioner.tokenize(prompts, table))


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig("mine", "pictures", **{"method": "classic", **changes})


def loss_by_diffusers(model: StableDiffusion, batch: Batch, vectors: torch.Tensor) -> torch.Tensor:
    """The loss with diffusers' and transformers' modules; the vectors stand below the token table."""
    encoder, unet = model.text_encoder, model.unet
    clip = transformers_clip(encoder.config, encoder.state_dict())
    (name,) = [name for name, _ in clip.named_parameters() if name.endswith("token_embedding.weight")]
    tokens = batch.prompts.tokens
    ids = torch.where(tokens.mask, encoder.config.vocab_size + tokens.index, tokens.ids)
    table = torch.cat((encoder.token_table, vectors))
    context = functional_call(clip, {name: table}, args=(), kwargs={"input_ids": ids}).last_hidden_state
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    return F.mse_loss(diffusers_unet(unet.config, unet.state_dict())(noisy, batch.timesteps, context).sample, batch.noise)


def test_losses_and_vectors_are_those_of_diffusers(model: StableDiffusion) -> None:
    """Ten steps with AdamW, side by side."""
    step = TrainingStep(model, VECTORS, config(weight_decay=0.01))
    theirs = VECTORS.clone().requires_grad_()
    optimizer = torch.optim.AdamW([theirs], lr=0.005, weight_decay=0.01)
    for index in range(10):
        batch = batch_for(model, seed=index)
        loss, norm = step.run(lambda batch=batch: batch, 0.005, 1.0)
        optimizer.zero_grad()
        expected = loss_by_diffusers(model, batch, theirs)
        expected.backward()
        assert theirs.grad is not None
        assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-4)
        assert float(norm) == pytest.approx(float(theirs.grad.norm()), rel=1e-3)
        optimizer.step()
    assert apart(step.vectors - VECTORS, theirs - VECTORS) < 1e-2  # AdamW divides small gradients by their size, errors with them


def test_the_logarithm_counts_each_row_by_its_share(model: StableDiffusion) -> None:
    """The gradient is the mean of the rows' own gradients, each divided by the row's loss; the loss that is reported stays the mean."""
    step = TrainingStep(model, VECTORS, config(method="pulled", loss_type="log"))
    batch = batch_for(model)
    losses = step.losses(batch)
    gradients = [torch.autograd.grad(loss, step.vectors, retain_graph=True)[0] / loss.detach() for loss in losses]
    step.accumulate(batch)
    assert apart(step.trained[0].gradient, (gradients[0] + gradients[1]) / 2) < 1e-5
    assert float(step.trained[0].loss) == pytest.approx(float(losses.detach().mean()), rel=1e-6)


@pytest.mark.parametrize(("method", "loss_type"), [("classic", "log"), ("pulled", "mse")])
def test_the_mean_squared_error_is_minimised_as_it_is(model: StableDiffusion, method: str, loss_type: str) -> None:
    step = TrainingStep(model, VECTORS, config(method=method, loss_type=loss_type))
    batch = batch_for(model)
    (expected,) = torch.autograd.grad(step.loss(batch), step.vectors)
    step.accumulate(batch)
    assert apart(step.trained[0].gradient, expected) < 1e-6


def test_accumulated_batches_are_one_larger_batch(model: StableDiffusion) -> None:
    whole = batch_for(model, prompts=("a photo of mine", "mine on grass"))
    halves = [
        Batch(whole.latents[i : i + 1], whole.noise[i : i + 1], whole.timesteps[i : i + 1], batch_for(model, prompts=(text,)).prompts)
        for i, text in enumerate(("a photo of mine", "mine on grass"))
    ]
    waiting = iter(halves)
    together, halved = TrainingStep(model, VECTORS, config()), TrainingStep(model, VECTORS, config(gradient_accumulation_steps=2))
    loss, norm = together.run(lambda: whole, 0.005, 1.0)
    loss_of_halves, norm_of_halves = halved.run(lambda: next(waiting), 0.005, 1.0)
    assert float(loss) == pytest.approx(float(loss_of_halves), rel=1e-5)
    assert float(norm) == pytest.approx(float(norm_of_halves), rel=1e-4)
    assert apart(halved.trained[0].optimizer.mean, together.trained[0].optimizer.mean) < 1e-4


def test_rows_that_no_prompt_names_stay(model: StableDiffusion) -> None:
    step = TrainingStep(model, torch.cat((VECTORS, torch.ones(3, 64))), config())
    step.run(lambda: batch_for(model), 0.005, 1.0)
    assert torch.equal(step.vectors[2:], torch.ones(3, 64))
    assert not torch.equal(step.vectors[:2], VECTORS)


def test_the_model_stays_as_it_was(model: StableDiffusion) -> None:
    before = {key: value.clone() for part in (model.unet, model.text_encoder) for key, value in part.state_dict().items()}
    TrainingStep(model, VECTORS, config()).run(lambda: batch_for(model), 0.1, 1.0)
    after = {key: value for part in (model.unet, model.text_encoder) for key, value in part.state_dict().items()}
    assert all(torch.equal(before[key], after[key]) for key in before)


class NothingWaits(TorchDispatchMode):
    """Refuses the operations that make a CUDA device hand a number back, or that give tensors whose shape depends on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not str(func).startswith(WAITS), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("clip_mode", ["off", "value", "norm"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", FP16])
def test_nothing_in_a_step_waits_for_the_device(path: Path, precision: str, clip_mode: str) -> None:
    model = load_checkpoint(path, device="cpu", precision=precision)
    step = TrainingStep(model, VECTORS, config(clip_mode=clip_mode, gradient_accumulation_steps=2))
    batch = batch_for(model, prompts=("a (photo:1.2) of mine", "mine"))
    with NothingWaits():
        loss, norm = step.run(lambda: batch, 0.005, 1.0)
    assert torch.isfinite(loss)
    assert norm > 0
    assert not torch.equal(step.vectors, VECTORS)


def test_what_waits_is_seen() -> None:
    with NothingWaits(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(1).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_a_row_are_added_up_in_fp32(dtype: torch.dtype) -> None:
    """A word stands in every prompt of a batch; its many small gradients must not be rounded at each sum."""
    layer = Embeddings(CLIPConfig(vocab_size=8, width=64)).to(dtype).requires_grad_(False)
    index = torch.arange(8 * 77).view(8, 77) % 2
    vectors = VECTORS.clone().requires_grad_()
    weights = torch.randn(8, 77, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    rows = layer(TokenBatch(torch.zeros_like(index), index, torch.ones_like(index, dtype=torch.bool)), vectors)
    (gradient,) = torch.autograd.grad(rows, vectors, weights)
    assert apart(gradient, torch.stack([weights[index == row].float().sum(0) for row in (0, 1)])) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", FP16])
def test_half_precision_goes_the_same_way(path: Path, model: StableDiffusion, precision: str) -> None:
    half = load_checkpoint(path, device="cpu", precision=precision)
    ways = []
    for part in (model, half):
        step = TrainingStep(part, VECTORS, config())
        for seed in range(5):
            step.run(lambda part=part, seed=seed: batch_for(part, seed), 0.005, 1.0)
        ways.append((step.vectors - VECTORS).flatten())
    assert F.cosine_similarity(*ways, dim=0) > 0.95


def test_ones_as_weights_change_nothing(model: StableDiffusion) -> None:
    batch = batch_for(model)
    step = TrainingStep(model, VECTORS, config())
    weighted = replace(batch, weights=torch.ones(2, 1, 8, 8))
    assert float(step.loss(weighted).detach()) == pytest.approx(float(step.loss(batch).detach()), rel=1e-6)


def test_only_weighted_places_count(model: StableDiffusion) -> None:
    """What is to be predicted elsewhere moves neither loss nor gradient; without weights it does."""
    weights = torch.zeros(2, 1, 8, 8)
    weights[:, :, 2:6, 1:4] = 64 / 12  # mean 1
    batch = replace(batch_for(model), weights=weights)
    step = TrainingStep(model, VECTORS, config())

    def told(target: torch.Tensor, weights: torch.Tensor | None) -> tuple[float, torch.Tensor]:
        given = replace(batch, weights=weights)
        noisy = model.schedule.mix(batch.latents, batch.noise, batch.timesteps)
        # the same noisy latents, with another noise said to be in them
        latents = noisy - model.schedule.mix(torch.zeros_like(noisy), target, batch.timesteps)
        latents = latents / model.schedule.mix(torch.ones_like(noisy), torch.zeros_like(noisy), batch.timesteps)
        loss = step.loss(replace(given, latents=latents, noise=target))
        return float(loss.detach()), torch.autograd.grad(loss, step.vectors)[0]

    elsewhere = batch.noise + 3 * (weights == 0)
    loss, gradient = told(batch.noise, weights)
    same_loss, same_gradient = told(elsewhere, weights)
    assert same_loss == pytest.approx(loss, rel=1e-4)
    assert apart(same_gradient, gradient) < 1e-3
    other_loss, other_gradient = told(elsewhere, None)
    assert other_loss > 2 * loss
    assert apart(other_gradient, gradient) > 0.1
    assert gradient.norm() > 0
