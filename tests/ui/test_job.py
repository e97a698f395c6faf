"""The background job: one at a time, what it remembers, how it ends."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.app.curve import MAX_POINTS, LossCurve
from textual_inversion.app.job import Advanced, Job, JobKind, JobRunningError, Listener, ShouldStop, left_out
from textual_inversion.errors import ZeroGradientError
from textual_inversion.training.events import CopySaved, Message, PreviewDrawn, Started, StepDone, Stopped


def step(number: int, loss: float = 0.1, total: int = 100) -> StepDone:
    return StepDone(number, loss, 0.005, 0.4, 10.0, (total - number) / 10)


def finished(job: Job, work: object) -> dict[str, object]:
    job.start(JobKind.TRAIN, "cat", work)  # type: ignore[arg-type]
    assert job.wait(10)
    return job.snapshot()


def test_a_new_job_is_idle_and_its_state_is_json() -> None:
    state = Job().snapshot()
    assert (state["phase"], state["job"], state["seconds"]) == ("idle", "", 0)
    json.dumps(state, allow_nan=False)


def test_events_become_state(tmp_path: Path) -> None:
    def work(listener: Listener, should_stop: ShouldStop) -> None:
        listener(Message("Caching latents"))
        listener(Started("cat", 10, 13, 4, ((str(tmp_path / "bad.png"), "it is empty."),)))
        for number in (11, 12, 13):
            listener(step(number, total=13))
        listener(PreviewDrawn(12, str(tmp_path / "cat-12.png"), "a cat", 7))
        listener(CopySaved(12, str(tmp_path / "cat-12.safetensors")))
        listener(Stopped(13, "finished", str(tmp_path / "cat.safetensors")))

    state = finished(Job(), work)
    assert (state["phase"], state["step"], state["first_step"], state["last_step"], state["images"]) == ("finished", 13, 10, 13, 4)
    assert [point[0] for point in state["points"]] == [11, 12, 13]  # type: ignore[attr-defined]
    assert state["previews"] == [{"step": 12, "file": "cat-12.png", "prompt": "a cat", "seed": 7, "row": 0}]
    assert state["copies"] == [{"step": 12, "file": "cat-12.safetensors"}]
    assert state["messages"] == ["Caching latents", "Left out bad.png: it is empty."]
    assert state["remarks"] == ["Left out bad.png: it is empty."], "what should not be missed is apart from the rest"
    assert (state["file"], state["reason"], state["failed"]) == ("cat.safetensors", "", False)


def test_work_that_a_host_has_interrupted_says_so() -> None:
    state = finished(Job(), lambda listener, should_stop: listener(Stopped(4, "interrupted", "cat.pt")))
    assert (state["phase"], state["step"], state["reason"], state["failed"]) == ("interrupted", 4, "", False)
    job = Job()
    finished(job, lambda listener, should_stop: listener(Stopped(4, "interrupted", "cat.pt")))
    assert finished(job, lambda listener, should_stop: listener(Stopped(9, "finished", "cat.pt")))["phase"] == "finished"


def test_one_job_at_a_time_and_interrupt_ends_it() -> None:
    job, begun = Job(), threading.Event()

    def work(listener: Listener, should_stop: ShouldStop) -> None:
        begun.set()
        while not should_stop():
            listener(Advanced(1, 2))

    assert not job.interrupt()
    job.start(JobKind.PREPROCESS, "cats", work)
    assert begun.wait(5)
    with pytest.raises(JobRunningError, match="cats"):
        job.start(JobKind.TRAIN, "dog", work)
    assert job.interrupt()
    assert job.wait(5)
    assert job.snapshot()["phase"] == "interrupted"
    assert not job.running


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ZeroGradientError("No gradient reaches the vectors."), "No gradient reaches the vectors."),
        (OSError(28, "No space left on device", "/a/b"), "A file could not be read or written: No space left on device: /a/b."),
        (RuntimeError("out of luck"), "RuntimeError: out of luck"),
    ],
)
def test_an_error_becomes_a_sentence(error: Exception, said: str) -> None:
    def work(listener: Listener, should_stop: ShouldStop) -> None:
        raise error

    state = finished(Job(), work)
    assert state["phase"] == "failed"
    assert state["failed"] is True
    assert said in str(state["reason"])


def test_a_reason_that_names_the_file_does_not_name_it_twice() -> None:
    assert left_out("a.png", "a.png cannot be read.") == "Left out: a.png cannot be read."
    assert left_out("a.png", "it is empty.") == "Left out a.png: it is empty."


def test_what_the_trainer_said_outlives_the_error_that_follows() -> None:
    def work(listener: Listener, should_stop: ShouldStop) -> None:
        listener(Stopped(7, "The loss became NaN at step 8.", "cat.safetensors", failed=True))
        raise ZeroGradientError("something else")

    assert finished(Job(), work)["reason"] == "The loss became NaN at step 8."


def test_the_next_job_starts_afresh() -> None:
    job = Job()

    def first(listener: Listener, should_stop: ShouldStop) -> None:
        listener(step(1))
        raise ZeroGradientError("no")

    before = finished(job, first)
    after = finished(job, lambda listener, stop: listener(step(2)))
    assert after["job"] != before["job"]
    assert after["version"] > before["version"]  # type: ignore[operator]
    assert (after["failed"], after["messages"], len(after["points"])) == (False, [], 1)  # type: ignore[arg-type]


def test_only_previews_of_this_job_can_be_fetched(tmp_path: Path) -> None:
    job = Job()
    path = tmp_path / "cat-1.png"
    state = finished(job, lambda listener, stop: listener(PreviewDrawn(1, str(path), "a cat", 0)))
    assert job.picture(str(state["job"]), "cat-1.png") == path
    assert job.picture(str(state["job"]), "../cat-1.png") is None
    assert job.picture("other", "cat-1.png") is None


@given(st.integers(1, 5000))
def test_the_curve_is_thin_whole_and_in_order(length: int) -> None:
    curve = LossCurve(length)
    for number in range(1, length + 1):
        last = curve.add(step(number, loss=number / length))
    points = curve.points()
    assert len(points) <= MAX_POINTS
    assert [point[0] for point in points] == sorted({point[0] for point in points})  # type: ignore[type-var]
    assert points[-1][0] == length
    assert points[-1][2] == pytest.approx(last, rel=1e-4)
    assert all(0 < point[1] <= 1 for point in points)  # type: ignore[operator]


def test_thinning_keeps_the_mean_of_the_losses() -> None:
    curve = LossCurve(3200)
    for number in range(1, 3201):
        curve.add(step(number, loss=float(number % 2)))
    assert {point[1] for point in curve.points()} == {0.5}


def test_a_loss_that_is_not_finite_leaves_a_gap() -> None:
    curve = LossCurve(3)
    for number, loss in enumerate((0.5, float("nan"), 0.5), start=1):
        curve.add(step(number, loss))
    points = curve.points()
    assert points[1][1] is None
    assert points[2][2] == 0.5
    json.dumps(points, allow_nan=False)


def test_the_page_has_words_for_every_kind_of_job() -> None:
    script = (Path(__file__).parents[2] / "javascript" / "textual_inversion_live.js").read_text(encoding="utf-8")
    table = script[script.index("const KINDS = {") :].partition("};")[0]
    assert re.findall(r"^ +(\w+): \{ working:", table, re.MULTILINE) == [kind.value for kind in JobKind]
