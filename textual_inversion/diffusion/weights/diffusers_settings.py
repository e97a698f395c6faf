"""What the settings files of a diffusers folder say: whether the model here computes the same, and the noise schedule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from textual_inversion.diffusion.vae import SD_LATENT_SCALE, SDXL_LATENT_SCALE
from textual_inversion.errors import CheckpointError, UnsupportedCheckpointError

#: The key of the metadata under which the prediction type is handed on.
PREDICTION = "scheduler_config.json"
_TIMESTEPS = 1000
_SCALES = {False: SD_LATENT_SCALE, True: SDXL_LATENT_SCALE}  # whether it is SDXL -> what the VAE's latents are multiplied with
#: Setting -> the values that are handled, diffusers' default first. A missing setting has that default.
_UNET: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "norm_eps": (1e-5,),
    "norm_num_groups": (32,),
    "only_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_cond_proj_dim": (None,),
    "time_embedding_type": ("positional",),
}
_VAE: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "mid_block_add_attention": (True,),
    "norm_num_groups": (32,),
    "shift_factor": (None,),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
_HEAD_WIDTH, _HEADS = 64, 8  # of UNets with linear projections, and of the others
_SCHEDULERS_OF_FLOWS = "FlowMatch"


def check_unet(path: Path, config: Mapping[str, Any]) -> None:
    """Raise `UnsupportedCheckpointError` where the UNet computes in a way that is not handled."""
    _check(path, "unet", config, _UNET)
    blocks = [*_list(config.get("down_block_types")), *_list(config.get("up_block_types"))]
    if strange := [name for name in blocks if name not in _BLOCKS]:
        raise _unsupported(path, "unet", "block types", strange[0])
    widths = _list(config.get("block_out_channels", (320, 640, 1280, 1280)), 1)
    if strange := [width for width in widths if type(width) is not int]:
        raise _unsupported(path, "unet", "block_out_channels", strange[0])
    heads = config.get("num_attention_heads") or config.get("attention_head_dim", 8)
    attends = ["CrossAttn" in str(name) for name in _list(config.get("down_block_types"))] or [True] * len(widths)
    for width, count, has_attention in zip(widths, _list(heads, len(widths)), attends):
        if has_attention and count != (max(1, width // _HEAD_WIDTH) if config.get("use_linear_projection") else _HEADS):
            raise _unsupported(path, "unet", "attention_head_dim", heads)


def check_vae(path: Path, config: Mapping[str, Any], *, is_sdxl: bool) -> None:
    """Raise `UnsupportedCheckpointError` where the VAE computes in a way that is not handled."""
    _check(path, "vae", config, _VAE)
    scale = config.get("scaling_factor", _SCALES[False])
    if not isinstance(scale, (int, float)) or abs(scale - _SCALES[is_sdxl]) > 1e-4:
        raise _unsupported(path, "vae", "scaling_factor", scale)


def is_open_clip(path: Path, part: str, config: Mapping[str, Any]) -> bool:
    """Whether a text encoder is OpenCLIP's, which its activation tells; raises `UnsupportedCheckpointError` where it is neither."""
    activation = config.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise _unsupported(path, part, "hidden_act", activation)
    width, heads = config.get("hidden_size", 768), config.get("num_attention_heads", 12)
    if type(width) is not int or heads != max(1, width // _HEAD_WIDTH):
        raise _unsupported(path, part, "num_attention_heads", heads)
    return activation == "gelu"


def read_scheduler(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The noise schedule as tensors of a checkpoint, and the prediction type as metadata; both empty where nothing is said.

    Raises:
        UnsupportedCheckpointError: a schedule or a prediction type that is not handled.
        CheckpointError: damaged settings.
    """
    if not config:
        return {}, {}
    name = str(config.get("_class_name", ""))
    prediction = config.get("prediction_type", "epsilon")
    if _SCHEDULERS_OF_FLOWS in name or prediction not in ("epsilon", "v_prediction"):
        raise _unsupported(path, "scheduler", "prediction_type", name if _SCHEDULERS_OF_FLOWS in name else prediction)
    made = {"alphas_cumprod": (1 - _betas(path, config)).cumprod(0).float()}
    if config.get("rescale_betas_zero_snr"):
        made["ztsnr"] = torch.zeros(0)
    return made, {PREDICTION: str(prediction)}


def _betas(path: Path, config: Mapping[str, Any]) -> torch.Tensor:
    """The share of noise that each timestep adds, [1000] fp64."""
    steps = config.get("num_train_timesteps", _TIMESTEPS)
    if steps != _TIMESTEPS:
        raise _unsupported(path, "scheduler", "num_train_timesteps", steps)
    try:
        if config.get("trained_betas") is not None:
            betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
        else:
            betas = _curve(path, config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path.name}: its scheduler_config.json has no usable betas; download it again.", path=path) from error
    if betas.shape != (_TIMESTEPS,) or not bool(((betas > 0) & (betas < 1)).all()):
        raise CheckpointError(f"{path.name}: its scheduler_config.json has betas outside 0 to 1; download it again.", path=path)
    return betas


def _curve(path: Path, config: Mapping[str, Any]) -> torch.Tensor:
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    kind = config.get("beta_schedule", "linear")
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, _TIMESTEPS, dtype=torch.float64) ** 2
    if kind == "linear":
        return torch.linspace(start, end, _TIMESTEPS, dtype=torch.float64)
    if kind == "squaredcos_cap_v2":  # arXiv 2102.09672, eq. 17
        times = torch.arange(_TIMESTEPS + 1, dtype=torch.float64) / _TIMESTEPS
        left = torch.cos((times + 0.008) / 1.008 * torch.pi / 2) ** 2
        return (1 - left[1:] / left[:-1]).clamp(max=0.999)
    raise _unsupported(path, "scheduler", "beta_schedule", kind)


def _check(path: Path, part: str, config: Mapping[str, Any], handled: Mapping[str, tuple[Any, ...]]) -> None:
    for name, values in handled.items():
        if (value := config.get(name, values[0])) not in values:
            raise _unsupported(path, part, name, value)


def _list(value: Any, length: int = 0) -> list[Any]:
    """The items of a list, or one value as often as needed."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * length


def _unsupported(path: Path, part: str, setting: str, value: Any) -> UnsupportedCheckpointError:
    reason = f"{path.name} has a {part} with {setting} {str(value)[:60]}, which is not handled"
    return UnsupportedCheckpointError(f"{reason}; choose another checkpoint.", path=path)
