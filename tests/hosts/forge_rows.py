"""What Forge and reForge must do alike: classes of tests over a fixture `webui`, which test_forge.py and test_reforge.py collect."""

from __future__ import annotations

import json
import shutil
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.hosts.a1111_browser import (
    API,
    PICTURES,
    TrainTab,
    create,
    fill_disk,
    open_page,
    picture,
    set_options,
    small_disk,
    state,
    until_over,
    until_step,
    wait_for,
)
from tests.hosts.conftest import WebUI
from tests.hosts.test_a1111_cards import Page as CardsPage
from tests.hosts.test_a1111_prompts import FIELDS, LISTS, NAMES, TABLE
from tests.support.checkpoints import random_state
from textual_inversion.diffusion.vae import VAEConfig
from textual_inversion.formats import load

#: Of a picture and a training that take no time to speak of, with a UNet of full width on the processor.
SMALL = {"steps": 2, "width": 64, "height": 64}
QUICK = {"width": 64, "height": 64, "batch_size": 1}
LONG = 100_000
COUNTED = {"<cat:1.2>": "(cat:1.2)", "x, <Old Man>": "x, Old Man", "<my-cat:1.2> y": "(my-cat:1.2) y"}
PHASE = "document.querySelector('.ti-job')?.dataset.phase"
HOSTILE = ("hostile.pt", "plain-pickle.pt")
BROKEN = ("broken.safetensors", "half.bin")


class _Writes:
    """What a hostile file does when a program unpickles it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (open, (str(self.target), "w"))


def fill(data: Path) -> None:
    """What a user may have in his folders before the first start."""
    embeddings, checkpoints = data / "embeddings", data / "models" / "Stable-diffusion"
    for folder in (embeddings, checkpoints, data / "models" / "VAE"):
        folder.mkdir(parents=True)
    hurt = data / "hurt"
    torch.save({"string_to_param": {"*": torch.zeros(1, 768)}, "name": _Writes(hurt)}, embeddings / "hostile.pt", pickle_protocol=2)
    torch.save(_Writes(hurt), embeddings / "plain-pickle.pt")
    (embeddings / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    (embeddings / "half.bin").write_bytes(b"PK\x03\x04 and no more")
    generator = torch.Generator().manual_seed(1)
    for name, vectors in NAMES.items():
        save_file({"emb_params": torch.randn(vectors, 768, generator=generator) / 5}, embeddings / f"{name}.safetensors")
    save_file({"emb_params": torch.randn(1, 1024)}, embeddings / "sd2thing.safetensors")
    save_file({"clip_l": torch.randn(1, 768), "clip_g": torch.randn(1, 1280)}, embeddings / "xlthing.safetensors")
    save_file(random_state(VAEConfig(), seed=9, dtype=torch.float16), data / "models" / "VAE" / "other-vae.safetensors")
    (data / "styles.csv").write_text('name,prompt,negative_prompt\nours,"{prompt}, <cat:1.2>",<my-cat:0.7>\n', encoding="utf-8")
    write_foreign(checkpoints)


def write_foreign(folder: Path) -> None:
    """Checkpoints that are none of Stable Diffusion 1, 2 or XL, as far as their headers go."""
    names = {
        "flux-like": ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", "guidance_in.in_layer.weight"),
        "sd3-like": ("joint_blocks.0.x_block.attn.qkv.weight", "x_embedder.proj.weight"),
    }
    for kind, keys in names.items():
        save_file({f"model.diffusion_model.{key}": torch.zeros(4, 4).half() for key in keys}, folder / f"{kind}.safetensors")
    nf4 = "double_blocks.0.img_attn.qkv.weight"
    packed = {nf4: torch.zeros(8, 1, dtype=torch.uint8), f"{nf4}.quant_state.bitsandbytes__nf4": torch.zeros(4, dtype=torch.uint8)}
    save_file({f"model.diffusion_model.{key}": value for key, value in packed.items()}, folder / "nf4-like.safetensors")
    (folder / "packed.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))


def said(webui: WebUI) -> str:
    return webui.log.read_text(encoding="utf-8", errors="replace")


def train(webui: WebUI, name: str, **values: Any) -> dict[str, Any]:
    """Train through the API to the end; the job's state."""
    begin(webui, name, **{"steps": 2, **values})
    return until_over(webui)


