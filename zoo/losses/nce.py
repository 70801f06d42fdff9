"""InfoNCE and its forms for several positives.

Sources: van den Oord et al. 2018 (arXiv 1807.03748); NT-Xent: Chen et al. 2020 (arXiv 2002.05709), eq. 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.losses.scores import Weight, at_least_float32, log_sum_negatives, zero_where_all_masked


def info_nce(
    positives: Float[Tensor, "B P"],
    negatives: Float[Tensor, "B M"],
    weight: Weight = None,
    temperature: float | Tensor = 0.1,
) -> Float[Tensor, ""]:
    r"""Cross entropy of telling a positive from all negatives, the mean over the B * P (anchor, positive) pairs.

    $$\ell_{bp} = -s_{bp}/\tau + \log\Big(e^{s_{bp}/\tau} + \sum_m w_{bm}\, e^{n_{bm}/\tau}\Big)$$

    Further positives of an anchor stand in no denominator but their own. A row without negatives has loss 0.

    Args:
        positives: scores of the positives.
        negatives: scores of the negatives.
        weight: mask (False drops) or weight of each negative.
        temperature: $\tau$.
    """
    positive = at_least_float32(positives) / temperature
    return (torch.logaddexp(positive, log_sum_negatives(negatives, weight, temperature)) - positive).mean()


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
    """

    def __init__(self, temperature: float = 0.1, learn_temperature: bool = False) -> None:
        super().__init__()
        log_temperature = torch.tensor(float(temperature)).log()
        self.log_temperature = nn.Parameter(log_temperature) if learn_temperature else None
        self._temperature = temperature

    @property
    def temperature(self) -> float | Tensor:
        return self._temperature if self.log_temperature is None else self.log_temperature.exp()

    def forward(self, positives: Tensor, negatives: Tensor, weight: Weight = None) -> Float[Tensor, ""]:
        return info_nce(positives, negatives, weight, self.temperature)
