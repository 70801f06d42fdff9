"""Progressive learning (PEG): the weight of a query in the loss follows the difficulty of its negatives.

Source: Wu et al. 2023, "Towards Robust Text Retrieval with Progressive Learning" (arXiv 2311.11691). NOTE: neither code nor
the formula of the weights could be had. What stands here is a RECONSTRUCTION from the paper's description: weights depend
on the difficulty of a query's negatives, and the preference moves from easy queries to hard ones during training.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.distributed import gather, rank
from zoo.errors import ZooError
from zoo.losses.nce import info_nce
from zoo.losses.scores import Weight, at_least_float32, log_sum_negatives


def difficulty(per_query_loss: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Share of the softmax that is on negatives, $1 - e^{-l}$ with InfoNCE's l; no gradient."""
    return -torch.expm1(-per_query_loss.detach())


def progressive_weights(
    per_query_loss: Float[Tensor, " B"], progress: float, strength: float, rank_based: bool = False
) -> Float[Tensor, " B"]:
    r"""Weights of the queries of a batch, of mean 1 and without gradient (a reconstruction, see the module).

    $$w = B \cdot \mathrm{softmax}\big(\lambda(t)\, d\big), \qquad \lambda(t) = \lambda_0 (2t - 1)$$

    Easy queries count more at first, all the same at t = 1/2, hard ones more at the end.

    Args:
        per_query_loss: InfoNCE's loss of each query, of the full batch over all devices and chunks.
        progress: t, from 0 at the start of training to 1 at its end.
        strength: $\lambda_0$.
        rank_based: take the quantile of a query's difficulty in the batch (ties share one) in place of d: then the
            weights do not depend on the temperature's scale.
    """
    d = difficulty(per_query_loss)
    if rank_based:
        ordered = d.sort().values
        below, up_to = (torch.searchsorted(ordered, d, right=right) for right in (False, True))
        d = (below + up_to - 1).to(d.dtype) / 2 / max(len(d) - 1, 1)
    return len(d) * (strength * (2 * progress - 1) * d).softmax(0)


def effective_number(weights: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """How many equally weighted queries amount to the same: (sum w)^2 / sum w^2."""
    return weights.sum().square() / weights.square().sum()


class ProgressiveInfoNCE(nn.Module):
    r"""InfoNCE whose queries (or negatives) are weighted by difficulty, easy first, hard last.

    $L = \mathrm{mean}_i\, w_i l_i$ with `progressive_weights` over the queries of all ranks. This is a RECONSTRUCTION of
    PEG's idea (Wu et al. 2023, arXiv 2311.11691), not the authors' formula, which is not public.

    Attributes:
        progress: t in [0, 1], the part of training that is done. The training loop has to set it before each step; it
            stays 0 otherwise. Where pairs are noisy, stop at 0.75, i.e. at half the strength: a hard focus at the end
            amplifies wrong pairs.
        weights: of this rank's last batch, for callbacks to log; None before, and with `per_negative`.

    Args:
        temperature: of the scores; at low ones nearly all difficulties are 1 until the encoder is warm.
        strength: $\lambda_0$, 1 to 5. 0 gives InfoNCE.
        schedule: "progressive" moves from $-\lambda_0$ to $\lambda_0$, "reversed" the other way; "constant" stays at
            $\lambda_0$.
        per_negative: weigh not queries but negatives, by $e^{\lambda(t)\, \mathrm{sg}(s)}$ with similarity s inside the
            sum of exponentials, as hardness penalties do.
        rank_based: as in `progressive_weights`.

    Raises:
        ZooError: both `per_negative` and `rank_based`.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        strength: float = 2.0,
        schedule: Literal["progressive", "reversed", "constant"] = "progressive",
        per_negative: bool = False,
        rank_based: bool = False,
    ) -> None:
        super().__init__()
        if per_negative and rank_based:
            raise ZooError("rank_based ranks queries and per_negative weighs negatives: set only one of them")
        self.temperature, self.strength, self.schedule = temperature, strength, schedule
        self.per_negative, self.rank_based = per_negative, rank_based
        self.progress = 0.0
        self.weights: Tensor | None = None

    @property
    def focus(self) -> float:
        r"""$\lambda(t)$: below 0 easy queries count more, above 0 hard ones."""
        return self.strength * (2 * self._time - 1)

    @property
    def _time(self) -> float:
        return {"progressive": self.progress, "reversed": 1 - self.progress, "constant": 1.0}[self.schedule]

    def forward(self, positives: Tensor, negatives: Tensor, weight: Weight = None) -> Float[Tensor, ""]:
        """Weighted loss.

        Args:
            positives: score of the positive `[B, 1]`.
            negatives: scores of the negatives `[B, M]`.
            weight: mask or weight of each negative.
        """
        if self.per_negative:
            hardness = (self.focus * at_least_float32(negatives).detach()).exp()
            return info_nce(positives, negatives, hardness if weight is None else hardness * weight, self.temperature)
        losses = self.per_query(positives, negatives, weight)
        everywhere = progressive_weights(gather(losses.detach()), self._time, self.strength, self.rank_based)
        self.weights = everywhere[rank() * len(losses) :][: len(losses)]
        return (self.weights * losses).mean()

    def per_query(
        self, positives: Float[Tensor, "B 1"], negatives: Float[Tensor, "B M"], weight: Weight = None
    ) -> Float[Tensor, " B"]:
        """InfoNCE's loss of each query, before weighting."""
        positive = at_least_float32(positives) / self.temperature
        return (torch.logaddexp(positive, log_sum_negatives(negatives, weight, self.temperature)) - positive)[:, 0]
