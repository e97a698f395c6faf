"""Prompts to the hidden states that condition the UNet, and SDXL's pooled vector and sizes.

Where a checkpoint has two text encoders, the vectors for both stand side by side, in the encoders' order: so everything that trains,
averages or writes vectors handles one tensor.
Legend: b batch, k chunks, l = 77 k tokens, d width of the vectors for all encoders together, n vectors, p width of the pooled vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from textual_inversion.diffusion.clip import CLIPTextEncoder, TokenBatch
from textual_inversion.diffusion.unet import timestep_embedding
from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError
from textual_inversion.prompts.chunks import Chunk, chunk_prompt
from textual_inversion.prompts.tokenizer import END, Tokenizer

_SIZE_WIDTH = 256  # of the embedding of a number


@dataclass(frozen=True)
class VectorTable:
    """The vectors of all embeddings that a prompt may name, stacked.

    Attributes:
        vectors: fp32 [n, d] of all embeddings together, at least one row.
        offsets: name -> its first row.
        sizes: name -> its number of rows.
    """

    vectors: torch.Tensor
    offsets: dict[str, int]
    sizes: dict[str, int]

    @classmethod
    def of(
        cls, embeddings: Mapping[str, Embedding], widths: Mapping[str, int], device: torch.device | str, *, first_row: int = 0
    ) -> VectorTable:
        """Stack the vectors of embeddings.

        Args:
            widths: text encoder -> width of its vectors.
            first_row: where these vectors begin, if they are a part of a larger table.

        Raises:
            EmbeddingError: an embedding is for other text encoders or widths, or has not as many vectors for each.
        """
        rows, offsets, sizes, start = [], {}, {}, first_row
        for name, embedding in embeddings.items():
            rows.append(_side_by_side(name, embedding, widths))
            offsets[name], sizes[name] = start, len(rows[-1])
            start += len(rows[-1])
        stacked = torch.cat(rows) if rows else torch.zeros(1, sum(widths.values()))
        return cls(stacked.to(device), offsets, sizes)


def _side_by_side(name: str, embedding: Embedding, widths: Mapping[str, int]) -> torch.Tensor:
    """The vectors of an embedding for all text encoders, [n, d]."""
    parts, embedding = [], embedding.for_encoders(widths)
    for encoder, width in widths.items():
        vectors = embedding.vectors.get(encoder)
        if vectors is None or vectors.shape[1] != width:
            raise EmbeddingError(f"The embedding {name!r} was made for {embedding.family}; this checkpoint's {encoder} is {width} wide.")
        parts.append(vectors)
    if len({len(part) for part in parts}) > 1:
        counts = " and ".join(f"{len(part)} for {encoder}" for encoder, part in zip(widths, parts))
        raise EmbeddingError(f"The embedding {name!r} has {counts}; expected as many vectors for each text encoder.")
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class Conditioning(NamedTuple):
    """What the UNet is told of the prompts.

    Attributes:
        context: hidden states [b, 77 k, c]; c is the sum of the text encoders' widths.
        pooled: SDXL's pooled vector [b, p]; None for SD1 and SD2.
    """

    context: torch.Tensor
    pooled: torch.Tensor | None

    def with_zeros(self, rows: int) -> Conditioning:
        """The same with zeros in the first rows: what SDXL is told where there is no prompt."""
        context = torch.cat([torch.zeros_like(self.context[:rows]), self.context[rows:]])
        pooled = None if self.pooled is None else torch.cat([torch.zeros_like(self.pooled[:rows]), self.pooled[rows:]])
        return Conditioning(context, pooled)


@dataclass(frozen=True)
class TokenizedPrompts:
    """Prompts ready for the text encoder, once all tensors are on its device.

    Attributes:
        tokens: [b * k, 77].
        weights: emphasis [b * k, 77]; None when no prompt has any.
        chunks: k.
    """

    tokens: TokenBatch
    weights: torch.Tensor | None
    chunks: int

    def to(self, device: torch.device | str) -> TokenizedPrompts:
        """The same prompts on another device; the copy does not make the processor wait."""
        weights = None if self.weights is None else self.weights.to(device, non_blocking=True)
        tokens = TokenBatch(*(part.to(device, non_blocking=True) for part in (self.tokens.ids, self.tokens.index, self.tokens.mask)))
        return TokenizedPrompts(tokens, weights, self.chunks)


class TextConditioner:
    """The hidden states of one text encoder or two, with A1111's chunks and emphasis.

    Args:
        encoders: `clip_l` for SD1, `clip_h` for SD2, `clip_l` and `clip_g` for SDXL. OpenCLIP's pad their prompts with zeros.
    """

    def __init__(self, encoders: Mapping[str, CLIPTextEncoder], tokenizer: Tokenizer) -> None:
        self.encoders, self.tokenizer = dict(encoders), tokenizer
        self._pad = 0 if list(self.encoders) == ["clip_h"] else END

    @property
    def widths(self) -> dict[str, int]:
        """Text encoder -> width of its token table."""
        return {name: encoder.config.width for name, encoder in self.encoders.items()}

    @property
    def device(self) -> torch.device:
        """Where the text encoders are."""
        return next(iter(self.encoders.values())).token_table.device

    def table_of(self, embeddings: Mapping[str, Embedding], *, first_row: int = 0) -> VectorTable:
        """The vectors of embeddings for these encoders; arguments and errors as for `VectorTable.of`."""
        return VectorTable.of(embeddings, self.widths, self.device, first_row=first_row)

    def split(self, vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Vectors [n, d] by text encoder, as views."""
        return dict(zip(self.encoders, vectors.split(list(self.widths.values()), dim=1)))

    def rows_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """The rows of the token tables for token ids int64 [n], fp32 [n, d]."""
        return torch.cat([encoder.token_table.detach()[tokens].float() for encoder in self.encoders.values()], dim=1)

    def tokenize(
        self, prompts: Sequence[str], table: VectorTable, chunks: int = 0, device: torch.device | str | None = None
    ) -> TokenizedPrompts:
        """Cut prompts into chunks and find the embeddings in them.

        Args:
            prompts: b texts.
            table: the embeddings that they may name.
            chunks: minimum number of chunks for each prompt, so that prompts of different length fit one batch.
            device: where the result is; the text encoders' device by default.
        """
        cut = [chunk_prompt(prompt, self.tokenizer, table.sizes, pad=self._pad) for prompt in prompts]
        count = max(chunks, *(len(parts) for parts in cut))
        empty = chunk_prompt("", self.tokenizer, {}, pad=self._pad)[0]
        rows = [chunk for parts in cut for chunk in [*parts, *[empty] * (count - len(parts))]]
        return self._batch(rows, table, count).to(self.device if device is None else device)

    def _batch(self, rows: list[Chunk], table: VectorTable, count: int) -> TokenizedPrompts:
        ids = torch.tensor([row.ids for row in rows])
        index, mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, chunk in enumerate(rows):
            for splice in chunk.splices:
                index[row, splice.position] = table.offsets[splice.name] + splice.index
                mask[row, splice.position] = True
        emphasised = any(weight != 1.0 for row in rows for weight in row.weights)
        weights = torch.tensor([row.weights for row in rows]) if emphasised else None
        return TokenizedPrompts(TokenBatch(ids, index, mask), weights, count)

    def encode(self, prompts: TokenizedPrompts, vectors: torch.Tensor, clip_skip: int = 1) -> Conditioning:
        """Encode tokenized prompts; differentiable in `vectors` [n, d]."""
        states, pooled = [], None
        for name, part in self.split(vectors).items():
            tokens = _padded_with_zeros(prompts.tokens) if name == "clip_g" else prompts.tokens
            encoded = self.encoders[name](tokens, part, clip_skip)
            states.append(encoded.hidden if prompts.weights is None else emphasise(encoded.hidden, prompts.weights))  # b*k 77 width
            pooled = pooled if encoded.pooled is None else encoded.pooled.unflatten(0, (-1, prompts.chunks))[:, 0]
        hidden = states[0] if len(states) == 1 else torch.cat(states, dim=-1)
        return Conditioning(hidden.unflatten(0, (-1, prompts.chunks)).flatten(1, 2), pooled)


