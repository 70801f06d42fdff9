"""The weighted soft-margin triplet loss of cross-view geo-localisation.

Sources: Hu et al., "CVM-Net", CVPR 2018; Shi et al., "SAFA", NeurIPS 2019, code shiyujiao/cross_view_localization_SAFA.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from zoo.losses.scores import Weight, at_least_float32


def squared_distance(cosines: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Squared Euclidean distance of unit vectors, from their cosines."""
    return 2 - 2 * cosines


def soft_margin_triplet(
    positives: Float[Tensor, "B 1"],
    negatives: Float[Tensor, "B M"],
    weight: Weight = None,
    loss_weight: float = 10.0,
    top_k: int | None = None,
) -> Float[Tensor, ""]:
    r"""Soft margin between the squared distances to the positive and to each negative: one direction of the loss.

    $$\ell_{bm} = \mathrm{softplus}\big(\alpha (d_b - D_{bm})\big), \qquad
    L = \frac{\sum_b \big(\log 2 + \sum_m w_{bm}\, \ell_{bm}\big)}{\sum_{b,m} w_{bm}}$$

    With the N - 1 other positives of the batch as negatives, the mean over both directions is SAFA's sum over all
    2 N (N - 1) triplets. As there, the positive stands among its own negatives: its log 2 has no gradient, but does not
    count in the denominator either, so that the loss tends to log 2 / (N - 1), not to 0. Without that constant this is
    `pairwise_logistic` at temperature 1 / (2 alpha).

    With `top_k`, the k largest terms of each row alone, the mean over B * k: batch-hard. The positive's log 2 competes for
    a place among them, so that a row in which fewer than k negatives come closer than the positive has fewer hard ones. A
    row with fewer than k terms gives all it has.

    A row of which nothing is kept takes no part; the loss is 0 if that is so of all.

    Args:
        positives: cosine of the positive.
        negatives: cosines of the negatives, the positive itself not among them.
        weight: mask (False drops) or weight of each negative.
        loss_weight: $\alpha$, 10 in the papers.
        top_k: k; None takes all.
    """
    nearest, distances = (squared_distance(at_least_float32(s)) for s in (positives, negatives))
    kept = torch.ones_like(distances) if weight is None else weight.to(distances.dtype)
    terms = softplus(loss_weight * (nearest - distances)).where(kept > 0, 0.0)
    takes_part = (kept > 0).any(1, keepdim=True).to(terms.dtype)
    own = math.log(2) * takes_part
    tiny = torch.finfo(terms.dtype).tiny
    if top_k is None:
        return (own.sum() + (kept * terms).sum()) / kept.sum().clamp_min(tiny)
    terms, kept = torch.cat([own, terms], 1), torch.cat([takes_part, kept], 1)
    hardest = terms.detach().masked_fill(kept <= 0, -torch.inf).topk(min(top_k, terms.shape[1]), dim=1).indices
    terms, kept = terms.gather(1, hardest), kept.gather(1, hardest)
    return (kept * terms).sum() / kept.sum().clamp_min(tiny)


class SoftMarginTriplet(nn.Module):
    """`soft_margin_triplet` with its hyper-parameters; a `DualEncoder` with `symmetric` has both directions.

    Args:
        weight: of the difference between squared distances, 10 in the papers.
        top_k: hardest negatives per row; None takes all.
    """

    def __init__(self, weight: float = 10.0, top_k: int | None = None) -> None:
        super().__init__()
        self.weight, self.top_k = weight, top_k

    @property
    def temperature(self) -> float:
        """The temperature at which `pairwise_logistic` has the same terms."""
        return 1 / (2 * self.weight)

    def forward(self, positives: Tensor, negatives: Tensor, weight: Weight = None) -> Float[Tensor, ""]:
        return soft_margin_triplet(positives, negatives, weight, self.weight, self.top_k)