def begin(webui: WebUI, name: str, **values: Any) -> str:
    """Start a training that goes on until it is interrupted; the job's id."""
    status, answer = webui.ask("POST", f"{API}/train", {"name": name, "images": str(PICTURES), "steps": LONG, **QUICK, **values})
    assert status == 200, answer
    return str(answer["job"])


def draw_slowly(webui: WebUI) -> threading.Thread:
    """Ask for a picture that takes seconds, and come back when the host is at it."""
    asking = threading.Thread(target=lambda: picture(webui, "a red circle", steps=40, width=128, height=128))
    asking.start()
    wait_for(lambda: webui.get("/sdapi/v1/progress")["state"]["sampling_step"] > 0, 60, "the first sampling step")
    return asking


def check_draws(webui: WebUI, prompt: str = "a red circle") -> None:
    """The host generates as before."""
    assert picture(webui, prompt, **SMALL)[0]
    assert webui.get("/sdapi/v1/progress")["state"]["job"] == ""


def step_in_file(webui: WebUI, name: str) -> int | None:
    return load(webui.data / "embeddings" / f"{name}.safetensors").provenance.step


def press_train(webui: WebUI, tab: TrainTab, name: str) -> None:
    before = state(webui)["job"]
    tab.press("ti_train_button")
    wait_for(lambda: (shown := state(webui))["job"] != before and shown["name"] == name, 20, f"training of {name}")


def choose(webui: WebUI, checkpoint: str) -> None:
    set_options(webui, sd_model_checkpoint=checkpoint)


class Rows:
    """What all classes share."""

    tab_class: type[TrainTab] = TrainTab
    hires: dict[str, Any] = {}  # noqa: RUF012  what this host's API needs for hires fix
    once: dict[str, int] = {}  # noqa: RUF012  callback -> how often it is ours


class Start(Rows):
    """Before the first picture. Its tests come first, for only then is the host as it starts."""

    def test_it_costs_little_and_says_only_what_it_left_out(self, webui: WebUI) -> None:
        seconds = webui.get("/test/seconds")
        cost = seconds["script"] + sum(seconds["callbacks"].values())
        host = float(said(webui).split("Startup time: ")[1].split("s")[0])
        print(f"start-up: {cost:.2f} s of {host} s: script {seconds['script']:.2f} s, callbacks {seconds['callbacks']}")
        assert cost < 0.03 * host, seconds  # 0.3 s of what takes ten on a machine that does nothing else
        lines = [line for line in said(webui).splitlines() if "extual" in line and "***" not in line and "textual-inversion" not in line]
        assert [line for line in lines if not any(name in line for name in (*HOSTILE, *BROKEN))] == [], lines

    def test_hostile_files_are_not_run_and_broken_ones_not_renamed(self, webui: WebUI) -> None:
        webui.post("/sdapi/v1/refresh-embeddings")
        assert not (webui.data / "hurt").exists()
        there = {path.name for path in (webui.data / "embeddings").iterdir()}
        assert {*HOSTILE, *BROKEN} <= there
        assert not any(name.endswith(".corrupted") for name in there)

    def test_create_and_train_before_the_first_picture(self, webui: WebUI) -> None:
        file = create(webui, "before-first")
        assert load(file).num_vectors == 2
        shown = train(webui, "before-first", steps=2, preview_every=2, preview_steps=1)
        assert (shown["phase"], shown["step"], len(shown["previews"])) == ("finished", 2, 2), shown
        drawn, infotext = picture(webui, "a before-first", **SMALL)
        assert "before-first" in infotext.partition("TI hashes: ")[2]
        assert drawn != picture(webui, "a before-last", **SMALL)[0]

    def test_what_does_not_fit_is_listed_with_the_reason(self, webui: WebUI) -> None:
        check_draws(webui)
        found = webui.get("/test/inside")
        assert set(NAMES) <= set(found["loaded"])
        assert {"sd2thing", "xlthing", "hostile", "broken"} <= set(found["skipped"])
        assert "SD2" in found["skipped"]["sd2thing"][1]
        assert "SDXL" in found["skipped"]["xlthing"][1]


