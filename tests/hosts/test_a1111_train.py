"""The Train tab of a real A1111: create, train, interrupt, queue, progress, what goes wrong, and what the host is like afterwards."""

from __future__ import annotations

import csv
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.a1111_browser import (
    API,
    PICTURES,
    TrainTab,
    create,
    fill_disk,
    open_page,
    picture,
    running_a1111,
    set_options,
    small_disk,
    state,
    train,
    until_over,
    until_step,
    wait_for,
)
from tests.hosts.conftest import WebUI
from textual_inversion.formats import load

pytestmark = pytest.mark.hosts

LONG = 100_000
SLOW_PICTURE = {"steps": 150, "width": 384, "height": 384}


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    with running_a1111(tmp_path_factory.mktemp("a1111-train")) as webui:
        yield webui


@pytest.fixture(autouse=True)
def _nothing_left_running(webui: WebUI) -> Iterator[None]:
    yield
    webui.post(f"{API}/interrupt")
    until_over(webui)


def begin(webui: WebUI, name: str, **values: Any) -> str:
    """Start a training that goes on until it is interrupted; the job's id."""
    body = {"name": name, "images": str(PICTURES), "width": 128, "height": 128, "batch_size": 2, "steps": LONG, **values}
    status, answer = webui.ask("POST", f"{API}/train", body)
    assert status == 200, answer
    return str(answer["job"])


def draw_slowly(webui: WebUI, prompt: str = "a red circle") -> threading.Thread:
    """Ask for a picture that takes seconds, and come back when the host is at it."""
    asking = threading.Thread(target=lambda: picture(webui, prompt, **SLOW_PICTURE))
    asking.start()
    wait_for(lambda: webui.get("/sdapi/v1/progress")["state"]["sampling_step"] > 0)
    return asking


def check_draws(webui: WebUI, prompt: str = "a red circle") -> None:
    """The host generates as before."""
    assert picture(webui, prompt)[0]
    assert webui.get("/sdapi/v1/progress")["state"]["job"] == ""


def step_in_file(webui: WebUI, name: str) -> int | None:
    return load(webui.data / "embeddings" / f"{name}.safetensors").provenance.step


# the main job, as a person does it


@pytest.mark.browser
def test_the_main_job_in_the_train_tab(webui: WebUI, chromium: str) -> None:
    with open_page(chromium, webui.url) as tab:
        tab.open()
        assert tab.text("#train_tabs > .tab-nav button.selected") == "Textual Inversion"
        check_creating(webui, tab)
        before, _ = picture(webui, "a picture of main-job, pink background")
        check_training_with_previews(webui, tab)
        check_picture_changed(webui, before)
        check_interrupting(webui, tab)
        assert tab.problems == []


def check_creating(webui: WebUI, tab: TrainTab) -> None:
    plain, _ = picture(webui, "a picture of main-job, pink background")
    tab.tab("Create")
    tab.fill("ti_create_name", "main-job")
    tab.fill("ti_create_initializer_text", "green square")
    tab.press("ti_create_button")
    tab.wait_text("#ti_create_note", "is there with 2 vectors")
    drawn, infotext = picture(webui, "a picture of main-job, pink background")
    assert drawn != plain
    assert "TI hashes" in infotext
    assert drawn == picture(webui, "a picture of green square, pink background")[0]  # it starts as its words


def check_training_with_previews(webui: WebUI, tab: TrainTab) -> None:
    tab.tab("Train")
    assert tab.value("ti_train_name") == "main-job"
    tab.unfold("Previews and copies")
    assert (tab.value("ti_train_steps"), tab.value("ti_train_learning_rate")) == ("auto", "auto")
    for ident, value in {"images": PICTURES, "steps": 100, "learning_rate": "0.02", "preview_every": 50}.items():
        tab.fill(f"ti_train_{ident}", value)
    press_train(webui, tab, "main-job")
    shown = until_over(webui)
    assert (shown["phase"], shown["step"], shown["failed"]) == ("finished", 100, False), shown
    assert [preview["step"] for preview in shown["previews"]] == [0, 50, 100]
    wait_for(lambda: tab.page.evaluate("document.querySelector('.ti-job')?.dataset.phase") == "finished", 20)
    wait_for(lambda: tab.page.evaluate("document.querySelector('.ti-preview')?.naturalWidth") == 128, 20, "the preview on the page")
    tab.wait_text("#ti_standing", "is at step 100", 20)
    assert step_in_file(webui, "main-job") == 100
    assert (webui.data / "embeddings" / "main-job.preview.png").is_file()


