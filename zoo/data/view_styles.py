"""Views that are not all made alike: DINO's recipe, whose two views are blurred and solarised with other probabilities."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from zoo.data.augment import Images, PerImage, TwoViews, _where


def solarize(images: Images, threshold: PerImage) -> Images:
    """Invert what is at least as bright as `threshold`."""
    return torch.where(images >= threshold[:, None, None, None], 1 - images, images)


class SolarizedViews(TwoViews):
    """`TwoViews`, some of them solarised at half of full brightness.

    Views of different kinds are chained: the `crops` of one make the next. DINO's two are `TwoViews(views=1, blur_p=1,
    crops=SolarizedViews(views=1, blur_p=0.1, solarize_p=0.2))`. Crops are resized bilinearly, there bicubically.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021 (arXiv 2104.14294).

    Args:
        solarize_p: probability.
        **kwargs: as in `TwoViews`.
    """

    def __init__(self, solarize_p: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.solarize_p = solarize_p

    def _draw(self, n: int, height: int, width: int, device: torch.device) -> dict[str, Tensor]:
        solarized = torch.rand(n, device=device) < self.solarize_p
        return {**super()._draw(n, height, width, device), "solarized": solarized}

    def _colour(self, views: Images, *, solarized: Bool[Tensor, " N"], **colour: Any) -> Images:  # type: ignore[override]
        views = super()._colour(views, **colour)
        return _where(solarized, solarize, views, torch.full((len(views),), 0.5, device=views.device))
