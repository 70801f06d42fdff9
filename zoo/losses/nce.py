"""InfoNCE and its forms for several positives.

Sources: van den Oord et al. 2018 (arXiv 1807.03748); NT-Xent: Chen et al. 2020 (arXiv 2002.05709), eq. 1.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from zoo.losses.lean import KeyMask, lean_info_nce
from zoo.losses.scores import Weight, at_least_float32, log_sum_negatives, zero_where_all_masked


def info_nce(
    positives: Float[Tensor, "B P"],
    negatives: Float[Tensor, "B M"],
    weight: Weight = None,
    temperature: float | Tensor = 0.1,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    r"""Cross entropy of telling a positive from all negatives, the mean over the B * P (anchor, positive) pairs.

    $$\ell_{bp} = -s_{bp}/\tau + \log\Big(e^{s_{bp}/\tau} + \sum_m w_{bm}\, e^{n_{bm}/\tau}\Big)$$

    Further positives of an anchor stand in no denominator but their own. A row without negatives has loss 0.

    With label smoothing $\epsilon$, a share $\epsilon$ of the target is spread evenly over the positive and all
    negatives that count (PyTorch's convention; Szegedy et al. 2016, arXiv 1512.00567).

    Args:
        positives: scores of the positives.
        negatives: scores of the negatives.
        weight: mask (False drops) or weight of each negative.
        temperature: $\tau$.
        label_smoothing: $\epsilon$.
    """
    positive = at_least_float32(positives) / temperature
    normaliser = torch.logaddexp(positive, log_sum_negatives(negatives, weight, temperature))
    if not label_smoothing:
        return (normaliser - positive).mean()
    negative = at_least_float32(negatives) / temperature
    counted = torch.ones_like(negative) if weight is None else (weight > 0).to(negative.dtype)
    total = (negative * counted).sum(1, keepdim=True) + positive
    uniform = total / (counted.sum(1, keepdim=True) + 1)
    return (normaliser - (1 - label_smoothing) * positive - label_smoothing * uniform).mean()


def multi_positive_nce(
    positives: Float[Tensor, "B P"],
    negatives: Float[Tensor, "B M"],
    weight: Weight = None,
    temperature: float | Tensor = 0.1,
    positive_weight: Bool[Tensor, "B P"] | Float[Tensor, "B P"] | None = None,
) -> Float[Tensor, ""]:
    r"""InfoNCE with the sum over positives inside the logarithm: any one positive suffices.

    $$\ell_b = -\log \frac{\sum_p e^{s_{bp}/\tau}}{\sum_p e^{s_{bp}/\tau} + \sum_m w_{bm}\, e^{n_{bm}/\tau}}$$

    A row without positives or without negatives has loss 0.

    Args:
        positives: scores of the positives.
        negatives: scores of the negatives.
        weight: mask or weight of each negative.
        temperature: $\tau$.
        positive_weight: mask or weight of each positive, where rows have different numbers of them.
    """
    positive = log_sum_negatives(positives, positive_weight, temperature)
    loss = torch.logaddexp(positive, log_sum_negatives(negatives, weight, temperature)) - positive
    return zero_where_all_masked(loss, positive_weight).mean()


class InfoNCE(nn.Module):
    """`info_nce` with its temperature.

    Args:
        temperature: 0.07 to 0.5 in the literature.
        learn_temperature: train log(temperature) along with the encoder.
        min_temperature: a learned temperature is held between this and 1, after every step of the optimiser; 0 does not.
        label_smoothing: as in `info_nce`.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        learn_temperature: bool = False,
        min_temperature: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.min_temperature, self.label_smoothing = min_temperature, label_smoothing
        log_temperature = torch.tensor(float(temperature)).log()
        self.log_temperature = nn.Parameter(log_temperature) if learn_temperature else None
        self._temperature = temperature

    @property
    def temperature(self) -> float | Tensor:
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def clamp(self) -> None:
        """Hold a learned temperature in its range (CLIP, arXiv 2103.00020: a scale of at most 100)."""
        if self.log_temperature is not None and self.min_temperature:
            self.log_temperature.data.clamp_(math.log(self.min_temperature), 0.0)

    def forward(self, positives: Tensor, negatives: Tensor, weight: Weight = None) -> Float[Tensor, ""]:
        return info_nce(positives, negatives, weight, self.temperature, self.label_smoothing)

    def lean(
        self,
        queries: Float[Tensor, "B D"],
        documents: Float[Tensor, "M D"],
        own: Int[Tensor, " B"],
        keys: KeyMask | None = None,
        negatives: Float[Tensor, "B K D"] | None = None,
        negatives_mask: Bool[Tensor, "B K"] | None = None,
    ) -> Float[Tensor, ""]:
        """`lean_info_nce` with its temperature: the same loss from embeddings, without the matrix of scores."""
        return lean_info_nce(
            queries, documents, own, keys, self.temperature, self.label_smoothing, negatives, negatives_mask
        )
