"""What scores tell about training: the five numbers of the feature-transformation paper, and the field's usual ones.

Sources: Zhu et al. 2021 (arXiv 2108.02982), section 3; Wang and Isola 2020 (arXiv 2005.10242); Yeh et al. 2022
(arXiv 2110.06848), eq. 3.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.losses.scores import Weight, at_least_float32, log_sum_negatives


def score_statistics(
    positives: Float[Tensor, "B P"],
    negatives: Float[Tensor, "B M"],
    weight: Weight = None,
    temperature: float | Tensor = 0.1,
) -> Float[Tensor, "B 5"]:
    """Per query: mean and unbiased variance of negatives, mean positive, mean exp(neg/T), mean exp(pos/T).

    Scores are taken as they enter the loss, before division by the temperature; masked negatives do not count.
    """
    positives, negatives = at_least_float32(positives), at_least_float32(negatives)
    kept = torch.ones_like(negatives) if weight is None else (weight > 0).to(negatives.dtype)
    count = kept.sum(1).clamp_min(1)
    mean = (negatives * kept).sum(1) / count
    variance = ((negatives - mean[:, None]).square() * kept).sum(1) / (count - 1).clamp_min(1)
    exp_negative = (negatives / temperature).exp().where(kept > 0, 0.0).sum(1) / count
    return torch.stack([mean, variance, positives.mean(1), exp_negative, (positives / temperature).exp().mean(1)], 1)


def proxy_accuracy(
    positives: Float[Tensor, "B P"], negatives: Float[Tensor, "B M"], weight: Weight = None
) -> Float[Tensor, ""]:
    """Share of (anchor, positive) pairs that score above every negative: accuracy of the proxy task."""
    if weight is not None:
        negatives = negatives.masked_fill(~(weight > 0), -torch.inf)
    return (positives > negatives.amax(1, keepdim=True)).float().mean()


def coupling(
    positives: Float[Tensor, "B P"],
    negatives: Float[Tensor, "B M"],
    weight: Weight = None,
    temperature: float | Tensor = 0.1,
) -> Float[Tensor, "B P"]:
    """The factor 1 - p(positive) by which InfoNCE multiplies an anchor's whole gradient (negative-positive coupling)."""
    margin = log_sum_negatives(negatives, weight, temperature) - at_least_float32(positives) / temperature
    return margin.sigmoid()


def uniformity(embeddings: Float[Tensor, "B D"], t: float = 2.0) -> Float[Tensor, ""]:
    """log mean exp(-t ||u_i - u_j||^2) over pairs of unit rows; lower is more uniform on the sphere."""
    squared = 2 - 2 * embeddings @ embeddings.T
    off_diagonal = ~torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    return (-t * squared[off_diagonal]).exp().mean().log()
