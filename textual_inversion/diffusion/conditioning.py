"""Prompts to the hidden states that condition the UNet.

Legend: b batch, k chunks, l = 77 k tokens, d width, n vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from textual_inversion.diffusion.clip import CLIPTextEncoder, TokenBatch
from textual_inversion.embedding import Embedding
from textual_inversion.errors import EmbeddingError
from textual_inversion.prompts.chunks import Chunk, chunk_prompt
from textual_inversion.prompts.tokenizer import END, Tokenizer


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
        cls, embeddings: Mapping[str, Embedding], encoder: str, width: int, device: torch.device | str, *, first_row: int = 0
    ) -> VectorTable:
        """Stack the vectors that `embeddings` have for `encoder`.

        Args:
            first_row: where these vectors begin, if they are a part of a larger table.

        Raises:
            EmbeddingError: an embedding is for another width.
        """
        rows, offsets, sizes, start = [], {}, {}, first_row
        for name, embedding in embeddings.items():
            vectors = embedding.vectors.get(encoder)
            if vectors is None or vectors.shape[1] != width:
                raise EmbeddingError(
                    f"The embedding {name!r} was made for {embedding.family}; this checkpoint's {encoder} is {width} wide."
                )
            rows.append(vectors)
            offsets[name], sizes[name] = start, len(vectors)
            start += len(vectors)
        stacked = torch.cat(rows) if rows else torch.zeros(1, width)
        return cls(stacked.to(device), offsets, sizes)


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
    """The hidden states of one text encoder, with A1111's chunks and emphasis.

    Args:
        encoder_name: `clip_l` for SD1, `clip_h` for SD2, whose prompts are padded with zeros.
    """

    def __init__(self, text_encoder: CLIPTextEncoder, tokenizer: Tokenizer, encoder_name: str = "clip_l") -> None:
        self.text_encoder, self.tokenizer, self.encoder_name = text_encoder, tokenizer, encoder_name
        self._pad = 0 if encoder_name == "clip_h" else END

    @property
    def width(self) -> int:
        """Width d of the token table."""
        return self.text_encoder.config.width

    def tokenize(
        self, prompts: Sequence[str], table: VectorTable, chunks: int = 0, device: torch.device | str | None = None
    ) -> TokenizedPrompts:
        """Cut prompts into chunks and find the embeddings in them.

        Args:
            prompts: b texts.
            table: the embeddings that they may name.
            chunks: minimum number of chunks for each prompt, so that prompts of different length fit one batch.
            device: where the result is; the text encoder's device by default.
        """
        cut = [chunk_prompt(prompt, self.tokenizer, table.sizes, pad=self._pad) for prompt in prompts]
        count = max(chunks, *(len(parts) for parts in cut))
        empty = chunk_prompt("", self.tokenizer, {}, pad=self._pad)[0]
        rows = [chunk for parts in cut for chunk in [*parts, *[empty] * (count - len(parts))]]
        return self._batch(rows, table, count).to(self.text_encoder.token_table.device if device is None else device)

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

    def encode(self, prompts: TokenizedPrompts, vectors: torch.Tensor, clip_skip: int = 1) -> torch.Tensor:
        """Hidden states [b, 77 k, d] of tokenized prompts; differentiable in `vectors` [n, d]."""
        hidden = self.text_encoder(prompts.tokens, vectors, clip_skip)  # b*k 77 d
        if prompts.weights is not None:
            hidden = emphasise(hidden, prompts.weights)
        return hidden.unflatten(0, (-1, prompts.chunks)).flatten(1, 2)


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
