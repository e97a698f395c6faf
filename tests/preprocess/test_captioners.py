"""Models that describe pictures: a tiny BLIP with random weights, a tagger, and the download of the one that is asked for."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
import types
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from textual_inversion.errors import ConfigError
from textual_inversion.preprocess.blip import Blip, load_blip
from textual_inversion.preprocess.captioning import load_captioners
from textual_inversion.preprocess.download import download, downloaded
from textual_inversion.preprocess.tagger import Tagger, load_tagger, read_tags
from textual_inversion.settings.preprocessing import PreprocessConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "on", "the", "sofa", "red", "##s", "dog"]


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration

    folder = tmp_path_factory.mktemp("blip")
    (folder / "words.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(folder / "words.txt")).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 16}
    text = {"vocab_size": len(WORDS), "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0, "encoder_hidden_size": 32}
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(
        BlipConfig(text_config={**small, **text}, vision_config={**small, "image_size": 32, "patch_size": 8})
    )
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def test_blip_says_words_of_its_vocabulary(blip_folder: Path) -> None:
    blip = load_blip(str(blip_folder))
    said = blip(picture())
    assert said
    assert {word.removesuffix("s") for word in said.split()} <= {"", *WORDS}
    assert blip(picture()) == said
    assert blip._pixels(picture()).shape == (1, 3, 32, 32)


def test_blips_pixels_are_those_of_its_own_processor(blip_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    try:
        processor = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
        expected = processor(picture(), return_tensors="pt")["pixel_values"]
    except ImportError as error:
        pytest.skip(f"transformers' own processor needs more: {error}")
    assert torch.allclose(load_blip(str(blip_folder))._pixels(picture()), expected, atol=0.02)


def test_a_folder_that_is_no_blip_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="No BLIP model can be read from") as caught:
        Blip(tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_is_downloaded_unasked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nobody/nothing is not on this machine; allow its download"):
        load_blip("nobody/nothing", models=tmp_path)
    with pytest.raises(ConfigError) as error:
        load_blip(" ", models=tmp_path)
    assert error.value.setting == "blip_model"
    with pytest.raises(ConfigError, match="neither a folder nor a name"):
        load_blip("../nothing", models=tmp_path, may_download=True)
    assert list(tmp_path.iterdir()) == []


# download


class _Hub(SimpleHTTPRequestHandler):
    """Answers as the hub does, from a folder."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/api/models/somebody/blip":
            files = [file for file in sorted(Path(self.directory).iterdir()) if file.is_file()]
            told = {"siblings": [{"rfilename": file.name, "size": file.stat().st_size} for file in files]}
            body = json.dumps(told).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)
        elif path.startswith("/somebody/blip/resolve/main/"):
            self.path = "/" + path.rsplit("/", 1)[1]
            self.server.served.append(self.path)  # type: ignore[attr-defined]
            super().do_GET()
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(blip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, directory=str(blip_folder)))
    server.served = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


