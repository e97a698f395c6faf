"""Data sets as other trainers' own documents describe them, and what is learned from each; docs/datasets.md has the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.folder import find_mask
from textual_inversion.training.data.training_set import DatasetOptions, TrainingSet, scan_training_set
from textual_inversion.training.data.views import Sizing

DOCS = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"
RED, BLUE, GREEN = "a red star", "a blue star", "a green star"
ALL = (RED, BLUE, GREEN)


def picture(path: Path, seed: int = 0, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.linear_gradient("L").resize((64, 64)).rotate(90 * (seed % 4)).point(lambda value: (value + 40 * seed) % 256)
    image.convert(mode).save(path)
    return path


def pictures(folder: Path, names: tuple[str, ...] = ("1.png", "2.png", "3.png")) -> list[Path]:
    return [picture(folder / name, seed) for seed, name in enumerate(names)]


def beside(ending: str, write: Callable[[str], str] = str, *, whole_name: bool = False) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        for path, caption in zip(pictures(root), ALL):
            file = path.with_name(path.name + ending) if whole_name else path.with_suffix(ending)
            file.write_text(write(caption), encoding="utf-8")

    return build


def table(name: str, write: Callable[[list[tuple[str, str]]], str]) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        paths = pictures(root)
        (root / name).write_text(write([(path.name, caption) for path, caption in zip(paths, ALL)]), encoding="utf-8")

    return build


def json_lines(rows: list[tuple[str, str]], **more: str) -> str:
    return "\n".join(json.dumps({"file_name": name, "text": caption, **more}) for name, caption in rows)


def comma_separated(rows: list[tuple[str, str]]) -> str:
    return "file_name,text\n" + "\n".join(f'{name},"{caption}"' for name, caption in rows)


def one_list(rows: list[tuple[str, str]]) -> str:
    return json.dumps([{"image": name, "caption": caption} for name, caption in rows])


def named_by(*names: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        pictures(root, names)

    return build


def kohya_folders(root: Path) -> None:
    pictures(root / "img" / "5_zorb star", ("IMG_0001.png", "IMG_0002.png"))
    (picture(root / "img" / "2_zorb background" / "3.png", 3).with_suffix(".txt")).write_text(GREEN)
    pictures(root / "reg" / "1_star")
    picture(root / "model" / "sample" / "preview.png")


def onetrainer(root: Path) -> None:
    beside(".txt")(root)
    for number in (1, 2, 3):
        picture(root / f"{number}-masklabel.png", mode="L")
        picture(root / f"{number}-condlabel.png", 2)


def masks_of_ai_toolkit(root: Path) -> None:
    beside(".txt")(root)
    for number in (1, 2, 3):
        picture(root / "masks" / f"{number}.png", mode="L")


def everydream_names(root: Path) -> None:
    pictures(root, ("a red star_1.jpg", "a blue star_2.jpg", "a green star_3.jpg"))
    (root / "multiply.txt").write_text("3\n")
    (root / "cond_dropout.txt").write_text("0.1")


def everydream_yaml(root: Path) -> None:
    for path, colour in zip(pictures(root), ("red", "blue", "green")):
        path.with_suffix(".yaml").write_text(
            f"main_prompt: a {colour} star\nrating: 1.1\ntags:\n  - tag: bright\n  - tag: round\n    weight: 0.5\n"
        )


def meta_lat(root: Path) -> None:
    paths = pictures(root / "train")
    entries = {
        str(path.with_suffix("")): {"caption": caption, "tags": "star", "train_resolution": [64, 64]} for path, caption in zip(paths, ALL)
    }
    (root / "train" / "meta_lat.json").write_text(json.dumps(entries))
    for path in paths:
        path.with_suffix(".npz").write_bytes(b"PK")


def split_folder(root: Path) -> None:
    names = [path.name for path in pictures(root / "train")]
    (root / "metadata.jsonl").write_text(json_lines([(f"train/{name}", caption) for name, caption in zip(names, ALL)]))


def conditioned(root: Path) -> None:
    rows = []
    for path, caption in zip(pictures(root), ALL):
        edge = picture(root / f"edges-of-{path.name}")
        rows.append({"file_name": path.name, "conditioning_image_file_name": edge.name, "text": caption})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def dreambooth(root: Path) -> None:
    pictures(root / "instance_images", ("alvan-nee-1.png", "IMG_2.png"))
    pictures(root / "class_images", ("0-0aef.png",))


def source_and_mask(root: Path) -> None:
    for number, caption in enumerate(ALL):
        picture(root / f"{number}.src.png", number).with_name(f"{number}.src.txt").write_text(caption)
        picture(root / f"{number}.mask.png", mode="L")


def board(entry: Callable[[str], Any]) -> Callable[[str], str]:
    return lambda caption: json.dumps(entry(caption.removeprefix("a ").replace(" ", "_")))


@dataclass(frozen=True)
class DataSet:
    """A folder as one tool's users have it.

    Attributes:
        tool: the tool, and what is special.
        holds: the files, for the table.
        learned: the captions that are learned, in order.
        notes: a part of each sentence on what is not learned.
        masks: number of pictures that have a mask.
        shown: pictures in one epoch.
    """

    tool: str
    holds: str
    build: Callable[[Path], None]
    learned: tuple[str, ...] = ALL
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    masks: int = 0
    shown: int = 3


SUB = {"subfolders": True}
DATA_SETS = [
    DataSet("A1111", "`1.txt` beside `1.png`", beside(".txt")),
    DataSet(
        "A1111, captions in names",
        "`00001-0-a red star.png`",
        named_by(*(f"0000{number}-0-{caption}.png" for number, caption in enumerate(ALL))),
    ),
    DataSet(
        "a camera or phone",
        "`IMG_20230101_123451.png`, …",
        named_by("IMG_20230101_123451.png", "DSC00001.png", "PXL_20230101_1.png"),
        ("", "", ""),
        notes=("3 pictures have no caption: their file names come from a camera",),
    ),
    DataSet("kohya", "`1.caption`", beside(".caption")),
    DataSet(
        "kohya, folders",
        "`img/5_zorb star`, `reg/1_star`, `model`",
        kohya_folders,
        (GREEN, "star", "star"),
        SUB,
        ("The folder model/sample is left out", "The folder reg/1_star is left out"),
        shown=12,
    ),
    DataSet(
        "kohya, fine-tuning",
        "`meta_lat.json` with whole paths, `.npz`",
        meta_lat,
        tuple(f"{c}, star" for c in ALL),
        SUB,
        ("numbers of another program",),
    ),
    DataSet(
        "OneTrainer",
        "`1.txt`, `1-masklabel.png`, `1-condlabel.png`",
        onetrainer,
        notes=("taken as a mask", "taken for a conditioning picture"),
        masks=3,
    ),
    DataSet(
        "ai-toolkit",
        "`1.txt` with `[trigger]`",
        beside(".txt", lambda caption: caption.replace("star", "[trigger]")),
        tuple(c.replace("star", "[trigger]") for c in ALL),
    ),
    DataSet(
        "ai-toolkit, JSON",
        '`1.json`: `{"caption": …}`',
        beside(".json", lambda caption: json.dumps({"caption": caption, "caption_short": "star"})),
    ),
    DataSet("ai-toolkit, masks", "`1.txt`, `masks/1.png`", masks_of_ai_toolkit, masks=3),
    DataSet(
        "diffusers, DreamBooth",
        "`instance_images`, `class_images`",
        dreambooth,
        ("alvan-nee-1", ""),
        SUB,
        ("The folder class_images is left out", "1 picture has no caption"),
        shown=2,
    ),
    DataSet(
        "diffusers, ControlNet", "`metadata.jsonl` with conditioning pictures", conditioned, notes=("taken for a conditioning picture",)
    ),
    DataSet("Hugging Face imagefolder", "`metadata.jsonl`", table("metadata.jsonl", json_lines)),
    DataSet("Hugging Face imagefolder, CSV", "`metadata.csv`", table("metadata.csv", comma_separated)),
    DataSet("Hugging Face imagefolder, split", "`metadata.jsonl`, `train/1.png`", split_folder, options=SUB),
    DataSet(
        "EveryDream",
        "`a red star_1.jpg`, `multiply.txt`",
        everydream_names,
        (RED, BLUE, GREEN),
        notes=("cond_dropout.txt: settings of another program",),
        shown=9,
    ),
    DataSet("EveryDream, YAML", "`1.yaml` with a prompt and tags", everydream_yaml, tuple(f"{c}, bright, round" for c in ALL)),
    DataSet("EveryDream, JSON", "`data.json`", table("data.json", one_list)),
    DataSet(
        "Danbooru with gallery-dl",
        "`1.png.json` with `tag_string`",
        beside(".json", board(lambda tags: {"id": 1, "tag_string": f"1girl {tags} smile_(emote)"}), whole_name=True),
        tuple(rf"1girl, {c.removeprefix('a ')}, smile \(emote\)" for c in ALL),
    ),
    DataSet(
        "e621 and NovelAI dumps",
        "`1.json` with tags by their kind",
        beside(".json", board(lambda tags: {"tags": {"general": [tags, "solo"], "meta": ["hi_res"]}})),
        tuple(f"{c.removeprefix('a ')}, solo" for c in ALL),
    ),
    DataSet("cloneofsimo's LoRA", "`0.src.png`, `0.mask.png`, `0.src.txt`", source_and_mask, notes=("taken as a mask",), masks=3),
]


def scanned(data: DataSet, root: Path) -> TrainingSet:
    data.build(root)
    return scan_training_set(root, DatasetOptions(Sizing(64, 64), weighted=True, name="zorb", **data.options))


@pytest.mark.parametrize("data", DATA_SETS, ids=lambda data: data.tool)
def test_a_data_set_is_read_as_its_tool_reads_it(data: DataSet, tmp_path: Path) -> None:
    found = scanned(data, tmp_path / "set")
    assert sorted(picture.caption for picture in found.pictures) == sorted(data.learned)
    assert found.shown == data.shown
    assert sum(find_mask(picture.path) is not None for picture in found.pictures) == data.masks
    said = " | ".join(found.notes)
    assert all(note in said for note in data.notes), said
    assert len(found.notes) == len(data.notes), said


def table_of_data_sets() -> str:
    """The table of docs/datasets.md."""
    rows = ["| tool | the folder holds | learned | named in Check |", "|---|---|---|---|"]
    for data in DATA_SETS:
        captions = ", ".join(f"“{caption}”" if caption else "no caption" for caption in dict.fromkeys(data.learned[:2]))
        masks = f"; {data.masks} masks" if data.masks else ""
        folders = "; with “Read subfolders too”" if data.options else ""
        rows.append(f"| {data.tool} | {data.holds} | {captions}{masks}{folders} | {'; '.join(data.notes) or '–'} |")
    return "\n".join(rows)


def test_the_page_of_the_docs_has_the_table() -> None:
    """`python -m pytest tests/pictures/test_datasets.py` prints the new table where the page has an old one."""
    assert table_of_data_sets() in DOCS.read_text(encoding="utf-8"), f"\n{table_of_data_sets()}\n"


@pytest.mark.parametrize(("name", "table"), [
    ("caption.csv", 'caption,image_file\n"a red star, big",DSC01.png\na blue star,DSC02.png\n'),
    ("my tags.csv", 'image_path,caption\n/home/me/x/DSC01.png,"a red star, big"\nDSC02.png,a blue star\n'),
    ("Excel.csv", "file;text\nDSC01.png;a red star, big\nDSC02.png;a blue star\n"),
    ("rows.tsv", "filename\tprompt\nDSC01.png\ta red star, big\nDSC02.png\ta blue star\n"),
    ("mine.jsonl", '{"image": "DSC01.png", "prompt": "a red star, big"}\n{"image": "DSC02.png", "prompt": "a blue star"}\n'),
])  # fmt: skip
def test_a_table_of_any_name_whose_rows_name_the_pictures(tmp_path: Path, name: str, table: str) -> None:
    for number in (1, 2):
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"DSC0{number}.png")
    (tmp_path / name).write_text(table)
    (tmp_path / "loss.csv").write_text("step,loss\n1,0.5\n")
    listed = scan_training_set(tmp_path, DatasetOptions(Sizing(64, 64)))
    assert [picture.caption for picture in listed.pictures] == ["a red star, big", "a blue star"]
    assert any("loss.csv: a table in which no captions were found" in note for note in listed.notes)


def test_pictures_inside_a_table_are_declined_by_name(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"inside train-00000-of-00001\.parquet, a kind of table that is not read here"):
        scan_training_set(tmp_path, DatasetOptions(Sizing(64, 64)))
