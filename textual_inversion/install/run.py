"""Installs embeddings one by one: understood, fetched, read, compared, named, and kept with what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from textual_inversion import formats
from textual_inversion.embedding import check_name
from textual_inversion.errors import EmbeddingError, InstallError, TextualInversionError
from textual_inversion.files import os_error_words, short_hash
from textual_inversion.install import beside, placing
from textual_inversion.install.addresses import LocalFile, understand
from textual_inversion.install.download import Progress, alone, fetch, remove_old
from textual_inversion.install.sites import Offer, look_up
from textual_inversion.install.web import Web
from textual_inversion.prompts.names import about_name, tag_of


@dataclass(frozen=True)
class InstallOptions:
    """What the user asks for besides the address.

    Attributes:
        name: the word for prompts; empty = the file's name, or that of its model where the file's name says nothing.
        digest: the SHA256 that the file must have, or its first 8 digits or more; empty = any.
        picture: keep a picture that shows it.
    """

    name: str = ""
    digest: str = ""
    picture: bool = True


@dataclass(frozen=True)
class Installed:
    """An embedding that is in the folder now.

    Attributes:
        path: its file.
        name: the word for prompts.
        sha256: of the file, 64 hex digits.
        was_there: whether a file with the same content was there before, so that nothing was written.
        agrees: the kinds of hashes (`SHA256`, `AutoV2`, `hash`) that were compared, and are the same.
        info: the facts in the file.
        words: the words that its site recommends.
        base_model: the model that it was made for, in the words of its site; may be empty.
        beside: files that were written beside it.
        remarks: sentences for the user.
    """

    path: Path
    name: str
    sha256: str
    was_there: bool
    agrees: tuple[str, ...]
    info: formats.FileInfo
    words: tuple[str, ...] = ()
    base_model: str = ""
    beside: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What was done, in a few sentences."""
        facts = self.info.description
        if self.was_there:
            return f"{self.path.name} is there already, with the same content; nothing was changed. Prompts call it {tag_of(self.name)}."
        compared = f", the {' and the '.join(self.agrees)} that was given" if self.agrees else ", with nothing to compare it to"
        said = [f"{self.path.name} is installed: {facts.vectors} for {facts.family}. Prompts call it {tag_of(self.name)}."]
        said += [f"Its SHA256 begins with {short_hash(self.sha256)}{compared}."]
        said += (
            [f"Its site names the words {', '.join(self.words)}; here {tag_of(self.name)} takes their place."]
            if self._other_words()
            else []
        )
        said += [f"It was made for {self.base_model}."] if self.base_model else []
        return " ".join([*said, *self.remarks])

    def _other_words(self) -> bool:
        return any(word.strip("<>").casefold() != self.name.casefold() for word in self.words)


@dataclass
class Installer:
    """Installs into one folder.

    Attributes:
        web: asks the web.
        folder: of embeddings; made if need be.
        files_too: whether files of this computer may be installed.
        progress: called with bytes done and bytes in all while a file is fetched.
        should_stop: ends a download; the next one goes on from there.
    """

    web: Web
    folder: Path
    files_too: bool = True
    progress: Progress = field(default=lambda done, total: None)
    should_stop: Callable[[], bool] = field(default=lambda: False)

    def install(self, text: str, options: InstallOptions = InstallOptions()) -> Installed:
        """Install the embedding at an address or in a file.

        Raises:
            InstallError: it cannot be had, is no embedding, holds code, is another file than its site says, or its name is taken.
            InvalidNameError: the name that was asked for cannot be one.
        """
        source = understand(text, self.web.sites, files_too=self.files_too)
        if isinstance(source, LocalFile) and not self.files_too:
            raise InstallError("Give a web address, such as https://civitai.com/models/123.", setting="address")
        if options.name:
            check_name(options.name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InstallError(f"The folder {self.folder} cannot be made ({os_error_words(error)}).", path=self.folder) from error
        remove_old(self.folder)
        if isinstance(source, LocalFile):
            return self._place(source.path, source.path.name, Offer(""), options)
        self.web.should_stop = self.should_stop  # a stop ends waits and questions to the site too
        offer = look_up(self.web, source)
        with alone(offer.address, self.folder):
            return self._fetch(offer, options)

    def _fetch(self, offer: Offer, options: InstallOptions) -> Installed:
        """Install what a site offers; the downloaded bytes stay where another name would do for them."""
        fetched = fetch(
            self.web, offer.address, self.folder, typed=offer.typed, token=offer.token, progress=self.progress, should_stop=self.should_stop
        )
        try:
            installed = self._place(fetched.path, offer.name or fetched.name, offer, options)
        except TextualInversionError as error:
            if error.setting != "name":
                fetched.remove()
            raise
        fetched.remove()
        return installed

    def _place(self, path: Path, file_name: str, offer: Offer, options: InstallOptions) -> Installed:
        """Give a file its name in the folder."""
        shown = file_name or "The file"
        info = placing.read_safely(path, shown)[0]
        try:
            sha256 = formats.file_sha256(path)
        except EmbeddingError as error:
            raise InstallError(str(error), path=path) from error
        agrees = placing.check_digest(shown, sha256, self._expected(offer, options))
        if there := placing.same_file(self.folder, sha256, info.size):
            return Installed(there, there.stem, sha256, True, tuple(agrees), info)
        name = placing.name_for(options.name, Path(file_name).stem, offer.title)
        placing.check_free(self.folder, name)
        target = self.folder / f"{name}{placing.ending_for(path, file_name)}"
        placing.put(path, target)
        return self._with_sidecars(path, target, offer, options, Installed(target, name, sha256, False, tuple(agrees), info))

    def _expected(self, offer: Offer, options: InstallOptions) -> Mapping[str, str]:
        given = {"hash": options.digest} if options.digest else {}
        return {**{kind: digits for kind, digits in offer.hashes.items() if digits}, **given}

    def _with_sidecars(self, path: Path, target: Path, offer: Offer, options: InstallOptions, installed: Installed) -> Installed:
        """Keep what is known of a file beside it."""
        remarks = [offer.remark, about_name(installed.name)]
        if not offer.address:
            written = beside.copy_sidecars(path, target)
        else:
            written = beside.keep_facts(target, offer, installed.info.family, installed.sha256)
            if options.picture:
                pictures, why = beside.keep_picture(self.web, target, offer)
                written += pictures
                remarks.append(why)
        said = tuple(remark for remark in remarks if remark)
        return replace(installed, words=offer.words, base_model=offer.base_model, beside=tuple(written), remarks=said)
