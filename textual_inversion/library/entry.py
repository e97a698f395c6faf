"""An entry of a library: a name for prompts, its file, and why it cannot be used.

Also the rules that combine entries: duplicate names, and embeddings in two files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from textual_inversion.description import EmbeddingDescription
from textual_inversion.formats import FileInfo
from textual_inversion.last_run import LastRun, last_run_file, read_last_run
from textual_inversion.library.sidecars import About, read_sidecars
from textual_inversion.prompts.names import words_in_prompts
from textual_inversion.text import legible

_NEGATIVE = "-neg"
#: Stem of the second file of an SDXL embedding from diffusers' example: `learned_embeds_2`, `learned_embeds_2-steps-500`.
_SECOND = re.compile(r"(.+)_2(-steps-\d+)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One embedding of a library.

    Attributes:
        name: the word for prompts: the file's name without ending or, where the file holds several embeddings, its own word; cleaned.
        path: the file.
        info: the facts in the file; None when the file cannot be read.
        reason: one sentence why it is unusable; empty when it is usable.
        preview: picture beside it (`X.png`, `X.preview.png`, also jpg, jpeg, webp), or the file itself if that is a picture.
        second: the file with the other half of an SDXL embedding; None where one file holds all.
        negative: name of the embedding for the negative prompt that goes with this one (DreamArtist's `X-neg`); mostly empty.
        is_negative: whether this embedding belongs into the negative prompt.
        sidecars: files with notes and metadata, which only `about` reads.
        changed: when the file was written, in seconds since 1970; 0 where that is not known.
    """

    name: str
    path: Path
    info: FileInfo | None
    reason: str
    preview: Path | None = None
    second: Path | None = None
    negative: str = ""
    is_negative: bool = False
    sidecars: tuple[Path, ...] = ()
    changed: float = 0.0

    @property
    def usable(self) -> bool:
        """Whether a prompt can use it with the library's checkpoint."""
        return not self.reason

    @property
    def description(self) -> EmbeddingDescription:
        """The facts for people and programs; all unknown when the file cannot be read."""
        return self.info.description if self.info else EmbeddingDescription()

    @property
    def about(self) -> About:
        """The contents of `X.txt`, `X.description.txt`, `X.json` and `X.civitai.info` beside the file, read now."""
        return read_sidecars([path for path in self.sidecars if not self._is_last_run(path)])

    def _is_last_run(self, path: Path) -> bool:
        return path.name.lower() == last_run_file(self.path).name.lower()

    @property
    def last_run(self) -> LastRun:
        """Its last training run, read now; empty where none is kept or the file has been trained or replaced since."""
        if self.info is None or not any(map(self._is_last_run, self.sidecars)):
            return LastRun()
        run = read_last_run(self.path)
        return run if run.step == self.info.description.step else replace(run, level="", verdict="")

    @property
    def notes(self) -> str:
        """The same as text; empty when there are no such files."""
        return self.about.text


def misfit(info: FileInfo, width: dict[str, int] | None) -> str:
    """Why the embedding does not fit a checkpoint of these widths; empty when it does."""
    if info.unusable:
        return f"{info.unusable.rstrip('.')}."
    if width is None or info.widths == width:
        return ""
    if len(width) == len(info.widths) == 1 and set(width.values()) == set(info.widths.values()):
        return ""  # a file and a checkpoint may use different names for a table of unusual width
    return f"made for {info.family}: {_wide(info.widths)}; this checkpoint takes {_wide(width, unit='')}."


def _wide(width: dict[str, int], unit: str = " wide") -> str:
    return " + ".join(str(value) for _, value in sorted(width.items(), reverse=True)) + unit


def mark_duplicates(entries: Sequence[Entry]) -> list[Entry]:
    """Give a reason to each entry whose name belongs to another entry with precedence.

    Args:
        entries: in the order of precedence. A usable entry still takes precedence over an unusable one.
    """
    winners: dict[str, Entry] = {}
    as_read: dict[tuple[str, ...], Entry] = {}  # words as prompts read them
    for usable in (True, False):
        for entry in entries:
            if entry.usable is usable:
                winners.setdefault(entry.name, entry)
                as_read.setdefault(words_in_prompts(entry.name), entry)
    marked = []
    for entry in entries:
        winner = winners[entry.name]
        same = as_read[words_in_prompts(entry.name)]
        if entry is winner and entry.usable and same.name != entry.name:
            reason = f"prompts do not tell it apart from “{same.name}” ({legible(str(same.path))}), which comes first; rename one of them."
            entry = replace(entry, reason=reason)
        elif entry is not winner and entry.usable:
            where = f"{legible(str(winner.path))} has" if winner.path != entry.path else "another word in its file gives"
            entry = replace(entry, reason=f"{where} the same name and comes first; rename one of them.")
        marked.append(entry)
    return marked


def join_halves(entries: Sequence[Entry], width: dict[str, int] | None) -> list[Entry]:
    """Join the two files of an SDXL embedding: the first file's entry gets both halves, and the second file's entry gets a reason."""
    positions = {entry.path: position for position, entry in enumerate(entries)}
    joined = list(entries)
    for position, second in enumerate(entries):
        match = _SECOND.fullmatch(second.path.stem)
        if not match or not _holds(second.info, {"clip_g": 1280}):
            continue
        first_position = positions.get(second.path.with_name(f"{match[1]}{match[2] or ''}{second.path.suffix}"))
        first = entries[first_position] if first_position is not None else second
        info = _join_infos(first.info, second.info)
        if first_position is not None and info:
            joined[first_position] = replace(first, info=info, reason=misfit(info, width), second=second.path)
            joined[position] = replace(second, reason=f"it is the second half of {first.name!r}, which is listed as one SDXL embedding.")
    return joined


def _holds(info: FileInfo | None, widths: dict[str, int]) -> bool:
    return info is not None and info.widths == widths and info.word is None and not info.unusable


def _join_infos(first: FileInfo | None, second: FileInfo | None) -> FileInfo | None:
    """Join the facts of both halves; None when their layouts, stored names or numbers of vectors differ."""
    if first is None or second is None or not _holds(first, {"clip_l": 768}):
        return None
    if (first.layout, _own_name(first), first.num_vectors) != (second.layout, _own_name(second), second.num_vectors):
        return None
    return replace(
        first,
        widths={**first.widths, **second.widths},
        counts={**first.counts, **second.counts},
        dtype=", ".join(sorted({first.dtype, second.dtype})),
        size=first.size + second.size,
    )


def _own_name(info: FileInfo) -> str | None:
    """The name inside the file; None when it is the file's own name, as after converting."""
    return None if info.stored_name == info.path.stem else info.stored_name


def link_negatives(entries: Iterable[Entry]) -> list[Entry]:
    """Link `X` and `X-neg` of the same folder to each other; DreamArtist writes such pairs."""
    entries = list(entries)
    negatives: dict[str, list[int]] = {}
    for position, entry in enumerate(entries):
        if entry.usable and entry.name.endswith(_NEGATIVE):
            negatives.setdefault(entry.name.removesuffix(_NEGATIVE), []).append(position)
    for position, entry in enumerate(entries):
        for negative in negatives.get(entry.name, ()) if entry.usable else ():
            other = entries[negative]
            if entry.path.parent == other.path.parent and entry.info and other.info and entry.info.widths == other.info.widths:
                entries[position] = replace(entry, negative=other.name)
                entries[negative] = replace(other, is_negative=True)
    return entries
