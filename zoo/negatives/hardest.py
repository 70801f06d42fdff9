"""Keep only the hardest negatives of each query."""

from __future__ import annotations

import torch

from zoo.negatives.candidates import Candidates, EmbeddingNegatives


class HardestNegatives(EmbeddingNegatives):
    """Masks all but the n highest-scoring shared candidates of each query: the plain alternative to mixing.

    Args:
        n: how many stay; candidates that are masked already stay masked and do not count.
        start_epoch: first epoch in which the others are masked.
    """

    def __init__(self, n: int, start_epoch: int = 0) -> None:
        super().__init__(start_epoch)
        self.n = n

    def forward(self, candidates: Candidates) -> Candidates:
        scores, mask = candidates.shared_scores.detach(), candidates.shared_mask
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        hardest = scores.topk(min(self.n, scores.shape[1]), dim=1, sorted=False).indices
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, hardest, True)
        return candidates.replace(shared_mask=kept if mask is None else kept & mask)
