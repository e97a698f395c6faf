"""Pictures from prompts that change from step to step or are joined by AND, and which step of which sampler has which text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.diffusion.test_generate import difference, settings
from textual_inversion.diffusion.conditioning import Conditioning
from textual_inversion.diffusion.generate import GuidedDenoiser, _Plan, draw_prompts, generate
from textual_inversion.diffusion.model import StableDiffusion, load_checkpoint
from textual_inversion.embedding import Embedding


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    """The one that ships, which knows hearts and stars."""
    return load_checkpoint(device="cpu", precision="fp32")


def picture(model: StableDiffusion, prompt: str, embeddings: dict[str, Embedding] | None = None, **changes: Any) -> Any:
    (one,) = draw_prompts(model, [(prompt, 3)], settings(prompt, **{"width": 64, "height": 64, **changes}), embeddings or {})
    return one


@pytest.mark.parametrize(("prompt", "same"), [
    ("[a heart:a star:0]", "a star"), ("[a heart:a star:99]", "a heart"), ("[a star|a star]", "a star"),
    ("[a heart:a star:1.0]", "a heart"),
    ("a star AND a heart:0", "a star"), ("a star:0.5 AND a star:0.5", "a star"), ("a star :1", "a star"), ("[: a star:0]", " a star"),
])  # fmt: skip
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M Karras", "Heun"])
def test_prompts_that_come_to_the_same(model: StableDiffusion, prompt: str, same: str, sampler: str) -> None:
    assert difference(picture(model, prompt, sampler=sampler), picture(model, same, sampler=sampler)) <= 1


@pytest.mark.parametrize("prompt", [
    "[a heart:a star:0.5]", "[a heart|a star]", "a heart AND a star", "a star:1.6", "a star AND a heart:-1",
])  # fmt: skip
def test_prompts_that_come_to_something_new(model: StableDiffusion, prompt: str) -> None:
    new = picture(model, prompt)
    assert difference(new, picture(model, "a heart")) > 2
    assert difference(new, picture(model, "a star")) > 2


def test_negative_prompts_change_too_but_know_no_and(model: StableDiffusion) -> None:
    plain = picture(model, "a star", negative_prompt="a heart")
    assert difference(picture(model, "a star", negative_prompt="[a heart:x:99]"), plain) <= 1
    assert difference(picture(model, "a star", negative_prompt="[a heart:a circle:2]"), plain) > 0
    plan = _Plan.of(["x"], settings("x", negative_prompt="a AND b"), {})
    assert plan.texts == ["a AND b", "x"]


def test_embeddings_in_parts_of_prompts(model: StableDiffusion) -> None:
    vectors = torch.randn(2, model.text_encoder.config.width, generator=torch.Generator().manual_seed(1)) * 0.5
    zorb = {"zorb": Embedding("zorb", {"clip_l": vectors})}
    assert difference(picture(model, "[<zorb:1.2>:a star:0]", zorb), picture(model, "a star", zorb)) <= 1
    assert difference(picture(model, "[a star:<zorb:1.2>:0]", zorb), picture(model, "(zorb:1.2)", zorb)) <= 1
    assert difference(picture(model, "[zo|zo]rb", zorb), picture(model, "zorb", zorb)) <= 1  # put together
    (drawn,) = generate(model, settings("[a star:zorb:0.5]"), zorb, hash_of=lambda name: "0123456789ab")
    assert 'TI hashes: "zorb: 0123456789ab"' in drawn.info["parameters"]
    assert drawn.info["parameters"].startswith("[a star:zorb:0.5]\n")


def test_pictures_of_a_batch_have_their_own_parts(model: StableDiffusion) -> None:
    prompts = [("a heart AND a star", 1), ("[a star:a heart:2]", 2), ("a circle", 3)]
    together = draw_prompts(model, prompts, settings(), {})
    for one, (prompt, seed) in zip(together, prompts, strict=True):
        (alone,) = draw_prompts(model, [(prompt, seed)], settings(), {})
        assert difference(one, alone) <= 1


@pytest.mark.parametrize(("sampler", "prompt", "calls"), [
    ("Euler", "[a:b:2]", "aaab"), ("Euler", "[a|b]", "aaba"), ("Euler", "[a:b:0.5]", "aaab"), ("Heun", "[a:b:0.5]", "aaaaabbb"),
    ("DPM2 a", "[a:b:2]", "aaabbbbb"),
])  # fmt: skip
def test_which_call_has_which_text(sampler: str, prompt: str, calls: str) -> None:
    """A1111 counts calls of the UNet, two in a step of some samplers, and begins with 0, which belongs to step 1."""
    plan = _Plan.of([prompt], settings(prompt, sampler=sampler, negative_prompt="n"), {})
    assert "".join(plan.texts[plan._places(call)[1]] for call in range(len(calls))) == calls


def test_parts_are_composed_by_their_weights(model: StableDiffusion) -> None:
    """arXiv 2206.01714: the negative prompt's estimate plus each part's difference to it, times its weight and the guidance."""
    encoded = model.conditioner.encode(model.conditioner.tokenize(["", "a", "b"], table := model.conditioner.table_of({})), table.vectors)
    sizes = torch.zeros(3, 6)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def alone(row: int) -> torch.Tensor:
        rows = Conditioning(encoded.context[[0, row]], None)
        return GuidedDenoiser(model, rows, sizes[:2], 1.0)(x, 2.0)

    with torch.no_grad():
        joined = GuidedDenoiser(model, encoded, sizes, 3.0, [(0, 0.5), (0, -1.0)])(x, 2.0)
    expected = alone(0) + 3.0 * (0.5 * (alone(1) - alone(0)) - (alone(2) - alone(0)))
    assert torch.allclose(joined, expected, atol=1e-4)


def test_changes_of_a_prompt_are_followed_in_place(model: StableDiffusion) -> None:
    """A captured graph reads the same tensors at each call."""
    encoded = model.conditioner.encode(model.conditioner.tokenize(["", "a", "b"], table := model.conditioner.table_of({})), table.vectors)
    at = {0: Conditioning(encoded.context[[0, 1]], None), 1: Conditioning(encoded.context[[0, 2]], None)}
    with torch.no_grad():
        denoise = GuidedDenoiser(model, at[0], torch.zeros(2, 6), 3.0, None, at.get)
        place = denoise.prompts.context.data_ptr()
        x = torch.randn(1, 4, 8, 8)
        first, second, third = (denoise(x, 2.0) for _ in range(3))
    assert denoise.prompts.context.data_ptr() == place
    assert not torch.allclose(first, second)
    assert torch.equal(second, third)
