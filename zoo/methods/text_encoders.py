"""Text encoders that train from scratch in seconds to minutes."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from zoo.data.text import Tokens
from zoo.methods.pooling import first_token, last_token, masked_mean

POOLING = {"mean": masked_mean, "first": first_token, "last": last_token}


class TokenBag(nn.Module):
    """Mean of token embeddings: no order, no attention, a few milliseconds a step.

    Args:
        vocab_size: entries of the vocabulary, the tokenizer's.
        dim: width of the embeddings.
    """

    def __init__(self, vocab_size: int = 8192, dim: int = 256) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)

    def forward(self, tokens: Tokens) -> Float[Tensor, "B D"]:
        ids = tokens.ids.where(tokens.pool, 0)
        return F.embedding_bag(ids, self.embedding.weight, mode="mean", padding_idx=0)


class TextTransformer(nn.Module):
    """A small pre-norm transformer, from scratch.

    Args:
        vocab_size: entries of the vocabulary, the tokenizer's.
        dim: width of the embeddings and of the residual stream.
        depth: layers.
        heads: attention heads.
        max_length: positions.
        pooling: what becomes the embedding: the mean over tokens, the first or the last token, or a module that maps
            (hidden `[B, L, D]`, tokens to pool `[B, L]`) to `[B, D]`.
        causal: tokens see earlier ones only, as in a decoder.
        dropout: in attention and feed-forward parts.
    """

    def __init__(
        self,
        vocab_size: int = 8192,
        dim: int = 64,
        depth: int = 1,
        heads: int = 4,
        max_length: int = 512,
        pooling: Literal["mean", "first", "last"] | nn.Module = "mean",
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.causal = dim, causal
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=0)
        self.position = nn.Parameter(torch.randn(max_length, dim) * 0.02)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.pooling = POOLING[pooling] if isinstance(pooling, str) else pooling

    def hidden(self, tokens: Tokens) -> Float[Tensor, "B L D"]:
        """States of all tokens."""
        length = tokens.ids.shape[1]
        x = self.embedding(tokens.ids) + self.position[:length]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1) if self.causal else None
        return self.layers(x, mask=causal, src_key_padding_mask=~tokens.mask)

    def forward(self, tokens: Tokens) -> Float[Tensor, "B D"]:
        return self.pooling(self.hidden(tokens), tokens.pool)
