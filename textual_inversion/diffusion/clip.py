"""The frozen CLIP text encoder, with learned vectors as an extra input.

Architecture: Radford et al. (arXiv 2103.00020), with the module names of transformers' `CLIPTextModel`, as SD1 checkpoints hold it;
OpenCLIP's text encoders (arXiv 2212.07143) in SD2 and SDXL (arXiv 2307.01952) have the same layers.
Legend: b batch, l tokens, d width, n vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from textual_inversion.diffusion import kernels
from textual_inversion.diffusion.layers import FusedModule, Joined, attention
from textual_inversion.prompts.tokenizer import END

_SD2_LAYERS = 23  # that count
HEAD_WIDTH = 64  # of every CLIP and OpenCLIP text encoder
_ONE_KERNEL = 3072  # up to so many places CUDA's gradient of an embedding is one kernel; beyond, PyTorch 2.1 waits for the device


@dataclass(frozen=True)
class CLIPConfig:
    """Sizes of a text encoder; the defaults are CLIP-L's.

    Attributes:
        vocab_size: rows of the token table.
        width: d.
        layers: transformer layers.
        max_tokens: length l of a chunk with its start and end tokens.
        quick_gelu: CLIP-L's activation x·sigmoid(1.702 x); OpenCLIP's are plain GELU.
        fixed_layer: the layer whose output counts, whatever the clip skip is, as in SD2 and SDXL; 0 = the clip skip chooses it.
        final_norm: the output passes the final norm; SDXL's do not.
        projection: width of the pooled vector that it makes besides, as OpenCLIP-bigG in SDXL; 0 = none.
    """

    vocab_size: int = 49408
    width: int = 768
    layers: int = 12
    max_tokens: int = 77
    quick_gelu: bool = True
    fixed_layer: int = 0
    final_norm: bool = True
    projection: int = 0

    @property
    def heads(self) -> int:
        """Attention heads; each is 64 wide."""
        return max(1, self.width // HEAD_WIDTH)

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], family: str = "SD1", encoder: str = "clip_l") -> CLIPConfig:
        """Read the sizes from a text encoder's tensors (names from `text_model.` on). A missing name raises `KeyError` with that name.

        SD2 and SDXL take the output of the last layer but one, SD2 with the final norm.

        Args:
            family: `SD1`, `SD2` or `SDXL`.
            encoder: `clip_l`, `clip_h` or `clip_g`.
        """
        vocab_size, width = shapes["text_model.embeddings.token_embedding.weight"]
        layers = 0
        while f"text_model.encoder.layers.{layers}.layer_norm1.weight" in shapes:
            layers += 1
        places = shapes["text_model.embeddings.position_embedding.weight"][0]
        last_but_one = _SD2_LAYERS if family == "SD2" and layers >= _SD2_LAYERS else layers - 1  # an SD2 file may leave the last one out
        fixed_layer = 0 if family == "SD1" else last_but_one
        projection = shapes["text_projection"][1] if encoder == "clip_g" else 0
        is_openai = encoder == "clip_l"
        return cls(vocab_size, width, layers, places, is_openai, fixed_layer, final_norm=family != "SDXL", projection=projection)


@dataclass(frozen=True)
class TokenBatch:
    """Token ids with the places where learned vectors go.

    Attributes:
        ids: int64 [b, l]; values at spliced places are ignored.
        index: int64 [b, l]; the row of `vectors` at each spliced place, 0 elsewhere.
        mask: bool [b, l]; True where a vector takes the token's place.
    """

    ids: torch.Tensor
    index: torch.Tensor
    mask: torch.Tensor

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        return TokenBatch(self.ids.to(device), self.index.to(device), self.mask.to(device))

    def __getitem__(self, rows: torch.Tensor | slice) -> TokenBatch:
        """Some of the rows."""
        return TokenBatch(self.ids[rows], self.index[rows], self.mask[rows])


class Table(nn.Embedding):
    """An embedding table. On the meta device it skips the random initialization, which would import PyTorch's compiler (over 1 s)."""

    def reset_parameters(self) -> None:
        """Initialize the rows, except on the meta device."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Embeddings(nn.Module):
    """Token table and positions."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.token_embedding = Table(config.vocab_size, config.width)
        self.position_embedding = Table(config.max_tokens, config.width)

    def forward(self, tokens: TokenBatch, vectors: torch.Tensor) -> torch.Tensor:
        """Rows of the table with `vectors` [n, d] spliced in: where(mask, vectors[index], table[ids]) -> [b, l, d]"""
        rows = self.token_embedding(tokens.ids)
        chosen = F.embedding(tokens.index, vectors) if tokens.index.numel() <= _ONE_KERNEL else vectors[tokens.index]
        chosen = chosen.to(rows.dtype)  # b l d; cast after the choice, so that gradients of a row are added up in fp32
        spliced = torch.where(tokens.mask[..., None], chosen, rows)
        return spliced + self.position_embedding.weight[: tokens.ids.shape[1]]


