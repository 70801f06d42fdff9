"""Map of the embedded world, and the places that are looked for on it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from zoo.data.world_render import CityMap

BLOCKS, PERIOD, STREET = 96, 8, 2  # blocks per side of a map; cells per block, and how many of these are street
N_PLACES = 90 * 90  # crossings of a map that are places: from those at its border one would look beyond it
_MARGIN = 3
_METRES = 3.0  # per cell
_ORIGIN, _METRES_PER_DEGREE = (48.0, 11.0), 111_320.0  # latitude and longitude of a map's north-western corner
_BUILDING_HEIGHT, _POLE_HEIGHT = 4, 3
_POLE_COLOURS = np.array(
    [(0.9, 0.1, 0.1), (0.1, 0.75, 0.1), (0.15, 0.2, 0.95), (0.95, 0.85, 0.1), (0.85, 0.1, 0.85), (0.1, 0.85, 0.85)]
)


class Area(NamedTuple):
    """A map, and what nobody sees of it.

    Attributes:
        city: what there is to see.
        palette: of each block.
        crossings: the map's places in random order, as numbers of the blocks whose first corner they are.
    """

    city: CityMap
    palette: Int[np.ndarray, "96 96"]
    crossings: Int[np.ndarray, " 8100"]


class Places(NamedTuple):
    """Where the images of a split were taken.

    Attributes:
        block: blocks whose first corner the places are, `[D, 2]`: one tile each.
        place_of: place of each panorama.
        position: of each panorama in cells.
        semi: further places whose tiles show the position of a panorama `[Q, S]`.
    """

    block: Int[np.ndarray, "D 2"]
    place_of: Int[np.ndarray, " Q"]
    position: Float[np.ndarray, "Q 2"]
    semi: Int[np.ndarray, "Q S"]


def build_area(rng: np.random.Generator, regions: int, palettes: int, poles: float) -> Area:
    """Draw a map.

    Args:
        rng: source of all draws.
        regions: Voronoi cells.
        palettes: palettes that they share.
        poles: share of street cells with a pole.
    """
    palette = _palettes(rng, regions, palettes)
    look = 0.2 + 0.65 * rng.random((palettes, 2, 3))
    wall, ground = look[palette].transpose(2, 0, 1, 3)
    wall = wall + 0.02 * (2 * rng.random(wall.shape) - 1)
    street = np.arange(BLOCKS * PERIOD) % PERIOD < STREET
    built = ~(street[:, None] | street)
    pole = (rng.random(built.shape) < poles) & ~built & ~(street[:, None] & street)
    pole_colour = _POLE_COLOURS[(rng.random(built.shape) * len(_POLE_COLOURS)).astype(int)]
    to_cells = np.ones((PERIOD, PERIOD, 1))
    colour = np.where(built[..., None], np.kron(wall, to_cells), np.kron(ground, to_cells))
    city = CityMap(
        (built * _BUILDING_HEIGHT + pole * _POLE_HEIGHT).astype(np.uint8),
        np.where(pole[..., None], pole_colour, colour),
    )
    inner = np.arange(BLOCKS**2).reshape(BLOCKS, BLOCKS)[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN].ravel()
    return Area(city, palette, inner[np.argsort(rng.random(len(inner)), kind="stable")])


def _palettes(rng: np.random.Generator, regions: int, palettes: int) -> Int[np.ndarray, "96 96"]:
    """Voronoi cells with a palette each; cells of one palette lie in different bands of the map, hence mostly far apart."""
    centres = rng.random((regions, 2)) * BLOCKS
    centres = centres[np.argsort(centres[:, 0], kind="stable")]
    block = np.arange(BLOCKS) + 0.5
    distance = (block[:, None, None] - centres[:, 0]) ** 2 + (block[:, None] - centres[:, 1]) ** 2
    bands = np.argsort(rng.random((-(-regions // palettes), palettes)), axis=1, kind="stable")
    return bands.ravel()[distance.argmin(2)]


def crossing_points(blocks: Int[np.ndarray, " N"]) -> Places:
    """Panoramas taken in the middle of each crossing.

    Args:
        blocks: numbers of the crossings' blocks.
    """
    block = np.stack(np.divmod(blocks, BLOCKS), 1)
    return Places(block, np.arange(len(block)), corners(block).astype(float), np.zeros((len(block), 0), np.int64))


def street_points(area: Area, blocks: Int[np.ndarray, " N"], rng: np.random.Generator) -> Places:
    """One or two panoramas per crossing, taken on cells of the street up to 3 cells away.

    The tiles of the three other crossings around the block that lies there show the position too: these crossings are
    the panorama's semi-positives, and follow the places that have panoramas.

    Args:
        area: the map.
        blocks: numbers of the crossings' blocks.
        rng: source of the draws.
    """
    near = np.stack(np.meshgrid(np.arange(-3, 3), np.arange(-3, 3), indexing="ij"), 2).reshape(-1, 2)
    near = near[np.isin(near, (-1, 0)).any(1)]  # the cells of both streets
    block = np.stack(np.divmod(blocks, BLOCKS), 1)
    place_of = np.repeat(np.arange(len(block)), 1 + (rng.random(len(block)) < 0.5))
    around = corners(block)[place_of][:, None] + near
    free = area.city.height[around[..., 0], around[..., 1]] == 0
    chosen = (rng.random(free.shape) * free).argmax(1)
    position = around[np.arange(len(chosen)), chosen] + 0.5
    side = np.where(near[chosen] < 0, -1, 1)[:, None] * np.array([(1, 0), (0, 1), (1, 1)])
    semi = (block[place_of][:, None] + side) @ np.array([BLOCKS, 1])
    documents = np.concatenate([blocks, np.setdiff1d(semi, blocks)])
    number = np.full(BLOCKS**2, -1)
    number[documents] = np.arange(len(documents))
    return Places(np.stack(np.divmod(documents, BLOCKS), 1), place_of, position, number[semi])


def corners(block: Int[np.ndarray, "N 2"]) -> Int[np.ndarray, "N 2"]:
    """Middles of crossings in cells: corners between the four cells of each."""
    return block * PERIOD + STREET // 2


def metres(position: np.ndarray) -> Float[np.ndarray, "N 2"]:
    """x to the east and y to the north of positions in cells."""
    return position[:, ::-1] * (_METRES, -_METRES)


def degrees(position: np.ndarray) -> Float[np.ndarray, "N 2"]:
    """Latitude and longitude of positions in cells; over a map, parallels and meridians are straight."""
    latitude, longitude = _ORIGIN
    east, north = metres(position).T / _METRES_PER_DEGREE
    return np.stack([latitude + north, longitude + east / np.cos(np.radians(latitude))], 1)