def test_a_download_that_was_asked_for_makes_a_folder_that_works(hub: Any, tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    blip = load_blip("somebody/blip", may_download=True, models=tmp_path, progress=lambda *args: calls.append(args))
    assert blip(picture())
    assert calls[-1][0] == calls[-1][1] > 0
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    assert not any(name.startswith("/words") for name in hub.served)  # only what a model needs
    hub.served.clear()
    assert load_blip("somebody/blip", models=tmp_path)(picture())
    assert hub.served == []
    (tmp_path / "somebody--blip" / "config.json").unlink()
    assert downloaded("somebody/blip", tmp_path) is None
    download("somebody/blip", tmp_path)
    assert hub.served == ["/config.json"]


def test_a_download_can_be_stopped_and_leaves_nothing_half_done(hub: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was stopped; start it again"):
        download("somebody/blip", tmp_path, should_stop=lambda: True)
    assert downloaded("somebody/blip", tmp_path) is None
    assert list((tmp_path / "somebody--blip").iterdir()) == []


def test_a_failed_download_says_why(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="somebody/else could not be downloaded: there is no such model"):
        download("somebody/else", tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="the hub cannot be reached"):
        download("somebody/blip", tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(ConfigError, match="is no web address"):
        download("somebody/blip", tmp_path)


# tagger

TAGS = "tag_id,name,category,count\n1,general,9,1\n2,blue_eyes,0,5\n3,^_^,0,5\n4,miku_(vocaloid),4,5\n5,outdoors,0,1\n"


class Session:
    """An onnxruntime session that gives fixed certainties and keeps what it was shown."""

    def __init__(self, certainties: list[float], shape: tuple[object, ...] = ("N", 8, 8, 3)) -> None:
        self.certainties, self.shape = certainties, shape

    def get_inputs(self) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(name="input", shape=self.shape)]

    def get_outputs(self) -> list[types.SimpleNamespace]:
        return [types.SimpleNamespace(shape=("N", len(self.certainties)))]

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.seen = inputs["input"]
        return [np.array([self.certainties], dtype=np.float32)]


def test_tags_are_those_that_are_sure_enough_surest_first(tmp_path: Path) -> None:
    (tmp_path / "selected_tags.csv").write_text(TAGS)
    tags = read_tags(tmp_path / "selected_tags.csv")
    session = Session([0.99, 0.6, 0.7, 0.9, 0.2])
    assert Tagger(session, tags, 0.5)(picture()) == r"miku \(vocaloid\), ^_^, blue eyes"
    assert Tagger(session, tags, 0.95)(picture()) == ""
    assert Tagger(session, tags, 0.0)(picture()).endswith("blue eyes, outdoors")


def test_the_tagger_sees_the_whole_picture_on_white_blue_first() -> None:
    session = Session([0.0])
    Tagger(session, (("x", "0"),), 0.5)(Image.new("RGB", (80, 40), (10, 20, 200)))
    assert session.seen.shape == (1, 8, 8, 3)
    assert session.seen.dtype == np.float32
    assert session.seen[0, 4, 4].tolist() == [200, 20, 10]
    assert session.seen[0, 0, 0].tolist() == [255, 255, 255]


def test_a_tagger_that_cannot_be_had_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as error:
        load_tagger("", 0.5)
    assert error.value.setting == "tagger_folder"
    with pytest.raises(ConfigError, match=r"has no model\.onnx") as error:
        load_tagger(tmp_path, 0.5)
    assert error.value.path == tmp_path
    (tmp_path / "model.onnx").write_bytes(b"none")
    (tmp_path / "selected_tags.csv").write_text("a,b\n1,2\n")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="needs onnxruntime, which is not installed"):
        load_tagger(tmp_path, 0.5)
    stand_in = types.SimpleNamespace(InferenceSession=lambda *_, **__: Session([0.1, 0.2]), get_available_providers=list)
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is no list of tags") as error:
        load_tagger(tmp_path, 0.5)
    assert error.value.path == tmp_path / "selected_tags.csv"
    (tmp_path / "selected_tags.csv").write_text(TAGS)
    with pytest.raises(ConfigError, match="gives 2 values for 5 tags"):
        load_tagger(tmp_path, 0.5)


@pytest.mark.skipif(not (importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")), reason="onnx is not installed")
def test_a_real_onnx_model(tmp_path: Path) -> None:
    """A model that is as sure of its four tags as the middle of the picture is blue, green, red and nothing."""
    from onnx import TensorProto, helper, save

    picked = np.eye(3, 4, dtype=np.float32) / 255
    nodes = [
        helper.make_node("ReduceMean", ["input", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "picked"], ["output"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2]),
        helper.make_tensor("picked", TensorProto.FLOAT, [3, 4], picked.ravel()),
    ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 16, 16, 3])
    told = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(nodes, "tagger", [given], [told], constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "model.onnx")
    (tmp_path / "selected_tags.csv").write_text("name,category\nblue,0\ngreen,0\nred,0\nnothing,0\n")
    tagger = load_tagger(tmp_path, 0.3)
    assert tagger(Image.new("RGB", (30, 30), (255, 100, 10))) == "red, green"
    (tmp_path / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_tagger(tmp_path, 0.5)


def test_captioners_are_loaded_by_name(blip_folder: Path) -> None:
    def offered(image: Image.Image) -> str:
        return "the WebUI's"

    def config(*names: str) -> PreprocessConfig:
        return PreprocessConfig("a", "b", captioners=names, blip_model=str(blip_folder))

    assert list(load_captioners(config("Deepbooru", "blip"), {"Deepbooru": offered})) == ["Deepbooru", "blip"]
    assert load_captioners(config()) == {}
    with pytest.raises(ConfigError, match="There is no captioner 'BLIP'; choose among blip, tagger, Deepbooru") as error:
        load_captioners(config("BLIP"), {"Deepbooru": offered})
    assert error.value.setting == "captioners"