def press_train(webui: WebUI, tab: TrainTab, name: str) -> None:
    tab.press("ti_train_button")
    wait_for(lambda: state(webui)["name"] == name, 20, f"training of {name}")


def check_picture_changed(webui: WebUI, before: str) -> None:
    after, infotext = picture(webui, "a picture of main-job, pink background")
    assert after != before
    again, second = picture(webui, "a picture of main-job, pink background")
    assert again == after
    short = webui.get(f"{API}/inspect", name="main-job")["sha256"][:12]
    assert f'TI hashes: "main-job: {short}"' in infotext
    assert second == infotext


def check_interrupting(webui: WebUI, tab: TrainTab) -> None:
    tab.fill("ti_train_name", "stopped-1")
    tab.fill("ti_train_steps", 300)
    press_train(webui, tab, "stopped-1")
    until_step(webui, 30)
    tab.press("ti_train_stop")
    shown = until_over(webui)
    assert shown["phase"] == "interrupted"
    assert 30 <= shown["step"] < 120
    tab.wait_text(".ti-notice", f"What was learned up to step {shown['step']} is kept.", 20)
    assert tab.text(".ti-count") == f"{shown['step']} / 300"
    assert step_in_file(webui, "stopped-1") == shown["step"]
    assert webui.get("/sdapi/v1/embeddings")["loaded"]["stopped-1"]["step"] == shown["step"]


@pytest.mark.browser
def test_previews_with_the_settings_of_txt2img(webui: WebUI, chromium: str) -> None:
    create(webui, "followed")
    with open_page(chromium, webui.url) as tab:
        tab.open()
        tab.go("txt2img")
        tab.page.fill("#txt2img_prompt textarea", "one followed of mine, <lora:none:1>")
        tab.page.fill("#txt2img_neg_prompt textarea", "blue")
        tab.go("Train")
        tab.unfold("Previews and copies")
        tab.fill("ti_train_name", "followed")
        for ident, value in {"images": PICTURES, "steps": 4, "preview_every": 4}.items():
            tab.fill(f"ti_train_{ident}", value)
        tab.check("ti_train_as_txt2img")
        press_train(webui, tab, "followed")
        shown = until_over(webui)
        assert [preview["prompt"] for preview in shown["previews"]] == ["one followed of mine,"] * 2, shown
        assert tab.problems == []


@pytest.mark.browser
def test_the_hosts_own_train_tab_keeps_its_values_and_ours_have_keys_of_their_own(webui: WebUI, chromium: str) -> None:
    saved = json.loads((webui.data / "ui-config.json").read_text(encoding="utf-8"))
    ours = {key: value for key, value in saved.items() if key.startswith("customscript/textual_inversion/")}
    theirs = {key: value for key, value in saved.items() if key.startswith("train/")}
    assert theirs["train/Width/value"] == 512
    assert theirs["train/Batch size/value"] == 1
    assert theirs["train/Max steps/value"] == 100000
    assert theirs["train/Prompt template/value"] == "style_filewords.txt"
    assert theirs["train/Embedding Learning rate/value"] == "0.005"
    assert ours
    assert not any(part in key for key in saved for part in ("Preview", "Clip skip in training", "Loss table") if key.startswith("train/"))
    with open_page(chromium, webui.url) as tab:
        tab.open()
        tab.page.locator("#train_tabs > .tab-nav button", has_text="Train").last.click()
        tab.page.wait_for_timeout(400)
        assert tab.page.locator("#train_batch_size input").first.input_value() == "1"
        assert tab.page.locator("#train_training_width input").first.input_value() == "512"
        assert tab.page.locator("#ti_gallery_container").is_visible()


