"""Geometry of the embedded world: what a panorama and a satellite tile show of a map of cells.

Positions are (row, column) in cells, rows growing southwards. Azimuths grow clockwise from north, which lies in the middle
of an image 64 columns wide: mirroring the columns mirrors the world, and rolling them turns it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

ROWS, COLUMNS = 16, 64  # of panoramas and polar tiles
TILE = 24  # side of a square tile; a polar tile shows the circle inside
REACH = 14  # cells that a ray travels
_HORIZON, _FOCAL = 9.0, 6.0  # row of the horizon; rows between it and the ground one camera height away
_BLACK = 28.0  # distance at which walls would be black
_SKY = np.array([0.6, 0.75, 0.95])
_CHUNK = 128  # positions at a time


class CityMap(NamedTuple):
    """What stands on each cell of a map.

    Attributes:
        height: of what stands there, in camera heights; 0 where nothing does.
        colour: of what stands there, or else of the ground: what a satellite sees.
    """

    height: UInt8[np.ndarray, "R C"]
    colour: Float[np.ndarray, "R C 3"]


def directions() -> Float[np.ndarray, "64 2"]:
    """The direction of each column as a unit step in (row, column)."""
    azimuth = (np.arange(COLUMNS) + 0.5 - COLUMNS / 2) * (2 * np.pi / COLUMNS)
    return np.stack([-np.cos(azimuth), np.sin(azimuth)], 1)


def trace_rays(start: Float[np.ndarray, " 2"]) -> tuple[Int[np.ndarray, "64 T 2"], Float[np.ndarray, "64 T"]]:
    """The cells that the ray of each column passes, in order.

    Args:
        start: position of the camera.

    Returns:
        The cells, and the distances at which the ray enters them: infinite where it has ended before.
    """
    step = directions()
    lines = np.floor(start)[:, None] + np.arange(-REACH, REACH + 2)  # between cells: of rows, of columns
    crossings = ((lines - start[:, None]) / step[:, :, None]).reshape(COLUMNS, -1)
    crossings = np.where((crossings > 0) & (crossings < REACH), crossings, np.inf)
    enter = np.sort(np.pad(crossings, ((0, 0), (1, 0))), 1)
    enter = enter[:, : np.isfinite(enter).sum(1).max() + 1]
    limits = np.minimum(enter, REACH)
    inside = (limits[:, :-1] + limits[:, 1:]) / 2
    return np.floor(start + inside[:, :, None] * step[:, None]).astype(np.int64), enter[:, :-1]


def panoramas(city: CityMap, positions: Float[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 3 16 64"]:
    """Look around from each position: the sky, the first thing that stands in the way, the ground before it.

    Args:
        city: the map.
        positions: of the cameras, which stand on free cells more than `REACH` cells from the map's border.
    """
    images = np.empty((len(positions), 3, ROWS, COLUMNS))
    base = np.floor(positions).astype(np.int64)
    # Cameras at the same point of their cells send their rays through the same cells.
    points, point_of = np.unique(positions - base, axis=0, return_inverse=True)
    for number, point in enumerate(points):
        rows = np.flatnonzero(point_of.ravel() == number)
        for chunk in np.split(rows, range(_CHUNK, len(rows), _CHUNK)):
            images[chunk] = _look_around(city, base[chunk], point)
    return images


def _look_around(
    city: CityMap, base: Int[np.ndarray, "N 2"], point: Float[np.ndarray, " 2"]
) -> Float[np.ndarray, "N 3 16 64"]:
    row = np.arange(ROWS) + 0.5
    below = row > _HORIZON
    image = np.broadcast_to(_SKY, (len(base), ROWS, COLUMNS, 3)).copy()
    image[:, below] = _at(city.colour, base, _cells(point, _FOCAL / (row[below] - _HORIZON), directions()))
    cells, enter = trace_rays(point)
    height = np.where(np.isfinite(enter), _at(city.height, base, cells), 0.0)
    first = (height > 0).argmax(2)
    height = np.take_along_axis(height, first[:, :, None], 2)[:, :, 0]
    ray = np.arange(COLUMNS)
    # Where nothing stands in the way, `first` is the camera's own cell, at distance 0.
    distance = np.where(height > 0, enter[ray, first], REACH)
    top, bottom = (_HORIZON - _FOCAL * (level - 1) / distance for level in (height, 0))
    wall = (height > 0)[:, None] & (row[:, None] >= top[:, None]) & (row[:, None] <= bottom[:, None])
    hit = base[:, None] + cells[ray, first]
    colour = city.colour[hit[..., 0], hit[..., 1]] * (1 - distance / _BLACK)[..., None]
    return np.where(wall[..., None], colour[:, None], image).transpose(0, 3, 1, 2)


def tiles(city: CityMap, centres: Int[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 3 24 24"]:
    """Satellite tiles, north up, one pixel per cell.

    Args:
        city: the map.
        centres: corners between cells, at least half a tile from the map's border.
    """
    offset = np.arange(TILE) - TILE // 2
    return _at(city.colour, centres, np.stack(np.meshgrid(offset, offset, indexing="ij"), 2)).transpose(0, 3, 1, 2)


def polar_tiles(city: CityMap, centres: Int[np.ndarray, "N 2"]) -> Float[np.ndarray, "N 3 16 64"]:
    """Satellite tiles unrolled around their centres: a column is a direction, as in panoramas, the bottom row the centre.

    Args:
        city: the map.
        centres: as for `tiles`.
    """
    radius = (ROWS - 0.5 - np.arange(ROWS)) * (TILE / 2 / ROWS)
    return _at(city.colour, centres, _cells(np.zeros(2), radius, directions())).transpose(0, 3, 1, 2)


def _cells(
    start: Float[np.ndarray, " 2"], distance: Float[np.ndarray, " K"], step: Float[np.ndarray, "64 2"]
) -> Int[np.ndarray, "K 64 2"]:
    """The cells at each distance in each direction."""
    return np.floor(start + distance[:, None, None] * step).astype(np.int64)


def _at(layer: np.ndarray, base: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """A layer of the map at each offset `[..., 2]` from each base: `[N, ...]`."""
    at = base.reshape(-1, *[1] * (offset.ndim - 1), 2) + offset
    return layer[at[..., 0], at[..., 1]]
