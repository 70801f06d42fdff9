"""CET: a relevance and a selection model that weight each other's negatives.

Source: Cai et al., "Hard Negatives or False Negatives: Correcting Pooling Bias in Training Neural Ranking Models", CIKM
2022 (arXiv 2209.05072), code caiyinqiong/Coupled_Estimation_Technique.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.losses.scores import Weight, at_least_float32


def selection_weight(
    negatives: Float[Tensor, "*shape"], temperature: float = 10.0, limit: float | None = None
) -> Float[Tensor, "*shape"]:
    r"""Weight of each negative from its score under the other model, $1/(1-\sigma(s/T)) = 1 + e^{s/T}$.

    A high selection score makes a negative count more for the relevance model, as annotators probably saw it and did not
    label it; a high relevance score makes it count more for the selection model. The weight has no gradient. Scores are
    to come from the other model in evaluation mode, before either is updated.

    Args:
        negatives: scores of the negatives under the other model.
        temperature: T, the debias ratio; to infinity all weights become 2.
        limit: largest weight.
    """
    return (1 + (at_least_float32(negatives.detach()) / temperature).exp()).clamp_max(limit or torch.inf)


def weighted_pair_loss(
    positives: Float[Tensor, "B 1"],
    negatives: Float[Tensor, "B K"],
    weight: Weight = None,
    normalise: bool = False,
) -> Float[Tensor, ""]:
    r"""Pairwise cross entropy $w_{bk}\,\mathrm{softplus}(n_{bk} - s_b)$, the mean over the pairs of positive weight.

    Args:
        positives: scores of the positive.
        negatives: scores of the negatives.
        weight: mask or weight of each negative; 0 drops it.
        normalise: divide the weights by their mean, which leaves the learning rate comparable with the plain loss.
            The official code does not.
    """
    margin = at_least_float32(negatives) - at_least_float32(positives)
    weight = torch.ones_like(margin) if weight is None else weight.to(margin.dtype)
    kept = weight > 0
    loss = weight * torch.nn.functional.softplus(margin.where(kept, 0.0))
    count = (weight if normalise else kept.to(weight.dtype)).sum()
    return loss.sum() / count.clamp_min(torch.finfo(weight.dtype).tiny)


class CoupledPairLoss(nn.Module):
    """`weighted_pair_loss` with `selection_weight` of the other model's scores; both models use the same form.

    Args:
        temperature: of the weight.
        limit: largest weight; 10 is safe in half precision.
        normalise: scale weights to mean 1.
    """

    def __init__(self, temperature: float = 10.0, limit: float | None = None, normalise: bool = False) -> None:
        super().__init__()
        self.temperature, self.limit, self.normalise = temperature, limit, normalise

    def forward(
        self,
        positives: Float[Tensor, "B 1"],
        negatives: Float[Tensor, "B K"],
        other_negatives: Float[Tensor, "B K"],
        weight: Weight = None,
    ) -> Float[Tensor, ""]:
        """`other_negatives`: the same negatives under the other model; `weight`: mask or further weight."""
        coupled = selection_weight(other_negatives, self.temperature, self.limit)
        return weighted_pair_loss(positives, negatives, coupled if weight is None else coupled * weight, self.normalise)
