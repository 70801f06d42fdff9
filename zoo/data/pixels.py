"""Images as image-text and matching models read them: normalised on the training device, and little else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from zoo.data.augment import draw_crops, resized_crop
from zoo.data.pairs import PairBatch
from zoo.errors import ZooError


class Pixels(nn.Module):
    """Normalisation, the same in training and evaluation; in training optionally a random crop.

    Nothing is flipped and no colour changed: texts say "left of" and "red", and a panorama's direction is a clue. The
    defaults are CLIP's (Radford et al. 2021, arXiv 2103.00020).

    Args:
        mean: subtracted per channel, of values from 0 to 1.
        std: divided by.
        crop_scale: range of the area of a training image's crop, which is resized to the image's size ((0.9, 1.0) in
            open_clip); None takes the whole image.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        crop_scale: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.crop_scale = crop_scale
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, batch: PairBatch) -> PairBatch:
        """Whatever images a training batch has on either side, prepared; texts are left alone."""
        names = ("anchor", "positive", "negatives")
        return batch.replace(**{name: self._training(getattr(batch, name)) for name in names})

    @torch.no_grad()
    def evaluate(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        """Normalise, without randomness."""
        return (images.float() / 255 - self.mean) / self.std

    def _training(self, inputs: Any) -> Any:
        if not isinstance(inputs, Tensor):
            return inputs
        if self.crop_scale is None:
            return self.evaluate(inputs)
        n, _, height, width = inputs.shape
        if height != width:
            raise ZooError(f"crop_scale crops square images, and these are {height} x {width}: remove it")
        box = draw_crops(n, height, width, self.crop_scale, device=inputs.device)
        return (resized_crop(inputs, box, height) / 255 - self.mean) / self.std
