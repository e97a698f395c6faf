"""The file of the trained embedding: created from words, found by its name, guarded against other programs while it is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from textual_inversion import formats
from textual_inversion.diffusion.checkpoint import TOKENS, CheckpointFile, token_tables
from textual_inversion.diffusion.model import StableDiffusion
from textual_inversion.embedding import Embedding, Provenance, check_name, fold_name
from textual_inversion.errors import CheckpointError, ConfigError, EmbeddingError, InvalidNameError, NameTakenError, TextualInversionError
from textual_inversion.files import FileStamp, os_error_words, remove_quietly
from textual_inversion.prompts.tokenizer import default_tokenizer
from textual_inversion.settings.creation import AUTO_VECTORS, MAX_VECTORS, wants_search
from textual_inversion.text import counted
from textual_inversion.training.journal import journal_file

_UNTIL_FOUND = "*"  # A1111's own first word
_WRITTEN = (".safetensors", ".pt")  # the first one counts where both are there
#: The clause for users about an embedding for which `starts_from_zeros` is true.
STARTS_FROM_ZEROS = "this checkpoint knows none of these words, so it starts from zeros: other words would help"


def initial_vectors(table: torch.Tensor, initializer_text: str, num_vectors: int | str = "auto") -> torch.Tensor:
    """Rows of a token table for the words of a text.

    Args:
        table: [l, d], with CLIP's vocabulary.
        initializer_text: words such as `cat`; empty = zeros; `auto` = the words that training will find, until then those of `*`.
        num_vectors: 1 to 75, or `auto` for as many as the text has tokens. With more vectors than tokens the tokens repeat,
            with fewer the last ones are left out.

    Returns:
        fp32 [n, d] on the CPU.

    Raises:
        ConfigError: a count outside 1 to 75.
    """
    searches = wants_search(initializer_text)
    tokens = default_tokenizer().encode(_UNTIL_FOUND if searches else initializer_text)
    count = _count(num_vectors, AUTO_VECTORS if searches else len(tokens))
    if not tokens:
        return torch.zeros(count, table.shape[1])
    rows = torch.tensor([tokens[index % len(tokens)] for index in range(count)])
    return table.detach()[rows.to(table.device)].to("cpu", torch.float32)


_MARKS = frozenset(",()[]:|")


def about_words(initializer_text: str, num_vectors: int) -> str:
    """A sentence on the words that are not what they seem: those that did not fit, and marks that mean nothing here; empty without any."""
    tokenizer = default_tokenizer()
    tokens = [] if wants_search(initializer_text) else tokenizer.encode(initializer_text)
    words = [tokenizer.word(token) for token in tokens]
    if len(tokens) > num_vectors:
        kept = " ".join(words[:num_vectors])
        return f"Only “{kept}” became vectors; {counted(len(tokens) - num_vectors, 'token')} of the words did not fit."
    if marks := [mark for mark in dict.fromkeys(words) if mark in _MARKS and len(words) > 1]:
        listed = " and ".join(f"“{mark}”" for mark in marks)
        return f"{listed} became {'a vector' if len(marks) == 1 else 'vectors'} too: here marks give no emphasis and separate nothing."
    return ""


def _count(num_vectors: int | str, tokens: int) -> int:
    if num_vectors == "auto":
        return min(max(tokens, 1), MAX_VECTORS)
    try:
        count = int(num_vectors)
    except (TypeError, ValueError):
        reason = f"The number of vectors is {num_vectors!r}; give a number from 1 to {MAX_VECTORS}, or 'auto'."
        raise ConfigError(reason, setting="num_vectors") from None
    if not 1 <= count <= MAX_VECTORS:
        reason = f"The number of vectors is {count}; it must be from 1 to {MAX_VECTORS}, the places of one chunk of a prompt."
        raise ConfigError(reason, setting="num_vectors")
    return count


def create_embedding(
    model: StableDiffusion | str | os.PathLike[str],
    name: str,
    initializer_text: str,
    num_vectors: int | str,
    folder: Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Write a new embedding, untrained, as `folder/name.safetensors`; the folder is made if need be.

    Args:
        model: a loaded checkpoint, or the file of one, of which only the token tables are read; with SDXL both of them.

    Raises:
        InvalidNameError: a name that cannot be one.
        NameTakenError: an embedding of that name exists, in any layout and spelling, and `overwrite` is false. When it is true, a file of
            another layout or spelling that holds that embedding and nothing else is deleted, so that the name means the new one in every
            program.
        ConfigError: a count outside 1 to 75.
        CheckpointError: a file that is no checkpoint.
        EmbeddingError: the folder cannot be made, the file cannot be written, or the one before cannot be deleted.
    """
    check_name(name)
    if isinstance(model, StableDiffusion):
        file, tables = model.file, {name: encoder.token_table for name, encoder in model.conditioner.encoders.items()}
    else:
        file, tables = CheckpointFile.open(model), token_tables(model)
        if shorter := [len(table) for table in tables.values() if len(table) < TOKENS]:
            sentence = f"{file.path.name} has a token table of {counted(shorter[0], 'row')}; expected {TOKENS}. Take another checkpoint."
            raise CheckpointError(sentence, path=file.path)
    vectors = {encoder: initial_vectors(table, initializer_text, num_vectors) for encoder, table in tables.items()}
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sentence = f"The folder {folder} cannot be made ({os_error_words(error)}); choose another folder for embeddings."
        raise EmbeddingError(sentence, path=folder) from error
    same_name = [path for path in _files_named(folder, name, any_spelling=True) if not _is_preview(path)]
    if same_name and not overwrite:
        advice = "choose another name or allow overwriting (--overwrite)"
        why = "" if same_name[0].stem == name else ", and prompts do not tell capitals apart"
        raise NameTakenError(f"There is an embedding {same_name[0].name} in {folder}{why}; {advice}.", path=same_name[0])
    provenance = Provenance(step=0, checkpoint_name=file.name, checkpoint_hash=file.hash, initializer_text=initializer_text)
    path = formats.save(Embedding(name, vectors, provenance), folder / f"{name}.safetensors", overwrite=overwrite)
    remove_quietly(journal_file(path))  # of an embedding of this name that is gone
    for old in same_name:
        is_new_file = old.exists() and old.samefile(path)  # on a file system that ignores case, both names are one file
        if is_new_file or not _holds_only_its_embedding(old):
            continue
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            reason = f"{old} of the same name cannot be deleted ({os_error_words(error)}); delete it"
            raise EmbeddingError(f"The new embedding is written, but {reason}.", path=old) from error
    return path


