"""AR2: a retriever that is trained to deceive a ranker, and to learn from it.

Source: Zhang et al., "Adversarial Retriever-Ranker for dense text retrieval", ICLR 2022 (arXiv 2110.03611), code
microsoft/AR2. The paper's policy gradient is, in the code, a plain sum over the sampled list, which is what stands here.
The ranker's own loss is InfoNCE at temperature 1 on its scores.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.losses.scores import negative_logits


class RetrieverLoss(NamedTuple):
    """The retriever's loss and its two parts."""

    distill: Tensor
    adversarial: Tensor
    total: Tensor


def adversarial_retriever_loss(
    retriever: Float[Tensor, "B M"],
    ranker: Float[Tensor, "B M"],
    weight: float = 0.5,
    temperature: float = 1.0,
    retriever_temperature: float = 1.0,
    eps: float = 1e-7,
    reduction: Literal["sum", "mean"] = "sum",
    mask: Bool[Tensor, "B M"] | None = None,
) -> RetrieverLoss:
    r"""The retriever's side of the game, on lists with the positive in column 0.

    With $P = \mathrm{softmax}_m(r)$ of the retriever and constants $T = \mathrm{softmax}_m(g/\tau)$ and
    $w_{bm} = \log(\sigma(g_{b0} - g_{bm}) + \epsilon) \le 0$ of the ranker,

    $$L_{dis} = -\tfrac{1}{B}\sum_{bm} T_{bm} \log(P_{bm} + \epsilon), \quad
      L_{adv} = \sum_{bm} w_{bm} \log(P_{bm} + \epsilon), \quad L = \lambda L_{adv} + (1 - \lambda) L_{dis}$$

    $L_{adv}$ raises what the ranker puts above the positive; column 0 is included, with $w_{b0} = \log(1/2)$. A row
    without negatives has loss 0.

    Args:
        retriever: scores under the retriever, with gradient.
        ranker: scores under the ranker; constants.
        weight: $\lambda$.
        temperature: $\tau$, of the distilled distribution only.
        retriever_temperature: divides the retriever's scores; the code offers the square root of their dimension.
        eps: $\epsilon$.
        reduction: of $L_{adv}$ over the batch: "sum" as in the official code, where the effective $\lambda$ grows with
            B; "mean" for training at different B. $L_{dis}$ is always the mean.
        mask: False drops a passage from its list.
    """
    ranker = ranker.detach()
    log_p = (negative_logits(retriever, mask, retriever_temperature).softmax(1) + eps).log()
    target = negative_logits(ranker, mask, temperature).softmax(1)
    raw = negative_logits(ranker, None, 1.0)
    reward = ((raw[:, :1] - raw).sigmoid() + eps).log()
    distill, adversarial = -target * log_p, reward * log_p
    if mask is not None:
        kept = mask & mask[:, 1:].any(1, keepdim=True)
        distill, adversarial = distill.where(kept, 0.0), adversarial.where(kept, 0.0)
    distill, adversarial = distill.sum(1).mean(), adversarial.sum(1)
    adversarial = adversarial.sum() if reduction == "sum" else adversarial.mean()
    return RetrieverLoss(distill, adversarial, weight * adversarial + (1 - weight) * distill)


class AdversarialRetrieverLoss(nn.Module):
    """`adversarial_retriever_loss` with its hyper-parameters.

    Args:
        weight: of the adversarial part.
        temperature: of the distilled distribution.
        reduction: of the adversarial part over the batch.
    """

    def __init__(
        self, weight: float = 0.5, temperature: float = 1.0, reduction: Literal["sum", "mean"] = "mean"
    ) -> None:
        super().__init__()
        self.weight, self.temperature = weight, temperature
        self.reduction: Literal["sum", "mean"] = reduction

    def forward(self, retriever: Tensor, ranker: Tensor, mask: Bool[Tensor, "B M"] | None = None) -> RetrieverLoss:
        return adversarial_retriever_loss(
            retriever, ranker, self.weight, self.temperature, reduction=self.reduction, mask=mask
        )
