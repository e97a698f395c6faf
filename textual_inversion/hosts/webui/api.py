"""The addresses under `/textual-inversion/v1/`: create, train, follow and interrupt, list, inspect.

They are open where the WebUI's own API is open, and behind the same password: each gets the guards of the WebUI's own addresses.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException, Query

from textual_inversion.app.actions import Actions, new_embedding
from textual_inversion.app.job import JobKind, JobRunningError, user_message
from textual_inversion.errors import ConfigError, NameTakenError, TextualInversionError
from textual_inversion.hosts.webui.api_models import (
    CreateAnswer,
    CreateRequest,
    EmbeddingAnswer,
    InspectAnswer,
    InterruptAnswer,
    InterruptRequest,
    StateAnswer,
    TrainAnswer,
    TrainRequest,
    embedding_answer,
    inspect_answer,
    values_of,
)
from textual_inversion.hosts.webui.tables import path_below

if TYPE_CHECKING:
    from textual_inversion.app.engine import Engine
    from textual_inversion.library import Entry

PREFIX = "/textual-inversion/v1"
_log = logging.getLogger(__name__)


def add_api(app: Any, engine: Engine) -> bool:
    """Add the addresses to a WebUI's app that has an API of its own; calling it again replaces them.

    Returns:
        Whether they were added: False without `--api`.
    """
    from modules import shared

    guards = _guards(app)
    if guards is None:
        return False
    if getattr(shared.cmd_opts, "api_auth", None) and not guards:
        _log.error("The addresses under %s are left out, as the WebUI's own have no password although --api-auth asks for one.", PREFIX)
        return False
    routes = app.router.routes
    routes[:] = [route for route in routes if not getattr(route, "path", "").startswith(f"{PREFIX}/")]
    for route in _routes(_Api(engine)):
        app.add_api_route(**route, tags=["textual inversion"], dependencies=guards)
    app.openapi_schema = None  # a description made before these were there
    return True


def _guards(app: Any) -> list[Any] | None:
    """What guards the WebUI's own API; None where it has none."""
    for route in app.router.routes:
        if getattr(route, "path", "").startswith("/sdapi/v1/"):
            return list(getattr(route, "dependencies", []))
    return None


def _routes(api: _Api) -> Iterator[dict[str, Any]]:
    """The arguments of `add_api_route` for each address."""
    for method, path, endpoint, answer in (
        ("POST", "/create", api.create, CreateAnswer),
        ("POST", "/train", api.train, TrainAnswer),
        ("GET", "/state", api.state, StateAnswer),
        ("POST", "/interrupt", api.interrupt, InterruptAnswer),
        ("GET", "/embeddings", api.embeddings, list[EmbeddingAnswer]),
        ("GET", "/inspect", api.inspect, InspectAnswer),
    ):
        summary = (endpoint.__doc__ or "").strip().partition("\n")[0].rstrip(".")
        yield {"path": PREFIX + path, "endpoint": endpoint, "methods": [method], "response_model": answer, "summary": summary}