class Page(Rows):
    """The Train tab as a person uses it."""

    @pytest.mark.timeout(900)
    def test_the_main_job(self, webui: WebUI, chromium: str) -> None:
        with open_page(chromium, webui.url, tab_class=self.tab_class) as tab:
            tab.open()
            tab.tab("Create")
            tab.fill("ti_create_name", "main-job")
            tab.fill("ti_create_initializer_text", "green square")
            tab.press("ti_create_button")
            tab.wait_text("#ti_create_note", "is there with 2 vectors")
            before, infotext = picture(webui, "a main-job, pink", **SMALL)
            assert "main-job" in infotext.partition("TI hashes: ")[2]
            assert before == picture(webui, "a green square, pink", **SMALL)[0]  # it starts as its words
            self.check_training(webui, tab)
            after, infotext = picture(webui, "a main-job, pink", **SMALL)
            assert after != before
            assert (after, infotext) == picture(webui, "a main-job, pink", **SMALL)
            assert f'TI hashes: "main-job: {webui.get(f"{API}/inspect", name="main-job")["sha256"][:12]}"' in infotext
            self.check_interrupting(webui, tab)
            assert tab.problems == []

    def check_training(self, webui: WebUI, tab: TrainTab) -> None:
        tab.tab("Train")
        assert tab.value("ti_train_name") == "main-job"
        tab.unfold("Size and device", "Previews and copies")
        values = {"images": PICTURES, "steps": 100, "learning_rate": "0.02", "batch_size": 1, "width": 64, "height": 64}
        for ident, value in {**values, "preview_every": 50, "preview_steps": 2}.items():
            tab.fill(f"ti_train_{ident}", value)
        press_train(webui, tab, "main-job")
        shown = until_over(webui, 600)
        assert (shown["phase"], shown["step"], shown["failed"]) == ("finished", 100, False), shown
        assert [preview["step"] for preview in shown["previews"]] == [0, 50, 100]
        wait_for(lambda: tab.page.evaluate(PHASE) == "finished", 20)
        wait_for(lambda: tab.page.evaluate("document.querySelector('.ti-preview')?.naturalWidth") == 64, 20, "the preview on the page")
        assert step_in_file(webui, "main-job") == 100
        print(f"seconds a step: {1 / shown['steps_per_second']:.2f}")

    def check_interrupting(self, webui: WebUI, tab: TrainTab) -> None:
        tab.fill("ti_train_name", "stopped-1")
        tab.fill("ti_train_steps", 300)
        press_train(webui, tab, "stopped-1")
        until_step(webui, 30)
        tab.press("ti_train_stop")
        shown = until_over(webui)
        assert shown["phase"] == "interrupted"
        assert 30 <= shown["step"] < 40
        tab.wait_text(".ti-notice", f"What was learned up to step {shown['step']} is kept.", 20)
        assert step_in_file(webui, "stopped-1") == shown["step"]
        assert "stopped-1" in picture(webui, "a stopped-1", **SMALL)[1].partition("TI hashes: ")[2]

    def test_previews_with_the_settings_of_txt2img(self, webui: WebUI, chromium: str) -> None:
        create(webui, "followed")
        with open_page(chromium, webui.url, tab_class=self.tab_class) as tab:
            tab.open()
            tab.go("txt2img")
            tab.page.fill("#txt2img_prompt textarea", "one followed of mine, <lora:none:1>")
            tab.page.fill("#txt2img_neg_prompt textarea", "blue")
            tab.fill("txt2img_steps", 1)
            tab.fill("txt2img_width", 128)
            tab.fill("txt2img_height", 64)
            tab.go("Train")
            tab.unfold("Size and device", "Previews and copies")
            tab.fill("ti_train_name", "followed")
            for ident, value in {"images": PICTURES, "steps": 2, "preview_every": 2, "width": 64, "height": 64}.items():
                tab.fill(f"ti_train_{ident}", value)
            tab.check("ti_train_as_txt2img")
            press_train(webui, tab, "followed")
            shown = until_over(webui)
            assert [preview["prompt"] for preview in shown["previews"]] == ["one followed of mine,"] * 2, shown
            wait_for(lambda: tab.page.evaluate("document.querySelector('.ti-preview')?.naturalWidth") == 128, 20, "the preview's size")
            assert tab.page.evaluate("document.querySelector('.ti-preview').naturalHeight") == 64
            assert [said for said in tab.problems if "reading 'props'" not in said] == []  # reForge's page says so by itself

    def test_cards_show_every_embedding_and_a_click_inserts_the_word(self, webui: WebUI, chromium: str) -> None:
        with open_page(chromium, webui.url, tab_class=self.tab_class) as tab:
            tab.open()
            tab.go("txt2img")
            tab.page.locator("#txt2img_extra_tabs > .tab-nav button", has_text="Textual Inversion").first.click()
            tab.page.wait_for_selector("#txt2img_textual_inversion_cards .card", timeout=20_000)
            tab.page.click("#txt2img_textual_inversion_extra_refresh")
            tab.page.wait_for_timeout(2000)
            cards = tab.page.locator("#txt2img_textual_inversion_cards .card")
            shown = {cards.nth(index).get_attribute("data-name"): cards.nth(index).inner_text() for index in range(cards.count())}
            assert {*NAMES, "sd2thing", "xlthing", "hostile", "broken"} <= set(shown)
            assert "SDXL" in shown["xlthing"]
            assert "2 vectors" in shown["my-cat"]
            tab.page.fill("#txt2img_prompt textarea", "")
            tab.page.locator("#txt2img_textual_inversion_cards .card[data-name='my-cat']").click()
            wait_for(lambda: tab.page.input_value("#txt2img_prompt textarea").strip() == "my-cat", 10, "the word in the prompt")
            tab.page.locator("#txt2img_textual_inversion_cards .card[data-name='xlthing']").click()
            wait_for(lambda: "cannot be used in prompts now" in tab.text(".ti-card-why"), 10, "why it cannot be used")
            assert tab.problems == []

    def test_the_cards_can_be_searched_sorted_and_edited(self, webui: WebUI, chromium: str) -> None:
        with open_page(chromium, webui.url, tab_class=self.tab_class) as tab:
            tab.open()
            tab.go("txt2img")
            cards = CardsPage(tab.page)
            tab.page.locator("#txt2img_extra_tabs > .tab-nav button", has_text="Textual Inversion").first.click()
            cards.refresh()
            tab.page.fill("#txt2img_textual_inversion_extra_search", "SDXL")
            wait_for(lambda: cards.shown() == ["xlthing"], 10, "what was searched for")
            tab.page.fill("#txt2img_textual_inversion_extra_search", "")
            wait_for(lambda: "my-cat" in cards.shown(), 10, "the other cards")
            tab.page.click("#txt2img_textual_inversion_extra_sort_name")
            wait_for(lambda: (shown := [name.lower() for name in cards.shown()]) == sorted(shown), 10, "cards in order")
            cards.click("my-cat", ".edit-button")
            tab.page.wait_for_selector(".global-popup .edit-user-metadata-buttons", state="visible")
            tab.page.wait_for_timeout(1500)
            form = tab.page.locator("#txt2img_textual_inversion_edit_user_metadata")
            form.locator("textarea").nth(1).fill("described here")
            form.locator("button:has-text('Save')").click()
            wait_for(lambda: "described here" in cards.told()["my-cat"][1], 20, "the description on the card")
            assert tab.problems == []
        kept = json.loads((webui.data / "embeddings" / "my-cat.json").read_text(encoding="utf-8"))
        assert kept["description"] == "described here"

    def test_the_offer_to_check_the_files(self, webui: WebUI, chromium: str) -> None:
        embeddings = webui.data / "embeddings"
        honest = {path.name for path in embeddings.iterdir()} - {*HOSTILE, "half.bin"}
        with open_page(chromium, webui.url, tab_class=self.tab_class) as tab:
            tab.open()
            tab.wait_text("#ti_check", "Check your embedding files?")
            tab.press("ti_check_button")
            tab.wait_text("#ti_check_move", "Move 3 dangerous files aside")
            assert {"hostile.pt", "plain-pickle.pt", "half.bin"} == set(tab.text(".ti-dangers td:first-child").split())
            tab.press("ti_check_move")
            tab.wait_text("#ti_check", "3 files were moved")
            assert {path.name for path in embeddings.iterdir()} == {*honest, "quarantine"}
            tab.press("ti_check_done")
            tab.page.wait_for_selector("#ti_check", state="hidden")  # a page that is left at once takes its click along
            tab.open()
            tab.page.wait_for_timeout(2000)
            tab.page.wait_for_selector("#ti_check", state="hidden")
            assert tab.problems == []
        assert json.loads((webui.data / "config.json").read_text(encoding="utf-8"))["textual_inversion_offer_check"] is False
        check_draws(webui)
        assert not {"hostile", "half"} & set(webui.get("/test/inside")["skipped"])


