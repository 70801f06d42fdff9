"""Images of no known class, made from images of the known ones: SynOOD's supply.

Source: Li et al. 2025 (arXiv 2507.10225).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zoo.data.collections import ImageArray, fetch
from zoo.errors import ZooError
from zoo.losses.boundary import boundary_loss

Classify = Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B C"]]


def as_collection(images: Any) -> Any:
    """A collection of images, which an array is not yet."""
    return ImageArray(images) if isinstance(images, np.ndarray) else images


class OutlierGenerator(ABC):
    """Image of a known class to image of none. Subclass it to bring a diffusion model."""

    def bind(self, sets: Any) -> None:  # noqa: B027 - few need it
        """Called before any `generate`, with what the source's `ood_sets` returns for the training split."""

    @abstractmethod
    def generate(
        self, images: Float[Tensor, "B 3 H W"], numbers: np.ndarray, classify: Classify
    ) -> Float[Tensor, "B 3 H W"]:
        """Outliers.

        Args:
            images: of known classes, values from 0 to 1.
            numbers: which images of the training split they are `[B]`.
            classify: differentiable logits of images over the known classes.

        Returns:
            One outlier for each image, values from 0 to 1.
        """


class SourceOutliers(OutlierGenerator):
    """Outliers that the source itself has for each of its images: rendered, or made beforehand.

    Args:
        kind: name in the `outside` of its `ood_sets`.
    """

    def __init__(self, kind: str = "near_erased") -> None:
        self.kind = kind

    def bind(self, sets: Any) -> None:
        if self.kind not in sets.outside:
            raise ZooError(f"the source has no outliers {self.kind!r}: choose from {', '.join(sets.outside)}")
        self._images = as_collection(sets.outside[self.kind])

    def generate(
        self, images: Float[Tensor, "B 3 H W"], numbers: np.ndarray, classify: Classify
    ) -> Float[Tensor, "B 3 H W"]:
        return fetch(self._images, numbers).to(images.device) / 255


class BoundaryOutliers(OutlierGenerator):
    r"""Pushes images to where the classifier cannot decide: `steps` times against the gradient of `boundary_loss`.

    $$x \leftarrow \mathrm{clip}_{[0,1]}\big(x - \eta\, g / \mathrm{rms}(g)\big)$$

    The paper steps in the noise of a diffusion model, with the raw gradient and a rate between 10 and 2e11; normalised,
    the rate means the same everywhere.

    Args:
        start: what is pushed; None takes the images of known classes themselves.
        steps: K.
        rate: root mean square of a step's change, in units of the full range of a pixel.
        target: boundary score to reach; None takes a little less than the -ln C of an undecided classifier.
    """

    def __init__(
        self, start: OutlierGenerator | None = None, steps: int = 3, rate: float = 0.03, target: float | None = None
    ) -> None:
        self.start, self.steps, self.rate, self.target = start, steps, rate, target

    def bind(self, sets: Any) -> None:
        if self.start is not None:
            self.start.bind(sets)

    def generate(
        self, images: Float[Tensor, "B 3 H W"], numbers: np.ndarray, classify: Classify
    ) -> Float[Tensor, "B 3 H W"]:
        x = images if self.start is None else self.start.generate(images, numbers, classify)
        for _ in range(self.steps):
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                logits = classify(leaf)
                target = -math.log(logits.shape[1]) - 0.05 if self.target is None else self.target
                (gradient,) = torch.autograd.grad(boundary_loss(logits, target), leaf)
            size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
            x = (x - self.rate * gradient / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp(0, 1)
        return x.detach()
