"""Pairwise logistic losses: plain (STAR, ANCE), and weighted by rank (ADORE).

Sources: STAR and ADORE: Zhan et al., SIGIR 2021 (arXiv 2104.08051), code jingtaozhan/DRhard; ANCE: Xiong et al., ICLR
2021 (arXiv 2007.00808).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from zoo.losses.scores import Weight, at_least_float32


def pairwise_logistic(
    positives: Float[Tensor, "B 1"],
    negatives: Float[Tensor, "B M"],
    weight: Weight = None,
    temperature: float | Tensor = 1.0,
) -> Float[Tensor, ""]:
    r"""Logistic loss of each (positive, negative) pair, the (weighted) mean over the usable pairs of the whole batch.

    $$L = \frac{\sum_{b,m} w_{bm}\, \mathrm{softplus}\big((n_{bm} - s_b)/\tau\big)}{\sum_{b,m} w_{bm}}$$

    Masking pairs does not shrink the loss; a row without usable negatives takes no part, and the loss is 0 if none
    has any. STAR's candidates are the positives of the batch and all its hard negatives, those of other queries too;
    either half alone gives its two ablations, and a single negative per query ANCE's loss.

    Args:
        positives: score of the positive.
        negatives: scores of the negatives.
        weight: mask (False drops) or weight of each pair.
        temperature: $\tau$; 1 for dot products, cosines need a lower one.
    """
    margin = at_least_float32(negatives) - at_least_float32(positives)
    kept = torch.ones_like(margin) if weight is None else weight.to(margin.dtype)
    pairs = softplus(margin / temperature).where(kept > 0, 0.0)
    return (kept * pairs).sum() / kept.sum().clamp_min(torch.finfo(kept.dtype).tiny)


def rank_weighted_logistic(
    scores: Float[Tensor, "B K"],
    relevant: Bool[Tensor, "B K"],
    valid: Bool[Tensor, "B K"] | None = None,
    metric_cut: int | None = None,
) -> Float[Tensor, ""]:
    r"""ADORE's loss: pairs of a retrieved list weighted by what a swap would change in the reciprocal rank.

    $$\ell = \frac{1}{|pairs|} \sum_{r:\, y_r = 1} \sum_{t:\, y_t = 0} |a_r - a_t|\, \mathrm{softplus}(z_t - z_r),
    \qquad a_r = 1/r$$

    the mean over queries. Ranks are places in the list, so columns stand in the order of retrieval, whatever the scores
    are now. A list without a relevant or without an irrelevant document has loss 0. (The official code sums the symmetric
    matrix of pairs and halves it, and its default cut of None sets all weights to zero.)

    Args:
        scores: of the documents of each list, over the temperature if there is one.
        relevant: which of them are relevant.
        valid: False where a list has no document; such places have no rank. None: everywhere.
        metric_cut: a_r is 0 beyond this rank; None cuts nothing.
    """
    scores = at_least_float32(scores)
    valid = torch.ones_like(relevant) if valid is None else valid
    rank = valid.cumsum(1)
    a = rank.clamp_min(1).to(scores.dtype).reciprocal()
    if metric_cut is not None:
        a = a.where(rank <= metric_cut, 0.0)
    relevant, irrelevant = relevant & valid, valid & ~relevant
    n_pairs = relevant.sum(1) * irrelevant.sum(1)
    row, r = relevant.nonzero(as_tuple=True)  # relevant documents are few: [R, K] pairs, not [B, K, K]
    delta = (a[row, r, None] - a[row]).abs()
    losses = delta * softplus(scores[row] - scores[row, r, None])
    per_document = losses.where(irrelevant[row], 0.0).sum(1) / n_pairs[row].clamp_min(1)
    return per_document.sum() / max(len(scores), 1)


def append_missing(
    retrieved: Int[Tensor, "B K"], positives: Int[Tensor, "B P"]
) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """Lists for `rank_weighted_logistic`: where none of a query's positives was retrieved, all of them are appended.

    Args:
        retrieved: documents found, best first, -1 padded.
        positives: documents known to be relevant, -1 padded.

    Returns:
        Documents of each list (N = K + P, -1 padded), which places hold one, and which documents are relevant.
    """
    found = torch.zeros_like(retrieved, dtype=torch.bool)
    for positive in positives.unbind(1):
        found |= retrieved == positive[:, None]
    found &= retrieved >= 0
    appended = positives.masked_fill(found.any(1, keepdim=True), -1)
    ids = torch.cat([retrieved, appended], 1)
    return ids, ids >= 0, torch.cat([found, appended >= 0], 1)


class PairwiseLogistic(nn.Module):
    """`pairwise_logistic` with its temperature."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, positives: Tensor, negatives: Tensor, weight: Weight = None) -> Float[Tensor, ""]:
        return pairwise_logistic(positives, negatives, weight, self.temperature)
