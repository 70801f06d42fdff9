"""Feature transformation: positive extrapolation and negative interpolation.

Source: Zhu et al., "Improving Contrastive Learning by Visualizing Feature Transformation", ICCV 2021 (arXiv 2108.02982),
eq. 5 to 8. Where paper and released code differ, the code is followed, and said so below.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.losses.scores import normalize
from zoo.negatives.candidates import Candidates, EmbeddingNegatives


def extrapolate_positives(
    query: Float[Tensor, "B D"],
    positive: Float[Tensor, "B D"],
    lam: float | Float[Tensor, "..."],
    renormalize: bool = False,
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    r"""Push both members of a pair apart along their line: $q' = \lambda q + (1-\lambda) k$, $k' = \lambda k + (1-\lambda) q$.

    With $\lambda \ge 1$ the score can only fall, $q' \cdot k' = s + 2\lambda(1-\lambda)(1-s) \le s$; the midpoint stays. k' holds
    q, so the gradient reaches the query through both.

    Args:
        query: unit-norm queries q.
        positive: unit-norm positives k.
        lam: $\lambda$ in [1, 2]: a scalar, or one per element `[B, D]` (the paper's dimension level).
        renormalize: put q' and k' back on the unit sphere (off in the paper).
    """
    pair = lam * query + (1 - lam) * positive, lam * positive + (1 - lam) * query
    return (normalize(pair[0]), normalize(pair[1])) if renormalize else pair


def interpolate_negatives(
    negatives: Float[Tensor, "M D"], gam: float | Float[Tensor, "..."], permutation: Int[Tensor, " M"]
) -> Float[Tensor, "M D"]:
    r"""Replace each negative by a random mix with another one: $n'_j = \gamma n_j + (1-\gamma) n_{\pi(j)}$, of norm at most 1.

    Args:
        negatives: unit-norm negatives n.
        gam: $\gamma$ in [0, 1]: a scalar, or one per element `[M, D]`.
        permutation: $\pi$.
    """
    return gam * negatives + (1 - gam) * negatives[permutation]


class FeatureTransformation(EmbeddingNegatives):
    r"""Extrapolate positives and interpolate shared negatives, with $\lambda \sim 1 + Beta(a, a)$, $\gamma \sim Beta(b, b)$ per step.

    A mix is masked for a query when either of its parents is. Explicit and mixed negatives of a query are left alone.

    Args:
        positive_alpha: a; 2.0 in the official commands. None leaves the positives as they are.
        negative_alpha: b; 1.6 in the official commands. None leaves the negatives as they are.
        elementwise: which side draws one coefficient per element instead of one for all (the code's `dim_mask`). The
            official commands use "none"; the paper's best setting is "both".
        renormalize: renormalise the transformed pair.
        negative_query: what negatives are scored with: the transformed query, whose norm above 1 sharpens the whole
            softmax (the official code), or the original.
        start_epoch: first epoch with transformation; 0 in the official commands.
    """

    def __init__(
        self,
        positive_alpha: float | None = 2.0,
        negative_alpha: float | None = 1.6,
        elementwise: Literal["none", "both", "positives", "negatives"] = "none",
        renormalize: bool = False,
        negative_query: Literal["transformed", "original"] = "transformed",
        start_epoch: int = 0,
    ) -> None:
        super().__init__(start_epoch)
        self.positive_alpha, self.negative_alpha = positive_alpha, negative_alpha
        self.elementwise, self.renormalize, self.negative_query = elementwise, renormalize, negative_query

    def forward(self, candidates: Candidates) -> Candidates:
        changes = {}
        if self.negative_alpha is not None:
            changes |= self._interpolated(candidates, self.negative_alpha)
        if self.positive_alpha is not None:
            lam = 1 + self._coefficient(self.positive_alpha, candidates.query, "positives")
            query, positive = extrapolate_positives(candidates.query, candidates.positive, lam, self.renormalize)
            changes |= {"positive": positive}
            if self.negative_query == "transformed":
                changes |= {"query": query}
            else:
                changes |= {"positive_query": query}
        return candidates.replace(**changes)

    def _interpolated(self, candidates: Candidates, alpha: float) -> dict[str, Tensor]:
        negatives = candidates.shared
        permutation = torch.randperm(len(negatives), device=negatives.device)
        gam = self._coefficient(alpha, negatives, "negatives")
        changes = {"shared": interpolate_negatives(negatives, gam, permutation)}
        if (mask := candidates.shared_mask) is not None:
            changes["shared_mask"] = mask & mask[:, permutation]
        return changes

    def _coefficient(self, alpha: float, like: Tensor, side: str) -> Tensor:
        shape = like.shape if self.elementwise in ("both", side) else ()
        concentration = torch.full((*shape, 2), alpha, device=like.device, dtype=like.dtype)
        return torch.distributions.Dirichlet(concentration, validate_args=False).sample()[..., 0]
