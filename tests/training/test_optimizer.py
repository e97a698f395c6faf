"""AdamW, clipping and the loss scale against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.references import apart
from textual_inversion.training.optimizer import AdamW, LossScale, SphericalAdam, clip_gradient


def gradients(count: int, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(3, 16, generator=generator) * scale for _ in range(count)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_adamw_is_torchs(weight_decay: float, scale: float) -> None:
    start = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    vectors, theirs = start.clone(), start.clone().requires_grad_()
    ours = AdamW(vectors, weight_decay)
    reference = torch.optim.AdamW([theirs], weight_decay=weight_decay, betas=(0.9, 0.999), eps=1e-8)
    for step, gradient in enumerate(gradients(60, scale)):
        rate = 0.005 if step < 30 else 0.001
        ours.learning_rate.fill_(rate)
        ours.step(gradient)
        reference.param_groups[0]["lr"] = rate
        theirs.grad = gradient.clone()
        reference.step()
    assert apart(vectors - start, theirs.detach() - start) < 1e-4
    state = reference.state[theirs]
    assert apart(ours.mean, state["exp_avg"]) < 1e-5
    assert apart(ours.square, state["exp_avg_sq"]) < 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("before", [0, 5])
def test_a_step_that_is_not_finite_is_as_if_it_never_was(bad: float, before: int) -> None:
    with_bad, without = (AdamW(torch.ones(3, 16)) for _ in range(2))
    broken = torch.zeros(3, 16)
    broken[1, 2] = bad
    given_to = [*gradients(before), broken, *gradients(4)]
    for optimizer in (with_bad, without):
        optimizer.learning_rate.fill_(0.01)
        for gradient in given_to:
            if optimizer is with_bad or gradient is not broken:
                optimizer.step(gradient)
    assert torch.equal(with_bad.vectors, without.vectors)
    assert float(with_bad.steps) == before + 4


def test_a_run_goes_on_from_its_state() -> None:
    steps = gradients(20)
    through, first = (AdamW(torch.ones(3, 16), 0.1) for _ in range(2))
    for optimizer, part in ((through, steps), (first, steps[:9])):
        optimizer.learning_rate.fill_(0.01)
        for gradient in part:
            optimizer.step(gradient)
    second = AdamW(first.vectors.clone(), 0.1)
    second.load_state_dict(first.state_dict())
    second.learning_rate.fill_(0.01)
    for gradient in steps[9:]:
        second.step(gradient)
    assert torch.equal(second.vectors, through.vectors)


def test_a_state_is_a_copy() -> None:
    optimizer = AdamW(torch.ones(3, 16))
    optimizer.learning_rate.fill_(0.01)
    state = optimizer.state_dict()
    optimizer.step(gradients(1)[0])
    assert not state["mean"].any()
    assert float(state["steps"]) == 0


@given(st.floats(1e-4, 1e4), st.floats(1e-3, 1e3))
def test_clipping_is_torchs(bound: float, scale: float) -> None:
    (gradient,) = gradients(1, scale)
    theirs = torch.zeros(3, 16, requires_grad=True)
    theirs.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_([theirs], bound)
    assert apart(clip_gradient(gradient, "norm", torch.tensor(bound)), theirs.grad) < 1e-5
    theirs.grad = gradient.clone()
    torch.nn.utils.clip_grad_value_([theirs], bound)
    assert torch.equal(clip_gradient(gradient, "value", torch.tensor(bound)), theirs.grad)
    assert torch.equal(clip_gradient(gradient, "off", torch.tensor(bound)), gradient)


@pytest.mark.parametrize("mode", ["value", "norm", "off"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_clipping_does_not_hide_an_overflow(mode: str, bad: float) -> None:
    """An fp16 gradient that overflowed must not become a step in some direction."""
    vectors = torch.ones(1, 2)
    optimizer = AdamW(vectors)
    optimizer.learning_rate.fill_(0.1)
    optimizer.step(clip_gradient(torch.tensor([[bad, 0.5]]), mode, torch.tensor(1.0)))
    assert torch.equal(vectors, torch.ones(1, 2))


def test_a_gradient_of_zero_stays_zero() -> None:
    for mode in ("value", "norm", "off"):
        assert not clip_gradient(torch.zeros(2, 3), mode, torch.tensor(1.0)).any()


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="this torch has a GradScaler for CUDA only")
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 250)), max_size=6))
def test_the_loss_scale_is_grad_scalers(runs: list[tuple[bool, int]]) -> None:
    """Runs of good and of overflowing steps; ours stays between 1 and 65536, GradScaler's knows no bounds."""
    ours = LossScale(torch.float16, "cpu")
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=LossScale.GROW_AFTER)
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for good, count in runs:
        for _ in range(count if good else min(count, 3)):
            assert float(ours.factor) == theirs.get_scale()
            if (good and float(ours.factor) == 65536) or (not good and float(ours.factor) == 1):
                return
            gradient = torch.ones(1) if good else torch.full((1,), float("inf"))
            theirs.scale(weight.sum())  # it makes its state with the first loss
            weight.grad = gradient * theirs.get_scale()
            theirs.step(optimizer)
            theirs.update()
            ours.update(gradient)