# the host's queue, progress and interrupt


def test_the_hosts_own_interrupt_stops_training(webui: WebUI) -> None:
    create(webui, "by-host")
    begin(webui, "by-host")
    until_step(webui, 5)
    webui.post("/sdapi/v1/interrupt")
    shown = until_over(webui, 30)
    assert (shown["phase"], shown["failed"]) == ("interrupted", False)
    assert step_in_file(webui, "by-host") == shown["step"]
    check_draws(webui)


def test_progress_is_where_the_host_shows_its_own(webui: WebUI) -> None:
    create(webui, "shown")
    begin(webui, "shown", steps=400, preview_every=5, preview_steps=2)
    try:
        until_step(webui, 20)
        told = webui.get("/sdapi/v1/progress")
        assert 0 < told["progress"] < 1
        assert told["state"]["job"] == "task(textual-inversion-shown)"
        assert told["state"]["job_count"] == 400
        assert "loss" in told["textinfo"]
        assert told["current_image"]
        bar = webui.post("/internal/progress", id_task="task(textual-inversion-shown)", id_live_preview=-1)
        assert bar["active"]
        assert 0 < bar["progress"] < 1
        assert bar["live_preview"].startswith("data:image/")
    finally:
        webui.post(f"{API}/interrupt")
    until_over(webui)
    done = webui.post("/internal/progress", id_task="task(textual-inversion-shown)")
    assert (done["active"], done["completed"]) == (False, True)


def test_a_picture_waits_until_training_is_done(webui: WebUI) -> None:
    create(webui, "first")
    begin(webui, "first")
    until_step(webui, 3)
    drawn: list[float] = []
    asking = threading.Thread(target=lambda: drawn.append((picture(webui, "a red circle"), time.monotonic())[1]))
    asking.start()
    at = state(webui)["step"]
    until_step(webui, at + 25)
    assert drawn == []
    webui.post(f"{API}/interrupt")
    shown = until_over(webui)
    asking.join(60)
    assert drawn
    assert shown["step"] >= at + 25


def test_training_waits_for_a_picture_and_can_be_interrupted_meanwhile(webui: WebUI) -> None:
    create(webui, "waiting")
    asking = draw_slowly(webui)
    begin(webui, "waiting")
    wait_for(lambda: any("Waiting" in text for text in state(webui)["messages"]), 10, "the message")
    webui.post(f"{API}/interrupt")
    shown = until_over(webui, 5)
    assert (shown["phase"], shown["step"], shown["failed"]) == ("interrupted", 0, False)
    assert asking.is_alive()
    # one that is not interrupted gets its turn
    begin(webui, "waiting", steps=3)
    asking.join(120)
    assert until_over(webui)["phase"] == "finished"
    check_draws(webui)


def test_a_checkpoint_that_is_chosen_meanwhile_waits_and_does_not_get_into_the_training(webui: WebUI) -> None:
    checkpoints = webui.data / "models" / "Stable-diffusion"
    for ending in ("safetensors", "yaml"):
        shutil.copy(checkpoints / f"tiny.{ending}", checkpoints / f"second.{ending}")
    webui.post("/sdapi/v1/refresh-checkpoints")
    create(webui, "kept-apart")
    begin(webui, "kept-apart")
    until_step(webui, 3)
    switching = threading.Thread(target=lambda: set_options(webui, sd_model_checkpoint="second.safetensors"))
    switching.start()
    try:
        shown = until_step(webui, state(webui)["step"] + 25)
        assert switching.is_alive()
        webui.post(f"{API}/interrupt")
        assert until_over(webui)["phase"] == "interrupted"
        switching.join(60)
        assert webui.get(f"{API}/inspect", name="kept-apart")["checkpoint"] == "tiny"
        assert step_in_file(webui, "kept-apart") >= shown["step"]
        _, infotext = picture(webui, "a picture of kept-apart")
        assert "Model: second" in infotext
        assert "TI hashes" in infotext
        assert train(webui, "kept-apart", steps=state(webui)["step"] + 2)["phase"] == "finished"
        assert webui.get(f"{API}/inspect", name="kept-apart")["checkpoint"] == "second"
    finally:
        set_options(webui, sd_model_checkpoint="tiny.safetensors")


