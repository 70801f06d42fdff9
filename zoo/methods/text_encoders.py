"""Text encoders that train from scratch in seconds to minutes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from zoo.data.collections import Side
from zoo.data.text import Tokens
from zoo.data.tokenizers import Tokenizer
from zoo.errors import ZooError
from zoo.methods.pooling import first_token, last_token, masked_mean

POOLING = {"mean": masked_mean, "first": first_token, "last": last_token}


class TokenBag(nn.Module):
    """Mean of token embeddings: no order, no attention, a few milliseconds a step.

    Args:
        vocab_size: entries of the vocabulary, the tokenizer's.
        dim: width of the embeddings.
    """

    reads = "texts"

    def __init__(self, vocab_size: int = 8192, dim: int = 256) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Embedding(vocab_size, dim, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)

    def forward(self, tokens: Tokens) -> Float[Tensor, "B D"]:
        if torch.compiler.is_exporting():  # a graph for any batch has no such operator
            return masked_mean(self.embedding(tokens.ids), tokens.pool & (tokens.ids != 0))
        ids = tokens.ids.where(tokens.pool, 0)
        return F.embedding_bag(ids, self.embedding.weight, mode="mean", padding_idx=0)

    def sentence_transformers(self, tokenizer: Tokenizer, sides: Sequence[Side]) -> list[Any]:
        """The same as modules of `sentence-transformers`.

        Args:
            tokenizer: the run's.
            sides: whose inputs they are to read, each cut at its own length.

        Raises:
            ZooError: prefixes are read but not pooled, or the tokenizer exists in zoo alone.
        """
        from sentence_transformers.base.modules import Router
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding

        if any(tokenizer.prefixes[side] for side in sides):
            raise ZooError("a bag of tokens pools all of a text there, and this one leaves prefixes out")
        bags = {}
        for side in sides:
            rust = tokenizer.portable()
            rust.enable_truncation(tokenizer.lengths[side])
            bags[side] = [StaticEmbedding(rust, self.embedding.weight.detach().clone())]
        if len({tokenizer.lengths[side] for side in sides}) == 1:
            return bags[sides[0]]
        return [Router.for_query_document(bags["query"], bags["document"])]


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

    reads = "texts"

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