class Queue(Rows):
    """Beside the host's own work."""

    def test_the_hosts_own_interrupt_stops_training(self, webui: WebUI) -> None:
        create(webui, "by-host")
        begin(webui, "by-host")
        until_step(webui, 2)
        webui.post("/sdapi/v1/interrupt")
        shown = until_over(webui, 30)
        assert (shown["phase"], shown["failed"]) == ("interrupted", False)
        assert step_in_file(webui, "by-host") == shown["step"]
        check_draws(webui)

    def test_progress_is_where_the_host_shows_its_own(self, webui: WebUI) -> None:
        create(webui, "shown")
        begin(webui, "shown", steps=400)
        until_step(webui, 3)
        told = webui.get("/sdapi/v1/progress")
        assert 0 < told["progress"] < 1
        assert told["state"]["job"] == "task(textual-inversion-shown)"
        assert "loss" in told["textinfo"]
        assert webui.post("/internal/progress", id_task="task(textual-inversion-shown)", id_live_preview=-1)["active"]
        webui.post(f"{API}/interrupt")
        until_over(webui)

    def test_a_picture_waits_until_training_is_done(self, webui: WebUI) -> None:
        create(webui, "first")
        begin(webui, "first")
        until_step(webui, 2)
        drawn: list[str] = []
        asking = threading.Thread(target=lambda: drawn.append(picture(webui, "a first", **SMALL)[1]))
        asking.start()
        until_step(webui, state(webui)["step"] + 6)
        assert drawn == []
        webui.post(f"{API}/interrupt")
        until_over(webui)
        asking.join(120)
        short = webui.get(f"{API}/inspect", name="first")["sha256"][:12]
        assert short in drawn[0]  # as it is after training

    def test_training_waits_for_a_picture_and_can_be_interrupted_meanwhile(self, webui: WebUI) -> None:
        create(webui, "waiting")
        asking = draw_slowly(webui)
        begin(webui, "waiting")
        wait_for(lambda: any("Waiting" in text for text in state(webui)["messages"]), 10, "the message")
        webui.post(f"{API}/interrupt")
        shown = until_over(webui, 10)
        assert (shown["phase"], shown["step"], shown["failed"]) == ("interrupted", 0, False)
        assert asking.is_alive()
        begin(webui, "waiting", steps=2)
        asking.join(120)
        assert until_over(webui)["phase"] == "finished"
        check_draws(webui)

    def test_the_models_are_unloaded_meanwhile_and_draw_as_before(self, webui: WebUI) -> None:
        create(webui, "lent")
        before = picture(webui, "a red circle", **SMALL)
        webui.get("/test/card", on=True)
        try:
            shown = train(webui, "lent")
        finally:
            unloaded = webui.get("/test/card", on=False)
        assert shown["phase"] == "finished", shown
        assert len(unloaded) == 1
        assert unloaded[0] > 0
        assert picture(webui, "a red circle", **SMALL) == before
        assert "lent" in picture(webui, "a lent", **SMALL)[1].partition("TI hashes: ")[2]

    def test_creating_does_not_wait_for_a_picture(self, webui: WebUI) -> None:
        asking = draw_slowly(webui)
        create(webui, "while-drawing")
        assert asking.is_alive()
        asking.join()
        assert "while-drawing" in picture(webui, "a while-drawing", **SMALL)[1].partition("TI hashes")[2]