def _padded_with_zeros(tokens: TokenBatch) -> TokenBatch:
    """The same tokens with 0 in place of the end tokens that only fill a chunk up."""
    is_end = tokens.ids == END
    return TokenBatch(torch.where(is_end & (is_end.cumsum(dim=1) > 1), 0, tokens.ids), tokens.index, tokens.mask)


def size_label(pooled: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """SDXL's label: the pooled vector, then cosines and sines of each of the six sizes (arXiv 2307.01952, section 2.2).

    Args:
        pooled: [b, p].
        sizes: [b, 6]: height and width of the original picture, top and left of the crop in the resized one, height and width of the crop.

    Returns:
        [b, p + 1536] of the type of `pooled`
    """
    waves = timestep_embedding(sizes.flatten(), _SIZE_WIDTH, pooled.dtype)  # b*6 256
    return torch.cat((pooled, waves.unflatten(0, sizes.shape).flatten(1)), dim=1)


def picture_sizes(sizes: Sequence[tuple[int, int]], device: torch.device | str) -> torch.Tensor:
    """The sizes of whole pictures (width, height) of their own size, for `size_label`: [b, 6]."""
    return torch.tensor([(height, width, 0, 0, height, width) for width, height in sizes], device=device)


def emphasise(hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """A1111's "Original" emphasis: scale each token's state, then restore the mean of each chunk.

    Args:
        hidden: [b, 77, d].
        weights: [b, 77].

    Returns:
        [b, 77, d]
    """
    scaled = hidden * weights[..., None].to(hidden.dtype)
    # the means in fp32: half types would round their ratio twice
    before, after = (states.mean(dim=(1, 2), keepdim=True, dtype=torch.float32) for states in (hidden, scaled))
    return scaled * (before / after).to(hidden.dtype)