def starts_from_zeros(path: Path, initializer_text: str) -> bool:
    """Whether the new embedding in the file `path` holds zeros only, although it was given words to start from."""
    if not initializer_text or wants_search(initializer_text):
        return False
    try:
        return not any(bool(rows.any()) for rows in formats.load(path).vectors.values())
    except EmbeddingError:
        return False


def _files_named(folder: Path, name: str, *, any_spelling: bool = False) -> list[Path]:
    """The files that may hold the embedding `name`, or one whose name prompts do not tell apart from it; endings may have capitals."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in formats.READ_ENDINGS)
    return sorted(path for path in files if path.stem == name or (any_spelling and fold_name(path.stem) == fold_name(name)))


def _is_preview(path: Path) -> bool:
    """Whether the file is a picture without an embedding in it, such as the preview of a deleted one."""
    return path.suffix.lower() in formats.PICTURE_ENDINGS and not _holds_embedding(path)


def _holds_only_its_embedding(path: Path) -> bool:
    """Whether the file is an embedding without other data; a picture is not, because it may be a preview."""
    if path.suffix.lower() in formats.PICTURE_ENDINGS:
        return False
    try:
        return all(info.word is None for info in formats.describe_all(path))
    except EmbeddingError:
        return False


def find_embedding(folder: Path, name: str) -> tuple[Path, Embedding]:
    """File and contents of the embedding `name`; the file is one that training may replace.

    Raises:
        InvalidNameError: a name with a path in it.
        EmbeddingError: there is none, its file cannot be read or is of a kind that training does not write, or the file holds more
            than this embedding: other words, the LoRA around it, or one half of an SDXL embedding.
    """
    if any(sign in name for sign in "/\\\0"):
        sentence = f"The name {name!r} has a path in it; give a name only, and choose the folder separately."
        raise InvalidNameError(sentence, setting="name")
    path = _path_of(folder, name)
    words = [info.word for info in formats.describe_all(path) if info.word is not None]
    if words:
        shown = f"{words[0]!r}" if len(words) == 1 else f"{words[0]!r} and {len(words) - 1} more"
        raise EmbeddingError(
            f"{path} holds {shown} beside or within other data, which training would write over; take one out to a file of its own "
            f"first: textual-inversion convert {path.name} NEW.safetensors --word WORD.",
            path=path,
            field=words[0],
        )
    _check_whole(path)
    return path, formats.load(path, name)


def _path_of(folder: Path, name: str) -> Path:
    """The file to train; endings may have capitals."""
    for ending in _WRITTEN:
        if (path := folder / f"{name}{ending}").is_file():
            return path
    try:
        files = _files_named(folder, name)
    except OSError:
        files = []  # no such folder
    if written := [path for path in files if path.suffix.lower() in _WRITTEN]:
        return written[0]
    embeddings = [path for path in files if path.suffix.lower() not in formats.PICTURE_ENDINGS or _holds_embedding(path)]
    if embeddings:
        raise EmbeddingError(
            f"{embeddings[0]} holds the embedding {name!r}, but training writes .safetensors and .pt only; convert it first: "
            f"textual-inversion convert {embeddings[0].name} {name}.safetensors.",
            path=embeddings[0],
        )
    advice = f"create it first: textual-inversion create {name} --init TEXT"
    raise EmbeddingError(f"There is no embedding {name!r} in {folder}; {advice}.", path=folder)


def _holds_embedding(picture: Path) -> bool:
    """Whether the picture is an embedding rather than the preview of a deleted one."""
    try:
        return bool(formats.describe_all(picture))
    except EmbeddingError:
        return False


def _check_whole(path: Path) -> None:
    """Refuse the first of the two files in which diffusers' example keeps an SDXL embedding."""
    other = path.with_name(f"{path.stem}_2{path.suffix}")
    try:
        halves = formats.describe(path).widths == {"clip_l": 768} and other.is_file() and formats.describe(other).widths == {"clip_g": 1280}
    except EmbeddingError:
        return  # the other file is no embedding
    if halves:
        raise EmbeddingError(
            f"{path} is one half of an SDXL embedding, the other is {other.name}; rename one of them to train it by itself.", path=path
        )