class Trouble(Rows):
    """What goes wrong, and that the host draws as before."""

    def test_a_picture_folder_that_is_not_there(self, webui: WebUI, tmp_path: Path) -> None:
        create(webui, "no-pictures")
        body = {"name": "no-pictures", "images": str(tmp_path / "gone"), "steps": 2, **QUICK}
        status, answer = webui.ask("POST", f"{API}/train", body)
        assert status == 400
        assert str(tmp_path / "gone") in answer["detail"]

    def test_a_picture_folder_that_goes_before_the_jobs_turn(self, webui: WebUI, tmp_path: Path) -> None:
        create(webui, "taken-away")
        folder = str(shutil.copytree(PICTURES, tmp_path / "pictures"))
        asking = draw_slowly(webui)
        begin(webui, "taken-away", images=folder, steps=2)
        shutil.rmtree(folder)
        shown = until_over(webui)
        assert shown["phase"] == "failed", shown
        assert folder in shown["reason"]
        assert "Traceback" not in shown["reason"]
        asking.join()
        check_draws(webui)

    def test_a_disk_that_becomes_full_in_the_middle(self, webui: WebUI) -> None:
        with small_disk(webui.data / "embeddings" / "small") as disk:
            shutil.move(create(webui, "full"), disk / "full.safetensors")
            webui.post("/sdapi/v1/refresh-embeddings")
            begin(webui, "full")
            until_step(webui, 2)
            fill_disk(disk)
            webui.post(f"{API}/interrupt")
            shown = until_over(webui)
            assert shown["failed"], shown
            assert "full.safetensors" in shown["reason"]
            rescued = next((webui.data / "textual_inversion").rglob("full-*-rescued.safetensors"))
            assert load(rescued).provenance.step == shown["step"]
            check_draws(webui)

    @pytest.mark.parametrize("checkpoint", ["flux-like.safetensors", "sd3-like.safetensors", "nf4-like.safetensors", "packed.gguf"])
    def test_a_checkpoint_of_another_kind_is_one_sentence(self, webui: WebUI, checkpoint: str) -> None:
        if not any(checkpoint in model["filename"] for model in webui.get("/sdapi/v1/sd-models")):
            pytest.skip("this host does not offer it")
        create(webui, "foreign", overwrite=True)
        choose(webui, checkpoint)
        try:
            status, answer = webui.ask("POST", f"{API}/create", {"name": "never", "initializer_text": "x"})
            assert status == 400, answer
            told = answer["detail"]
            print(told)
            kinds = ("is a Flux checkpoint", "is an SD3 checkpoint", "is a GGUF file", "holds quantized weights")
            assert any(kind in told for kind in kinds), told
            assert len(told) < 300
            assert "\n" not in told
            begin(webui, "foreign", steps=2)
            shown = until_over(webui)
            assert shown["failed"], shown
            assert checkpoint.rpartition(".")[0] in shown["reason"]
        finally:
            choose(webui, "short.safetensors")
        check_draws(webui)

    def test_after_a_load_that_failed_everything_works_with_the_checkpoint_from_before(self, webui: WebUI) -> None:
        check_draws(webui)
        choose(webui, "flux-like.safetensors")
        status, _ = webui.ask("POST", "/sdapi/v1/txt2img", {"prompt": "x", **SMALL})
        assert status == 500
        webui.ask("GET", f"{API}/embeddings")
        choose(webui, "short.safetensors")
        create(webui, "after-failure")
        assert train(webui, "after-failure")["phase"] == "finished"
        assert "after-failure" in picture(webui, "a after-failure", **SMALL)[1].partition("TI hashes: ")[2]


