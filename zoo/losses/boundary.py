"""SynOOD's boundary score: how far an image is from where a classifier can no longer decide.

Source: Li et al. 2025 (arXiv 2507.10225).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from zoo.losses.scores import at_least_float32


def boundary_score(logits: Float[Tensor, "B C"]) -> Float[Tensor, " B"]:
    r"""$e = \frac1C \sum_c f_c - \log \sum_c e^{f_c}$, at most -ln C: equal for constant logits, lower for confident ones.

    A constant added to all logits does not change it.
    """
    logits = at_least_float32(logits)
    return logits.mean(1) - logits.logsumexp(1)


def boundary_loss(logits: Float[Tensor, "B C"], target: float | Tensor = -5.0) -> Float[Tensor, ""]:
    """Mean squared distance of the boundary score from `target`.

    Args:
        logits: of the C known classes.
        target: the paper's -5 lies above -ln 1000, so that images of ImageNet are always pushed towards uniform logits;
            with few classes choose one slightly below -ln C.
    """
    return (target - boundary_score(logits)).square().mean()