class GuardedFile:
    """The file that a run writes its vectors to, unless another program has written other vectors to it meanwhile.

    Args:
        path: the file.
        embedding: the embedding as it was read from the file.
    """

    def __init__(self, path: Path, embedding: Embedding) -> None:
        self.path = path
        self._stamp: FileStamp | None = None
        self._vectors = _copies(embedding)

    def write(self, embedding: Embedding) -> None:
        """Replace the file.

        Raises:
            EmbeddingError: the file cannot be written, or it stays as it is because it holds other vectors than this run has last read
                or written, as when another program trains the same word.
        """
        if self._was_changed():
            sentence = f"{self.path} was written by another program meanwhile, and stays as that has left it."
            raise EmbeddingError(sentence, path=self.path)
        formats.save(embedding, self.path, overwrite=True)
        self._stamp, self._vectors = FileStamp.of(self.path), _copies(embedding)

    def write_or_rescue(self, embedding: Embedding, folder: Path | None) -> None:
        """Replace the file; where that fails, write the embedding to `folder`, the home folder or the temporary folder instead.

        Raises:
            EmbeddingError: the file was not written; the sentence says where the embedding is, and `path` has become that place.
        """
        try:
            self.write(embedding)
        except EmbeddingError as error:
            step = embedding.provenance.step or 0
            for other in _rescue_folders(folder):
                try:
                    rescued = formats.save(embedding, other / f"{self.path.stem}-{step}-rescued.safetensors", overwrite=True)
                except EmbeddingError:
                    continue
                sentence = f"{error} What was learned until step {step} is in {rescued}; move it from there."
                self.path, lost = rescued, self.path
                raise EmbeddingError(sentence, path=lost) from error
            raise

    def _was_changed(self) -> bool:
        """Whether another program has written other vectors to the file."""
        now = FileStamp.of(self.path)
        if now is None or now == self._stamp:
            return False
        try:
            theirs, ours = formats.load(self.path).vectors, self._vectors
        except TextualInversionError:
            return False  # no vectors to lose
        return theirs.keys() != ours.keys() or not all(torch.equal(theirs[key], ours[key]) for key in ours)


def _copies(embedding: Embedding) -> dict[str, torch.Tensor]:
    """Copies of the vectors, because training changes the originals in place."""
    return {key: vectors.detach().cpu().clone() for key, vectors in embedding.vectors.items()}


def _rescue_folders(folder: Path | None) -> Iterator[Path]:
    if folder:
        yield folder
    yield Path(os.path.expanduser("~"))
    yield Path(tempfile.gettempdir())
