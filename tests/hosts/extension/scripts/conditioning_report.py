"""An extension for tests: tells what the host made of the prompts of the last generation, and what its token counter counts.

Only the host's own hooks are used, so that nothing of it is touched.
"""

from __future__ import annotations

import hashlib
from typing import Any

from modules import script_callbacks, scripts

FIELDS = ("all_prompts", "all_negative_prompts", "all_hr_prompts", "all_hr_negative_prompts")
CONDITIONINGS = ("c", "uc", "hr_c", "hr_uc")
_last: dict[str, Any] = {}


def digest(conditioning: Any) -> str:
    """Of every tensor in a conditioning, with the steps and weights it is for."""
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if hasattr(value, "detach"):
            sha.update(f"{tuple(value.shape)} {value.dtype}".encode() + value.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value):
                sha.update(key.encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            sha.update(f"{len(value)}".encode())
            for item in value:
                add(item)
        elif hasattr(value, "schedules"):
            sha.update(f"weight {value.weight}".encode())
            add(value.schedules)
        elif hasattr(value, "batch"):
            add(value.batch)
        else:
            sha.update(repr(value).encode())

    add(conditioning)
    return sha.hexdigest()


class ConditioningReport(scripts.Script):
    """Writes down what was drawn with."""

    create_group = False

    def title(self) -> str:
        return "Conditioning report"

    def show(self, is_img2img: bool) -> object:
        return scripts.AlwaysVisible

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        conditionings = {name: getattr(p, name, None) for name in CONDITIONINGS}
        _last.clear()
        _last["prompts"] = {name: getattr(p, name, None) for name in FIELDS}
        _last["conditionings"] = {name: digest(value) for name, value in conditionings.items() if value is not None}
        _last["grid"] = [p.main_prompt, p.main_negative_prompt]


class LateWildcards(scripts.Script):
    """Puts text in for `__late__` just before a batch, as some extensions do."""

    create_group = False

    def title(self) -> str:
        return "AAA late wildcards"

    def show(self, is_img2img: bool) -> object:
        return scripts.AlwaysVisible

    def before_process_batch(self, p: Any, *args: Any, prompts: list[str], **kwargs: Any) -> None:
        for texts in (prompts, p.negative_prompts, getattr(p, "all_hr_prompts", None), getattr(p, "all_hr_negative_prompts", None)):
            if texts:
                texts[:] = [text.replace("__late__", "<cat:1.2>") for text in texts]


def add_routes(demo: Any, app: Any) -> None:
    """`/test/last` tells of the last generation, `/test/count` asks the host's token counter."""

    def count(text: str, positive: bool = True) -> str:
        from modules.ui import update_token_counter

        return update_token_counter(text, 20, [], is_positive=positive)

    app.add_api_route("/test/last", lambda: _last, methods=["GET"])
    app.add_api_route("/test/count", count, methods=["GET"])


script_callbacks.on_app_started(add_routes)
