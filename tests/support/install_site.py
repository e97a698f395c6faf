"""A server on this machine that behaves like Civitai, Hugging Face and other hosts of files, with their faults."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch
from PIL import Image
from safetensors.torch import save

TOKEN = "secret-0123456789"


def embedding_bytes(seed: int = 0, vectors: int = 2) -> bytes:
    """A safetensors embedding for SD1."""
    generator = torch.Generator().manual_seed(seed)
    return save({"emb_params": torch.randn(vectors, 768, generator=generator) * 0.02})


def picture_bytes() -> bytes:
    """A JPEG."""
    file = BytesIO()
    Image.new("RGB", (900, 600), (200, 40, 60)).save(file, "JPEG")
    return file.getvalue()


class Site:
    """What the server has, and what it was asked.

    Attributes:
        files: path -> bytes.
        settings: path -> changes of the behaviour: `status`, `headers`, `cut` (bytes after which the connection ends, once for each
            number in the list), `login` (the token is needed), `redirect`, `unsized`, `no_range`.
        requests: (path with query, headers) of each request.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.address = ""

    def json(self, path: str, tree: Any) -> None:
        """Answer `path` with JSON."""
        self.files[path] = json.dumps(tree).encode()
        self.settings.setdefault(path, {}).setdefault("headers", {})["Content-Type"] = "application/json"

    def asked(self, path: str) -> list[dict[str, str]]:
        """The headers of the requests for `path`."""
        return [headers for asked, headers in self.requests if urlsplit(asked).path == path]

    def civitai(self, model: int, version: int, data: bytes, **changes: Any) -> None:
        """A model with one version, as Civitai's API describes it."""
        digest = hashlib.sha256(data).hexdigest().upper()
        download = f"{self.address}/api/download/models/{version}"
        file = {
            "id": 1,
            "name": changes.pop("file_name", "dotted-star.safetensors"),
            "type": "Model",
            "primary": True,
            "sizeKB": len(data) / 1024,
            "hashes": changes.pop("hashes", {"AutoV1": "0B5C664A", "AutoV2": digest[:10], "SHA256": digest, "CRC32": "11111111"}),
            "downloadUrl": download,
            "metadata": {"format": "SafeTensor"},
        }
        record = {
            "id": version,
            "name": "v1.0",
            "baseModel": "SD 1.5",
            "trainedWords": ["dottedstar", "a dotted star"],
            "files": changes.pop("files", [file]),
            "images": [
                {"url": f"{self.address}/images/adult.jpeg", "nsfwLevel": 16, "type": "image"},
                {"url": f"{self.address}/images/film.mp4", "nsfwLevel": 1, "type": "video"},
                {"url": f"{self.address}/images/one.jpeg", "nsfwLevel": 1, "type": "image"},
            ],
        }
        about = {"name": "Dotted star", "type": "TextualInversion", "nsfw": False, "description": "<p>A star.</p>", **changes}
        self.json(f"/api/v1/models/{model}", {"id": model, **about, "modelVersions": [record]})
        self.json(f"/api/v1/model-versions/{version}", {**record, "modelId": model, "model": about})
        self.files["/images/one.jpeg"] = picture_bytes()
        signed = f"/bucket/{version}.bin"
        self.files[signed] = data
        self.settings[signed] = {"headers": {"Content-Disposition": f'attachment; filename="{file["name"]}"', "ETag": f'"{digest[:8]}"'}}
        self.settings[f"/api/download/models/{version}"] = {"redirect": f"{self.address}{signed}?X-Amz-Signature=abc", "status": 307}

    def hub(self, repo: str, files: dict[str, bytes], **facts: Any) -> None:
        """A repository, as the hub's API describes it."""
        siblings = [
            {"rfilename": name, "size": len(data), **({"lfs": {"sha256": hashlib.sha256(data).hexdigest()}} if len(data) > 1000 else {})}
            for name, data in files.items()
        ]
        self.json(f"/api/models/{repo}/revision/main", {"id": repo, "siblings": siblings, **facts})
        for name, data in files.items():
            path = f"/{repo}/resolve/main/{name}"
            self.files[f"/cdn/{repo}/{name}"] = data
            self.settings[path] = {"redirect": f"{self.address}/cdn/{repo}/{name}?Policy=x&Signature=y", "status": 302}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.site.requests.append((self.path, dict(self.headers.items())))
        settings = self.site.settings.get(path, {})
        if settings.get("busy"):
            return self._answer(429, b"", settings["busy"].pop(0))
        given = self.headers.get("Authorization") == f"Bearer {TOKEN}" or parse_qs(urlsplit(self.path).query).get("token") == [TOKEN]
        if settings.get("login") and not given:
            said = json.dumps({"error": "Unauthorized", "message": f"The creator wants you to log in. {self.headers.get('Authorization')}"})
            return self._answer(401, said.encode(), {"Content-Type": "application/json"})
        if settings.get("redirect"):
            return self._answer(settings["status"], b"", {"Location": settings["redirect"]})
        if path not in self.site.files:
            return self._answer(404, b"not here", {})
        return self._send(self.site.files[path], settings)

    def _send(self, data: bytes, settings: dict[str, Any]) -> None:
        headers, status, begin = dict(settings.get("headers", {})), settings.get("status", 200), 0
        wanted, tag = self.headers.get("Range"), headers.get("ETag")
        if wanted and not settings.get("no_range") and self.headers.get("If-Range") == tag:
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            if begin >= len(data):
                return self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            status, headers["Content-Range"] = 206, f"bytes {begin}-{len(data) - 1}/{len(data)}"
        cut = settings["cut"].pop(0) if settings.get("cut") else None
        self._answer(status, data[begin:], headers, cut, sized=not settings.get("unsized"))

    def _answer(self, status: int, data: bytes, headers: dict[str, str], cut: int | None = None, *, sized: bool = True) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if sized:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data[:cut])
        if cut is not None or not sized:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""


@contextmanager
def serving(host: str = "127.0.0.1") -> Iterator[Site]:
    """A site on a free port of this machine."""
    site = Site()
    server = ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), {"site": site}))
    site.address = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def left_over(folder: Path) -> list[str]:
    """Names of files that a download has left in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))
