"""The evaluation on batches that stay the same, its curve, and how a run uses them."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from textual_inversion import formats
from textual_inversion.demo.run import PICTURES
from textual_inversion.diffusion.graphs import GraphCache
from textual_inversion.diffusion.model import StableDiffusion, load_checkpoint
from textual_inversion.errors import ConfigError
from textual_inversion.settings.training import EVALUATION_ROWS, TrainingConfig
from textual_inversion.training.embedding_file import create_embedding
from textual_inversion.training.evaluation import Curve, Evaluation
from textual_inversion.training.events import Evaluated, Event, Message, StepDone
from textual_inversion.training.prepared import Prepared
from textual_inversion.training.state import load_optimizer, optimizer_file
from textual_inversion.training.step import TrainedVectors, TrainingStep
from textual_inversion.training.trainer import train

NAME = "zorb"


@pytest.fixture(scope="module")
def tiny() -> StableDiffusion:
    return load_checkpoint(device="cpu", precision="fp32")


@pytest.fixture
def config(tiny: StableDiffusion, tmp_path: Path) -> TrainingConfig:
    create_embedding(tiny, NAME, "shape", 2, tmp_path)
    return TrainingConfig(NAME, str(PICTURES), width=64, height=64, steps=6, batch_size=2, log_dir=str(tmp_path / "log"))


def prepared(config: TrainingConfig, model: StableDiffusion, folder: Path) -> Prepared:
    each = Prepared(config, lambda event: None, folder / f"{NAME}.safetensors", formats.load(folder / f"{NAME}.safetensors"))
    each.read(model, 0)
    assert each.encode(model, lambda: False)
    return each


def test_it_is_the_geometric_mean_of_the_losses(tiny: StableDiffusion, config: TrainingConfig, tmp_path: Path) -> None:
    each = prepared(config, tiny, tmp_path)
    step = TrainingStep(tiny, each.table.vectors, config)
    batches = each.batches.fixed(EVALUATION_ROWS)
    evaluation = Evaluation(step, 0, batches, GraphCache("cpu"))
    with torch.no_grad():
        losses = torch.cat([step.losses(batch) for batch in batches])
    assert len(losses) == EVALUATION_ROWS
    expected = math.exp(float(losses.log().mean()))
    assert evaluation.measure() == pytest.approx(expected, rel=1e-5)
    assert evaluation.measure() == evaluation.measure()
    with torch.no_grad():
        step.vectors.mul_(3)
    assert evaluation.measure() != pytest.approx(expected, rel=1e-5)


def test_a_recorded_evaluation_is_the_same(tiny: StableDiffusion, config: TrainingConfig, tmp_path: Path) -> None:
    """A recording repeats the kernels on the same tensors: only what is copied into them can differ between batches."""
    each = prepared(config, tiny, tmp_path)
    step = TrainingStep(tiny, each.table.vectors, config)
    plain, recorded = (
        Evaluation(step, 0, each.batches.fixed(EVALUATION_ROWS), graphs)
        for graphs in (GraphCache("cpu"), GraphCache("cpu", record=lambda key, function, generators: function))
    )
    for _ in range(3):
        assert recorded.measure() == plain.measure()


@pytest.mark.parametrize(
    ("batch", "accumulation", "expected"),
    [(4, 1, 27), (8, 1, 14), (1, 4, 27), (32, 1, 7), (128, 1, 7)],
)
def test_evaluations_take_a_twentieth_of_the_time(batch: int, accumulation: int, expected: int) -> None:
    config = TrainingConfig("x", "y", batch_size=batch, gradient_accumulation_steps=accumulation)
    assert config.evaluation_interval == expected
    forward, steps = -(-EVALUATION_ROWS // batch) * batch, 3 * batch * accumulation * expected
    assert forward / steps <= 0.05


@pytest.mark.parametrize("every", [0, 2])
def test_a_run_keeps_its_curve(tiny: StableDiffusion, config: TrainingConfig, tmp_path: Path, every: int) -> None:
    events: list[Event] = []
    train(replace(config, evaluate_every=every), tiny, tmp_path, listener=events.append)
    measured = [event for event in events if isinstance(event, Evaluated)]
    assert [event.step for event in measured] == ([0, 2, 4, 6] if every else [])
    table = tmp_path / "log" / "evaluation.csv"
    assert table.exists() == bool(every)
    if every:
        rows = list(csv.DictReader(table.open(encoding="utf-8")))
        assert [(int(row["step"]), float(row["loss"])) for row in rows] == [(event.step, event.loss) for event in measured]


def test_evaluations_change_nothing_in_what_is_learned(tiny: StableDiffusion, config: TrainingConfig, tmp_path: Path) -> None:
    vectors = []
    for every in (0, 1):
        create_embedding(tiny, NAME, "shape", 2, tmp_path, overwrite=True)
        vectors.append(train(replace(config, evaluate_every=every), tiny, tmp_path).vectors["clip_l"])
    assert torch.equal(*vectors)


def test_the_best_vectors_are_kept(tiny: StableDiffusion, config: TrainingConfig, tmp_path: Path) -> None:
    """The words fit the pictures; a rate that is far too high spoils the vectors in its first step."""
    create_embedding(tiny, NAME, "purple dotted star", 3, tmp_path, overwrite=True)
    events: list[Event] = []
    spoiled = replace(config, evaluate_every=1, learning_rate=3.0, steps=3, width=128, height=128)
    before = formats.load(tmp_path / f"{NAME}.safetensors")
    after = train(spoiled, tiny, tmp_path, listener=events.append)
    curve = [(event.step, event.loss) for event in events if isinstance(event, Evaluated)]
    best = min(curve, key=lambda point: point[1])[0]
    assert best == 0, curve
    assert curve[-1][1] > 1.02 * curve[0][1], curve
    assert any("step 0 are kept" in event.text for event in events if isinstance(event, Message))
    torch.testing.assert_close(torch.nn.functional.cosine_similarity(after.vectors["clip_l"], before.vectors["clip_l"]), torch.ones(3))


def test_a_run_that_may_end_early_is_measured_often_enough_for_that() -> None:
    assert TrainingConfig("x", "y", batch_size=1, steps=400).evaluation_interval == 107
    assert TrainingConfig("x", "y", batch_size=1, steps=400, early_stop=True).evaluation_interval == 33
    with pytest.raises(ConfigError, match="nothing tells when to stop"):
        TrainingConfig("x", "y", early_stop=True, evaluate_every=0)
    assert not Curve().is_flat


def curve_of(loss, last: int, every: int = 10) -> Curve:
    """The curve of a function of the step, up to step `last`."""
    curve = Curve()
    for step in range(0, last + 1, every):
        curve.add(step, loss(step))
    return curve


def flat_at(loss, most: int = 1000) -> int:
    """The first step at which the curve is flat."""
    return next((last for last in range(0, most, 10) if curve_of(loss, last).is_flat), most)


def test_a_curve_that_has_fallen_and_stays_is_flat() -> None:
    def learned_at_80(step: int) -> float:
        return 0.02 * math.exp(-0.6 * min(step, 80) / 80)

    assert 100 <= flat_at(learned_at_80) <= 140


def test_a_plateau_before_anything_is_learned_is_not_flat() -> None:
    """The vectors first have to find what the pictures show; the loss falls a little at once, and much later."""

    def late(step: int) -> float:
        return 0.02 * (0.97 if step < 150 else 0.5)

    assert not curve_of(late, 140).is_flat
    assert flat_at(late) > 200


@pytest.mark.parametrize(
    "loss",
    [lambda step: 0.02, lambda step: 0.02 * 0.998**step, lambda step: 0.02 if step < 50 else float("nan"), lambda step: 0.02 + step / 1e4],
    ids=["constant", "falling", "not finite", "rising"],
)
def test_other_curves_are_never_flat(loss) -> None:
    assert flat_at(loss) == 1000


def test_a_run_cools_down_where_its_curve_is_flat(
    tiny: StableDiffusion, config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Curve, "is_flat", property(lambda curve: curve.points[-1][0] >= 4))
    events: list[Event] = []
    stopping = replace(config, evaluate_every=2, early_stop=True, steps=40, learning_rate=0.01)
    learned = train(stopping, tiny, tmp_path, listener=events.append)
    assert learned.provenance.step == 14  # ten more steps
    rates = [event.learning_rate for event in events if isinstance(event, StepDone)]
    assert rates[-1] == pytest.approx(0.001)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert any("ends at step 14 of 40" in event.text for event in events if isinstance(event, Message))
    going_on = train(replace(stopping, early_stop=False, steps=16), tiny, tmp_path)
    assert going_on.provenance.step == 16


@pytest.mark.parametrize("changes", [{"early_stop": False}, {"method": "classic", "learning_rate": 0.001}])
def test_a_run_that_does_not_want_to_stop_does_all_steps(
    tiny: StableDiffusion, config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    monkeypatch.setattr(Curve, "is_flat", True)
    stopping = replace(config, **{"evaluate_every": 2, "early_stop": True, "steps": 16, **changes})
    assert train(stopping, tiny, tmp_path).provenance.step == 16


def test_a_curve_knows_its_best() -> None:
    curve = Curve()
    assert [curve.add(*point) for point in ((0, 0.5), (10, 0.4), (20, 0.45), (30, float("nan")))] == [True, True, False, False]
    assert curve.best == (10, 0.4)
    assert curve.has_risen


def test_losses_that_are_not_finite_are_no_measure() -> None:
    curve = Curve()
    assert [curve.add(0, float("nan")), curve.add(10, 0.4)] == [False, True]
    assert curve.best == (10, 0.4)
    assert not curve.has_risen
    never = Curve()
    never.add(0, float("nan"))
    assert not never.has_risen


def test_the_best_vectors_keep_the_optimizers_state_of_their_step(tiny: StableDiffusion, config: TrainingConfig, tmp_path: Path) -> None:
    create_embedding(tiny, NAME, "purple dotted star", 3, tmp_path, overwrite=True)
    spoiled = replace(config, evaluate_every=1, learning_rate=3.0, steps=3, width=128, height=128, save_optimizer=True)
    kept = train(spoiled, tiny, tmp_path).vectors["clip_l"]
    trained = TrainedVectors(kept, spoiled, torch.float32, tiny.words)
    assert load_optimizer(optimizer_file(tmp_path / f"{NAME}.safetensors"), trained.optimizer) == ""
    assert float(trained.optimizer.steps) == 0  # of step 0, whose vectors are kept