class SelfAttention(nn.Module):
    """Causal self-attention."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(config.width, config.width) for _ in range(4))
        inputs = (self.q_proj, self.k_proj, self.v_proj)
        self.weights, self.biases = Joined(inputs), Joined(inputs, "bias")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, l, d] -> [b, l, d]"""
        q, k, v = F.linear(x, self.weights(), self.biases()).chunk(3, dim=-1)  # b l d each
        return self.out_proj(attention(q, k, v, self.heads, causal=True))


class MLP(nn.Module):
    """Feed-forward of one layer."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.quick_gelu = config.quick_gelu
        self.fc1 = nn.Linear(config.width, config.width * 4)
        self.fc2 = nn.Linear(config.width * 4, config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, l, d] -> [b, l, d]"""
        x = self.fc1(x)
        return self.fc2(kernels.quick_gelu(x) if self.quick_gelu else kernels.gelu(x))


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each behind a layer norm."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.width)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor, delta: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """x [b, l, d] and what is still to be added to it -> the same two; whoever comes next adds them in the kernel of its norm."""
        x, normed = kernels.add_layer_norm(x, delta, self.layer_norm1)
        x, normed = kernels.add_layer_norm(x, self.self_attn(normed), self.layer_norm2)
        return x, self.mlp(normed)


class TextModel(nn.Module):
    """The layers under the name `text_model`."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))})
        self.final_layer_norm = nn.LayerNorm(config.width)


class Encoded(NamedTuple):
    """What a text encoder makes of tokens.

    Attributes:
        hidden: [b, l, d].
        pooled: [b, p] of the end token, projected; None where the encoder makes none.
    """

    hidden: torch.Tensor
    pooled: torch.Tensor | None


class CLIPTextEncoder(FusedModule):
    """Tokens to the hidden states that condition the UNet."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextModel(config)
        if config.projection:
            self.text_projection = nn.Parameter(torch.zeros(config.width, config.projection))

    @classmethod
    def from_shapes(cls, family: str, encoder: str, shapes: Mapping[str, tuple[int, ...]]) -> CLIPTextEncoder:
        """A text encoder without weights; arguments and errors as for `CLIPConfig.from_shapes`."""
        return cls(CLIPConfig.from_shapes(shapes, family, encoder))

    @property
    def token_table(self) -> torch.Tensor:
        """The token table [vocab_size, d]."""
        return self.text_model.embeddings.token_embedding.weight

    def forward(self, tokens: TokenBatch, vectors: torch.Tensor, clip_skip: int = 1) -> Encoded:
        """Encode.

        Args:
            tokens: [b, l].
            vectors: learned vectors [n, d], n at least 1; fp32, the only leaf that ever needs a gradient.
            clip_skip: 1 takes the last layer, 2 the one before, and so on, as A1111 counts; the final norm is applied in each case.
                The text encoders of SD2 and SDXL ignore it.
        """
        x: torch.Tensor = self.text_model.embeddings(tokens, vectors)
        layers = list(self.text_model.encoder["layers"].children())
        last = self.config.fixed_layer or max(1, len(layers) + 1 - clip_skip)
        delta: Any = None
        for layer in layers[:last]:
            x, delta = layer(x, delta)
        hidden = self._normed(x, delta) if self.config.final_norm else x + delta
        if not self.config.projection:
            return Encoded(hidden, None)
        for layer in layers[last:]:
            x, delta = layer(x, delta)
        return Encoded(hidden, self._pooled(self._normed(x, delta), tokens.ids))

    def _normed(self, x: torch.Tensor, delta: torch.Tensor | None) -> torch.Tensor:
        return kernels.add_layer_norm(x, delta, self.text_model.final_layer_norm)[1]

    def _pooled(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """states [b, l, d] -> the projection [b, p] of those at the first end token."""
        end = (ids == END).int().argmax(dim=1)  # b
        ended = states.gather(1, end[:, None, None].expand(-1, 1, states.shape[2]))[:, 0]
        return ended @ self.text_projection
