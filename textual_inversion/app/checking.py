"""The Train page's check of all embedding files for code; it can move dangerous files aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from textual_inversion.app.actions import Outcome, answered
from textual_inversion.app.job import Advanced, JobKind, Listener, ShouldStop
from textual_inversion.errors import TextualInversionError
from textual_inversion.text import counted

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine
    from textual_inversion.audit.scan import ScannedFile


class CheckOffer(Protocol):
    """Whether a program offers the check. Only a WebUI needs it, because its loaders may run code inside files."""

    def offers_check(self) -> bool:
        """Whether the page should offer the check: once, and only where files exist that can hold code."""

    def check_answered(self) -> None:
        """Remember that the user has answered the offer, so that it is not repeated."""


@dataclass
class CheckResult:
    """The number of files of each kind, the dangerous files, and the result of moving them.

    Attributes:
        counts: kind -> files.
        dangerous: dangerous files that were not moved yet.
        moved: how many were moved.
        failures: for each file that could not be moved, a sentence with its name and the reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    dangerous: list[ScannedFile] = field(default_factory=list)
    moved: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """One sentence."""
        checked = f"{counted(sum(self.counts.values()), 'file')} checked"
        bad = len(self.dangerous) + len(self.failures) + self.moved
        if not bad:
            return f"{checked}; none of them can run code."
        return f"{checked}; {bad} could run code in a program that loads {'it' if bad == 1 else 'them'}."


class Checking:
    """The check of one engine's folders; `offer` is None when the program does not offer the check by itself."""

    def __init__(self, engine: Engine, offer: CheckOffer | None = None) -> None:
        self._engine, self._offer = engine, offer
        self.result: CheckResult | None = None

    @property
    def phase(self) -> str:
        """`offer`, `working`, `found`, or empty when there is nothing to show."""
        if self._engine.job.about(JobKind.CHECK):
            return "working"
        if self.result is not None:
            return "found"
        return "offer" if self._offer and self._offer.offers_check() else ""

    @property
    def dangerous(self) -> int:
        """How many files can be moved aside."""
        return len(self.result.dangerous) if self.result else 0

    @answered
    def begin(self) -> Outcome:
        """Start checking in the background."""
        self._engine.job.start(JobKind.CHECK, "embeddings", self._check)
        return Outcome("")

    def refuse(self) -> None:
        """Hide the offer, and do not make it again."""
        self.result = None
        self._remember_the_answer()

    @answered
    def move(self) -> Outcome:
        """Move the dangerous files to where no program loads them."""
        result = self.result
        if result is None or not result.dangerous:
            return Outcome("There is nothing to move.", "hint")
        result.failures = [failure for file in result.dangerous if (failure := _move_aside(file))]
        result.moved += len(result.dangerous) - len(result.failures)
        result.dangerous = []
        self._engine.refresh()
        return Outcome("")

    def _check(self, listener: Listener, should_stop: ShouldStop) -> str:
        result = CheckResult()
        for file in self._scanned(listener):
            if should_stop():
                return "The check was stopped; nothing has changed."
            result.counts["picture" if file.ordinary else file.kind] += 1
            if file.dangerous:
                result.dangerous.append(file)
        self.result = result
        self._remember_the_answer()
        return result.summary

    def _scanned(self, listener: Listener) -> Iterator[ScannedFile]:
        from textual_inversion.audit.scan import scan_folder

        before = 0
        for folder in self._engine.host.folders().searched:
            for file in scan_folder(folder, partial(_advance, listener, before)):
                before += 1
                yield file
        listener(Advanced(before, before))

    def _remember_the_answer(self) -> None:
        if self._offer:
            self._offer.check_answered()


def _advance(listener: Listener, before: int, done: int, total: int, _name: str) -> None:
    listener(Advanced(before + done, before + total))


def _move_aside(file: ScannedFile) -> str:
    """Move the file aside. Returns why that failed, with the file's name; empty when it worked."""
    from textual_inversion.audit.scan import quarantine

    try:
        quarantine(file)
    except TextualInversionError as error:
        return f"{path_in_folder(file)}: {error}"
    return ""


def path_in_folder(file: ScannedFile) -> str:
    """The file's path relative to the checked folder, with `/`."""
    return file.path.relative_to(file.folder).as_posix()