class _Api:
    """The endpoints; their docstrings are what the WebUI's `/docs` shows."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._actions = Actions(engine)

    def create(self, body: CreateRequest) -> Any:  # type: ignore[valid-type]  # made of NewEmbedding's fields
        """Make a new embedding.

        409 when the name is taken and `overwrite` is false, or while that embedding is being trained.
        """
        with _errors_as_answers():
            new = new_embedding(values_of(body))
            if self._engine.job.about(JobKind.TRAIN, new.name):
                raise JobRunningError(f"{new.name!r} is being trained; interrupt that first, or choose another name.")
            path = self._engine.create(new)
            entry = self._engine.library().find(new.name)
        return {"name": new.name, "file": path.name, "num_vectors": entry.description.num_vectors if entry else 0}

    def train(self, body: TrainRequest) -> Any:  # type: ignore[valid-type]  # made of TrainingConfig's fields
        """Start training an embedding that exists.

        Answers at once with the job's id, which `/state` and `/interrupt` take; with `wait`, when the job is over. What goes wrong
        once it runs is told by the state: `failed` and `reason`. 409 while another job runs, 404 when there is no such embedding.
        """
        values = values_of(body)
        wait = values.pop("wait")
        with _errors_as_answers():
            values["log_dir"] = self._log_folder(values["log_dir"])
            config = self._actions.settings(values)  # a wrong setting is told before a missing embedding
        if self._actions.card(config.name) is None:
            raise HTTPException(404, f"There is no embedding {config.name!r}; create it first.")
        outcome = self._actions.start(config)
        if outcome.failed:
            raise HTTPException(409 if self._engine.job.running else 400, outcome.text)
        job = self._engine.job.id
        if wait:
            self._engine.job.wait()
        return {"job": job, "state": self._snapshot(points=False)}

    def state(
        self,
        job: str = Query("", description="Id of the job that is meant; empty = the last one."),
        points: bool = Query(False, description="Whether to tell the loss curve too."),
    ) -> Any:
        """Tell how the last job stands.

        404 when `job` is not the last one: only that is remembered.
        """
        state = self._snapshot(points)
        if job and job != state["job"]:
            raise HTTPException(404, f"The job {job!r} is not known; the last one is {state['job'] or 'none'}.")
        return state

    def interrupt(self, body: InterruptRequest) -> Any:
        """Ask the running job to stop after its step; what it has learned is kept.

        409 when `job` is given and another one is running.
        """
        running = self._engine.job.id
        if body.job and body.job != running:
            raise HTTPException(409, f"The job {body.job!r} is not the last one, which is {running or 'none'}.")
        return {"interrupted": self._engine.job.interrupt()}

    def embeddings(self) -> Any:
        """List every embedding file, also those that do not fit the checkpoint, with the reason."""
        with _errors_as_answers():
            library = self._engine.library()
            return [embedding_answer(entry, library.folders) for entry in library.rescan()]

    def inspect(self, name: str = Query(..., description="A name, or a file as `/embeddings` lists it.")) -> Any:
        """Tell everything that a file says about itself.

        404 when it is not in the embeddings folders; no other file is looked at.
        """
        with _errors_as_answers():
            library = self._engine.library()
            entry = _named(name, library.rescan(), library.folders) or library.find(name)
            if entry is None:
                raise HTTPException(404, f"There is no embedding {name!r} in the embeddings folders.")
            return inspect_answer(entry, library.folders, library.sha256(entry) if entry.info else "")

    def _snapshot(self, points: bool) -> dict[str, Any]:
        state = self._engine.job.snapshot()
        if not points:
            state["points"] = []
        return state

    def _log_folder(self, given: str) -> str:
        """Where the run writes its log: below the outputs folder only, as an address must not write wherever a caller likes."""
        outputs = self._engine.host.folders().outputs.resolve()
        folder = (outputs / (given or "training")).resolve()
        if not folder.is_relative_to(outputs):
            raise ConfigError(f"The log folder {given!r} is not in {outputs.name}; give a folder below that.", setting="log_dir")
        return str(folder)


def _named(name: str, entries: Sequence[Entry], folders: Sequence[Path]) -> Entry | None:
    """The entry whose file `name` is, as the list shows it. The path is only compared, never opened."""
    wanted = PurePath(name)
    for entry in entries:
        if entry.path == wanted or any(folder / wanted == entry.path for folder in folders) or path_below(entry.path, folders) == name:
            return entry
    return None


@contextmanager
def _errors_as_answers() -> Iterator[None]:
    """Turn an error raised inside into an answer of one sentence; an error that nobody foresaw is left to the WebUI."""
    try:
        yield
    except (JobRunningError, NameTakenError) as error:
        raise HTTPException(409, str(error)) from error
    except (TextualInversionError, OSError) as error:
        raise HTTPException(400, user_message(error)) from error
