"""What a batch of queries is scored against, and the modules that change it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass
class Candidates:
    """Queries, their positives and their negatives, as embeddings on one device.

    Attributes:
        query: `[B, D]`, with gradient.
        positive: `[B, D]`.
        more_positives: further positives of each query `[B, P - 1, D]`, or None.
        shared: negatives common to all queries `[M, D]` (a queue, the batch, other GPUs).
        shared_mask: False where a shared candidate is no negative of that query; None keeps all.
        own: further negatives of each query `[B, S, D]`, or None.
        own_mask: the same for `own`.
        positive_query: what the positive is scored with where that is not `query`.
    """

    query: Float[Tensor, "B D"]
    positive: Float[Tensor, "B D"]
    shared: Float[Tensor, "M D"]
    shared_mask: Bool[Tensor, "B M"] | None = None
    own: Float[Tensor, "B S D"] | None = None
    own_mask: Bool[Tensor, "B S"] | None = None
    positive_query: Float[Tensor, "B D"] | None = None
    more_positives: Float[Tensor, "B Q D"] | None = None

    def replace(self, **changes: Any) -> Candidates:
        return replace(self, **changes)

    @cached_property
    def shared_scores(self) -> Float[Tensor, "B M"]:
        """query . shared, computed once for miners and loss alike."""
        return self.query @ self.shared.T

    def hardest(self, n: int) -> Int[Tensor, "B N"]:
        """Indices of the `n` highest-scoring shared candidates of each query, masked ones last; all if there are fewer.

        Scores are computed with their gradient, as the loss reads the same ones; the choice itself has none.
        """
        scores = self.shared_scores.detach()
        if self.shared_mask is not None:
            scores = scores.masked_fill(~self.shared_mask, -torch.inf)
        return scores.topk(min(n, scores.shape[1]), dim=1, sorted=self.shared_mask is not None).indices

    def add_own(self, embeddings: Float[Tensor, "B S D"], mask: Bool[Tensor, "B S"] | None = None) -> Candidates:
        """These candidates with further negatives of each query."""
        scores = self.shared_scores
        if self.own is None:
            more = self.replace(own=embeddings, own_mask=mask)
        else:
            both = _join_masks(self.own_mask, self.own, mask, embeddings)
            more = self.replace(own=torch.cat([self.own, embeddings], 1), own_mask=both)
        more.shared_scores = scores
        return more

    def scores(self) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B N"], Bool[Tensor, "B N"] | None]:
        """Scores of the positives, of all negatives (shared first), and which of these count (None: all)."""
        query = self.query if self.positive_query is None else self.positive_query
        positives = (query * self.positive).sum(1, keepdim=True)
        if self.more_positives is not None:
            positives = torch.cat([positives, torch.einsum("bd,bpd->bp", query, self.more_positives)], 1)
        if self.own is None:
            return positives, self.shared_scores, self.shared_mask
        own = torch.einsum("bd,bsd->bs", self.query, self.own)
        mask = _join_masks(self.shared_mask, self.shared_scores, self.own_mask, own)
        return positives, torch.cat([self.shared_scores, own], 1), mask


class EmbeddingNegatives(nn.Module):
    """A module that takes candidates and returns more or other ones. They compose: the output of one feeds the next.

    Args:
        start_epoch: first epoch (from 0) in which the module acts.
    """

    def __init__(self, start_epoch: int = 0) -> None:
        super().__init__()
        self.start_epoch = start_epoch

    def forward(self, candidates: Candidates) -> Candidates:
        raise NotImplementedError


def _join_masks(left: Tensor | None, left_like: Tensor, right: Tensor | None, right_like: Tensor) -> Tensor | None:
    if left is None and right is None:
        return None
    if left is None:
        left = torch.ones(left_like.shape[:2], dtype=torch.bool, device=left_like.device)
    if right is None:
        right = torch.ones(right_like.shape[:2], dtype=torch.bool, device=right_like.device)
    return torch.cat([left, right], 1)
