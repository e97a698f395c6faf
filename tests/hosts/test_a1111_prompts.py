"""`<name>` and `<name:weight>` in a real A1111: in every field the conditioning is that of what one would type without us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.hosts.conftest import WebUI

pytestmark = pytest.mark.hosts

NAMES = {"cat": 1, "my-cat": 2, "v2.1": 1, "Old Man": 3, "3d": 1, "EasyNegative": 2, "toy (old)": 1, "neg,": 1}
#: What is typed -> what gives the same without this extension.
TABLE = {
    "a <cat:1.2> on grass": "a (cat:1.2) on grass",
    "a <cat> on grass": "a cat on grass",
    "<my-cat:1.2>": "(my-cat:1.2)",
    "<my-cat>, <v2.1:.5>": "my-cat, (v2.1:.5)",
    "<Old Man:1.1>, <3d:0.9>": "(Old Man:1.1), (3d:0.9)",
    "<easynegative:1.3> <EASYNEGATIVE>": "(EasyNegative:1.3) EasyNegative",
    "<toy (old):1.2>": r"(toy \(old\):1.2)",
    "[<cat:1.2>:dog:0.5]": "[(cat:1.2):dog:0.5]",
    "[<cat:1.2>|<my-cat>]": "[(cat:1.2)|my-cat]",
    "(<cat>:1.1) and ((<cat:1.2>))": "(cat:1.1) and (((cat:1.2)))",
    "<cat:1.2> AND <my-cat:0.8> :0.5": "(cat:1.2) AND (my-cat:0.8) :0.5",
    "<cat:1.2> BREAK <my-cat>": "(cat:1.2) BREAK my-cat",
    # not ours: as it always was
    "<lora:none:1> <dog> <dog:1.2> x": None,
}
FIELDS = ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt")
LISTS = {
    "prompt": "all_prompts",
    "negative_prompt": "all_negative_prompts",
    "hr_prompt": "all_hr_prompts",
    "hr_negative_prompt": "all_hr_negative_prompts",
}
CONDITIONINGS = {"prompt": "c", "negative_prompt": "uc", "hr_prompt": "hr_c", "hr_negative_prompt": "hr_uc"}


@pytest.fixture(scope="module")
def webui(a1111: WebUI) -> WebUI:
    """A1111 that knows `NAMES`, each with vectors of its own."""
    generator = torch.Generator().manual_seed(1)
    for name, vectors in NAMES.items():
        save_file({"emb_params": torch.randn(vectors, 64, generator=generator)}, a1111.data / "embeddings" / f"{name}.safetensors")
    a1111.post("/sdapi/v1/refresh-embeddings")
    assert set(NAMES) <= set(a1111.get("/sdapi/v1/embeddings")["loaded"])
    return a1111


def drawn(webui: WebUI, **changes: Any) -> dict[str, Any]:
    """What the host made of a generation with hires fix, one step each."""
    body = {
        "prompt": "p",
        "negative_prompt": "n",
        "steps": 2,
        "width": 64,
        "height": 64,
        "seed": 1,
        "sampler_name": "Euler",
        "cfg_scale": 4,
    }
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7, "hr_second_pass_steps": 2}
    hires |= {"hr_prompt": "q", "hr_negative_prompt": "m"}
    answer = webui.post("/sdapi/v1/txt2img", **{**body, **hires, **changes})
    return {**webui.get("/test/last"), "answer": answer}


@pytest.mark.parametrize(("typed", "plain"), list(TABLE.items()))
def test_every_field_gives_the_conditioning_of_the_plain_form(webui: WebUI, typed: str, plain: str | None) -> None:
    of_typed = drawn(webui, **{field: typed for field in FIELDS})
    expected = drawn(webui, **{field: typed if plain is None else plain for field in FIELDS})
    assert of_typed["conditionings"] == expected["conditionings"]
    assert set(of_typed["conditionings"]) == {"c", "uc", "hr_c", "hr_uc"}
    if plain is None:
        assert all(of_typed["prompts"][name] == [typed] for name in LISTS.values())


def test_what_another_extension_puts_in_just_before_a_batch_is_reached(webui: WebUI) -> None:
    late = drawn(webui, **dict.fromkeys(FIELDS, "__late__ on grass"), batch_size=2, n_iter=2)
    assert late["conditionings"] == drawn(webui, **dict.fromkeys(FIELDS, "(cat:1.2) on grass"), batch_size=2, n_iter=2)["conditionings"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_weight_reaches_its_own_field_only(webui: WebUI, field: str) -> None:
    neutral = drawn(webui, **dict.fromkeys(FIELDS, "x"))
    changed = drawn(webui, **{**dict.fromkeys(FIELDS, "x"), field: "x <cat:1.2>"})
    differing = {key for key, value in changed["conditionings"].items() if value != neutral["conditionings"][key]}
    assert differing == {CONDITIONINGS[field]}
    assert changed["prompts"][LISTS[field]] == ["x (cat:1.2)"]


def test_the_infotext_pastes_back_without_us(webui: WebUI) -> None:
    typed = {"prompt": "a <cat:1.2>", "negative_prompt": "<my-cat>", "hr_prompt": "b <cat:0.5>", "hr_negative_prompt": "<EasyNegative:1.1>"}
    first = drawn(webui, **typed)
    infotext = first["answer"]["info"]
    assert "a (cat:1.2)" in infotext
    assert "Negative prompt: my-cat" in infotext
    assert "b (cat:0.5)" in infotext
    assert "<" not in infotext
    pasted = {"prompt": "a (cat:1.2)", "negative_prompt": "my-cat", "hr_prompt": "b (cat:0.5)", "hr_negative_prompt": "(EasyNegative:1.1)"}
    assert drawn(webui, **pasted)["conditionings"] == first["conditionings"]


def test_no_hires_prompt_is_told_where_there_was_none(webui: WebUI) -> None:
    report = drawn(webui, prompt="<cat:1.2>", negative_prompt="n", hr_prompt="", hr_negative_prompt="")
    assert "Hires prompt" not in json.loads(report["answer"]["info"])["infotexts"][0]


def test_styles_are_rewritten_too(webui: WebUI) -> None:
    of_style = drawn(webui, prompt="x", negative_prompt="y", styles=["ours"])
    plain = {
        "prompt": "x, (cat:1.2)",
        "negative_prompt": "y, (my-cat:0.7)",
        "hr_prompt": "q, (cat:1.2)",
        "hr_negative_prompt": "m, (my-cat:0.7)",
    }
    assert of_style["conditionings"] == drawn(webui, **plain)["conditionings"]


def test_every_picture_of_a_batch_and_the_grid(webui: WebUI) -> None:
    report = drawn(webui, prompt="<cat:1.2>", batch_size=2, n_iter=2)
    assert report["prompts"]["all_prompts"] == ["(cat:1.2)"] * 4
    assert report["grid"] == ["(cat:1.2)", "n"]


def test_img2img(webui: WebUI, tmp_path: Path) -> None:
    picture = drawn(webui)["answer"]["images"][0]
    seen = []
    for prompt in ("<cat:1.2>", "(cat:1.2)"):
        body = {"init_images": [picture], "prompt": prompt, "negative_prompt": prompt, "steps": 2, "width": 64, "height": 64, "seed": 1}
        webui.post("/sdapi/v1/img2img", **body)
        seen.append(webui.get("/test/last")["conditionings"])
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("typed", "plain"), [("<cat:1.2>", "(cat:1.2)"), ("x, <Old Man>", "x, Old Man"), ("<my-cat:1.2> y", "(my-cat:1.2) y")]
)
@pytest.mark.parametrize("positive", [True, False])
def test_the_token_counter_counts_what_is_drawn(webui: WebUI, typed: str, plain: str, positive: bool) -> None:
    counts = [webui.get("/test/count", text=text, positive=positive) for text in (typed, plain)]
    assert counts[0] == counts[1]
