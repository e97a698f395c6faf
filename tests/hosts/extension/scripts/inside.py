"""An extension for tests: what the host has of this extension at the moment, and what the host's own model computes."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from modules import script_callbacks, scripts, sd_models, sd_vae, shared, timer, ui_extra_networks
from modules.sd_hijack import model_hijack

SCRIPT = "textual_inversion_tab.py"
_seconds: dict[str, float] = {}


def ours(filename: str) -> bool:
    return os.path.basename(filename) == SCRIPT or f"{os.sep}textual_inversion{os.sep}hosts{os.sep}" in filename


def inside() -> dict[str, Any]:
    """Everything that there must be one of, and the tables as other extensions see them."""
    table = next(iter(tables().values()))
    classes = list(dict.fromkeys(type(one) for one in tables().values()))
    methods = [method for cls in classes for method in (cls.load_from_file, cls.load_textual_inversion_embeddings)]
    model = sd_models.model_data.sd_model
    return {
        "callbacks": {kind: sum(ours(item.script) for item in found) for kind, found in script_callbacks.enumerate_callbacks()},
        "scripts": sum(ours(data.path) for data in scripts.scripts_data),
        "methods": [f"{method.__module__}.{method.__qualname__}" for method in methods],
        "pages": [[page.name, type(page).__name__] for page in ui_extra_networks.extra_pages],
        "loaded": {name: [item.vectors, item.shape, item.filename] for name, item in table.word_embeddings.items()},
        "skipped": {name: [item.shape, getattr(item, "reason", None)] for name, item in table.skipped_embeddings.items()},
        "tables": {place: sorted(one.word_embeddings) for place, one in tables().items()},
        "vae": sd_vae.loaded_vae_file,
        "lowvram": bool(getattr(model, "lowvram", False)),
        "option": getattr(shared.opts, "textual_inversion_own_reader", None),
    }


def tables() -> dict[str, Any]:
    """The host's tables, the one that prompts are read by first: Forge has one for each text encoder of the model, and one for cards."""
    if hasattr(model_hijack, "embedding_db"):
        return {"hijack": model_hijack.embedding_db}
    from modules import ui_extra_networks_textual_inversion as cards

    model = sd_models.model_data.sd_model
    names = ("text_processing_engine", "text_processing_engine_l", "text_processing_engine_g")
    engines = {name: getattr(model, name).embeddings for name in names if hasattr(model, name)}
    return {**engines, "cards": cards.embedding_db}


