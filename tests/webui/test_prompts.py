"""The script that a WebUI calls, and what its token counter is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.webui.conftest import Host, write


@pytest.fixture
def prompts(webui: SimpleNamespace, host: Host) -> Any:
    from textual_inversion.hosts.webui import prompts

    host.known = {"cat": 1, "my-cat": 2}
    return prompts


def generation(**values: Any) -> Any:
    lists = {"all_prompts": ["<cat:1.2>"] * 4, "all_negative_prompts": ["<my-cat>"] * 4, "prompts": ["<cat:1.2>"] * 2}
    return SimpleNamespace(batch_size=2, main_prompt="<cat>", main_negative_prompt="", **{**lists, **values})


def test_it_is_always_at_work_and_draws_nothing(prompts: Any, webui: SimpleNamespace) -> None:
    script = prompts.TextualInversionPrompts()
    assert script.show(False) is script.show(True) is webui.scripts.AlwaysVisible
    assert script.create_group is False
    assert script.title()


def test_everything_before_and_the_batch_at_hand_after_wildcards(prompts: Any) -> None:
    script, p = prompts.TextualInversionPrompts(), generation()
    script.process(p)
    assert p.all_prompts == ["(cat:1.2)"] * 4
    assert p.all_negative_prompts == ["my-cat"] * 4
    p.prompts, p.all_prompts = ["<cat:0.5>", "y"], ["<cat>"] * 4
    script.before_process_batch(p, batch_number=1, prompts=p.prompts, seeds=[], subseeds=[])
    assert p.prompts == ["(cat:0.5)", "y"]
    assert p.all_prompts == ["<cat>", "<cat>", "cat", "cat"]


def test_the_setting_leaves_prompts_alone(prompts: Any, host: Host) -> None:
    host.options["rewrite_prompts"] = False
    p = generation()
    prompts.TextualInversionPrompts().process(p)
    assert p.all_prompts == ["<cat:1.2>"] * 4
    counted = SimpleNamespace(prompt="<cat:1.2>", steps=20, styles=[], is_positive=True)
    prompts.before_token_counter(counted)
    assert counted.prompt == "<cat:1.2>"


def test_with_another_hires_checkpoint_every_files_name_is_a_word_there(prompts: Any, host: Host) -> None:
    write(host.folders().embeddings, "big one", width=768)
    (host.folders().embeddings / "broken.pt").write_bytes(b"rubbish")
    hires = {"all_hr_prompts": ["<big one:1.2> <cat> <broken:1>"], "enable_hr": True}
    p = generation(all_prompts=["<big one:1.2>"], hr_checkpoint_name="xl", **hires)
    prompts.TextualInversionPrompts().process(p)
    assert p.all_prompts == ["<big one:1.2>"]
    assert p.all_hr_prompts == ["(big one:1.2) cat <broken:1>"]


def test_it_comes_last(prompts: Any, webui: SimpleNamespace) -> None:
    ours, others = (
        SimpleNamespace(script_class=prompts.TextualInversionPrompts),
        [SimpleNamespace(script_class=kind) for kind in (int, str)],
    )
    data = webui.scripts.scripts_data
    data[:] = [others[0], ours, others[1]]
    for _ in range(2):
        prompts.run_last()
        assert webui.scripts.scripts_data is data
        assert data == [*others, ours]


@pytest.mark.parametrize(
    ("prompt", "styles", "positive", "expected"),
    [
        ("<cat:1.2> x", [], True, ("(cat:1.2) x", [])),
        ("<dog:1.2> <cat>", [], False, ("<dog:1.2> cat", [])),
        ("<cat>", ["plain"], True, ("cat", ["plain"])),
        ("<cat>", ["ours"], True, ("cat, (my-cat:1.1)", [])),
        ("x", ["plain", "ours"], False, ("x, bad, my-cat", [])),
    ],
)
def test_the_counter(prompts: Any, webui: SimpleNamespace, prompt: str, styles: list[str], positive: bool, expected: object) -> None:
    webui.shared.prompt_styles.styles = {"plain": ("good", "bad"), "ours": ("<my-cat:1.1>", "<my-cat>")}
    params = SimpleNamespace(prompt=prompt, steps=20, styles=styles, is_positive=positive)
    prompts.before_token_counter(params)
    assert (params.prompt, params.styles) == expected


def test_styles_that_the_counter_leaves_out_stay_out(prompts: Any, webui: SimpleNamespace) -> None:
    webui.shared.prompt_styles.styles = {"ours": ("<my-cat:1.1>", "")}
    webui.shared.opts.include_styles_into_token_counters = False
    params = SimpleNamespace(prompt="<cat>", steps=20, styles=["ours"], is_positive=True)
    prompts.before_token_counter(params)
    assert (params.prompt, params.styles) == ("cat", ["ours"])
