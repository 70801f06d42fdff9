"""The polar transform of satellite tiles.

Source: Shi et al., "Spatial-Aware Feature Aggregation for Image based Cross-View Geo-Localization", NeurIPS 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample

from zoo.data.collections import fetch
from zoo.errors import ZooError


def polar_grid(size: int, height: int, width: int) -> tuple[Float64[Tensor, "H W"], Float64[Tensor, "H W"]]:
    r"""Rows and columns of the tile at which the polar image samples it.

    $$\rho_i = \frac{S}{2} \cdot \frac{H - 1 - i}{H}, \quad \theta_j = \frac{2 \pi j}{W}, \quad
    \mathrm{row} = \frac{S}{2} + \rho_i \cos\theta_j, \quad \mathrm{column} = \frac{S}{2} - \rho_i \sin\theta_j$$

    The bottom row is the tile's centre. Of a tile with north at the top, column 0 looks south, W/4 west and W/2, the
    centre, north, as CVUSA's panoramas do.

    Args:
        size: S, side of the tile.
        height: H of the polar image.
        width: W of the polar image.
    """
    radius = size / 2 * (height - 1 - torch.arange(height, dtype=torch.float64)) / height
    angle = 2 * math.pi * torch.arange(width, dtype=torch.float64) / width
    return size / 2 + radius[:, None] * angle.cos(), size / 2 - radius[:, None] * angle.sin()


def polar_transform(images: Shaped[Tensor, "B C rows columns"], height: int, width: int) -> Shaped[Tensor, "B C H W"]:
    """Square tiles unrolled around their centres: one column is one viewing direction, the top row the horizon.

    Bilinear; beyond the border is 0. In the images' dtype; uint8 is rounded.

    Args:
        images: tiles, uint8 or floating point, on any device.
        height: of the polar images.
        width: of the polar images.

    Raises:
        ZooError: the tiles are not square.
    """
    *_, rows, columns = images.shape
    if rows != columns:
        raise ZooError(f"the polar transform needs square tiles, not {rows} x {columns}: resize or crop them")
    values = images if images.is_floating_point() else images.float()
    row, column = polar_grid(rows, height, width)
    # -1 and 1 are the centres of the outermost pixels.
    grid = torch.stack([column, row], -1) / max((rows - 1) / 2, 0.5) - 1
    grid = grid.to(values).expand(len(images), -1, -1, -1)
    polar = grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    return polar if images.is_floating_point() else polar.round().to(images.dtype)


class PolarTiles:
    """A collection of square tiles, polar-transformed as they are read.

    Args:
        tiles: the collection.
        height: of the polar images: 112 on CVUSA.
        width: of the polar images: 616 on CVUSA.
    """

    def __init__(self, tiles: Any, height: int, width: int) -> None:
        self.tiles, self.height, self.width = tiles, height, width

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, number: int) -> UInt8[Tensor, "3 H W"]:
        return self.fetch([number])[0]

    def fetch(self, numbers: Sequence[int] | np.ndarray) -> UInt8[Tensor, "B 3 H W"]:
        """Polar images by number."""
        return polar_transform(fetch(self.tiles, numbers), self.height, self.width)