class Files(Rows):
    """Embeddings that come, go and change beside the host."""

    def test_a_file_that_comes_or_changes_counts_from_the_next_picture_on(self, webui: WebUI) -> None:
        deep = webui.data / "embeddings" / "deep"
        deep.mkdir()
        save_file({"emb_params": torch.randn(2, 768) / 5}, deep / "late.safetensors")
        time.sleep(2.3)
        first, told = picture(webui, "a late, square", **SMALL)
        assert "late: " in told
        save_file({"emb_params": torch.randn(2, 768) / 5}, deep / "late.safetensors")
        time.sleep(2.3)
        second, told_again = picture(webui, "a late, square", **SMALL)
        assert second != first
        assert told_again != told
        (deep / "late.safetensors").unlink()
        time.sleep(2.3)
        assert "late: " not in picture(webui, "a late, square", **SMALL)[1]

    def test_another_checkpoint(self, webui: WebUI) -> None:
        create(webui, "by-other")
        choose(webui, "other.safetensors")
        try:
            assert train(webui, "by-other")["phase"] == "finished"
            assert load(webui.data / "embeddings" / "by-other.safetensors").provenance.checkpoint_name == "other"
            _, infotext = picture(webui, "a by-other", **SMALL)
            assert "Model: other" in infotext
            assert "by-other" in infotext.partition("TI hashes: ")[2]
        finally:
            choose(webui, "short.safetensors")
        _, infotext = picture(webui, "a by-other", **SMALL)
        assert "Model: short" in infotext
        assert "by-other" in infotext.partition("TI hashes: ")[2]

    def test_a_vae_of_its_own_is_what_training_encodes_with(self, webui: WebUI) -> None:
        file = webui.data / "models" / "VAE" / "other-vae.safetensors"
        loss = {}
        for chosen in (None, file):
            self.choose_vae(webui, chosen)
            create(webui, "by-vae", overwrite=True)
            shown = train(webui, "by-vae", steps=1, batch_size=2)
            assert shown["phase"] == "finished", shown
            loss[chosen] = shown["points"][0][1]
        self.choose_vae(webui, None)
        assert loss[None] != loss[file]
        check_draws(webui)

    def choose_vae(self, webui: WebUI, file: Path | None) -> None:
        raise NotImplementedError


