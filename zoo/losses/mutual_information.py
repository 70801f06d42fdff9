r"""Mutual information machines: losses of an encoder $q(z|x)$ and a decoder $p(x|z)$ under the prior $P(z) = N(0, I)$.

Sources: Livne, Swersky and Fleet, "MIM: Mutual Information Machine", 2019 (arXiv 1910.03175); Livne, "cMIM: A
Contrastive Mutual Information Framework for Unified Generative and Discriminative Representation Learning", 2025
(arXiv 2502.19642), after the code of its molecular sibling (github NVIDIA-BioNeMo/KERMT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.losses.scores import Weight, at_least_float32, log_sum_negatives

PerSample = Float[Tensor, " B"]


def gaussian_log_density(
    z: Float[Tensor, "B D"], mean: Float[Tensor, "B D"] | float = 0.0, log_scale: Float[Tensor, "B D"] | float = 0.0
) -> PerSample:
    """Log-density of N(mean, exp(log_scale)^2), summed over dimensions; of the prior where neither is given."""
    z, mean, log_scale = (at_least_float32(torch.as_tensor(x, device=z.device)) for x in (z, mean, log_scale))
    standard = (z - mean) * (-log_scale).exp()
    return (-0.5 * standard.square() - log_scale - 0.5 * math.log(2 * math.pi)).sum(1)


def bernoulli_log_likelihood(
    logits: Float[Tensor, "B ..."], images: Float[Tensor, "B ..."], reduction: Literal["sum", "mean"] = "sum"
) -> PerSample:
    """Log-likelihood of pixels from 0 to 1, their sum or (as the molecular code has it, per token) their mean."""
    logits, images = at_least_float32(logits), at_least_float32(images)
    per_pixel = -nn.functional.binary_cross_entropy_with_logits(logits, images, reduction="none").flatten(1)
    return per_pixel.sum(1) if reduction == "sum" else per_pixel.mean(1)


def match_log_probability(
    positives: Float[Tensor, "B 1"],
    negatives: Float[Tensor, "B M"],
    weight: Weight = None,
    temperature: float | Tensor = 0.1,
    average: bool = True,
) -> PerSample:
    r"""cMIM's factor, $\log p(k = 1|x, z)$: do x and z belong together? InfoNCE with the mean over negatives.

    $$\log p_i = s_i/\tau - \log\Big(e^{s_i/\tau} + \frac{1}{|N_i|} \sum_{j \in N_i} e^{n_{ij}/\tau}\Big)$$

    Due to the mean its expectation does not depend on how many negatives there are. In cMIM $s_i$ is a code's
    similarity to itself, exactly 1: no gradient attracts. A row without negatives has 0, and no gradient.

    Args:
        positives: score of the positive; ones in cMIM.
        negatives: scores of the negatives.
        weight: mask or weight of each negative.
        temperature: $\tau$.
        average: False takes the sum over negatives, as InfoNCE does.
    """
    positive = at_least_float32(positives) / temperature
    rest = log_sum_negatives(negatives, weight, temperature)
    if average:
        counted = torch.ones_like(rest) * negatives.shape[1] if weight is None else weight.to(rest).sum(1, keepdim=True)
        rest = rest - counted.clamp_min(torch.finfo(rest.dtype).tiny).log()
    return nn.functional.logsigmoid(positive - rest)[:, 0]


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is multiplied by `factor`."""
    return factor * x + ((1 - factor) * x).detach()


@dataclass
class LogTerms:
    """What the losses are made of, one value per sample.

    Attributes:
        likelihood: log p(x|z).
        match: log p(k = 1|x, z), see `match_log_probability`.
        posterior: log q(z|x).
        prior: log P(z).
    """

    likelihood: PerSample
    match: PerSample
    posterior: PerSample
    prior: PerSample

    def normalized(self, dim: int, what: Literal["none", "gradient", "loss"]) -> LogTerms:
        """`posterior` and `prior` divided by the dimension of z: their values, or their gradients alone."""
        if what == "none":
            return self
        if what == "loss":
            return LogTerms(self.likelihood, self.match, self.posterior / dim, self.prior / dim)
        scaled = (scale_gradient(x, 1 / dim) for x in (self.posterior, self.prior))
        return LogTerms(self.likelihood, self.match, *scaled)


def mim(x: LogTerms) -> PerSample:
    r"""Asymmetric MIM: $-\log p(x|z) - \frac12 (\log q(z|x) + \log P(z))$. A posterior of low entropy is rewarded."""
    return -(x.likelihood + 0.5 * (x.posterior + x.prior))


def cmim(x: LogTerms) -> PerSample:
    r"""cMIM: `mim` with the factor $-\log p(k=1|x, z)$."""
    return mim(x) - x.match


def symmetric_mim(x: LogTerms, beta: float = 1.0, log_data: PerSample | float = 0.0) -> PerSample:
    r"""MIM of 2019: $-\frac12 (\log p(x|z) + \log P(z) + \beta (\log q(z|x) + \log q(x)))$.

    Args:
        x: the terms.
        beta: warmed up from 0 to 1.
        log_data: log q(x); the data's own distribution does not depend on the model.
    """
    return -0.5 * (x.likelihood + x.prior + beta * (x.posterior + log_data))


def vae(x: LogTerms) -> PerSample:
    r"""The (negative) evidence lower bound: $-\log p(x|z) - \log P(z) + \log q(z|x)$. The sign of the last is not MIM's."""
    return -(x.likelihood + x.prior - x.posterior)


class MachineLoss(nn.Module):
    """Base of the losses that `MutualInformationMachine` takes: they map `LogTerms` to a scalar.

    Attributes:
        reconstructs: does the loss read the likelihood? The decoder is not trained otherwise.
        augmented: is the positive the code of another view of the image, not the code itself?

    Args:
        temperature: of the match, which is measured even where the loss does not read it.
        average: mean over negatives in the match; False sums.
    """

    reconstructs = True
    augmented = False

    def __init__(self, temperature: float = 0.1, average: bool = True) -> None:
        super().__init__()
        self.temperature, self.average = temperature, average

    def forward(self, terms: LogTerms) -> Float[Tensor, ""]:
        raise NotImplementedError


class CMIM(MachineLoss):
    """`cmim`, the mean over the batch."""

    def forward(self, terms: LogTerms) -> Float[Tensor, ""]:
        return cmim(terms).mean()


class MIM(MachineLoss):
    """`mim`, the mean over the batch."""

    def forward(self, terms: LogTerms) -> Float[Tensor, ""]:
        return mim(terms).mean()


class SymmetricMIM(MachineLoss):
    """`symmetric_mim`, the mean over the batch.

    Args:
        temperature: as in `MachineLoss`.
        warmup: part of training over which beta rises from 0 to 1.
    """

    def __init__(self, temperature: float = 0.1, warmup: float = 0.2) -> None:
        super().__init__(temperature)
        self.warmup, self.progress = warmup, 0.0

    def forward(self, terms: LogTerms) -> Float[Tensor, ""]:
        beta = min(self.progress / self.warmup, 1.0) if self.warmup else 1.0
        return symmetric_mim(terms, beta).mean()


class VAE(MachineLoss):
    """`vae`, the mean over the batch."""

    def forward(self, terms: LogTerms) -> Float[Tensor, ""]:
        return vae(terms).mean()


class CodeInfoNCE(MachineLoss):
    """InfoNCE on the same codes, cMIM's comparison: an augmented positive, the sum over negatives, no reconstruction."""

    reconstructs = False
    augmented = True

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__(temperature, average=False)

    def forward(self, terms: LogTerms) -> Float[Tensor, ""]:
        return -terms.match.mean()
