"""CLIPN's losses: an image denies the captions of all others, and a "no" caption means the opposite of its "yes".

Source: Wang et al. 2023 (arXiv 2308.12213), section 3.3.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from zoo.losses.scores import Weight, at_least_float32, normalize


def binary_opposite(
    positives: Float[Tensor, "B P"], negatives: Float[Tensor, "B M"], weight: Weight = None
) -> Float[Tensor, ""]:
    r"""Image-text binary-opposite loss: a yes-no question for each pair of image and caption.

    $$L = -\overline{\log(1 - p_{nn})} - \overline{\log p_{nm}}, \qquad p_{nm} = \sigma(u_{nm} - y_{nm})$$

    with y the logits of the captions, u those of their "no" forms, one mean over images with their own caption and one
    over all with another's. Both are softplus of a difference of logits, which does not underflow.

    Args:
        positives: differences u - y of each image with its own captions.
        negatives: those with captions of other images.
        weight: mask or weight of each negative; without any, the second mean is 0.
    """
    own = softplus(at_least_float32(positives)).mean()
    other = softplus(-at_least_float32(negatives))
    if weight is None:
        return own + other.mean()
    weight = weight.to(other.dtype)
    return own + (other * weight).sum() / weight.sum().clamp_min(torch.finfo(other.dtype).tiny)


def semantic_opposite(
    yes: Float[Tensor, "B D"], no: Float[Tensor, "B D"], distance: Literal["euclidean", "cosine"] = "euclidean"
) -> Float[Tensor, ""]:
    r"""Text semantic-opposite loss: the two forms of a caption belong at opposite ends of the sphere.

    $$L = \overline{2 - \sqrt{2 - 2 \langle g, h \rangle + 10^{-4}}}$$

    The constant keeps the gradient finite where g = h, as it is at first.

    Args:
        yes: captions g, of any norm.
        no: their "no" forms h.
        distance: "cosine" is the mean of 1 + <g, h> instead.
    """
    cosine = (normalize(yes) * normalize(no)).sum(1)
    if distance == "cosine":
        return (1 + cosine).mean()
    return (2 - (2 - 2 * cosine + 1e-4).sqrt()).mean()


class OppositeLoss(nn.Module):
    """Half the sum of `binary_opposite` and `semantic_opposite`.

    Args:
        distance: of the semantic part; None leaves that part out.
    """

    def __init__(self, distance: Literal["euclidean", "cosine"] | None = "euclidean") -> None:
        super().__init__()
        self.distance: Literal["euclidean", "cosine"] | None = distance

    def forward(
        self,
        positives: Float[Tensor, "B P"],
        negatives: Float[Tensor, "B M"],
        weight: Weight,
        texts: tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]],
    ) -> Float[Tensor, ""]:
        """Loss of score differences (no minus yes, over temperature) and of the captions' (yes, no) embeddings."""
        loss = binary_opposite(positives, negatives, weight)
        if self.distance is not None:
            loss = loss + semantic_opposite(*texts, self.distance)
        return loss / 2