class Prompts(Rows):
    """`<name:weight>` in every field."""

    def drawn(self, webui: WebUI, **changes: Any) -> dict[str, Any]:
        body = {"prompt": "p", "negative_prompt": "n", "seed": 1, "sampler_name": "Euler", "cfg_scale": 4, **SMALL}
        hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Latent", "denoising_strength": 0.7, "hr_second_pass_steps": 2}
        answer = webui.post("/sdapi/v1/txt2img", **{**body, **hires, "hr_prompt": "q", "hr_negative_prompt": "m", **self.hires, **changes})
        assert "images" in answer, answer
        return {**webui.get("/test/last"), "answer": answer}

    @pytest.mark.parametrize(("typed", "plain"), list(TABLE.items()))
    def test_every_field_gives_the_conditioning_of_the_plain_form(self, webui: WebUI, typed: str, plain: str | None) -> None:
        of_typed = self.drawn(webui, **dict.fromkeys(FIELDS, typed))
        expected = self.drawn(webui, **dict.fromkeys(FIELDS, typed if plain is None else plain))
        assert of_typed["conditionings"] == expected["conditionings"]
        assert set(of_typed["conditionings"]) == {"c", "uc", "hr_c", "hr_uc"}
        if plain is None:
            assert all(of_typed["prompts"][name] == [typed] for name in LISTS.values())

    def test_styles_late_words_and_infotext(self, webui: WebUI) -> None:
        of_style = self.drawn(webui, prompt="x", negative_prompt="y", styles=["ours"])
        plain = {"prompt": "x, (cat:1.2)", "negative_prompt": "y, (my-cat:0.7)"}
        plain |= {"hr_prompt": "q, (cat:1.2)", "hr_negative_prompt": "m, (my-cat:0.7)"}
        assert of_style["conditionings"] == self.drawn(webui, **plain)["conditionings"]
        late = self.drawn(webui, **dict.fromkeys(FIELDS, "__late__ on grass"))
        assert late["conditionings"] == self.drawn(webui, **dict.fromkeys(FIELDS, "(cat:1.2) on grass"))["conditionings"]
        first = self.drawn(webui, prompt="a <cat:1.2>", negative_prompt="<my-cat>", hr_prompt="", hr_negative_prompt="")
        infotext = json.loads(first["answer"]["info"])["infotexts"][0]
        assert infotext.startswith("a (cat:1.2)\nNegative prompt: my-cat\n")
        assert "Hires prompt" not in infotext
        assert {"cat", "my-cat"} <= {part.split(":")[0].strip(' "') for part in infotext.partition("TI hashes: ")[2].split(",")}

    def test_a_pasted_infotext_gives_the_picture_again(self, webui: WebUI) -> None:
        body = {"prompt": "a <cat:1.2>", "negative_prompt": "<my-cat>", "seed": 1, "sampler_name": "Euler", "cfg_scale": 4, **SMALL}
        first = webui.post("/sdapi/v1/txt2img", **body)
        read = webui.post("/sdapi/v1/png-info", image=first["images"][0])["parameters"]  # as the button that pastes reads it
        again = webui.post("/sdapi/v1/txt2img", **{**body, "prompt": read["Prompt"], "negative_prompt": read["Negative prompt"]})
        assert again["images"] == first["images"]  # the infotext within included

    @pytest.mark.parametrize(("typed", "plain"), list(COUNTED.items()))
    @pytest.mark.parametrize("positive", [True, False])
    def test_the_token_counter_counts_what_is_drawn(self, webui: WebUI, typed: str, plain: str, positive: bool) -> None:
        counts = [webui.get("/test/count", text=text, positive=positive) for text in (typed, plain)]
        assert counts[0] == counts[1]


class Numbers(Rows):
    """The host's own model beside `diffusion/`, over the same file."""

    def test_conditioning_and_noise_prediction(self, webui: WebUI) -> None:
        from textual_inversion.diffusion.conditioning import VectorTable
        from textual_inversion.diffusion.model import load_checkpoint

        check_draws(webui)
        texts = ["", "a red circle", "a (red:1.3) circle BREAK [green] square", "word " * 90]
        theirs = webui.get("/test/model", prompts="\n".join(texts))
        model = load_checkpoint(webui.data / "models" / "Stable-diffusion" / "short.safetensors", device="cpu", precision="fp32")
        cond = torch.tensor(theirs["conditioning"])  # b l d
        with torch.no_grad():
            table = VectorTable.of({}, model.widths, "cpu")
            chunks = cond.shape[1] // 77
            ours = model.conditioner.encode(model.conditioner.tokenize(texts, table, chunks=chunks), table.vectors).context
            noise = model.unet(torch.tensor(theirs["latents"]), torch.tensor(theirs["timesteps"]), cond)
        worst = relative(ours, cond)
        predicted = relative(noise, torch.tensor(theirs["noise"]))
        print(f"encoded in {theirs['encoded in']}: conditioning {worst:.1e}, noise prediction {predicted:.1e}")
        assert worst < 1e-3
        assert predicted < 1e-3


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, as a part of the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


class Reload(Rows):
    """After Reload UI."""

    def test_one_of_everything_and_the_job_is_found(self, webui: WebUI, chromium: str) -> None:
        with open_page(chromium, webui.url, tab_class=self.tab_class) as tab:
            tab.open()
            self.check_one_of_everything(webui, tab)
            create(webui, "reloaded")
            job = begin(webui, "reloaded")
            until_step(webui, 2)
            before = said(webui).count("Startup time:")
            tab.page.goto("about:blank")
            webui.get("/test/reload")
            wait_for(lambda: said(webui).count("Startup time:") > before, 120, "the reload")
            tab.open()
            self.check_one_of_everything(webui, tab)
            shown = until_over(webui)
            assert (shown["job"], shown["phase"], shown["failed"]) == (job, "interrupted", False)
            wait_for(lambda: tab.page.evaluate(PHASE) == "interrupted", 20, "the job on the page")
            assert step_in_file(webui, "reloaded") == shown["step"]
            assert train(webui, "reloaded", steps=shown["step"] + 1)["phase"] == "finished"
            assert "reloaded" in picture(webui, "a reloaded", **SMALL)[1].partition("TI hashes: ")[2]
        there = {path.name for path in (webui.data / "embeddings").rglob("*")}
        assert "broken.safetensors" in there
        assert not any(name.endswith(".corrupted") for name in there)
        assert not (webui.data / "hurt").exists()

    def check_one_of_everything(self, webui: WebUI, tab: TrainTab) -> None:
        has = webui.get("/test/inside")
        ours = {kind.removeprefix("callbacks_"): count for kind, count in has["callbacks"].items() if count}
        assert ours == self.once
        assert has["scripts"] == 1
        assert all(method.startswith("textual_inversion.hosts.") for method in has["methods"]), has["methods"]
        assert [name for name, _ in has["pages"]].count("textual inversion") == 1
        assert dict(has["pages"])["textual inversion"] == "TextualInversionCards"
        assert tab.page.locator("button#ti_train_button").count() == 1
        assert tab.page.locator("#txt2img_extra_tabs > .tab-nav button", has_text="Textual Inversion").count() == 1
