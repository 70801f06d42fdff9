"""MoCHi: hard negative mixing.

Source: Kalantidis et al., "Hard Negative Mixing for Contrastive Learning", NeurIPS 2020 (arXiv 2010.01028), sections
3.2 and 3.3. The authors' training code is not public; the warm-up and the sampling with replacement follow their
description and the follow-up SynCo.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.losses.scores import normalize
from zoo.negatives.candidates import Candidates, EmbeddingNegatives


class MixChoices(NamedTuple):
    """The random choices of one mixing step; positions refer to the N candidates of each query's pool.

    Attributes:
        i, j: the two parents of each type-1 negative, `[B, s]`.
        alpha: weight of the first parent, in (0, 1).
        l: the parent of each type-2 negative, `[B, s']`.
        beta: weight of the query, in (0, 0.5), so that the query never dominates.
    """

    i: Int[Tensor, "B s"]
    j: Int[Tensor, "B s"]
    alpha: Float[Tensor, "B s"]
    l: Int[Tensor, "B t"]
    beta: Float[Tensor, "B t"]

    @classmethod
    def draw(cls, queries: Float[Tensor, "B D"], n_hard: int, n_mix: int, n_query_mix: int) -> MixChoices:
        """Independent draws for every query, on its device. A parent may be drawn twice (a plain duplicate)."""
        b, device, dtype = len(queries), queries.device, queries.dtype

        def parents(n: int) -> Tensor:
            return torch.randint(n_hard, (b, n), device=device)

        def weights(n: int) -> Tensor:
            return torch.rand(b, n, device=device, dtype=dtype)

        return cls(parents(n_mix), parents(n_mix), weights(n_mix), parents(n_query_mix), weights(n_query_mix) / 2)


def mix_hard(
    query: Float[Tensor, "B D"],
    negatives: Float[Tensor, "M D"],
    pool: Int[Tensor, "B N"],
    choices: MixChoices,
) -> tuple[Float[Tensor, "B s D"], Float[Tensor, "B t D"]]:
    r"""Synthetic negatives from the hardest ones.

    Type 1 mixes two hard negatives, $h = \mathrm{norm}(\alpha n_i + (1-\alpha) n_j)$; type 2 mixes the query in,
    $h' = \mathrm{norm}(\beta q + (1-\beta) n_l)$, which always scores at least as high as $n_l$. Both are constants: the
    gradient of a score $q \cdot h$ flows through its left factor only.

    Args:
        query: unit-norm queries.
        negatives: unit-norm candidates shared by all queries.
        pool: indices into `negatives` of each query's own N hardest.
        choices: the random choices.

    Returns:
        Type-1 and type-2 negatives, unit-norm and detached.
    """
    query, negatives = query.detach(), negatives.detach()

    def take(positions: Tensor) -> Tensor:
        rows = pool.gather(1, positions)
        return negatives.index_select(0, rows.flatten()).view(*rows.shape, negatives.shape[1])

    alpha, beta = choices.alpha[..., None], choices.beta[..., None]
    mixed = torch.lerp(take(choices.j), take(choices.i), alpha)
    query_mixed = torch.lerp(take(choices.l), query[:, None, :], beta)
    return normalize(mixed), normalize(query_mixed)


class HardNegativeMixing(EmbeddingNegatives):
    """MoCHi (N, s, s'): for each query, s + s' synthetic negatives from its N hardest shared candidates.

    Candidates that are masked for a query (duplicates of its positive) never enter its pool.

    Args:
        n_hard: N, the size of the pool. At toy scale keep it above 5 % of the queue: the very top is mostly of the
            query's own class.
        n_mix: s, mixes of two hard negatives.
        n_query_mix: s', mixes of the query and a hard negative.
        start_epoch: warm-up, 10 to 15 epochs of 200 in the paper.
    """

    def __init__(self, n_hard: int = 1024, n_mix: int = 1024, n_query_mix: int = 128, start_epoch: int = 0) -> None:
        super().__init__(start_epoch)
        self.n_hard, self.n_mix, self.n_query_mix = n_hard, n_mix, n_query_mix

    def pool(self, candidates: Candidates) -> Int[Tensor, "B N"]:
        """Indices of each query's hardest shared candidates, repeated where it has fewer than N."""
        hardest, mask = candidates.hardest(self.n_hard), candidates.shared_mask
        if mask is None:
            return hardest
        n_kept = mask.gather(1, hardest).sum(1, keepdim=True).clamp_min(1)  # masked ones come last
        return hardest.gather(1, torch.arange(hardest.shape[1], device=mask.device) % n_kept)

    def forward(self, candidates: Candidates) -> Candidates:
        if self.n_mix + self.n_query_mix == 0:
            return candidates
        pool = self.pool(candidates)
        choices = MixChoices.draw(candidates.query, pool.shape[1], self.n_mix, self.n_query_mix)
        mixed = torch.cat(mix_hard(candidates.query, candidates.shared, pool, choices), 1)
        if candidates.shared_mask is None:
            return candidates.add_own(mixed)
        # A query without any candidate has nothing to mix: its first one is masked.
        return candidates.add_own(mixed, candidates.shared_mask.gather(1, pool[:, :1]).expand(mixed.shape[:2]))
