"""The command `install`: puts embeddings from web addresses and files into the folder of embeddings."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from textual_inversion.cli.common import Result, add_folder, add_switch, command, embeddings_folder, tell
from textual_inversion.cli.report import Bar, say
from textual_inversion.errors import ConfigError, TextualInversionError

if TYPE_CHECKING:
    from textual_inversion.install import Installed


def add_install(commands: Any) -> None:
    """Add the command."""
    text = "install embeddings from web addresses (Civitai, Hugging Face, any file) or files; each is read before it gets a name"
    parser = command(commands, "install", _install, text, "URL|FILE ...")
    parser.epilog = (
        "API tokens are read from the variables CIVITAI_API_TOKEN and HF_TOKEN. Example: textual-inversion install "
        "https://huggingface.co/sd-concepts-library/cat-toy"
    )
    parser.add_argument("sources", metavar="URL|FILE", nargs="+", help="a model's page, a repository, a file's address, or a file")
    parser.add_argument("--name", default="", metavar="NAME", help="the word for prompts; default: the file's name")
    parser.add_argument("--hash", default="", metavar="HEX", help="the SHA256 that the file must have, or its first 8 digits or more")
    add_switch(parser, "--picture", "keep a picture of its site beside it", default=True)
    add_folder(parser)


def _install(options: argparse.Namespace) -> Result:
    if len(options.sources) > 1 and (options.name or options.hash):
        raise ConfigError("--name and --hash are for one embedding; install them one by one.", setting="name")
    from textual_inversion.install import Installer, InstallOptions, Sites, Web, tokens_from_environment

    bar = Bar()
    web = Web(Sites.from_environment(), tokens_from_environment())
    installer = Installer(web, embeddings_folder(options), progress=lambda done, total: bar.move(done, total, "bytes"))
    wanted = InstallOptions(options.name, options.hash, options.picture)
    rows: list[Result] = []
    for source in options.sources:
        try:
            installed = installer.install(source, wanted)
        except TextualInversionError as error:
            bar.close()
            if len(options.sources) == 1:
                raise
            say(f"textual-inversion: {error}", error=True)
            rows.append({"error": str(error)})
            options.status = 2
            continue
        bar.close()
        tell(options, installed.text)
        rows.append(_row(installed))
    return {"installed": rows}


def _row(installed: Installed) -> Result:
    return {
        "name": installed.name,
        "path": str(installed.path),
        "sha256": installed.sha256,
        "was_there": installed.was_there,
        "hashes_compared": list(installed.agrees),
        "trained_words": list(installed.words),
        "base_model": installed.base_model,
        "beside": [str(path) for path in installed.beside],
        **installed.info.description.summary(),
    }
