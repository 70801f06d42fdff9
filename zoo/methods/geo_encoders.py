"""Small from-scratch encoder for street panoramas and satellite tiles."""

from __future__ import annotations

import itertools
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

_STRIDES = ((1, 2), (2, 2), (2, 2))


class CrossViewNet(nn.Module):
    """Three conv-BN-ReLU stages and one linear layer over all positions, for images of a few dozen pixels.

    Nothing is pooled: where something stands (a column is a direction) is what tells one place from another.

    Args:
        size: height and width of panoramas.
        tile: height and width of satellite tiles, which get a tower of their own. None shares one tower: tiles have the
            panoramas' size, as polar ones do.
        dim: width D of the embedding.
        width: channels of the first stage; the next has twice as many, the last 64.
    """

    def __init__(
        self, size: tuple[int, int] = (16, 64), tile: tuple[int, int] | None = None, dim: int = 64, width: int = 24
    ) -> None:
        super().__init__()
        self.ground = _tower(size, dim, width)
        self.satellite = self.ground if tile is None else _tower(tile, dim, width)

    def tower(self, side: Literal["query", "document"]) -> nn.Module:
        """The network of panoramas ("query") or of tiles ("document")."""
        return self.ground if side == "query" else self.satellite

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Raw embeddings by the tower of panoramas."""
        return self.ground(images)


def _tower(size: tuple[int, int], dim: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    height, length = size
    channels = (3, width, 2 * width, 64)
    for (before, after), (down, along) in zip(itertools.pairwise(channels), _STRIDES, strict=True):
        layers += [nn.Conv2d(before, after, 3, (down, along), 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(True)]
        height, length = -(-height // down), -(-length // along)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * height * length, dim))
