"""Captions by a BLIP model, through transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from textual_inversion.errors import ConfigError
from textual_inversion.files import read_regular
from textual_inversion.preprocess.download import Progress, download, downloaded, models_folder

_LONGEST = 48  # tokens, as A1111
_SHORTEST = 5
_BEAMS = 3
# Mean and deviation of CLIP's pictures, with which BLIP was trained; a model folder may have others.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class Blip:
    """Describes a picture in a sentence. Safe from one thread at a time.

    Args:
        folder: a transformers model folder: config.json, model.safetensors, and its tokenizer.
        device: torch device; on a CUDA device it runs in half precision.

    Raises:
        ConfigError: it is no such folder.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from transformers import AutoTokenizer, BlipForConditionalGeneration

        try:
            file = folder / "preprocessor_config.json"
            contents = json.loads(read_regular(file).decode("utf-8")) if file.exists() else None
            options: dict[str, Any] = contents if isinstance(contents, dict) else {}
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = BlipForConditionalGeneration.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"No BLIP model can be read from {folder} ({reason}); it needs config.json, model.safetensors and a tokenizer.",
                path=folder,
                setting="blip_model",
            ) from error
        half = torch.device(device).type == "cuda"
        self._device, self._type = device, torch.float16 if half else torch.float32
        self._model: Any = model.to(device=device, dtype=self._type).eval()
        self._side = int(self._model.config.vision_config.image_size)
        self._mean, self._std = (np.array(options.get(name, usual)) for name, usual in (("image_mean", _MEAN), ("image_std", _STD)))

    def __call__(self, image: Image.Image, /) -> str:
        """A sentence of at most 48 tokens about an RGB picture."""
        pixels = self._pixels(image).to(device=self._device, dtype=self._type)
        with torch.no_grad():
            tokens = self._model.generate(pixel_values=pixels, num_beams=_BEAMS, min_length=_SHORTEST, max_length=_LONGEST)
        return str(self._tokenizer.decode(tokens[0], skip_special_tokens=True)).strip()

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        """fp32 [1, 3, side, side]; the whole picture, stretched, as the model was trained."""
        square = image.convert("RGB").resize((self._side, self._side), Image.Resampling.BICUBIC)
        values = (np.asarray(square, dtype=np.float64) / 255 - self._mean) / self._std  # h w 3
        return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None]


def load_blip(
    model: str,
    *,
    device: str = "cpu",
    may_download: bool = False,
    progress: Progress | None = None,
    models: Path | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Blip:
    """Load a BLIP model from its folder or by its name on the Hugging Face hub.

    Args:
        model: a folder, or a name such as `Salesforce/blip-image-captioning-base`.
        may_download: bring it from the hub when it is not on this machine (about 1 GB); nothing is downloaded without this.
        progress: called with (bytes done, bytes in all, file name) during the download.
        models: folder of downloaded models; None = the one in the user's cache folder.
        should_stop: asked during the download.

    Raises:
        ConfigError: it is not here and may not be downloaded, or cannot be read or downloaded.
    """
    folder = find_blip(model, models)
    if folder is None:
        if not may_download:
            sentence = f"The caption model {model} is not on this machine; allow its download (about 1 GB), or give its folder."
            raise ConfigError(sentence, setting="blip_model")
        folder = download(model, models or models_folder(), progress, should_stop)
    return Blip(folder, device)


def find_blip(model: str, models: Path | None = None) -> Path | None:
    """The folder of a model on this machine: named itself, downloaded before, or in the Hugging Face cache; None when it is not here."""
    if not model.strip():
        raise ConfigError("No caption model is given; name a folder or a model on the Hugging Face hub.", setting="blip_model")
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    return downloaded(model, models or models_folder()) or _in_hub_cache(model)


def _in_hub_cache(model: str) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model, local_files_only=True))
    except (OSError, ValueError):
        return None
    return folder if (folder / "model.safetensors").is_file() else None
