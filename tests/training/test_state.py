"""The optimizer's state beside the embedding: exact, in the layout that torch's own AdamW reads, and never the reason for a failure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from textual_inversion.training.optimizer import AdamW
from textual_inversion.training.state import checksum, load_optimizer, optimizer_file, save_optimizer

SHAPE = (2, 5)


def trained(steps: int = 3, seed: int = 0) -> AdamW:
    generator = torch.Generator().manual_seed(seed)
    optimizer = AdamW(torch.randn(SHAPE, generator=generator), weight_decay=0.1)
    optimizer.learning_rate.fill_(0.01)
    for _ in range(steps):
        optimizer.step(torch.randn(SHAPE, generator=generator))
    return optimizer


def test_a_run_goes_on_exactly_where_it_stopped(tmp_path: Path) -> None:
    first = trained()
    save_optimizer(tmp_path / "cat.pt.optim", first)
    second = AdamW(first.vectors.clone(), weight_decay=0.1)
    assert load_optimizer(tmp_path / "cat.pt.optim", second) == ""
    gradient = torch.ones(SHAPE)
    for optimizer in (first, second):
        optimizer.learning_rate.fill_(0.01)
        optimizer.step(gradient)
    assert torch.equal(first.vectors, second.vectors)


def test_torchs_adamw_goes_on_from_it_too(tmp_path: Path) -> None:
    ours = trained()
    save_optimizer(tmp_path / "state", ours)
    kept = torch.load(tmp_path / "state", weights_only=True)
    vectors = ours.vectors.clone().requires_grad_(True)
    theirs = torch.optim.AdamW([vectors], lr=1.0)
    theirs.load_state_dict(kept["optimizer_state_dict"])
    vectors.grad = torch.ones(SHAPE)
    theirs.step()
    ours.step(torch.ones(SHAPE))
    assert torch.allclose(vectors, ours.vectors, atol=1e-6)


def test_a_state_that_torch_wrote_is_taken_over(tmp_path: Path) -> None:
    vectors = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    theirs = torch.optim.AdamW([vectors], lr=0.01, weight_decay=0.0)
    for _ in range(3):
        vectors.grad = torch.full(SHAPE, 0.5)
        theirs.step()
    torch.save({"hash": checksum(vectors), "optimizer_state_dict": theirs.state_dict()}, tmp_path / "state")
    ours = AdamW(vectors.detach().clone())
    assert load_optimizer(tmp_path / "state", ours) == ""
    theirs.step()
    ours.learning_rate.fill_(0.01)
    ours.step(torch.full(SHAPE, 0.5))
    assert torch.allclose(vectors, ours.vectors, atol=1e-6)


def test_a_state_of_other_vectors_is_left_alone(tmp_path: Path) -> None:
    save_optimizer(tmp_path / "cat.pt.optim", trained())
    other = AdamW(torch.zeros(SHAPE))
    assert "other vectors than cat.pt holds" in load_optimizer(tmp_path / "cat.pt.optim", other)
    assert not other.mean.any()


@pytest.mark.parametrize("data", [b"", b"nothing", b"\x80\x02cos\nsystem\n."])
def test_a_broken_state_costs_a_message_only(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "state").write_bytes(data)
    optimizer = AdamW(torch.zeros(SHAPE))
    assert load_optimizer(tmp_path / "state", optimizer).startswith("The optimizer begins anew")


def test_no_state_is_nothing_to_tell(tmp_path: Path) -> None:
    assert load_optimizer(optimizer_file(tmp_path / "cat.safetensors"), AdamW(torch.zeros(SHAPE))) == ""


def test_the_checksum_is_a1111s() -> None:
    # r = (r * 281) ^ (v * 997) over 100, -200, 50: worked out by hand
    assert (
        checksum(torch.tensor([[1.0, -2.0, 0.5]])) == f"{((((100 * 997) * 281 ^ -200 * 997) & 0xFFFFFFFF) * 281 ^ 50 * 997) & 0xFFFF:04x}"
    )
