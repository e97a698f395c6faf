"""The optimizer's state as a file beside the embedding, in A1111's layout, so that each trainer can resume the other's run.

The layout: `torch.save({"hash": …, "optimizer_state_dict": …})` with the state
dict of `torch.optim.AdamW` over one tensor; the hash tells whether the state belongs to the present vectors.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from textual_inversion.errors import EmbeddingError
from textual_inversion.formats import StoredTensor, is_torch_file, open_file, read_torch_file, write_atomic
from textual_inversion.training.optimizer import Optimizer

_NAMES = {"step": "steps", "exp_avg": "mean", "exp_avg_sq": "square"}


def optimizer_file(embedding: Path) -> Path:
    """Where the state of the embedding in the file `embedding` lies."""
    return embedding.with_name(f"{embedding.name}.optim")


def save_optimizer(path: Path, optimizer: Optimizer) -> None:
    """Write the state to `path`.

    Raises:
        EmbeddingError: the file cannot be written.
    """
    state = {name: value.cpu() for name, value in optimizer.state_dict().items()}
    ours = {theirs: state[name] for theirs, name in _NAMES.items()}
    group = {
        "lr": float(optimizer.learning_rate),
        "betas": optimizer.betas,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        **{flag: False for flag in ("amsgrad", "maximize", "capturable", "differentiable")},
        **{flag: None for flag in ("foreach", "fused")},
        "params": [0],
    }
    buffer = BytesIO()
    torch.save({"hash": checksum(optimizer.vectors), "optimizer_state_dict": {"state": {0: ours}, "param_groups": [group]}}, buffer)
    write_atomic(path, buffer.getvalue(), overwrite=True)


def has_state_of(path: Path, vectors: torch.Tensor) -> bool:
    """Whether the file `path` holds a state that belongs to `vectors` [n, d]."""
    try:
        return path.is_file() and _read(path, vectors) is not None
    except EmbeddingError:
        return False


def load_optimizer(path: Path, optimizer: Optimizer) -> str:
    """Load the state in `path` if it belongs to the optimizer's present vectors.

    Returns:
        A sentence for the user; empty when there is no file or its state was loaded.
    """
    if not path.is_file():
        return ""
    try:
        state = _read(path, optimizer.vectors)
    except EmbeddingError as error:
        return f"The optimizer begins anew: {error}"
    if state is None:
        return f"The optimizer begins anew, because {path.name} belongs to other vectors than {path.stem} holds."
    optimizer.load_state_dict(state)
    return ""


def _read(path: Path, vectors: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """Steps and moments by our names; None where the file belongs to other vectors."""
    with open_file(path) as source:
        tree = read_torch_file(source).tree if is_torch_file(source) else None
        if not isinstance(tree, dict) or tree.get("hash") != checksum(vectors):
            return None
        states = _as_dict(_as_dict(tree.get("optimizer_state_dict")).get("state"))
        stored = _as_dict(next(iter(states.values()), None))
        state: dict[str, torch.Tensor] = {}
        for theirs, ours in _NAMES.items():
            value = stored.get(theirs)
            if isinstance(value, StoredTensor):
                state[ours] = value.read()
            elif isinstance(value, (int, float)):  # older PyTorch stores the step as a number
                state[ours] = torch.tensor(float(value))
    shapes = {"steps": torch.Size(), "mean": vectors.shape, "square": vectors.shape}
    fits = {key: value.shape for key, value in state.items()} == shapes
    if not fits or not all(torch.isfinite(value).all() for value in state.values()):
        raise EmbeddingError(f"{path} holds no state of AdamW for {list(vectors.shape)} vectors; delete it.", path=path)
    return {key: value.float() for key, value in state.items()}


def _as_dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def checksum(vectors: torch.Tensor) -> str:
    """Four hex digits over vectors [n, d], as A1111 computes them: a rolling hash of each value times 100, cut to a whole number."""
    result = 0
    for value in (vectors.detach().cpu().float().reshape(-1) * 100).tolist():
        result = (result * 281 ^ int(value) * 997) & 0xFFFFFFFF
    return f"{result & 0xFFFF:04x}"
