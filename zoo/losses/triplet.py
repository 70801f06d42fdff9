"""Triplet losses with online hard negatives, as NGAME has them.

Source: Dahiya et al., WSDM 2023 (arXiv 2207.04452), code Extreme-classification/ngame.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.losses.scores import Weight, at_least_float32


def hardest_triplet(
    positives: Float[Tensor, "B 1"],
    negatives: Float[Tensor, "B M"],
    weight: Weight = None,
    margin: float = 0.3,
    k: int = 10,
    temperature: float | Tensor = 0.1,
    weighted: bool = True,
) -> Float[Tensor, ""]:
    r"""Hinge loss of the k hardest negatives of each row, the mean over the B * k entries.

    $$\ell_{bj} = \max(0,\, n_{bj} - s_b + \gamma), \qquad
    a_b = \mathrm{softmax}_j\big(n_{bj}/\tau \cdot [\ell_{bj} > 0]\big), \qquad
    L = \mathrm{mean}_{b,j}\; a_{bj}\, \ell_{bj}$$

    over the k highest scores. As in the official code, negatives that respect the margin enter the softmax with logit
    0 and take their share of it, and the gradient flows through the weights too. Where a row has fewer than k
    negatives the missing entries count as 0 (the official code takes positives in their place).

    Args:
        positives: score of the positive.
        negatives: scores of the negatives.
        weight: mask (False drops) of each negative; a float weight multiplies its loss.
        margin: $\gamma$.
        k: negatives per row; all of them if M is smaller.
        temperature: $\tau$ of the weights.
        weighted: False takes the plain mean.
    """
    positive, negatives = at_least_float32(positives), at_least_float32(negatives)
    kept = torch.ones_like(negatives) if weight is None else weight.to(negatives.dtype)
    chosen = _hardest(negatives, kept > 0, k)
    hard, kept = negatives.gather(1, chosen), kept.gather(1, chosen)
    loss = (hard - positive + margin).relu().where(kept > 0, 0.0)
    if weighted:
        logits = (hard / temperature).where(loss > 0, 0.0)
        loss = loss * _softmax(logits, kept > 0)
    return (kept * loss).sum() / max(loss.numel(), 1)


def hardest_triplet_multi(
    similarity: Float[Tensor, "B L"],
    is_positive: Bool[Tensor, "B L"],
    num_positives: int = 3,
    num_negatives: int = 5,
    margin: float = 0.2,
) -> Float[Tensor, ""]:
    r"""The hinge loss between the P hardest positives and the k hardest negatives of each row, over B * P * k entries.

    $$\ell_{bpj} = \max(0,\, s_{bj} - s_{bp} + \gamma), \qquad L = \mathrm{mean}_{b,p,j}\;
    \mathrm{softmax}_j(\ell_{bpj})\, \ell_{bpj}$$

    with positives of lowest, negatives of highest similarity; entries of zero loss enter the softmax with logit -100.
    Entries that a row lacks, for want of positives or negatives, count as 0.

    Args:
        similarity: of each point to each label of the batch.
        is_positive: labels that belong to the point.
        num_positives: P; all labels if there are fewer.
        num_negatives: k; all labels if there are fewer.
        margin: $\gamma$.
    """
    similarity = at_least_float32(similarity)
    pull, push = _hardest(-similarity, is_positive, num_positives), _hardest(similarity, ~is_positive, num_negatives)
    loss = (similarity.gather(1, push)[:, None, :] - similarity.gather(1, pull)[:, :, None] + margin).relu()
    exist = is_positive.gather(1, pull)[:, :, None] & ~is_positive.gather(1, push)[:, None, :]
    loss = loss.where(exist, 0.0)
    share = _softmax(loss.where(loss > 0, -100.0), exist)
    return (share * loss).sum() / max(loss.numel(), 1)


def _hardest(scores: Tensor, allowed: Tensor, k: int) -> Tensor:
    """Columns of the k highest scores per row, those that are not allowed last."""
    ranked = scores.detach().masked_fill(~allowed, -torch.inf)
    return ranked.topk(min(k, scores.shape[1]), dim=1).indices


def _softmax(logits: Tensor, exist: Tensor) -> Tensor:
    return logits.masked_fill(~exist, torch.finfo(logits.dtype).min).softmax(-1)


class HardestTriplet(nn.Module):
    """`hardest_triplet` with its hyper-parameters."""

    def __init__(self, margin: float = 0.3, k: int = 10, temperature: float = 0.1, weighted: bool = True) -> None:
        super().__init__()
        self.margin, self.k, self.temperature, self.weighted = margin, k, temperature, weighted

    def forward(self, positives: Tensor, negatives: Tensor, weight: Weight = None) -> Float[Tensor, ""]:
        return hardest_triplet(positives, negatives, weight, self.margin, self.k, self.temperature, self.weighted)