def model(prompts: str, seed: int = 0) -> dict[str, Any]:
    """The host's conditioning and noise prediction for `prompts`, one a line; as its emphasis looks at all texts of a call, one by one."""
    texts = prompts.split("\n")
    latents = torch.randn(len(texts), 4, 16, 16, generator=torch.Generator().manual_seed(seed))  # b c h w
    timesteps = torch.linspace(50, 950, len(texts)).long()
    with torch.inference_mode(hasattr(shared.sd_model, "forge_objects")), torch.no_grad():
        encode, predict = parts_of_model()
        parts_of = [encode([text]) for text in texts]  # 1 (77 chunks) d
        empty = encode([""])
        chunks = max(part.shape[1] for part in parts_of) // 77
        cond = torch.cat([torch.cat([part] + [empty] * (chunks - part.shape[1] // 77), 1) for part in parts_of])
        noise = predict(latents, timesteps, cond)
    cond, encoded_in = cond.float(), str(cond.dtype)
    told = {"conditioning": cond, "latents": latents, "timesteps": timesteps, "noise": noise}
    return {"encoded in": encoded_in, **{name: value.tolist() for name, value in told.items()}}


def sdxl_model(prompts: str, seed: int = 0) -> dict[str, Any]:
    """The same of an SDXL model, for pictures of 128 x 128 pixels; `vector` is the pooled vector with the sizes."""
    from modules import prompt_parser

    texts = prompts.split("\n")
    latents = torch.randn(len(texts), 4, 16, 16, generator=torch.Generator().manual_seed(seed))  # b c h w
    timesteps = torch.linspace(50, 950, len(texts)).long()
    with torch.no_grad():
        parts = [shared.sd_model.get_learned_conditioning(prompt_parser.SdConditioning([text], width=128, height=128)) for text in texts]
        cond = {key: torch.cat([part[key] for part in parts]) for key in ("crossattn", "vector")}
        noise = shared.sd_model.apply_model(latents, timesteps, cond)
    told = {"conditioning": cond["crossattn"], "vector": cond["vector"], "latents": latents, "timesteps": timesteps, "noise": noise}
    return {name: value.float().tolist() for name, value in told.items()}


def parts_of_model() -> tuple[Any, Any]:
    """The loaded model's text encoder and noise prediction, at one time each on its device."""
    loaded = shared.sd_model
    objects = getattr(loaded, "forge_objects", None)
    if objects is None:
        return loaded.cond_stage_model, loaded.apply_model

    def predict(latents: Any, timesteps: Any, cond: Any) -> Any:
        unet = objects.unet
        _load(unet)
        dtype = next(unet.model.diffusion_model.parameters()).dtype
        return unet.model.diffusion_model(latents.to(dtype), timesteps, context=cond.to(dtype)).float()

    if hasattr(loaded, "text_processing_engine"):
        return loaded.get_learned_conditioning, predict
    _load(objects.clip.patcher)
    return loaded.cond_stage_model, predict


def _load(patcher: Any) -> None:
    try:
        from backend import memory_management as management
    except ImportError:
        from ldm_patched.modules import model_management as management
    management.load_models_gpu([patcher])


class Card:
    """A device that the adapter takes for a card; training and the host go on where they were."""

    type = "cuda"

    def __str__(self) -> str:
        return "cpu"


class PretendedCard:
    """Forge's or reForge's memory management as its adapter sees it, on a machine without a card; tells what unloading has unloaded."""

    def __init__(self, management: Any) -> None:
        self.management = management
        self.unloaded: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.management, name)

    def get_torch_device(self) -> Card:
        return Card()

    def unload_all_models(self) -> None:
        before = len(self.management.current_loaded_models)
        self.management.unload_all_models()
        self.unloaded.append(before - len(self.management.current_loaded_models))


def pretend_card(on: bool) -> list[int]:
    """Switch it; how many models each unloading since has taken out of the host's list."""
    from textual_inversion.hosts.webui import current_host

    names = vars(sys.modules[type(current_host()).__module__])
    name = "memory_management" if "memory_management" in names else "model_management"
    found = names[name]
    if on:
        names[name] = PretendedCard(found)
        return []
    names[name] = found.management
    return list(found.unloaded)


def timed(name: str, call: Any) -> Any:
    def timed_call(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            _seconds[name] = _seconds.get(name, 0.0) + time.perf_counter() - begun

    return timed_call


def time_callbacks() -> None:
    """From here on, tell how long this extension's callbacks take; its script was loaded before this one."""
    for kind, found in script_callbacks.enumerate_callbacks():
        for item in found:
            if ours(item.script):
                item.callback = timed(kind, item.callback)


def add_routes(demo: Any, app: Any) -> None:
    def seconds() -> dict[str, Any]:
        records = timer.startup_record["records"]
        return {"callbacks": _seconds, "script": sum(value for name, value in records.items() if name.endswith(SCRIPT)), "host": records}

    def suggested() -> dict[str, Any]:
        from textual_inversion.hosts.webui import current_host

        return dict(current_host().suggestions().training)

    def reload() -> None:
        """What the button Reload UI calls; but now and then a host, also one without extensions, waits forever for its last connections."""
        shared.demo.server.force_exit = True
        shared.state.request_restart()

    routes = {
        "inside": inside,
        "model": model,
        "sdxl": sdxl_model,
        "seconds": seconds,
        "suggested": suggested,
        "reload": reload,
        "card": pretend_card,
    }
    for path, answer in routes.items():
        app.add_api_route(f"/test/{path}", answer, methods=["GET"])


if os.environ.get("TEST_TIME_CALLBACKS"):
    time_callbacks()
script_callbacks.on_app_started(add_routes)
