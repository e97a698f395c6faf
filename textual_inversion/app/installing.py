"""The Train page's installation of embeddings from web addresses, in the background and only on the user's click."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from textual_inversion.app.actions import Outcome, answered
from textual_inversion.app.job import Advanced, JobKind, Listener, ShouldStop
from textual_inversion.errors import InstallError, TextualInversionError
from textual_inversion.text import counted
from textual_inversion.training.events import Message

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine
    from textual_inversion.install import Installer, Web

_MOST_ADDRESSES = 50


class Installing:
    """Installs into the folder of one engine's host.

    Args:
        tokens: site (`civitai`, `hub`) -> API token of the user's settings; the environment's count where there is none.
        web: asks the web; None = with these tokens, and with no address of this computer or its own network, because whoever opens the
            page from elsewhere could ask those too.
    """

    def __init__(self, engine: Engine, tokens: Callable[[], Mapping[str, str]] = dict, web: Web | None = None) -> None:
        self._engine, self._tokens, self._web = engine, tokens, web

    @answered
    def begin(self, addresses: Any) -> Outcome:
        """Start installing from addresses, one on each line."""
        lines = list(dict.fromkeys(line for text in str(addresses or "").splitlines() if (line := text.strip())))
        if not lines:
            raise InstallError("Give the address of an embedding, such as that of its page on Civitai or Hugging Face.", setting="address")
        if len(lines) > _MOST_ADDRESSES:
            raise InstallError(f"These are {len(lines)} addresses; give at most {_MOST_ADDRESSES} at a time.", setting="address")
        self._engine.job.start(JobKind.INSTALL, "embeddings", lambda listener, stop: self._install(lines, listener, stop))
        return Outcome("")

    def interrupt(self) -> Outcome:
        """End a download; the next one goes on from there."""
        if not self._engine.job.about(JobKind.INSTALL) or not self._engine.job.interrupt():
            return Outcome("Nothing is being installed.", "hint")
        return Outcome("")

    def _install(self, lines: list[str], listener: Listener, should_stop: ShouldStop) -> str:
        installer = self._installer(listener, should_stop)
        done, failures = [], []
        for line in lines:
            if should_stop():
                break
            try:
                done.append(installer.install(line))
            except TextualInversionError as error:
                if len(lines) == 1:
                    raise
                failures.append(str(error))
                listener(Message(str(error)))
                continue
            if len(lines) > 1:
                listener(Message(done[-1].text))
        if done:
            self._engine.refresh()
        if failures and not done:
            raise InstallError(f"None of the {len(lines)} was installed; the first because: {failures[0]}")
        if len(lines) == 1 and done:
            return done[0].text
        return f"{counted(len(done), 'embedding')} installed or there already" + (f"; {len(failures)} failed." if failures else ".")

    def _installer(self, listener: Listener, should_stop: ShouldStop) -> Installer:
        from textual_inversion.install import Installer, Sites, Web, tokens_from_environment

        def progress(done: int, total: int) -> None:
            listener(Advanced(done >> 10, max(total, done) >> 10))

        web = self._web or Web(Sites.from_environment(), {**tokens_from_environment(), **self._tokens()}, trusts_typed=False)
        return Installer(web, self._engine.host.folders().embeddings, files_too=False, progress=progress, should_stop=should_stop)