def test_the_loss_scale_stays_in_its_bounds() -> None:
    scale = LossScale(torch.float16, "cpu")
    for _ in range(LossScale.GROW_AFTER * 10):
        scale.update(torch.ones(1))
    assert float(scale.factor) == 65536
    for _ in range(40):
        scale.update(torch.full((1,), float("nan")))
    assert float(scale.factor) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_are_not_scaled(dtype: torch.dtype) -> None:
    scale = LossScale(dtype, "cpu")
    scale.update(torch.full((1,), float("inf")))
    scale.update(torch.ones(1))
    assert float(scale.factor) == 1


def spherical(rows: int = 3, width: int = 16, **options: object) -> SphericalAdam:
    vectors = torch.randn(rows, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    optimizer = SphericalAdam(vectors, **options)  # type: ignore[arg-type]
    optimizer.learning_rate = torch.full((), 0.05, dtype=torch.float64)
    return optimizer


def test_without_momentum_it_is_the_published_step_of_directional_textual_inversion() -> None:
    """arXiv 2512.13672: add the prior's constant gradient, project, divide by the row's own scale, step, go back to the sphere."""
    for decay in (0.0, 0.99):
        ours = spherical(prior=1e-2, betas=(0.0, decay))
        first = ours.vectors / ours.norms
        published, scale = first.clone(), torch.zeros(3, 1, dtype=torch.float64)
        for number, gradient in enumerate(gradients(30), start=1):
            gradient = gradient.double()
            ours.step(gradient / ours.norms)  # by the vectors; times the norm it is the one by the directions
            moved = gradient - 1e-2 * first
            moved = moved - (moved * published).sum(-1, keepdim=True) * published
            scale = decay * scale + (1 - decay) * moved.square().sum(-1, keepdim=True)
            published = published - 0.05 * moved / (scale / (1 - decay**number)).sqrt()
            published = published / published.norm(dim=-1, keepdim=True)
        assert (ours.vectors / ours.norms - published).abs().max() < 1e-6


def test_norms_stay_and_moments_stay_tangent() -> None:
    optimizer = spherical()
    norms = optimizer.vectors.norm(dim=1)
    for gradient in gradients(50, 100.0):
        optimizer.step(gradient.double())
        torch.testing.assert_close(optimizer.vectors.norm(dim=1), norms)
        assert (optimizer.mean * optimizer.vectors).sum(dim=1).abs().max() < 1e-6 * optimizer.mean.norm()


def test_the_rate_is_the_angle_of_a_steady_step() -> None:
    """However large the gradient, the width and the norm are."""
    for scale, width, factor in ((1e-6, 16, 1.0), (1.0, 768, 0.1), (1e4, 64, 30.0)):
        vectors = torch.randn(2, width, generator=torch.Generator().manual_seed(1)).double() * factor
        optimizer = SphericalAdam(vectors, eps=1e-30)
        optimizer.learning_rate = torch.full((), 0.05, dtype=torch.float64)
        before = vectors.clone()
        optimizer.step(torch.randn(2, width, generator=torch.Generator().manual_seed(2)).double() * scale)
        angle = torch.nn.functional.cosine_similarity(before, optimizer.vectors, dim=1).acos()
        torch.testing.assert_close(angle, torch.full((2,), 0.05, dtype=torch.float64).atan(), rtol=1e-4, atol=0)


def test_the_prior_pulls_back_to_the_first_directions() -> None:
    free, pulled = spherical(), spherical(prior=5.0)
    for gradient in gradients(60):
        for optimizer in (free, pulled):
            optimizer.step(gradient.double())
    away = [torch.nn.functional.cosine_similarity(each.vectors, each.first, dim=1).mean() for each in (free, pulled)]
    assert away[1] > away[0] + 0.02


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_spherical_step_that_is_not_finite_changes_nothing(bad: float) -> None:
    optimizer = spherical()
    optimizer.step(gradients(1)[0].double())
    before = {key: value.clone() for key, value in optimizer.state_dict().items()}, optimizer.vectors.clone()
    broken = torch.zeros(3, 16, dtype=torch.float64)
    broken[1, 2] = bad
    optimizer.step(broken)
    assert torch.equal(optimizer.vectors, before[1])
    assert all(torch.equal(value, before[0][key]) for key, value in optimizer.state_dict().items())


def test_rows_that_no_prompt_names_do_not_turn() -> None:
    optimizer = spherical()
    before = optimizer.vectors.clone()
    for gradient in gradients(5):
        gradient[1] = 0
        optimizer.step(gradient.double())
    assert torch.equal(optimizer.vectors[1], before[1])
    assert not torch.equal(optimizer.vectors[0], before[0])


def test_spherical_steps_go_on_from_their_state_and_from_adamws() -> None:
    steps = [gradient.double() for gradient in gradients(20)]
    through, first = spherical(), spherical()
    for gradient in steps:
        through.step(gradient)
    for gradient in steps[:9]:
        first.step(gradient)
    second = SphericalAdam(first.vectors.clone())
    second.learning_rate = first.learning_rate
    second.load_state_dict(first.state_dict())
    for gradient in steps[9:]:
        second.step(gradient)
    torch.testing.assert_close(second.vectors, through.vectors)
    classic = AdamW(first.vectors.clone())
    classic.load_state_dict(first.state_dict())
    classic.learning_rate = first.learning_rate
    classic.step(steps[9])
    assert torch.isfinite(classic.vectors).all()
