"""What the API's addresses take and answer, described for the WebUI's `/docs`. Works with pydantic 1 and 2; knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic
from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr, create_model

from textual_inversion.app.job import JobKind
from textual_inversion.files import short_hash
from textual_inversion.hosts.webui.tables import path_below
from textual_inversion.settings.creation import NewEmbedding
from textual_inversion.settings.schema import Settings, settings_of
from textual_inversion.settings.training import TrainingConfig
from textual_inversion.text import legible

if TYPE_CHECKING:
    from textual_inversion.library import Entry

_STRICT: dict[type, tuple[Any, ...]] = {str: (StrictStr,), int: (StrictInt,), float: (StrictInt, StrictFloat), bool: (StrictBool,)}
#: Descriptions that differ from the setting's own help, because an address uses the setting in another way.
_OTHER_WORDS = {
    "images": "Folder of training pictures on the WebUI's machine; `.txt` files beside them are their captions.",
    "template": "Name of a file in the WebUI's folder of templates; empty = `subject_filewords.txt`.",
    "log_dir": "Folder below the WebUI's `textual_inversion` folder for copies, previews and the loss table; empty = `training`.",
}


#: Names of the WebUI's own addresses for embeddings -> ours; empty where there is no such setting.
_THEIR_NAMES = {
    "init_text": "initializer_text",
    "num_vectors_per_token": "num_vectors",
    "overwrite_old": "overwrite",
    "id_task": "",
    "embedding_name": "name",
    "learn_rate": "learning_rate",
    "gradient_step": "gradient_accumulation_steps",
    "data_root": "images",
    "log_directory": "log_dir",
    "training_width": "width",
    "training_height": "height",
    "varsize": "no_resize",
    "clip_grad_mode": "clip_mode",
    "clip_grad_value": "clip_schedule",
    "tag_drop_out": "tag_dropout",
    "latent_sampling_method": "latent_sampling",
    "use_weight": "alpha_weight",
    "create_image_every": "preview_every",
    "save_embedding_every": "copy_every",
    "template_filename": "template",
    "save_image_with_stored_embedding": "",
    "preview_from_txt2img": "",
    "preview_sampler_name": "preview_sampler",
}


def _refuse_their_names(values: Any) -> Any:
    """Refuse the setting names of the WebUI's own addresses, and give our name for each; otherwise the setting would be ignored.

    Raises:
        ValueError: there is such a name; pydantic turns the error into the answer.
    """
    theirs = [name for name in values if name in _THEIR_NAMES] if isinstance(values, dict) else []
    if theirs:
        told = (f"{name} is called {ours} here" if (ours := _THEIR_NAMES[name]) else f"{name} is no setting here" for name in theirs)
        raise ValueError(f"{', '.join(told)}; /docs describes every setting.")
    return values


class _Strict(BaseModel):
    """A request; a field that is not known is an error, since it is mostly a slip of the pen."""

    if hasattr(BaseModel, "model_validate"):  # pydantic 2
        model_config = {"extra": "forbid"}
        _names = pydantic.model_validator(mode="before")(_refuse_their_names)
    else:

        @pydantic.root_validator(pre=True, allow_reuse=True)
        def _names(cls, values: dict[str, Any]) -> dict[str, Any]:
            return dict(_refuse_their_names(values))

        class Config:
            extra = "forbid"


def _strict_types(kind: type, word: str) -> Sequence[Any]:
    """The types of a request's field for one type of a setting; beside a number only the setting's word is no mistake."""
    return (Literal[word],) if kind is str and word else _STRICT[kind]


def request_fields(settings: type[Settings], other_words: Mapping[str, str] = {}) -> dict[str, Any]:
    """The fields of a request that takes these settings, for `create_model`; types are strict, so that text is not taken for a number."""
    return {
        each.name: (
            reduce(or_, (strict for kind in each.types for strict in _strict_types(kind, each.word))),
            Field(... if each.required else each.default, description=other_words.get(each.name) or f"{each.described}."),
        )
        for each in settings_of(settings)
    }


_WAIT = Field(False, description="Whether to answer when the job is over rather than at once.")
TrainRequest = create_model(
    "TrainRequest",
    __base__=_Strict,
    __module__=__name__,
    **request_fields(TrainingConfig, _OTHER_WORDS),
    wait=(StrictBool, _WAIT),
)
TrainRequest.__doc__ = "All settings of one training run."


CreateRequest = create_model("CreateRequest", __base__=_Strict, __module__=__name__, **request_fields(NewEmbedding))
CreateRequest.__doc__ = "A new embedding."


class CreateAnswer(BaseModel):
    """What was made."""

    name: str = Field(..., description="The word for prompts.")
    file: str = Field(..., description="Name of the file in the embeddings folder.")
    num_vectors: int = Field(..., description="Places that it takes in a prompt.")


class InterruptRequest(_Strict):
    """Which job to stop."""

    job: StrictStr = Field("", description="Id of the job that is meant; empty = whichever runs.")


class InterruptAnswer(BaseModel):
    """Whether there was one."""

    interrupted: bool = Field(..., description="Whether a job was running and will stop.")


class PreviewAnswer(BaseModel):
    """A preview picture that a job has drawn."""

    step: int
    file: str
    prompt: str
    seed: int
    row: int = Field(0, description="Number of its prompt among those of the previews, from 0.")


class CopyAnswer(BaseModel):
    """A numbered copy that a job has saved."""

    step: int
    file: str


class VerdictAnswer(BaseModel):
    """What the measurements of a run mean."""

    step: int = Field(..., description="When it was measured.")
    level: str = Field(..., description="`good`, `fair` or `bad`.")
    text: str = Field(..., description="One sentence.")
    words: dict[str, list[str]] = Field({}, description="Text encoder -> the nearest word of each vector.")
    norms: dict[str, list[float | None]] = Field({}, description="Text encoder -> the norm of each vector.")
    range: dict[str, list[float]] = Field({}, description="Text encoder -> norms of the checkpoint's words: 5 %, median, 95 %.")


class StateAnswer(BaseModel):
    """How the last job stands."""

    job: str = Field(..., description="Its id; empty when there was none since the WebUI's start.")
    kind: str = Field(..., description=", ".join(f"`{kind.value}`" for kind in JobKind) + ".")
    name: str = Field(..., description="What it is about, such as the embedding's name.")
    phase: str = Field(..., description="`idle`, `starting`, `working`, `stopping`, `finished`, `interrupted` or `failed`.")
    step: int = Field(..., description="The embedding's step now.")
    first_step: int = Field(..., description="Its step when the job began.")
    last_step: int = Field(..., description="Where the job ends.")
    loss: float | None = Field(None, description="Of the last step.")
    smooth: float | None = Field(None, description="Running mean of the loss.")
    learning_rate: float | None = Field(None, description="Of the last step.")
    vector_norm: float | None = Field(None, description="Mean length of the vectors.")
    steps_per_second: float | None = Field(None, description="Lately.")
    seconds: float | None = Field(None, description="Since the job began, or that it took.")
    seconds_left: float | None = Field(None, description="An estimate.")
    failed: bool = Field(..., description="Whether it ended with an error.")
    reason: str = Field(..., description="Why it ended before its last step, in one sentence.")
    file: str = Field(..., description="Name of the embedding's file, once it is written.")
    used_step: int | None = Field(None, description="The step whose vectors the embedding holds since the job; null = those of its end.")
    messages: list[str] = Field(..., description="What the user should know, such as pictures that were left out.")
    remarks: list[str] = Field([], description="Those of the messages that should not be missed.")
    previews: list[PreviewAnswer] = Field(..., description="Pictures in the log folder, oldest first.")
    copies: list[CopyAnswer] = Field(..., description="Embeddings in the log folder, oldest first.")
    verdict: VerdictAnswer | None = Field(None, description="How well the word has been learned until now.")
    evaluations: list[list[float | None]] = Field([], description="Step and error on pictures, prompts and noise that stay the same.")
    busy_with: str = Field("", description="What takes time now other than steps, such as the drawing of a preview.")
    points: list[list[float | None]] = Field(
        [], description="Of the loss curve, at most 400: step, loss, running mean, learning rate, length of the vectors."
    )


class TrainAnswer(BaseModel):
    """The job that was started."""

    job: str = Field(..., description="Its id.")
    state: StateAnswer = Field(..., description="How it stands; with `wait`, at its end.")


class EmbeddingAnswer(BaseModel):
    """An embedding file."""

    name: str = Field(..., description="The word for prompts.")
    file: str = Field(..., description="Its path below the embeddings folder.")
    usable: bool = Field(..., description="Whether prompts can use it with the chosen checkpoint.")
    reason: str = Field(..., description="Why not, in one sentence.")
    num_vectors: int = Field(0, description="Places that it takes in a prompt; 0 for what cannot be read.")
    family: str = Field("", description="`SD1`, `SD2`, `SDXL` or an unusual width.")
    step: int | None = Field(None, description="Steps trained so far, where the file tells.")
    checkpoint: str | None = Field(None, description="What it was trained on, where the file tells.")
    negative: str = Field("", description="The embedding that belongs into the negative prompt with it.")
    verdict: str = Field("", description="How well its last training run went, in one sentence; empty where that is not known.")
    verdict_level: str = Field("", description="`good`, `fair` or `bad`; empty without a verdict.")


class InspectAnswer(EmbeddingAnswer):
    """Everything about an embedding file."""

    layout: str = Field("", description="How the file is laid out.")
    dtype: str = Field("", description="How the vectors are stored.")
    widths: dict[str, int] = Field({}, description="Text encoder -> width of its vectors.")
    counts: dict[str, int] = Field({}, description="Text encoder -> number of its vectors.")
    stored_name: str | None = Field(None, description="The name inside the file, which does not count.")
    checkpoint_hash: str | None = Field(None, description="First 10 digits of its sha256.")
    initializer_text: str | None = Field(None, description="The words that the vectors started from.")
    size: int = Field(0, description="Bytes.")
    sha256: str = Field("", description="Of the file.")
    hash: str = Field("", description="As in the WebUI's `TI hashes`.")
    notes: str = Field("", description="Text of the files beside it.")


def values_of(request: BaseModel) -> dict[str, Any]:
    """A request's fields, as either pydantic gives them."""
    dump = getattr(request, "model_dump", None) or request.dict
    return dict(dump())


def embedding_answer(entry: Entry, folders: Sequence[Path]) -> dict[str, Any]:
    """An entry as the list shows it."""
    shown = {"name": entry.name, "file": path_below(entry.path, folders), "usable": entry.usable, "reason": entry.reason}
    run = entry.last_run
    judged = {"verdict": run.verdict, "verdict_level": run.level}
    return _legible({**shown, **entry.description.summary(), "negative": entry.negative, **judged})


def inspect_answer(entry: Entry, folders: Sequence[Path], sha256: str) -> dict[str, Any]:
    """An entry with all that is known of it."""
    of_file = {"size": entry.info.size if entry.info else 0, "sha256": sha256, "hash": short_hash(sha256), "notes": entry.notes}
    return _legible({**embedding_answer(entry, folders), **entry.description.to_dict(), **of_file})


def _legible(shown: dict[str, Any]) -> dict[str, Any]:
    """With texts that JSON can carry, whatever a file or its name holds."""
    return {key: legible(value) if isinstance(value, str) else value for key, value in shown.items()}