def test_a_word_whose_file_goes_while_it_is_drawn_with(webui: WebUI) -> None:
    plain, _ = picture(webui, "a picture of short-lived")
    file = create(webui, "short-lived")
    asking = draw_slowly(webui, "a picture of <short-lived:1.2>")
    file.unlink()
    asking.join(120)
    drawn, infotext = picture(webui, "a picture of short-lived")
    assert drawn == plain
    assert "TI hashes" not in infotext
    assert "short-lived" not in {card["name"] for card in webui.get(f"{API}/embeddings")}
    check_draws(webui, "a picture of <short-lived:1.2>")


@pytest.mark.browser
def test_creating_does_not_wait_for_a_picture(webui: WebUI) -> None:
    asking = draw_slowly(webui)
    create(webui, "while-drawing")
    assert asking.is_alive()
    asking.join()
    assert "while-drawing" in picture(webui, "a picture of while-drawing")[1].split("TI hashes")[1]


# what goes wrong


def failing(webui: WebUI, name: str, **values: Any) -> dict[str, Any]:
    """Train what cannot be; the state, or the refusal, with one sentence in `reason`."""
    body = {"name": name, "images": str(PICTURES), "width": 128, "height": 128, "batch_size": 2, "steps": 10, **values}
    status, answer = webui.ask("POST", f"{API}/train", body)
    shown = until_over(webui) if status == 200 else {"failed": True, "reason": str(answer.get("detail", answer))}
    assert shown["failed"], shown
    assert "Traceback" not in shown["reason"]
    return shown


def copied_pictures(folder: Path) -> str:
    return str(shutil.copytree(PICTURES, folder))


def test_a_picture_folder_that_is_not_there(webui: WebUI, tmp_path: Path) -> None:
    create(webui, "no-pictures")
    assert str(tmp_path / "gone") in failing(webui, "no-pictures", images=str(tmp_path / "gone"))["reason"]


def test_a_picture_folder_that_goes_before_the_jobs_turn(webui: WebUI, tmp_path: Path) -> None:
    create(webui, "taken-away")
    folder = copied_pictures(tmp_path / "pictures")
    asking = draw_slowly(webui)
    begin(webui, "taken-away", images=folder, steps=3)
    shutil.rmtree(folder)
    shown = until_over(webui)
    assert shown["phase"] == "failed", shown
    assert folder in shown["reason"]
    asking.join()
    check_draws(webui)


def test_a_picture_folder_that_goes_while_training_is_not_missed(webui: WebUI, tmp_path: Path) -> None:
    create(webui, "taken-later")
    folder = copied_pictures(tmp_path / "pictures")
    begin(webui, "taken-later", images=folder, steps=60)
    until_step(webui, 2)
    shutil.rmtree(folder)
    shown = until_over(webui)
    assert (shown["phase"], shown["step"]) == ("finished", 60), shown
    check_draws(webui)


def test_a_log_directory_that_cannot_be_written_costs_a_message_only(webui: WebUI) -> None:
    create(webui, "no-log")
    outputs = webui.data / "textual_inversion"
    outputs.mkdir(exist_ok=True)
    (outputs / "a-file").write_text("in the way", encoding="utf-8")
    shown = train(webui, "no-log", log_dir="a-file", preview_every=5, copy_every=5)
    assert (shown["phase"], shown["step"]) == ("finished", 10), shown
    assert any("was not written" in text for text in shown["messages"]), shown["messages"]
    assert step_in_file(webui, "no-log") == 10


