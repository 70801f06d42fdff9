"""Augmentation of (ground view, tile) pairs on the training device, which keeps their directions in step.

A tile has north at the top, a panorama in its centre column. Mirroring both mirrors the place. A quarter turn of the tile
counter-clockwise brings east to the top, and so does a roll of the panorama by a quarter of its width to the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor, nn

from zoo.data.augment import (
    Images,
    PerImage,
    _where,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
)
from zoo.data.image_filters import coarse_holes, grid_holes, sharpen
from zoo.data.pairs import PairBatch
from zoo.errors import ZooError

_JITTER = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def flip_images(images: Shaped[Tensor, "N C H W"], where: Bool[Tensor, " N"]) -> Shaped[Tensor, "N C H W"]:
    """Mirror left and right where asked."""
    return torch.where(where[:, None, None, None], images.flip(3), images)


def rotate_tiles(images: Shaped[Tensor, "N C H W"], turns: Int[Tensor, " N"]) -> Shaped[Tensor, "N C H W"]:
    """Turn each image by so many quarters, counter-clockwise.

    Raises:
        ZooError: the images are not square.
    """
    if images.shape[2] != images.shape[3]:
        size = f"{images.shape[2]} x {images.shape[3]}"
        raise ZooError(f"tiles of {size} cannot be turned by 90 degrees: make them square, or set rotate: 0")
    quarter, half = turns % 2 == 1, turns % 4 >= 2
    images = torch.where(quarter[:, None, None, None], images.rot90(1, (2, 3)), images)
    return torch.where(half[:, None, None, None], images.rot90(2, (2, 3)), images)


def roll_panoramas(images: Shaped[Tensor, "N C H W"], turns: Int[Tensor, " N"]) -> Shaped[Tensor, "N C H W"]:
    """Roll each image by so many quarters of its width, to the left.

    Raises:
        ZooError: the width does not divide by four.
    """
    width = images.shape[3]
    if width % 4:
        raise ZooError(f"panoramas of {width} columns cannot be rolled by a quarter: make the width a multiple of 4")
    column = torch.arange(width, device=images.device) + turns[:, None] * (width // 4)
    return images.gather(3, (column % width)[:, None, None].expand_as(images))


class GeoAugment(nn.Module):
    """Sample4Geo's augmentation: both views are mirrored and turned as one, and changed in colour, focus and holes each.

    In this order: mirror; colour jitter; blur or sharpen; holes, either a grid or coarse ones; normalisation; turn.
    Parameters are drawn per pair or per image; only the order of the four parts of the colour jitter is one for a batch of
    views. Explicit negatives are tiles, each mirrored and turned by itself. Images come in the size that the encoder
    reads. The defaults are the paper's for CVUSA, CVACT and VIGOR; for University-1652 set `roll: false` (its drone views
    have no direction to keep) and `grid_ratio: [0.4, 0.4]`.

    NOTE: The authors' code also compresses half of the images by JPEG at quality 90 to 100, and blurs with an anisotropic
    kernel; here nothing is compressed, and the blur is Gaussian.

    Source: Deuser et al., "Sample4Geo: Hard Negative Sampling For Cross-View Geo-Localisation", ICCV 2023 (arXiv
    2303.11851), section 4.2 and code.

    Args:
        tile: which member of a pair is the tile.
        flip: probability of mirroring.
        joint_flip: mirror both views of a pair or none; if false, each by itself.
        rotate: probability of a turn by one, two or three quarters.
        roll: roll the ground view as its tile is turned; if false, the tile is turned alone.
        polar: tiles are polar images, which are rolled as panoramas are.
        jitter: strength of brightness, contrast, saturation (factors from 1 - s to 1 + s) and hue (turns).
        jitter_p: probability of colour jitter.
        filter_p: probability of blur or sharpening, each in half of the cases.
        blur_sigma: range of the blur's width in pixels.
        blur_kernel: its taps, odd.
        sharpen_alpha: range of the weight of the sharpened image.
        sharpen_lightness: range of its lightness.
        holes_p: probability of holes, a grid or coarse ones, each in half of the cases.
        grid_ratio: part of a grid cell's side that is a hole, in ground views and in tiles.
        holes: range of the number of coarse holes.
        hole_side: range of their sides, as part of the image's height.
        mean: subtracted per channel, of values from 0 to 1.
        std: divided by.
    """

    mean: Tensor
    per_std: Tensor

    def __init__(
        self,
        tile: Literal["positive", "anchor"] = "positive",
        flip: float = 0.5,
        joint_flip: bool = True,
        rotate: float = 0.75,
        roll: bool = True,
        polar: bool = False,
        jitter: tuple[float, float, float, float] = (0.15, 0.15, 0.15, 0.15),
        jitter_p: float = 0.5,
        filter_p: float = 0.3,
        blur_sigma: tuple[float, float] = (0.2, 1.0),
        blur_kernel: int = 7,
        sharpen_alpha: tuple[float, float] = (0.2, 0.5),
        sharpen_lightness: tuple[float, float] = (0.5, 1.0),
        holes_p: float = 0.3,
        grid_ratio: tuple[float, float] = (0.5, 0.4),
        holes: tuple[int, int] = (10, 25),
        hole_side: tuple[float, float] = (0.1, 0.2),
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        if polar and not roll:
            raise ZooError("polar tiles are rolled with their panoramas: set roll: true, or rotate: 0")
        self.tile, self.flip, self.joint_flip = tile, flip, joint_flip
        self.rotate, self.roll, self.polar = rotate, roll, polar
        self.jitter, self.jitter_p = jitter, jitter_p
        self.filter_p, self.blur_sigma, self.blur_kernel = filter_p, blur_sigma, blur_kernel
        self.sharpen_alpha, self.sharpen_lightness = sharpen_alpha, sharpen_lightness
        self.holes_p, self.grid_ratio, self.holes, self.hole_side = holes_p, grid_ratio, holes, hole_side
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("per_std", 1 / torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, batch: PairBatch) -> PairBatch:
        """Augmented views in place of anchor, positive and negatives."""
        ground, tile = (batch.anchor, batch.positive) if self.tile == "positive" else (batch.positive, batch.anchor)
        flip, turns = self._flips(len(batch), tile.device), self._turns(len(batch), tile.device)
        tile = self._turned(self._looks(flip_images(tile, flip), self.grid_ratio[1]), turns)
        if not self.joint_flip:
            flip = self._flips(len(batch), ground.device)
        ground = self._looks(flip_images(ground, flip), self.grid_ratio[0])
        if self.roll and self.rotate > 0:
            ground = roll_panoramas(ground, turns)
        anchor, positive = (ground, tile) if self.tile == "positive" else (tile, ground)
        return batch.replace(anchor=anchor, positive=positive, negatives=self._alone(batch.negatives))

    @torch.no_grad()
    def evaluate(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        """Normalise, without randomness."""
        return self._normalised(images.float().div_(255))

    def _alone(self, tiles: UInt8[Tensor, "N 3 H W"] | None) -> Float[Tensor, "N 3 H W"] | None:
        if tiles is None:
            return None
        flip, turns = self._flips(len(tiles), tiles.device), self._turns(len(tiles), tiles.device)
        return self._turned(self._looks(flip_images(tiles, flip), self.grid_ratio[1]), turns)

    def _flips(self, n: int, device: torch.device) -> Bool[Tensor, " N"]:
        return torch.rand(n, device=device) < self.flip

    def _turns(self, n: int, device: torch.device) -> Int[Tensor, " N"]:
        turned = torch.rand(n, device=device) < self.rotate
        return torch.randint(1, 4, (n,), device=device) * turned

    def _turned(self, tiles: Images, turns: Int[Tensor, " N"]) -> Images:
        if self.rotate == 0:
            return tiles
        return roll_panoramas(tiles, turns) if self.polar else rotate_tiles(tiles, turns)

    def _normalised(self, images: Images) -> Images:
        return images.sub_(self.mean).mul_(self.per_std)

    def _looks(self, images: UInt8[Tensor, "N 3 H W"], grid_ratio: float) -> Images:
        """Colour, focus and holes of each image, then normalisation."""
        n, _, height, width = images.shape
        device = images.device
        views = images.float().div_(255)
        chance, amount = torch.rand(3, n, device=device), torch.rand(n, 7, device=device)
        if self.jitter_p > 0:
            # One order, from the CPU's generator: reading it from a GPU would stall the queue of kernels.
            jitter = partial(self._jitter, order=torch.randperm(4).tolist())
            views = _where(chance[0] < self.jitter_p, jitter, views, amount[:, :4])
        if self.filter_p > 0:
            blur = chance[1] < self.filter_p / 2
            sharp = (chance[1] >= self.filter_p / 2) & (chance[1] < self.filter_p)
            views = _where(blur, self._blur, views, amount[:, 4])
            views = _where(sharp, self._sharpen, views, amount[:, 5:])
        if self.holes_p > 0:
            grid = (chance[2] < self.holes_p / 2)[:, None, None] & grid_holes(height, width, grid_ratio, device)
            coarse = (chance[2] >= self.holes_p / 2) & (chance[2] < self.holes_p)
            holes = coarse_holes(n, height, width, self.holes, self.hole_side, device)
            views = views.masked_fill((grid | coarse[:, None, None] & holes)[:, None], 0)
        return self._normalised(views)

    def _jitter(self, views: Images, amount: Float[Tensor, "N 4"], order: Sequence[int]) -> Images:
        for i in order:
            if self.jitter[i] > 0:
                centre = 1.0 if i < 3 else 0.0
                factor = centre + self.jitter[i] * (2 * amount[:, i] - 1)
                views = _JITTER[i](views, factor.clamp_min(0) if i < 3 else factor)
        return views

    def _blur(self, views: Images, amount: PerImage) -> Images:
        low, high = self.blur_sigma
        return gaussian_blur(views, low + (high - low) * amount, self.blur_kernel)

    def _sharpen(self, views: Images, amount: Float[Tensor, "N 2"]) -> Images:
        (low, high), (dark, light) = self.sharpen_alpha, self.sharpen_lightness
        return sharpen(views, low + (high - low) * amount[:, 0], dark + (light - dark) * amount[:, 1])
