"""The image arena as ink on paper, for models that decode pixels, and a transform that leaves the image itself alone."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from zoo.data.augment import TwoViews
from zoo.data.shapes import Shapes


class Silhouettes(Shapes):
    """The silhouettes of `Shapes` in the same poses, white on black: binary images, without any nuisance of surface.

    A stand-in for binarised digits. Args as in `Shapes`; distractors and textures are not drawn.
    """

    name = "silhouettes"

    def _scenes(self, draws: Float[Tensor, "N P"]) -> UInt8[Tensor, "N 3 S S"]:
        axis = (torch.arange(self.size, dtype=torch.float64) + 0.5) * (2 / self.size) - 1
        cover = self._cover(axis[None, None, :], axis[None, :, None], draws[:, :5], small=False)
        return (255 * cover.round()).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)


class StillAndView(TwoViews):
    """The image itself as anchor, one random view of it as positive. Args as in `TwoViews`."""

    @torch.no_grad()
    def views_of(self, images: UInt8[Tensor, "N 3 H W"]) -> list[Float[Tensor, "N 3 _ _"]]:
        return [self.evaluate(images), self.augment(images)]
