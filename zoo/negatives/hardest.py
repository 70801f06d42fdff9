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
        mask = candidates.shared_mask
        kept = torch.zeros_like(candidates.shared_scores, dtype=torch.bool)
        kept.scatter_(1, candidates.hardest(self.n), True)
        return candidates.replace(shared_mask=kept if mask is None else kept & mask)
