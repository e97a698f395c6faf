"""Looks at a run before it starts: pictures, crops, prompts, time and memory, each as a sentence. Changes nothing, loads no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from textual_inversion.errors import DatasetError, EmbeddingError, TextualInversionError
from textual_inversion.formats import file_sha256
from textual_inversion.pictures.geometry import Size, cropped_share
from textual_inversion.prompts.chunks import CHUNK_TOKENS, chunk_prompt, count_tokens
from textual_inversion.prompts.templates import DEFAULT_TEMPLATE, fill, read_template, template_folder
from textual_inversion.prompts.tokenizer import default_tokenizer
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.training.data.prepare import list_pictures
from textual_inversion.training.data.training_set import TrainingPicture, TrainingSet

GOOD, HINT, PROBLEM, FATAL = "good", "hint", "problem", "fatal"
_MOST_PROMPTS = 2000  # looked at; a folder may have tens of thousands
_NAMED = 3  # files named in one sentence
_MUCH = 0.25  # share of a picture whose loss is worth a word
_FEW_PICTURES = 5


@dataclass(frozen=True)
class Finding:
    """One sentence; `kind` is `good`, `hint` (worth knowing), `problem` (worth mending) or `fatal` (it would stop or learn nothing)."""

    kind: str
    text: str


@dataclass(frozen=True)
class Preflight:
    """What a run will be.

    Attributes:
        pictures: that can be used, as far as the heads of their files show.
        skipped: (file name, reason) of the others.
        sizes: training size (width, height) -> number of pictures.
        cropped: mean share (0 to 1) of a picture that is cut away.
        longest_prompt: tokens of the longest prompt; `chunks` is how many chunks of 75 it takes.
        seconds: about how long the steps take; None where that cannot be said, as for `memory`.
        memory: bytes needed on the device, about.
        findings: all of it in sentences, the gravest first.
    """

    pictures: int = 0
    skipped: tuple[tuple[str, str], ...] = ()
    sizes: tuple[tuple[Size, int], ...] = ()
    cropped: float = 0.0
    longest_prompt: int = 0
    chunks: int = 1
    seconds: float | None = None
    memory: float | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether nothing was found that would stop the run or let it learn nothing."""
        return not any(finding.kind == FATAL for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return {**asdict(self), "ready": self.ready}


def preflight(config: TrainingConfig, num_vectors: int, checkpoint: Path | None = None, *, first_step: int = 0) -> Preflight:
    """Look at what `config` would train on.

    Args:
        num_vectors: of the embedding (1 to 75).
        checkpoint: file whose header tells what a step costs; None = time and memory are not estimated.
        first_step: the embedding's step so far.
    """
    try:
        listed = list_pictures(config)
    except DatasetError as error:
        return Preflight(findings=(Finding(FATAL, str(error)),))
    prompts = _Prompts(config, listed, num_vectors)
    cost, costs = _costs(config, listed, prompts.chunks, checkpoint, first_step)
    cropped = [cropped_share(picture.original, picture.size) for picture in listed.pictures] if not listed.options.whole else [0.0]
    findings = [*_of_pictures(config, listed, first_step), *_of_sizes(config, listed), *prompts.findings, *costs]
    order = (FATAL, PROBLEM, HINT, GOOD)
    return Preflight(
        pictures=len(listed.pictures),
        skipped=listed.skipped,
        sizes=tuple((size, len(chosen)) for size, chosen in listed.sizes().items()),
        cropped=sum(cropped) / len(cropped),
        longest_prompt=prompts.longest,
        chunks=prompts.chunks,
        seconds=cost[0] if cost else None,
        memory=cost[1] if cost else None,
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.kind))),
    )


