"""The verdict on a run: right on runs of the drawn world whose words were judged, and never good about what is not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion import formats
from textual_inversion.demo.run import PICTURES
from textual_inversion.diffusion.model import load_checkpoint
from textual_inversion.last_run import LastRun, last_run_file, read_last_run
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.embedding_file import create_embedding
from textual_inversion.training.events import CopySaved, Event, Judged, PreviewDrawn
from textual_inversion.training.trainer import train
from textual_inversion.training.verdict import LEAST_FALL_OF_TINY, Level, Measured, judge_run
from textual_inversion.vocabulary import Lengths

WORDS = Lengths(0.56, 0.48, 0.64)
GOOD = (0.0221, 0.0159, 0.0095, 0.0098, 0.0085, 0.0085, 0.0085)
STEPS = (0, 27, 54, 81, 108, 135, 150)


def measured(losses: tuple[float, ...] = GOOD, norm: float | None = 0.58, **changes: object) -> Measured:
    points = list(zip(STEPS, losses))
    known = Measured(0, points[-1][0], 150, points, {"clip_l": (norm,) * 4}, {"clip_l": WORDS}, 1.0, 6, True, LEAST_FALL_OF_TINY, True)
    return replace(known, **changes)  # type: ignore[arg-type]


# Curves, norms and scores of real runs on the drawn world: (shows the concept and follows the prompt, the measurements).
RUNS = {
    "good star": (True, measured()),
    "good moon": (True, measured((0.0199, 0.0145, 0.0128, 0.0118, 0.0098, 0.0092, 0.0091))),
    "good heart": (True, measured((0.0249, 0.0160, 0.0109, 0.0133, 0.0109, 0.0108, 0.0108))),
    "good cross": (True, measured((0.0168, 0.0094, 0.0097, 0.0100, 0.0092, 0.0093, 0.0092))),
    "good diamond": (True, measured((0.0230, 0.0148, 0.0134, 0.0109, 0.0108, 0.0103, 0.0104))),
    "classic at 0.05": (True, measured((0.0249, 0.0162, 0.0159, 0.0115, 0.0111, 0.0110, 0.0111), 4.8)),
    "one picture with a caption": (True, measured((0.0230, 0.0160, 0.0110, 0.0110, 0.0100, 0.0095, 0.0097), pictures=1)),
    "ten steps": (False, replace(measured((0.0221, 0.0158)), points=[(0, 0.0221), (10, 0.0158)], step=10, last_step=10)),
    "25 steps": (False, replace(measured((0.0200, 0.0143)), points=[(0, 0.0200), (25, 0.0143)], step=25, last_step=25)),
    "rate 100": (False, measured((0.0221, 0.0112, 0.0116, 0.0109, 0.0122, 0.0109, 0.0113), 53.0)),
    "classic at 100": (False, measured((0.0199, 0.0218, 0.0197, 0.0183, 0.0175, 0.0170, 0.0166), 5196.0)),
    "classic at 1": (False, measured((0.0221, 0.0146, 0.0120, 0.0119, 0.0116, 0.0112, 0.0111), 57.0)),
    "pictures of different things": (False, measured((0.0179, 0.0157, 0.0165, 0.0159, 0.0157, 0.0151, 0.0155))),
    "noise": (False, measured((0.1388, 0.1294, 0.1195, 0.1294, 0.1307, 0.1207, 0.1216), 0.88)),
}


@pytest.mark.parametrize("name", RUNS)
def test_it_agrees_with_what_was_drawn(name: str) -> None:
    is_good, run = RUNS[name]
    assert (judge_run(run).level is Level.GOOD) is is_good, judge_run(run)


def test_each_sentence_gives_its_reason() -> None:
    assert judge_run(measured()).text == "Levelled off since step 108: its error on the pictures is 62 % lower."
    assert judge_run(RUNS["rate 100"][1]).text.startswith("Broken, because its vectors are 95 times as long as words")
    assert judge_run(RUNS["ten steps"][1]).text.startswith("Still improving when it ended")
    rising = measured((0.022, 0.012, 0.009, 0.011, 0.013, 0.014, 0.015))
    assert judge_run(rising).text.startswith("Overtraining, because the evaluation was best at step 54")
    assert "lower learning rate" in judge_run(measured((0.02, 0.021, 0.022, 0.022, 0.023, 0.024, 0.025))).text
    assert "moved by less than 3 %" in judge_run(measured(moved=0.03)).text
    assert judge_run(measured(moved=0.03, first_step=1)).text.startswith("This run hardly changed the word")
    assert "without a caption" in judge_run(measured(pictures=1, described=False)).text
    assert judge_run(measured(points=[])).level is Level.FAIR


def test_one_worse_evaluation_on_the_way_is_no_overtraining() -> None:
    """The search for words moves vectors, and a high rate moves them to and fro."""
    on_the_way = replace(measured((0.0249, 0.0160, 0.0109, 0.0133)), over=False)
    assert "Overtraining" not in judge_run(on_the_way).text


@given(
    st.lists(st.floats(1e-6, 1e3) | st.just(math.nan) | st.just(math.inf), max_size=7),
    st.floats(0, 1e6) | st.none(),
    st.booleans(),
    st.integers(0, 100),
)
def test_every_run_gets_a_sentence_and_long_or_broken_vectors_are_never_good(
    losses: list[float], norm: float | None, over: bool, first: int
) -> None:
    points = [(first + step, loss) for step, loss in zip(STEPS, losses)]
    verdict = judge_run(measured(norm=norm, points=points, first_step=first, over=over))
    assert verdict.text.endswith(".")
    finite = norm is not None and all(map(math.isfinite, losses))
    if not finite or norm >= 10 * WORDS.median:  # type: ignore[operator]
        assert verdict.level is not Level.GOOD


def test_a_run_reports_draws_and_keeps_its_verdict(tmp_path: Path) -> None:
    model, events = load_checkpoint(device="cpu", precision="fp32"), list[Event]()
    create_embedding(model, "zorb", "shape", 2, tmp_path)
    log = tmp_path / "log"
    config = TrainingConfig(
        "zorb",
        str(PICTURES),
        steps=5,
        batch_size=1,
        width=64,
        height=64,
        evaluate_every=2,
        preview_every=2,
        preview_steps=1,
        log_dir=str(log),
    )
    train(config, model, tmp_path, listener=events.append)
    judged = [event for event in events if isinstance(event, Judged)]
    assert [event.step for event in judged] == [0, 2, 4, 5]
    assert judged[0].words == {"clip_l": ("shape", "shape")}
    assert (judged[-1].level, judged[-1].text[:15]) == ("fair", "Still improving")
    assert json.loads((log / "verdict.json").read_text())["text"] == judged[-1].text
    kept = read_last_run(tmp_path / "zorb.safetensors")
    assert (kept.step, kept.level, kept.verdict) == (5, "fair", judged[-1].text)
    assert kept.settings["images"] == str(PICTURES)
    assert Path(kept.before) == log / "zorb-0.safetensors"
    # the first and the last step are drawn, and each preview has a copy
    assert [event.step for event in events if isinstance(event, PreviewDrawn)] == [0, 2, 4, 5]
    assert sorted(event.step for event in events if isinstance(event, CopySaved)) == [0, 2, 4, 5]
    # the copy of step 0 is what was drawn: vectors at the length of words
    norms = [norm for rows in judged[0].norms.values() for norm in rows if norm is not None]
    copied = formats.load(log / "zorb-0.safetensors", "zorb").vectors["clip_l"].norm(dim=1).tolist()
    assert copied == pytest.approx(norms, rel=1e-3)
    # a run that was started by mistake and made no step leaves what was known of the word
    begun: list[Event] = []

    def mistaken(event: Event) -> None:
        begun.extend([event] if isinstance(event, Judged) else [])

    train(replace(config, steps=9, log_dir=str(tmp_path / "other")), model, tmp_path, listener=mistaken, should_stop=lambda: bool(begun))
    assert begun[-1].step == 5
    assert read_last_run(tmp_path / "zorb.safetensors") == kept


@pytest.mark.parametrize("content", ["", "[]", "{", '{"step": "x", "settings": 3, "verdict": null}', "[" * 100_000])
def test_a_broken_record_counts_as_none(tmp_path: Path, content: str) -> None:
    last_run_file(tmp_path / "x.safetensors").write_text(content)
    assert read_last_run(tmp_path / "x.safetensors") == LastRun()
