"""What a request may ask of the exchange of vectors, and what a file beside an embedding may say of its last run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from textual_inversion.app.actions import Actions
from textual_inversion.app.copies import kept_before
from textual_inversion.app.remembered import question, remembered
from textual_inversion.hosts.fake import FakeEngine, FakeHost
from textual_inversion.last_run import last_run_file
from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.settings.training import TrainingConfig


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    made = FakeEngine(FakeHost(tmp_path / "host"), pace=0.0001)
    made.create(NewEmbedding("tulip", "flower"))
    return made


def say(engine: FakeEngine, **values: Any) -> None:
    last_run_file(engine.embedding_file("tulip")).write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize("sent", ["", "[]", "null", "hello", '{"use": "x"}', '{"use": null}', '{"back": ""}', "{", '{"use": 1}'])
def test_requests_that_the_page_never_sends_are_refused_in_a_sentence(engine: FakeEngine, sent: str) -> None:
    outcome = Actions(engine).exchange(sent)
    assert outcome.kind == "error"
    assert "unexpected" not in outcome.text


@pytest.mark.parametrize("back", ["a/../tulip", "../../tulip", "TULIP"])
def test_nothing_is_written_outside_of_the_words_own_folder(engine: FakeEngine, tmp_path: Path, back: str) -> None:
    kept = engine.host.folders().outputs / "training" / "tulip" / "before.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({**json.loads(engine.embedding_file("tulip").read_text()), "step": 7}))
    say(engine, before=str(kept))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    Actions(engine).exchange(json.dumps({"back": back}))
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert all(path.parent == kept.parent for path in new)


def test_a_file_from_elsewhere_is_never_taken_back(engine: FakeEngine, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(engine.embedding_file("tulip").read_bytes())
    say(engine, before=str(other))
    assert kept_before(engine, "tulip") is None


TEXTS = st.text(max_size=40) | st.sampled_from(["a" * 5000, "t" * 300, "\ud800", "\0", "//evil/share", "C:\\x"])
VALUES = TEXTS | st.integers() | st.floats() | st.none() | st.booleans() | st.lists(st.integers(), max_size=2)
KEYS = st.sampled_from(["images", "template", "steps", "learning_rate", "width", "batch_size", "preview_prompt", "name", "unknown"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, VALUES, max_size=5), VALUES, VALUES, VALUES)
def test_whatever_the_file_says_nothing_breaks(engine: FakeEngine, values: dict[str, Any], before: Any, verdict: Any, level: Any) -> None:
    say(engine, settings=values, before=before, verdict=verdict, level=level)
    kept = remembered(engine, "tulip")
    assert "//" not in str(kept.get("images", ""))[:2]
    assert kept_before(engine, "tulip") is None
    question(engine, TrainingConfig("tulip", "pictures"))
    json.dumps(kept).encode("utf-8")
