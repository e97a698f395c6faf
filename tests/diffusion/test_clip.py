"""The text encoder against transformers' on the same random weights: states, clip skip, the splice and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call

from tests.support.checkpoints import TINY_CLIP, random_module, shapes_of
from tests.support.references import apart, epsilons, transformers_clip
from textual_inversion.diffusion.clip import CLIPConfig, CLIPTextEncoder, TokenBatch

SMALL = {
    "tiny": CLIPConfig(vocab_size=1000, width=64, layers=4),
    "three heads": CLIPConfig(vocab_size=500, width=192, layers=3),
    "OpenCLIP": CLIPConfig(vocab_size=500, width=128, layers=3, quick_gelu=False),
}
NONE = torch.zeros(1, 1)


def plain(ids: torch.Tensor) -> TokenBatch:
    """Tokens without a splice."""
    return TokenBatch(ids, torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool))


def no_vectors(encoder: CLIPTextEncoder) -> torch.Tensor:
    return torch.zeros(1, encoder.config.width)


def random_ids(config: CLIPConfig, rows: int = 2, length: int = 77) -> torch.Tensor:
    return torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(3))


def reference_states(config: CLIPConfig, encoder: CLIPTextEncoder, ids: torch.Tensor, clip_skip: int) -> torch.Tensor:
    """What transformers gives, with the final norm on an earlier layer where clip skip asks for it."""
    model = transformers_clip(config, encoder.state_dict())
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    return getattr(model, "text_model", model).final_layer_norm(states[-clip_skip])


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
@pytest.mark.parametrize("name", SMALL)
def test_states_are_those_of_transformers(name: str, clip_skip: int) -> None:
    config = SMALL[name]
    encoder = random_module(config)
    ids = random_ids(config)
    ours = encoder(plain(ids), no_vectors(encoder), clip_skip).hidden
    assert apart(ours, reference_states(config, encoder, ids, clip_skip)) < 1e-4
    if clip_skip == 1:
        assert apart(ours, transformers_clip(config, encoder.state_dict())(input_ids=ids).last_hidden_state) < 1e-4


def test_norms_add_the_same_to_the_variance() -> None:
    ours = random_module(SMALL["tiny"])
    assert epsilons(ours) == epsilons(transformers_clip(SMALL["tiny"], ours.state_dict()))


@pytest.mark.slow
def test_a_full_clip_l_is_that_of_transformers() -> None:
    config = CLIPConfig()
    encoder = random_module(config)
    ids = random_ids(config)
    for clip_skip in (1, 2):
        assert apart(encoder(plain(ids), no_vectors(encoder), clip_skip).hidden, reference_states(config, encoder, ids, clip_skip)) < 1e-4


def test_clip_skip_past_the_first_layer_stays_there() -> None:
    encoder = random_module(SMALL["tiny"])
    tokens, vectors = plain(random_ids(encoder.config)), no_vectors(encoder)
    assert torch.equal(encoder(tokens, vectors, 4).hidden, encoder(tokens, vectors, 12).hidden)


def test_a_token_sees_only_what_stands_before_it() -> None:
    encoder = random_module(SMALL["tiny"])
    ids = random_ids(encoder.config)
    changed = ids.clone()
    changed[:, 40:] = (changed[:, 40:] + 1) % encoder.config.vocab_size
    before, after = (encoder(plain(x), no_vectors(encoder)).hidden for x in (ids, changed))
    assert apart(after[:, :40], before[:, :40]) < 1e-6
    assert not torch.allclose(before[:, 40:], after[:, 40:])


def test_shorter_texts_take_the_first_positions() -> None:
    encoder = random_module(SMALL["tiny"])
    ids = random_ids(encoder.config)
    assert apart(encoder(plain(ids[:, :20]), no_vectors(encoder)).hidden, encoder(plain(ids), no_vectors(encoder)).hidden[:, :20]) < 1e-5


def spliced_batch(config: CLIPConfig) -> TokenBatch:
    """Three vectors: in a row, out of order and twice in the first text, one in the second."""
    ids = random_ids(config)
    index, mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, place, vector in ((0, 5, 0), (0, 6, 1), (0, 7, 2), (0, 20, 2), (0, 21, 0), (1, 1, 1)):
        index[row, place], mask[row, place] = vector, True
    return TokenBatch(ids, index, mask)


def test_the_splice_is_the_same_as_rows_of_a_longer_table() -> None:
    config = SMALL["tiny"]
    encoder, tokens = random_module(config), spliced_batch(config)
    model = transformers_clip(config, encoder.state_dict())
    (table_name,) = [name for name, _ in model.named_parameters() if name.endswith("token_embedding.weight")]
    ours = torch.randn(3, config.width, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    ids = torch.where(tokens.mask, config.vocab_size + tokens.index, tokens.ids)
    expected = functional_call(
        model, {table_name: torch.cat((encoder.token_table, theirs))}, args=(), kwargs={"input_ids": ids}
    ).last_hidden_state
    states = encoder(tokens, ours).hidden
    assert apart(states, expected) < 1e-4
    weights = torch.randn_like(expected)
    (grad_ours,) = torch.autograd.grad((states * weights).sum(), ours)
    (grad_theirs,) = torch.autograd.grad((expected * weights).sum(), theirs)
    assert apart(grad_ours, grad_theirs) < 1e-4


def test_ids_under_a_splice_do_not_matter() -> None:
    encoder = random_module(SMALL["tiny"])
    tokens, vectors = spliced_batch(encoder.config), torch.randn(3, 64)
    other = TokenBatch(torch.where(tokens.mask, 0, tokens.ids), tokens.index, tokens.mask)
    assert torch.equal(encoder(tokens, vectors).hidden, encoder(other, vectors).hidden)


def test_fp32_vectors_enter_a_half_precision_encoder() -> None:
    encoder = random_module(SMALL["tiny"])
    tokens, vectors = spliced_batch(encoder.config), torch.randn(3, 64, requires_grad=True)
    full = encoder(tokens, vectors).hidden
    half = encoder.to(torch.bfloat16)(tokens, vectors).hidden
    half.float().square().sum().backward()
    assert half.dtype is torch.bfloat16
    assert vectors.grad is not None
    assert vectors.grad.dtype is torch.float32
    assert apart(half, full) < 0.05


@pytest.mark.parametrize("config", [CLIPConfig(), TINY_CLIP, SMALL["tiny"], SMALL["three heads"], CLIPConfig(max_tokens=248)])
def test_sizes_are_read_off_the_shapes(config: CLIPConfig) -> None:
    assert CLIPConfig.from_shapes(shapes_of(config)) == config


def test_rows_of_a_batch_can_be_picked_and_moved() -> None:
    tokens = spliced_batch(SMALL["tiny"])
    second = tokens[1:].to("cpu")
    assert second.ids.shape == (1, 77)
    assert second.mask.sum() == 1
