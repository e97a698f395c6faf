"""Checking every embedding file once, and moving dangerous ones aside, as the Train page offers it. Knows nothing of gradio."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from html import escape
from typing import TYPE_CHECKING

from textual_inversion.app.actions import Outcome, answered
from textual_inversion.app.job import Advanced, Listener, ShouldStop
from textual_inversion.errors import TextualInversionError
from textual_inversion.text import counted
from textual_inversion.ui.render import note

if TYPE_CHECKING:
    from textual_inversion.app.port import Host
    from textual_inversion.audit.scan import ScannedFile

JOB = "check"
_MOST_SHOWN = 50
_KINDS = {
    "ok": "can be used",
    "unusable": "are whole, and cannot be used",
    "not an embedding": "are no embeddings",
    "picture": "are ordinary pictures",
    "damaged": "are damaged",
    "unchecked": "could not be checked",
    "unsafe": "are unsafe",
}


@dataclass
class Found:
    """What a check has found: how many files of each kind, which are dangerous, and what moving them led to."""

    counts: Counter[str] = field(default_factory=Counter)
    dangerous: list[ScannedFile] = field(default_factory=list)
    moved: int = 0
    stayed: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """One sentence."""
        total, bad = sum(self.counts.values()), len(self.dangerous) + len(self.stayed) + self.moved
        told = f"{counted(total, 'file')} checked"
        if not bad:
            return f"{told}; none of them can run code."
        return f"{told}; {bad} could run code in a program that loads {'it' if bad == 1 else 'them'}."


class Checking:
    """The offer of one host and, once it was taken, what was found."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._found: Found | None = None

    @property
    def phase(self) -> str:
        """`offer`, `working`, `found`, or empty when there is nothing to show."""
        if self._host.job.about(JOB):
            return "working"
        if self._found is not None:
            return "found"
        return "offer" if self._host.offers_check() else ""

    @property
    def dangerous(self) -> int:
        """How many files can be moved aside."""
        return len(self._found.dangerous) if self._found else 0

    @answered
    def begin(self) -> Outcome:
        """Start checking in the background."""
        self._host.job.start(JOB, "embeddings", self._check)
        return Outcome("")

    def refuse(self) -> None:
        """Show nothing any more, and do not offer it again."""
        self._found = None
        self._host.check_answered()

    @answered
    def move(self) -> Outcome:
        """Move what is dangerous out of every program's reach."""
        found = self._found
        if found is None or not found.dangerous:
            return Outcome("There is nothing to move.", "hint")
        found.stayed = [told for file in found.dangerous if (told := _moved_aside(file))]
        found.moved += len(found.dangerous) - len(found.stayed)
        found.dangerous = []
        self._host.look_again()
        return Outcome("")

    def html(self) -> str:
        """The box's text; `data-check` tells the style sheet which buttons belong to it."""
        found, phase = self._found, self.phase
        if phase == "offer":
            return _box(phase, _OFFER)
        if phase == "working":
            return _box(phase, "<h3>Checking your embedding files …</h3><p>Nothing in them is run, and nothing is changed.</p>")
        if found is None or not phase:
            return ""
        return _box(phase, _found(found), ' data-dangerous=""' if found.dangerous else "")

    def _check(self, listener: Listener, should_stop: ShouldStop) -> str:
        found = Found()
        for file in self._scan(listener):
            if should_stop():
                return "The check was stopped; nothing has changed."
            found.counts["picture" if file.ordinary else file.kind] += 1
            if file.dangerous:
                found.dangerous.append(file)
        self._found = found
        self._host.check_answered()
        return found.outcome

    def _scan(self, listener: Listener) -> Iterator[ScannedFile]:
        from textual_inversion.audit.scan import scan_folder

        before = 0
        for folder in self._host.embedding_folders():
            tell = partial(_advance, listener, before)
            for file in scan_folder(folder, tell):
                before += 1
                yield file
        listener(Advanced(before, before))


def _advance(listener: Listener, before: int, done: int, total: int, _name: str) -> None:
    listener(Advanced(before + done, before + total))


_OFFER = """<h3>Check your embedding files?</h3>
<p>A <code>.pt</code> or <code>.bin</code> file can hold a program that runs when something loads the file. This extension reads such
files without running anything; other programs may not. The check looks at every file in the embeddings folder and changes nothing.</p>"""


def _box(phase: str, text: str, more: str = "") -> str:
    return f'<div class="ti-check" data-check="{phase}"{more}>{text}</div>'


def _found(found: Found) -> str:
    kinds = "".join(f"<li><strong>{found.counts[kind]}</strong> {told}</li>" for kind, told in _KINDS.items() if found.counts[kind])
    parts = [f"<h3>{escape(found.outcome)}</h3>", f'<ul class="ti-counts">{kinds}</ul>']
    if found.dangerous:
        rows = "".join(
            f"<tr><td><code>{escape(_place(file))}</code></td><td>{escape(file.verdict)}</td></tr>"
            for file in found.dangerous[:_MOST_SHOWN]
        )
        parts.append(f'<table class="ti-dangers"><thead><tr><th>File</th><th>What is in it</th></tr></thead><tbody>{rows}</tbody></table>')
    if (more := len(found.dangerous) - _MOST_SHOWN) > 0:
        parts.append(f"<p>and {more} more</p>")
    if found.moved:
        moved = f"{found.moved} file{'s were' if found.moved != 1 else ' was'} moved to the folder “quarantine” in the embeddings folder"
        parts.append(note(f"{moved}, where no program loads {'them' if found.moved != 1 else 'it'}.", "done"))
    parts += [note(told, "error") for told in found.stayed[:_MOST_SHOWN]]
    return "".join(parts)


def _moved_aside(file: ScannedFile) -> str:
    """Why it stays, naming it; empty when it was moved."""
    from textual_inversion.audit.scan import quarantine

    try:
        quarantine(file)
    except TextualInversionError as error:
        return f"{_place(file)}: {error}"
    return ""


def _place(file: ScannedFile) -> str:
    return file.path.relative_to(file.folder).as_posix()
