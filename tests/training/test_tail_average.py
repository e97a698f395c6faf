"""The average of a run's last steps, which is what a finished run keeps."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion import formats
from textual_inversion.training import run
from textual_inversion.training.embedding_file import create_embedding
from textual_inversion.training.run import TailAverage
from textual_inversion.training.trainer import train


@given(st.integers(1, 40), st.integers(0, 40), st.sets(st.integers(1, 39), max_size=5))
def test_the_blocks_do_not_matter(steps: int, first: int, cuts: set[int]) -> None:
    rows = torch.randn(steps + 1, 2, 3, generator=torch.Generator().manual_seed(steps))  # after each step, from 0 on
    tail = TailAverage(first)
    for begin, end in pairwise([0, *sorted(cut for cut in cuts if cut < steps), steps]):
        tail.add(rows[begin:end], begin)
    counted, last = rows[first:steps], rows[steps]
    expected = torch.cat([counted, last[None]]).mean(dim=0)
    assert tail.count == len(counted)
    average = tail.average(last, [3])
    assert torch.allclose(torch.nn.functional.cosine_similarity(average, expected), torch.ones(2), atol=1e-5)
    assert torch.allclose(average.norm(dim=1), last.norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("method", ["pulled", "directional", "classic"])
def test_a_finished_run_keeps_the_average_of_its_last_third(config, model, folder, tmp_path, monkeypatch, method):
    config = replace(config, method=method, steps=36, copy_every=1, csv_every=0, log_dir=str(tmp_path / "log"), vocabulary_search=False)
    config = replace(config, learning_rate="auto", batch_size=1, evaluate_every=0)
    kept = train(config, model, folder).vectors["clip_l"]
    copies = [formats.load(tmp_path / "log" / f"thing-{step}.safetensors").vectors["clip_l"] for step in range(24, 36)]
    create_embedding(model, "thing", "small cat", 2, folder, overwrite=True)
    monkeypatch.setattr(run, "_LEAST_AVERAGED", 1000)
    last = train(replace(config, copy_every=0), model, folder).vectors["clip_l"]
    mean = torch.stack([*copies, last]).mean(dim=0)
    expected = last if method == "classic" else torch.nn.functional.normalize(mean, dim=1) * last.norm(dim=1, keepdim=True)
    assert torch.allclose(kept, expected, atol=1e-6)
    assert method == "classic" or not torch.allclose(kept, last, atol=1e-6)


def test_what_is_interrupted_goes_on_from_its_last_step(config, model, folder, tmp_path):
    config = replace(config, method="pulled", steps=36, copy_every=1, log_dir=str(tmp_path / "log"), learning_rate="auto", batch_size=1)
    asked = iter(range(1000))
    kept = train(config, model, folder, should_stop=lambda: next(asked) > 35)
    copy = formats.load(sorted((tmp_path / "log").glob("thing-*.safetensors"), key=lambda path: path.stat().st_mtime_ns)[-1])
    assert 24 < (kept.provenance.step or 0) < 36
    assert torch.equal(kept.vectors["clip_l"], copy.vectors["clip_l"])
