"""Decoupled contrastive learning: InfoNCE without the positive in its denominator.

Source: Yeh et al., "Decoupled Contrastive Learning", ECCV 2022 (arXiv 2110.06848), eq. 5 (DCL) and 6 (DCLW).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from zoo.losses.scores import Weight, at_least_float32, log_sum_negatives, zero_where_all_masked


def dcl(
    positives: Float[Tensor, "B P"],
    negatives: Float[Tensor, "B M"],
    weight: Weight = None,
    temperature: float | Tensor = 0.1,
    positive_weight: Float[Tensor, "B P"] | None = None,
) -> Float[Tensor, ""]:
    r"""Decoupled contrastive loss, the mean over the B * P (anchor, positive) pairs.

    $$\ell_{bp} = -v_{bp}\, s_{bp}/\tau + \log \sum_m w_{bm}\, e^{n_{bm}/\tau}$$

    Its gradient is InfoNCE's without the factor $q_b = 1 - p_b$ ($p_b$: softmax probability of the positive), which
    silences anchors whose positive is easy or whose negatives are few. The value may be negative. A row whose
    negatives are all masked has loss 0.

    Args:
        positives: scores of the positives.
        negatives: scores of the negatives.
        weight: mask or weight of each negative.
        temperature: $\tau$.
        positive_weight: $v$; None means 1.

    Raises:
        ValueError: there is no negative at all (M = 0).
    """
    if negatives.shape[1] == 0:
        raise ValueError("DCL needs at least one negative per anchor: a batch of one pair has none")
    pull = at_least_float32(positives) / temperature
    if positive_weight is not None:
        pull = positive_weight * pull
    loss = log_sum_negatives(negatives, weight, temperature) - pull
    return zero_where_all_masked(loss, weight).mean()


def dclw_weight(positives: Float[Tensor, "B P"], sigma: float = 0.5) -> Float[Tensor, "B P"]:
    r"""Weight of the positive term: distant positives are pulled more.

    $v_b = 2 - e^{s_b/\sigma} / \mathrm{mean}_j\, e^{s_j/\sigma}$, over the pairs of the local batch. Its mean is 1; it is
    negative where one pair is far easier than the rest, and not clamped. Not detached.
    """
    scores = at_least_float32(positives) / sigma
    return 2 - len(scores) * scores.softmax(0)


class DCL(nn.Module):
    """`dcl` with its temperature."""

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, positives: Tensor, negatives: Tensor, weight: Weight = None) -> Float[Tensor, ""]:
        return dcl(positives, negatives, weight, self.temperature)


class DCLW(nn.Module):
    """`dcl` with `dclw_weight`, detached.

    Args:
        temperature: of the scores.
        sigma: of the weight; to infinity it gives DCL.
    """

    def __init__(self, temperature: float = 0.1, sigma: float = 0.5) -> None:
        super().__init__()
        self.temperature, self.sigma = temperature, sigma

    def forward(self, positives: Tensor, negatives: Tensor, weight: Weight = None) -> Float[Tensor, ""]:
        positive_weight = dclw_weight(positives.detach(), self.sigma)
        return dcl(positives, negatives, weight, self.temperature, positive_weight)