def _of_pictures(config: TrainingConfig, listed: TrainingSet, first_step: int) -> Iterable[Finding]:
    count = len(listed.pictures)
    shown = (config.steps - first_step) * config.batch_size * config.gradient_accumulation_steps
    entries = sum(picture.repeats for picture in listed.pictures)
    if shown <= 0:
        yield Finding(FATAL, f"The embedding is at step {first_step} already; raise the steps above that (they are {config.steps}).")
    else:
        times, steps = max(1, round(shown / entries)), config.steps - first_step
        often = "once" if times == 1 else f"{times} times"
        yield Finding(GOOD, f"{_pictures(count)}, each shown about {often} in {steps} step{'s' * (steps != 1)}.")
    if count < _FEW_PICTURES:
        yield Finding(
            HINT, f"Only {_pictures(count)}: what they share, such as the background, is learned too; 5 to 20 different ones are better."
        )
    for _, reason in listed.skipped:
        yield Finding(PROBLEM, reason)
    for same in duplicates(listed.pictures):
        yield Finding(PROBLEM, f"{_listed(same)} are the same file; each copy makes that picture count more.")


def _of_sizes(config: TrainingConfig, listed: TrainingSet) -> Iterable[Finding]:
    sizes = listed.sizes()
    told = ", ".join(f"{len(chosen)} at {width} x {height}" for (width, height), chosen in sorted(sizes.items())[:12])
    yield Finding(GOOD, f"Sizes: {told}{' and more' if len(sizes) > 12 else ''}.")
    if len(sizes) > 1 and (lone := sum(len(chosen) < config.batch_size for chosen in sizes.values())):
        few = f"{lone} of {len(sizes)} sizes {'has' if lone == 1 else 'have'} fewer pictures than a batch ({config.batch_size})"
        yield Finding(HINT, f"{few}, so a batch shows some of them twice.")
    if listed.options.whole:
        return
    shares = sorted(((cropped_share(picture.original, picture.size), picture.path.name) for picture in listed.pictures), reverse=True)
    if much := [name for share, name in shares if share > _MUCH]:
        advice = "" if config.buckets else "; aspect buckets would keep more"
        yield Finding(HINT, f"{shares[0][0]:.0%} of {_listed(much)} {'is' if len(much) == 1 else 'or less'} cropped away{advice}.")
    small = sorted(((_enlarged(picture), picture.path.name) for picture in listed.pictures if _enlarged(picture) > 1), reverse=True)
    if small:
        names, verb = _listed([name for _, name in small]), "is" if len(small) == 1 else "are"
        yield Finding(HINT, f"{names} {verb} smaller than the training size and enlarged up to {small[0][0]:.1f} times; that teaches blur.")


def _enlarged(picture: TrainingPicture) -> float:
    return max(wanted / given for wanted, given in zip(picture.size, picture.original))


def duplicates(pictures: Sequence[TrainingPicture]) -> list[list[str]]:
    """Names of pictures whose files are equal, byte by byte, group by group."""
    by_length: dict[int, list[Path]] = {}
    for picture in pictures:
        by_length.setdefault(_bytes(picture.path), []).append(picture.path)
    by_hash: dict[str, list[str]] = {}
    for path in (path for length, paths in by_length.items() if length and len(paths) > 1 for path in paths):
        by_hash.setdefault(_hash(path), []).append(path.name)
    return [names for digest, names in by_hash.items() if digest and len(names) > 1]


