"""Accounts for everything in a folder of pictures: which files are used as what, and which are not, with the reason."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from textual_inversion.pictures.captions import DATA_ENDINGS, TEXT_ENDINGS, is_table, is_understood
from textual_inversion.pictures.folder import MASK_FOLDERS, SUFFIXES, companions_of, find_mask
from textual_inversion.pictures.listing import files_in, fold

#: File in a folder of EveryDream's that says how often its pictures are shown.
MULTIPLY = "multiply.txt"
_NAMED = 3  # files named in one sentence
_SYSTEM = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db"})  # of Windows; those of others begin with a dot
_SETTINGS = frozenset({"cond_dropout.txt", "flip_p.txt", "batch_id.txt", "shuffle_tags.txt", "loss_scale.txt"})
_REASONS = (
    (
        (
            ".psd",
            ".svg",
            ".jxl",
            ".jp2",
            ".tga",
            ".exr",
            ".hdr",
            ".ico",
            ".dng",
            ".cr2",
            ".cr3",
            ".nef",
            ".arw",
            ".orf",
            ".rw2",
            ".raf",
            ".raw",
        ),
        "pictures of a kind that is not read; save them as PNG",
    ),
    ((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"), "videos, of which nothing is learned; save pictures from them"),
    ((".zip", ".7z", ".rar", ".tar", ".gz", ".tgz"), "archives, which are not opened; unpack them here"),
    ((".parquet", ".arrow"), "tables of a kind that is not read; save them as metadata.jsonl"),
    ((".npz", ".npy", ".safetensors", ".pt", ".bin", ".ckpt"), "numbers of another program"),
    ((".toml", ".yaml", ".yml"), "settings of another program"),
)
#: Folders of other trainers whose pictures are not to be learned: name, and what lies in them.
_OTHER_FOLDERS = (
    (
        re.compile(r"reg(ulari[sz]ation)?([ _-]?(images?|data|imgs?))?(_dir)?|class[ _-](images?|data)(_dir)?"),
        "pictures for regularisation",
    ),
    (re.compile(r"masks?"), "masks"),
    (re.compile(r"(cond(ition(ing)?)?|control)([ _-]?(images?|data))?(_dir)?"), "conditioning pictures"),
    (re.compile(r"focal-point"), "drawings of focal points"),
    (re.compile(r"logs?|models?|_latent_cache|_t_e_cache"), "another program's results"),
)


def kind_of_folder(parts: Iterable[str]) -> str:
    """What lies in a subfolder whose pictures are not to be learned, by the names on the way to it; empty where they are."""
    return next((kind for part in parts for pattern, kind in _OTHER_FOLDERS if pattern.fullmatch(part.casefold())), "")


def account(folder: Path, captions: Mapping[Path, Path | None], *, masks_used: bool = True) -> list[str]:
    """Sentences on the files directly inside `folder` that are no pictures to learn: what they are used as, or why they are not used.

    Args:
        captions: each picture of the folder that is used, or named elsewhere -> the file of its caption.
        masks_used: masks are loss weights in this run.
    """
    books = _Books(folder, captions, masks_used)
    groups: dict[str, list[str]] = {}
    for name in files_in(folder):
        if reason := books.reason(name):
            groups.setdefault(reason, []).append(name)
    return [f"{list_names(names)}: {reason}." for reason, names in groups.items()]


def account_for_folders(
    folder: Path, folders: Collection[Path], *, searched: bool, advice: str = "; “Read subfolders too” (--subfolders) searches"
) -> list[str]:
    """Sentences on subfolders: those that are not searched, with `advice`, and those that are left out because of what lies in them."""
    if searched:
        sentences = []
        for place in folders:
            if kind := kind_of_folder(place.relative_to(folder).parts):
                where = place.relative_to(folder).as_posix()
                sentences.append(f"The folder {where} is left out: by its name it holds {kind}.")
        return sentences
    try:
        inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    named = [name for name in inside if fold(name) not in MASK_FOLDERS]
    if not named:
        return []
    what = "subfolder is" if len(named) == 1 else "subfolders are"
    return [f"{len(named)} {what} not searched ({list_names(named)}){advice}."]


def list_names(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


class _Books:
    """What each file of a folder is used for."""

    def __init__(self, folder: Path, captions: Mapping[Path, Path | None], masks_used: bool) -> None:
        self.folder, self.masks_used = folder, masks_used
        self.pictures = {path.name for path in captions}
        self.captions = {source.name for source in captions.values() if source is not None and source.parent == folder}
        self.owners = {fold(base): source for path, source in captions.items() for base in (path.stem, path.name)}
        self.masks = {mask.name for path in captions if (mask := find_mask(path)) and mask.parent == folder}
        pictures = (folder / name for name in files_in(folder) if Path(name).suffix.lower() in SUFFIXES)
        self.companions = {path.name: kind for path, kind in companions_of(pictures).items()}

    def reason(self, name: str) -> str:
        """What the file is used as, or why it is not used; empty for pictures, their captions and files of the system."""
        if name in self.pictures or name in self.captions or fold(name) == MULTIPLY or _is_system_file(name):
            return ""
        if name in self.masks:
            return "taken as a mask" + ("" if self.masks_used else ", without effect, since the loss weight (--alpha-weight) is off")
        if name in self.companions:
            return f"taken for a {self.companions[name]} of another picture by its name, and not learned"
        if name.startswith("."):
            return "hidden, and not read"
        return self._reason_of_text(name) or next(
            (reason for endings, reason in _REASONS if Path(name).suffix.lower() in endings), "not a kind of file that is read"
        )

    def _reason_of_text(self, name: str) -> str:
        ending = Path(name).suffix.lower()
        if is_table(name):
            is_known = is_understood(self.folder / name)
            return "a table without a caption for these pictures" if is_known else "a table in which no captions were found"
        if fold(name) in _SETTINGS:
            return "settings of another program"
        if ending not in (*TEXT_ENDINGS, *DATA_ENDINGS):
            return ""
        if (stem := fold(Path(name).stem)) in self.owners:
            return "not read, because another file holds that picture's caption" if self.owners[stem] else "no caption was found in it"
        return "" if ending in (".yaml", ".yml") else "no picture has that name, so it is not read"


def _is_system_file(name: str) -> bool:
    return name.startswith("._") or name == ".DS_Store" or name.casefold() in _SYSTEM
