"""First-in-first-out queue of negatives.

Source: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020 (arXiv 1911.05722).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.losses.scores import normalize

NO_KEY = -1


class Queue(nn.Module):
    """K unit-norm embeddings with their identity keys, oldest overwritten first. All of it is in the checkpoint.

    It starts with random unit vectors, whose key matches no pair. Neither the batch size nor the last batch has to
    divide K. `enqueue` writes in place: call it after the backward pass of a loss that used `rows`.

    Args:
        size: K.
        dim: D.
    """

    rows: Float[Tensor, "K D"]
    keys: Int[Tensor, " K"]
    pointer: Int[Tensor, ""]

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", normalize(torch.randn(size, dim)))
        self.register_buffer("keys", torch.full((size,), NO_KEY))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, embeddings: Float[Tensor, "B D"], keys: Int[Tensor, " B"]) -> None:
        """Overwrite the B oldest rows; of more than K only the last K are kept."""
        size = len(self.rows)
        first = max(len(embeddings) - size, 0)
        slots = (self.pointer + torch.arange(first, len(embeddings), device=self.rows.device)) % size
        self.rows[slots] = embeddings[first:].to(self.rows.dtype)
        self.keys[slots] = keys[first:].to(self.keys.dtype)
        self.pointer.copy_((self.pointer + len(embeddings)) % size)

    def mask(self, keys: Int[Tensor, " B"]) -> Bool[Tensor, "B K"]:
        """False where a stored row is the same content as the pair: a duplicate of the positive is no negative."""
        return keys[:, None] != self.keys[None, :]