def _bytes(path: Path) -> int:
    """The file's size; 0 where it is gone since the folder was listed, which the run will say."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _hash(path: Path) -> str:
    try:
        return file_sha256(path)
    except EmbeddingError:
        return ""


class _Prompts:
    """Every prompt that a template and the captions can make, as far as there are not too many."""

    def __init__(self, config: TrainingConfig, listed: TrainingSet, num_vectors: int) -> None:
        self.longest, self.chunks = 0, 1
        self.findings: list[Finding] = []
        name, known = f"<{config.name}>", {config.name: num_vectors}
        try:
            lines = read_template(config.template or template_folder() / DEFAULT_TEMPLATE)
            captions = list(dict.fromkeys(picture.caption for picture in listed.pictures))
            texts = list(dict.fromkeys(fill(line, name, caption) for caption in captions for line in lines))[:_MOST_PROMPTS]
            self._look(texts, known, num_vectors)
        except TextualInversionError as error:
            self.findings.append(Finding(FATAL, str(error)))
            return
        uncaptioned = sum(not caption for caption in (picture.caption for picture in listed.pictures))
        if uncaptioned and any("[filewords]" in line for line in lines):
            self.findings.append(
                Finding(HINT, f"{_pictures(uncaptioned)} without a caption; the template's [filewords] stays empty for them.")
            )

    def _look(self, texts: Sequence[str], known: dict[str, int], num_vectors: int) -> None:
        tokenizer = default_tokenizer()
        counted = [(count_tokens(text, tokenizer, known), text) for text in texts]
        (self.longest, places), text = max(counted)
        self.chunks = places // CHUNK_TOKENS
        nameless = [text for text in texts if _spliced(text, known) < num_vectors]
        if nameless:
            one = len(nameless) == 1
            told = "1 prompt does not hold the name" if one else f"{len(nameless)} prompts do not hold the name"
            self.findings.append(Finding(FATAL, f"{told}, such as {nameless[0][:80]!r}; {'it teaches' if one else 'they teach'} nothing."))
        else:
            self.findings.append(Finding(GOOD, "Every prompt holds the name."))
        if self.chunks > 1:
            shown = f"{text[:60]}…" if len(text) > 60 else text
            told = f"The longest prompt (“{shown}”) has {self.longest} tokens, so every prompt takes {self.chunks} chunks of {CHUNK_TOKENS}"
            self.findings.append(Finding(HINT, f"{told}; shorter captions train faster."))
        else:
            self.findings.append(Finding(GOOD, f"The longest prompt has {self.longest} of {CHUNK_TOKENS} tokens."))


def _spliced(text: str, known: dict[str, int]) -> int:
    return sum(len(chunk.splices) for chunk in chunk_prompt(text, default_tokenizer(), known))


def _costs(
    config: TrainingConfig, listed: TrainingSet, chunks: int, checkpoint: Path | None, first_step: int
) -> tuple[tuple[float, float] | None, list[Finding]]:
    """((seconds, bytes) or None, sentences)."""
    if checkpoint is None:
        return None, []
    from textual_inversion.diffusion.checkpoint import CheckpointFile
    from textual_inversion.diffusion.model import best_device, check_device, compute_dtype
    from textual_inversion.training.estimate import device_speed, step_cost

    device = config.device or best_device()
    try:
        check_device(device)
        dtype = compute_dtype(config.precision, device)
        largest = max(listed.sizes(), key=_area)
        cost = step_cost(CheckpointFile.open(checkpoint), largest, dtype, chunks)
        speed = device_speed(device, dtype)
    except TextualInversionError as error:
        return None, [Finding(HINT, f"Time and memory are not estimated: {error}")]
    share = Counter[Size]()
    for picture in listed.pictures:
        share[picture.size] += picture.repeats
    mean = sum(_area(size) * count for size, count in share.items()) / share.total() / _area(largest)
    passes = max(0, config.steps - first_step) * config.gradient_accumulation_steps
    seconds = passes * speed.seconds(cost, config.batch_size) * mean
    memory = cost.memory(config.batch_size)
    return (seconds, memory), _told(seconds, memory, device)


def _told(seconds: float, memory: float, device: str) -> list[Finding]:
    findings = [
        Finding(GOOD, f"The steps take about {_duration(seconds)} on {device} and {memory / 2**30:.1f} GB of its memory (rough figures).")
    ]
    if (free := free_memory(device)) is not None and free < memory:
        findings.append(
            Finding(PROBLEM, f"Only {free / 2**30:.1f} GB are free on {device}; use a smaller batch size or size, or close other programs.")
        )
    return findings


def free_memory(device: str) -> float | None:
    """Bytes that are free on a CUDA device; None elsewhere."""
    import torch

    return float(torch.cuda.mem_get_info(device)[0]) if torch.device(device).type == "cuda" else None


def _area(size: Size) -> int:
    return size[0] * size[1]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _pictures(count: int) -> str:
    return f"{count} picture{'s' * (count != 1)}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown
