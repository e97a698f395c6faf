"""Checks a run before it starts: pictures, crops, prompts, time and memory, each in a sentence. Changes nothing and loads no model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from textual_inversion.embedding import Embedding
from textual_inversion.errors import DatasetError, EmbeddingError, TextualInversionError
from textual_inversion.files import FileStamp
from textual_inversion.formats import file_sha256
from textual_inversion.pictures.contents import list_names
from textual_inversion.pictures.geometry import Size, cropped_share
from textual_inversion.prompts.chunks import CHUNK_TOKENS, chunk_prompt, count_tokens
from textual_inversion.prompts.examples import show_prompts
from textual_inversion.prompts.names import tag_of
from textual_inversion.prompts.templates import DEFAULT_TEMPLATE, fill, has_caption_beside_name, read_template, template_folder
from textual_inversion.prompts.tokenizer import default_tokenizer
from textual_inversion.settings.training import EVALUATION_ROWS, PASSES_OF_A_STEP, TrainingConfig
from textual_inversion.text import counted
from textual_inversion.training.data.encoding import list_pictures
from textual_inversion.training.data.training_set import TrainingPicture, TrainingSet
from textual_inversion.training.remarks import USUAL_RATES, about_changing, about_crops, about_far_rate, peak_rate, remarks
from textual_inversion.training.search_plan import first_search_budget, search_budget, search_rows, search_steps, usual_cost

_MOST_PROMPTS = 2000  # checked; a folder may have tens of thousands
_FEW_PICTURES = 5


class FindingKind(str, Enum):
    """How severe a finding is, the most severe first; the values are what JSON and pages hold."""

    FATAL = "fatal"  # it would stop the run, or the run would learn nothing
    PROBLEM = "problem"  # worth fixing
    HINT = "hint"  # worth knowing
    GOOD = "good"

    def __str__(self) -> str:
        return self.value


_KINDS = list(FindingKind)
FATAL, PROBLEM, HINT, GOOD = _KINDS


@dataclass(frozen=True)
class Finding:
    """One sentence about the run."""

    kind: FindingKind
    text: str


@dataclass(frozen=True)
class Preflight:
    """What a run will be.

    Attributes:
        pictures: number of those that can be used, as far as the headers of their files show.
        skipped: (file name, reason) of the others.
        sizes: (training size (width, height), number of pictures).
        cropped: mean share (0 to 1) of a picture that is cut away.
        longest_prompt: tokens of the longest prompt.
        chunks: chunks of 75 tokens that the longest prompt takes.
        seconds: about how long the steps take; None where there is no estimate.
        memory: bytes needed on the device, about; None where there is no estimate.
        findings: all of this in sentences, the most severe first.
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
        """Whether there is no fatal finding."""
        return not any(finding.kind is FATAL for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON can hold them."""
        return {**asdict(self), "ready": self.ready}


def preflight(
    config: TrainingConfig,
    num_vectors: int,
    checkpoint: Path | None = None,
    *,
    first_step: int | None = 0,
    finds_words: bool = False,
    embedding: Embedding | None = None,
) -> Preflight:
    """Check what `config` would train on.

    Args:
        num_vectors: of the embedding (1 to 75).
        checkpoint: file whose header says what a step costs; None = time and memory are not estimated.
        first_step: the embedding's step so far; None = unknown, since it was learned elsewhere.
        finds_words: the run looks for words to start from.
        embedding: its vectors; None where they are not to be judged.
    """
    try:
        listed = list_pictures(config)
    except DatasetError as error:
        return Preflight(findings=(Finding(FATAL, str(error)),))
    config = config.with_steps(listed.shown, full_size=_is_full_size(checkpoint))
    prompts = _check_prompts(config, listed, num_vectors)
    left, done = _Left(first_step, num_vectors, finds_words), first_step or 0
    cost = _estimate(config, listed, prompts.chunks, checkpoint, left)
    cropped = [cropped_share(picture.original, picture.size) for picture in listed.pictures] if not listed.options.whole else [0.0]
    findings = [*_check_pictures(config, listed, done), *_check_rate(config, done), *_check_sizes(config, listed)]
    findings += [*prompts.findings, *cost.findings, *_check_inputs(checkpoint)]
    questions = remarks(config, prompts.beside_name, num_vectors, embedding, done)
    findings += [Finding(HINT, sentence) for sentence in questions]
    return Preflight(
        pictures=len(listed.pictures),
        skipped=listed.skipped,
        sizes=tuple((size, len(indices)) for size, indices in listed.sizes().items()),
        cropped=sum(cropped) / len(cropped),
        longest_prompt=prompts.longest,
        chunks=prompts.chunks,
        seconds=cost.seconds,
        memory=cost.memory,
        findings=tuple(sorted(findings, key=lambda finding: _KINDS.index(finding.kind))),
    )


def _is_full_size(checkpoint: Path | None) -> bool:
    """Whether it is larger than the tiny checkpoint that ships; also where that cannot be read."""
    from textual_inversion.diffusion.checkpoint import CheckpointFile
    from textual_inversion.diffusion.model import is_full_size

    try:
        return checkpoint is None or is_full_size(CheckpointFile.open(checkpoint))
    except TextualInversionError:
        return True  # the estimate says why


def _check_inputs(checkpoint: Path | None) -> Iterable[Finding]:
    """What stands for the picture that inpainting and instruct-pix2pix would see."""
    from textual_inversion.diffusion.beside import note_on_inputs
    from textual_inversion.diffusion.checkpoint import CheckpointFile

    try:
        channels = CheckpointFile.open(checkpoint).input_channels if checkpoint else 0
    except TextualInversionError:
        return  # the estimate says why
    if checkpoint and (sentence := note_on_inputs(checkpoint.name, channels)):
        yield Finding(HINT, sentence)


def _check_rate(config: TrainingConfig, first_step: int) -> Iterable[Finding]:
    """A rate that belongs to another method; `remarks` questions one that is far outside of all."""
    peak, (lowest, highest) = peak_rate(config, first_step), USUAL_RATES[config.method]
    if peak is None or lowest <= peak <= highest or about_far_rate(config, first_step):
        return
    much = "little" if peak < lowest else "much"
    yield Finding(HINT, f"A learning rate of {peak:g} is {much} for the method “{config.method}”; “auto” fits it.")


def _check_pictures(config: TrainingConfig, listed: TrainingSet, first_step: int) -> Iterable[Finding]:
    count, steps = len(listed.pictures), config.total_steps - first_step
    if steps <= 0:
        yield Finding(FATAL, f"The embedding is at step {first_step} already; raise the steps above that (they are {config.total_steps}).")
    else:
        shown = steps * config.batch_size * config.gradient_accumulation_steps
        times = max(1, round(shown / listed.shown))
        often = "once" if times == 1 else f"{times} times"
        yield Finding(GOOD, f"{counted(count, 'picture')}, each shown about {often} in {counted(steps, 'step')}.")
    if count < _FEW_PICTURES:
        advice = "what they share, such as the background, is learned too; 5 to 20 different ones are better"
        yield Finding(HINT, f"Only {counted(count, 'picture')}: {advice}.")
    for _, reason in listed.skipped:
        yield Finding(PROBLEM, reason)
    for note in listed.notes:
        yield Finding(HINT, note)
    for names in duplicates(listed.pictures):
        yield Finding(PROBLEM, f"{list_names(names)} are the same file; each copy makes that picture count more.")


def _check_sizes(config: TrainingConfig, listed: TrainingSet) -> Iterable[Finding]:
    sizes = listed.sizes()
    counts = ", ".join(f"{len(indices)} at {width} x {height}" for (width, height), indices in sorted(sizes.items())[:12])
    yield Finding(GOOD, f"Sizes: {counts}{' and more' if len(sizes) > 12 else ''}.")
    if len(sizes) > 1 and (lone := sum(len(indices) < config.batch_size for indices in sizes.values())):
        few = f"{lone} of {len(sizes)} sizes {'has' if lone == 1 else 'have'} fewer pictures than a batch ({config.batch_size})"
        yield Finding(HINT, f"{few}, so a batch shows some of them twice.")
    if listed.options.whole:
        return
    if sentence := about_crops(config, listed):
        yield Finding(HINT, sentence)
    enlarged = [(max(side / original for side, original in zip(p.size, p.original)), p.path.name) for p in listed.pictures]
    if small := sorted((entry for entry in enlarged if entry[0] > 1), reverse=True):
        names, verb = list_names([name for _, name in small]), "is" if len(small) == 1 else "are"
        yield Finding(HINT, f"{names} {verb} smaller than the training size and enlarged up to {small[0][0]:.1f} times; that teaches blur.")


def duplicates(pictures: Sequence[TrainingPicture]) -> list[list[str]]:
    """Names of pictures whose files are equal, byte by byte, group by group; files that cannot be read are passed over."""
    by_length: dict[int, list[Path]] = {}
    for picture in pictures:
        if stamp := FileStamp.of(picture.path):
            by_length.setdefault(stamp.size, []).append(picture.path)
    by_hash: dict[str, list[str]] = {}
    for path in (path for length, paths in by_length.items() if length and len(paths) > 1 for path in paths):
        by_hash.setdefault(_hash(path), []).append(path.name)
    return [names for digest, names in by_hash.items() if digest and len(names) > 1]


def _hash(path: Path) -> str:
    try:
        return file_sha256(path)
    except EmbeddingError:
        return ""  # the run reports it


@dataclass(frozen=True)
class _Prompts:
    """The prompts that a template and the captions make: tokens and chunks of the longest, and the captions beside the name."""

    longest: int
    chunks: int
    findings: Sequence[Finding]
    beside_name: Sequence[str] = ()


def _check_prompts(config: TrainingConfig, listed: TrainingSet, num_vectors: int) -> _Prompts:
    captions, tokenizer = [picture.caption for picture in listed.pictures], default_tokenizer()
    name, known = tag_of(config.name), {config.name: num_vectors}
    try:
        lines = read_template(config.template or template_folder() / DEFAULT_TEMPLATE)
        texts = list(dict.fromkeys(fill(line, name, caption) for caption in dict.fromkeys(captions) for line in lines))[:_MOST_PROMPTS]
        (longest, places), text = max((count_tokens(text, tokenizer, known), text) for text in texts)
        spliced = [sum(len(chunk.splices) for chunk in chunk_prompt(text, tokenizer, known)) for text in texts]
    except TextualInversionError as error:
        return _Prompts(0, 1, [Finding(FATAL, str(error))])
    chunks = places // CHUNK_TOKENS
    findings = [Finding(GOOD, sentence) for sentence in (_say_sources(listed.pictures), show_prompts(lines, captions, name)) if sentence]
    findings += [_check_names([text for text, count in zip(texts, spliced) if count < num_vectors])]
    if chunks > 1:
        shown = f"{text[:60]}…" if len(text) > 60 else text
        length = f"The longest prompt (“{shown}”) has {longest} tokens, so every prompt takes {chunks} chunks of {CHUNK_TOKENS}"
        findings.append(Finding(HINT, f"{length}; shorter captions train faster."))
    else:
        findings.append(Finding(GOOD, f"The longest prompt has {longest} of {CHUNK_TOKENS} tokens."))
    if changing := about_changing(texts):
        findings.append(Finding(HINT, changing))
    if captions.count("") and any("[filewords]" in line for line in lines):
        empty = counted(captions.count(""), "picture")
        findings.append(Finding(HINT, f"{empty} without a caption; the template's [filewords] stays empty for them."))
    return _Prompts(longest, chunks, findings, captions if has_caption_beside_name(lines) else ())


def _say_sources(pictures: Sequence[TrainingPicture]) -> str:
    """A sentence on where the captions come from; empty where there are none."""
    counts = Counter(picture.source for picture in pictures if picture.source)
    parts = [f"{count} from {source}" for source, count in counts.most_common()]
    return f"Captions: {', '.join(parts)}." if parts else ""


def _check_names(nameless: Sequence[str]) -> Finding:
    if not nameless:
        return Finding(GOOD, "Every prompt holds the name.")
    example = f"such as {nameless[0][:80]!r}"
    if len(nameless) == 1:
        return Finding(FATAL, f"1 prompt does not hold the name, {example}; it teaches nothing.")
    return Finding(FATAL, f"{len(nameless)} prompts do not hold the name, {example}; they teach nothing.")


@dataclass(frozen=True)
class _Cost:
    """Seconds and bytes of the whole run; None without an estimate."""

    seconds: float | None
    memory: float | None
    findings: Sequence[Finding]


@dataclass(frozen=True)
class _Left:
    """What is still to be done for an embedding: its step so far, its vectors, and whether words to start from are to be found."""

    first_step: int | None
    num_vectors: int
    finds_words: bool

    def steps(self, config: TrainingConfig) -> int:
        return max(0, config.total_steps - (self.first_step or 0))

    def extra_passes(self, config: TrainingConfig) -> float:
        """Forward passes of one picture that evaluations and the searches for words take."""
        passes = 0.0
        if every := config.evaluation_interval:
            passes += self.steps(config) / every * EVALUATION_ROWS
        searches = len(search_steps(config, self.first_step))
        passes += searches * usual_cost(self.num_vectors, search_rows(config), search_budget(config))
        if self.finds_words and self.first_step == 0:
            passes += first_search_budget(config)
        return passes


def _estimate(config: TrainingConfig, listed: TrainingSet, chunks: int, checkpoint: Path | None, left: _Left) -> _Cost:
    if checkpoint is None:
        return _Cost(None, None, [])
    from textual_inversion.diffusion.checkpoint import CheckpointFile
    from textual_inversion.diffusion.model import best_device, check_device, compute_dtype, is_full_size
    from textual_inversion.training.estimate import device_speed, free_memory, memory_cost, step_cost
    from textual_inversion.training.memory import choose

    device = config.device or best_device()
    try:
        check_device(device)
        file = CheckpointFile.open(checkpoint)
        dtype = compute_dtype(config.precision, device, large=is_full_size(file))
        largest = max(listed.sizes(), key=_area)
        free, wish = free_memory(device), config.gradient_checkpointing
        cost = step_cost(file, largest, dtype, chunks, checkpointing=wish == "on")
        plan = choose(
            lambda again: cost.memory if again == (wish == "on") else memory_cost(file, largest, dtype, chunks, checkpointing=again),
            config.batch_size,
            math.inf if free is None else free,
            wish,
            most_parts=1024 // config.gradient_accumulation_steps,
        )
        speed = device_speed(device, dtype)
        if plan.checkpointing != (wish == "on"):
            cost = step_cost(file, largest, dtype, chunks, checkpointing=plan.checkpointing)
    except TextualInversionError as error:
        return _Cost(None, None, [Finding(HINT, f"Time and memory are not estimated: {error}")])
    share = Counter[Size]()
    for picture in listed.pictures:
        share[picture.size] += picture.repeats
    mean = sum(_area(size) * count for size, count in share.items()) / share.total() / _area(largest)
    passes = left.steps(config) * config.gradient_accumulation_steps
    extra = left.extra_passes(config) / (config.batch_size * PASSES_OF_A_STEP)  # in training passes
    seconds = (passes + extra) * speed.seconds(cost, config.batch_size) * mean
    unet_stays = free is None or cost.memory.encoding_peak() <= free
    memory = max(plan.needed, cost.memory.encoding_peak(unet_stays=unet_stays))
    figures = f"{_duration(seconds)} on {device} and {memory / 2**30:.1f} GB of its memory"
    findings = [Finding(GOOD, f"The run takes about {figures} (rough figures).")]
    if free is not None and plan.needed <= free and (sentence := plan.sentence(free, config.batch_size)):
        findings.append(Finding(HINT, sentence))
    if free is not None and free < memory:
        advice = "use a smaller batch size or size, or close other programs"
        findings.append(Finding(PROBLEM, f"Only {free / 2**30:.1f} GB are free on {device}; {advice}."))
    return _Cost(seconds, memory, findings)


def _area(size: Size) -> int:
    return size[0] * size[1]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