def test_a_disk_that_becomes_full_gives_a_message_and_keeps_what_was_learned(webui: WebUI) -> None:
    with small_disk(webui.data / "embeddings" / "small") as disk:
        check_full_disk(webui, disk)


def check_full_disk(webui: WebUI, disk: Path) -> None:
    shutil.move(create(webui, "full"), disk / "full.safetensors")
    webui.post("/sdapi/v1/refresh-embeddings")
    begin(webui, "full", steps=LONG)
    until_step(webui, 10)
    fill_disk(disk)
    webui.post(f"{API}/interrupt")
    shown = until_over(webui)
    assert shown["failed"], shown
    assert "full.safetensors" in shown["reason"]
    assert "What was learned until step" in shown["reason"]
    rescued = next((webui.data / "textual_inversion").rglob("full-*-rescued.safetensors"))
    assert load(rescued).provenance.step == shown["step"]
    assert "the disk is full" in failing(webui, "full")["reason"]  # told before the first step now
    check_draws(webui)


def test_a_checkpoint_file_that_is_gone(webui: WebUI) -> None:
    create(webui, "no-checkpoint")
    file = webui.data / "models" / "Stable-diffusion" / "tiny.safetensors"
    away = file.with_suffix(".away")
    file.rename(away)
    try:
        reason = failing(webui, "no-checkpoint")["reason"]
    finally:
        away.rename(file)
    assert "tiny.safetensors" in reason
    check_draws(webui)
    assert train(webui, "no-checkpoint", steps=2)["phase"] == "finished"


# the host's options


def test_the_hosts_training_options_are_honoured(webui: WebUI, tmp_path: Path) -> None:
    create(webui, "options")
    named = tmp_path / "named"
    named.mkdir()
    shutil.copy(next(PICTURES.glob("*.png")), named / "0017-red_ball.png")
    (webui.data / "only-words.txt").write_text("x", encoding="utf-8")
    set_options(
        webui,
        dataset_filename_word_regex="[a-z]+",
        dataset_filename_join_string="+",
        save_optimizer_state=True,
        training_enable_tensorboard=True,
    )
    try:
        first = train(webui, "options", images=str(named), batch_size=1, steps=6, csv_every=2, preview_every=6, preview_steps=1,
                      preview_prompt="[filewords] of [name]", log_dir="by-options", learning_rate="0.02")  # fmt: skip
        assert (first["phase"], [preview["prompt"] for preview in first["previews"]]) == ("finished", ["red+ball of <options>"] * 2), first
        assert any("tensorboard" in text for text in first["messages"]), first["messages"]
        with open(next((webui.data / "textual_inversion" / "by-options").rglob("loss.csv")), encoding="utf-8", newline="") as file:
            assert [row["step"] for row in csv.DictReader(file)] == ["2", "4", "6"]
        optimizer = webui.data / "embeddings" / "options.safetensors.optim"
        assert optimizer.is_file()
        second = train(webui, "options", images=str(named), batch_size=1, steps=8)
        assert (second["phase"], second["first_step"]) == ("finished", 6)
        assert not any("optimizer" in text for text in second["messages"]), second["messages"]  # nothing was wrong with its state
        loaded = webui.get("/sdapi/v1/embeddings")
        assert "options" in loaded["loaded"]
        assert not any("optim" in name for name in (*loaded["loaded"], *loaded["skipped"]))
    finally:
        set_options(
            webui,
            dataset_filename_word_regex="",
            dataset_filename_join_string=" ",
            save_optimizer_state=False,
            training_enable_tensorboard=False,
        )


def test_clip_skip_and_the_csv_interval_come_from_the_host(webui: WebUI) -> None:
    from_page = webui.get("/test/suggested")
    assert from_page["clip_skip"] == 1
    set_options(webui, CLIP_stop_at_last_layers=2, training_write_csv_every=7)
    try:
        from_page = webui.get("/test/suggested")
    finally:
        set_options(webui, CLIP_stop_at_last_layers=1, training_write_csv_every=500)
    assert (from_page["clip_skip"], from_page["csv_every"]) == (2, 7)
