"""Sends raw events to the Train page under whatever gradio is installed: none may get a file into the page that was not uploaded.

Run it as a program: `python tests/web/raw_events.py`. It needs no torch. It prints one line, and ends with status 1 when something got in.
With `--unguarded` it shows what gradio itself lets in.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

FILE_DATA = {"_type": "gradio.FileData"}
FOREIGN = [b"a secret of the user", b"\x89PNG\r\n\x1a\nnot uploaded"]


class Page:
    """The Train page over the fake host, mounted into an app, with a client that sends what it likes."""

    def __init__(self, folder: Path, *, guarded: bool = True) -> None:
        import gradio as gr
        from fastapi import FastAPI
        from starlette.testclient import TestClient

        from textual_inversion.hosts.fake import FakeEngine, FakeHost
        from textual_inversion.ui.page import build_train_page
        from textual_inversion.ui.uploads import guard_events, of_our_tab

        self.cache = folder / "cache"
        os.environ["GRADIO_TEMP_DIR"] = str(self.cache)
        self.engine = FakeEngine(FakeHost(folder / "host"))
        with gr.Blocks(analytics_enabled=False) as self.blocks:
            self.theirs = gr.File(elem_id="theirs")
            self.theirs.change(lambda file: None, [self.theirs], [])
            self.page = build_train_page(self.engine)
        self.third = gr.__version__.startswith("3.")
        self.blocks.queue()
        if guarded:
            guard_events(self.blocks, of_our_tab)
        app = gr.mount_gradio_app(FastAPI(), self.blocks, path="/")
        if self.third:  # its queue sends each event to its own server's address, where a test serves nothing
            self.blocks.enable_queue = False
        self.client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
        self.client.__enter__()  # starts the queue
        self.prefix = "" if gr.__version__[0] in "34" else "/gradio_api"

    def events(self) -> list[tuple[int, list[Any]]]:
        """Number and input components of each of our events that takes data."""
        config = self.blocks.get_config_file()
        by_id = {part["id"]: part for part in config["components"]}
        found = []
        for number, event in enumerate(config["dependencies"]):
            parts = [by_id[part] for part in event["inputs"]]
            if any(str(part["props"].get("elem_id")).startswith("ti_") for part in parts):
                found.append((event.get("id", number), parts))
        return found

    def send(self, number: int, data: list[Any], session: str = "session") -> str:
        """The answer to one event that is sent directly, as text."""
        return str(self.client.post(f"{self.prefix}/run/predict", json=_body(number, data, session)).text)

    def queue(self, number: int, data: list[Any], session: str) -> str:
        """The same through the queue, as the page does it."""
        if self.third:
            return self.send(number, data, session)
        joined = self.client.post(f"{self.prefix}/queue/join", json=_body(number, data, session))
        return str(joined.text) + (self._listen(session) if "event_id" in joined.text else "")

    def _listen(self, session: str) -> str:
        return str(self.client.get(f"{self.prefix}/queue/data", params={"session_hash": session}).text)

    def upload(self, name: str, content: bytes) -> str:
        """Path of a file that was uploaded as the page does it."""
        return str(self.client.post(f"{self.prefix}/upload", files={"files": (name, content)}).json()[0])

    def as_file(self, path: str) -> dict[str, Any]:
        """What the page sends for an uploaded file."""
        if self.third:
            return {"name": path, "data": None, "is_file": True, "orig_name": Path(path).name, "size": 1}
        return {"path": path, "meta": FILE_DATA, "orig_name": Path(path).name, "size": 1}

    def leaked(self) -> bool:
        """Whether something that was not uploaded lies where gradio serves files, or was copied among the user's pictures."""
        folders = (self.cache, self.engine.host.folders().outputs)
        files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        return any(secret in path.read_bytes() for path in files for secret in FOREIGN)


def _body(number: int, data: list[Any], session: str) -> dict[str, Any]:
    return {"fn_index": number, "data": data, "session_hash": session, "event_data": None, "trigger_id": None}


def attacks(page: Page, folder: Path) -> Iterator[tuple[str, Any]]:
    """What a payload says, and the payload."""
    secret, picture = folder / "secret.txt", folder / "picture.png"
    secret.write_bytes(FOREIGN[0])
    picture.write_bytes(FOREIGN[1])
    page.cache.mkdir(exist_ok=True)
    (page.cache / "link").symlink_to(secret)
    os.mkfifo(page.cache / "fifo")
    places = [str(secret), str(picture), "/dev/zero", "/dev/stdin", str(page.cache / "link"), str(page.cache / "fifo"), str(page.cache)]
    places += [f"{page.cache}/../secret.txt", f"{page.cache}2/x", "secret.txt", "", "\0", "http://127.0.0.1:9/x", f"file://{secret}"]
    for place in places:
        yield place, page.as_file(place)
    inner = page.as_file(str(secret))
    yield "deeper", {"a": inner}
    yield "in a list", [[inner]]
    yield "in meta", {"path": None, "meta": {"_type": "other", "x": inner}}
    yield "beside an upload", {**page.as_file(page.upload("a.txt", b"mine")), "x": inner}
    yield "as another version says it", {**inner, "path": str(secret), "name": str(secret), "is_file": True, "meta": FILE_DATA}
    yield "as a stream", {**inner, "is_stream": True}
    yield "with an address", {**inner, "url": f"/file={secret}"}


def let_in(page: Page, folder: Path) -> tuple[int, list[str]]:
    """How many events were sent, and which of them were not refused."""
    from textual_inversion.ui.uploads import REFUSED

    sent, through = 0, []
    every = {part["type"]: (number, parts, place) for number, parts in page.events() for place, part in enumerate(parts)}
    targets = {kind: every[kind] for kind in ("file", "textbox", "dropdown")}  # gradio looks for files in all kinds in the same way
    for what, payload in list(attacks(page, folder)):
        for kind, (number, parts, place) in targets.items():
            data = [part["props"].get("value") for part in parts]
            ways = [(page.send, [payload])] + ([(page.send, payload)] if kind == "file" else [])
            for send, value in ways:
                data[place] = value
                sent += 1
                if REFUSED not in send(number, data, f"s{sent}") or page.leaked():
                    through.append(f"{kind}: {what}")
    number, parts, place = targets["file"]
    data = [part["props"].get("value") for part in parts]
    data[place] = [page.as_file(str(folder / "secret.txt"))]
    if REFUSED not in page.queue(number, data, "queued") or page.leaked():
        through.append("file: through the queue")
    return sent + 1, through


def main() -> int:
    import gradio as gr

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        page = Page(folder, guarded="--unguarded" not in sys.argv)
        sent, through = let_in(page, folder)
        good = page.upload("mine.txt", b"a caption")
        number, _parts = next((number, parts) for number, parts in page.events() if [part["type"] for part in parts] == ["file"])
        answer = page.send(number, [[page.as_file(good)]])
        taken = "None of the files is a picture" in answer  # our own handler has read it
        page.client.__exit__(None, None, None)
    print(
        f"gradio {gr.__version__}: {sent} events with foreign files, {len(through)} let in; an upload is {'taken' if taken else 'refused'}"
    )
    for line in through[:10]:
        print("  let in:", line)
    return 0 if taken and not through else 1


if __name__ == "__main__":
    sys.exit(main())
