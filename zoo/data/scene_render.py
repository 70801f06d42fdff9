"""Scenes as images of 32 by 32 pixels."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from zoo.data.scene_edits import (
    BACKGROUND,
    C0,
    C1,
    C2,
    FRAME,
    RELATION,
    S0,
    S1,
    S2,
    SHAPES,
    STRIPED,
    SceneArray,
    canonical,
)  # fmt: skip
from zoo.data.shapes import SILHOUETTES

SIZE, BORDER, GLYPH, SMALL = 32, 2, 13, 8
NOISE = 0.03
_LOW, _HIGH = BORDER, SIZE - BORDER - GLYPH  # first pixel of the two slots along the relation's axis
_ROOM = SIZE - 2 * BORDER - GLYPH  # free pixels beside an object, across that axis

_COLOURS = [
    (220, 30, 35), (40, 190, 50), (45, 85, 245), (250, 230, 40), (250, 120, 195), (60, 225, 235), (250, 250, 250),
    (240, 135, 35),
]  # fmt: skip
_BACKGROUNDS = [(12, 16, 75), (85, 8, 28), (8, 60, 25), (95, 105, 120), (85, 30, 100), (95, 65, 15)]
_FRAMES = [
    (140, 75, 0), (250, 240, 200), (0, 170, 120), (255, 100, 90), (10, 10, 20), (235, 210, 0), (20, 60, 225),
    (205, 150, 255),
]  # fmt: skip


def render(
    scenes: SceneArray, seed: int | tuple[int, ...], rows: Int[np.ndarray, " N"] | None = None
) -> UInt8[np.ndarray, "N 3 32 32"]:
    """Draw scenes: a background in a frame, two objects, and what else there is.

    Positions across the relation's axis and pixel noise are nuisance. They depend on nothing but `seed` and the row's
    number, so a scene and its edit in the same row differ in what was edited alone, and descriptions of the same picture
    give the same image.

    Args:
        scenes: the scenes.
        seed: of the nuisance.
        rows: numbers to take the nuisance of, where they are not 0, 1, 2, ...
    """
    rows = np.arange(len(scenes)) if rows is None else rows
    seeds = (seed,) if isinstance(seed, int) else seed
    images = np.empty((len(scenes), 3, SIZE, SIZE), np.uint8)
    for start in range(0, len(scenes), 512):
        part = slice(start, start + 512)
        images[part] = _render(canonical(scenes[part]), *_nuisance(seeds, rows[part]))
    return images


def _nuisance(
    seeds: tuple[int, ...], rows: Int[np.ndarray, " N"]
) -> tuple[Int[np.ndarray, "N 2"], Float[np.ndarray, "N 3 32 32"]]:
    generators = [np.random.default_rng([*seeds, row]) for row in rows.tolist()]  # PCG64
    shifts = np.array([g.integers(_ROOM + 1, size=2) for g in generators]).reshape(-1, 2)
    noise = np.array([g.standard_normal((3, SIZE, SIZE)) for g in generators]).reshape(-1, 3, SIZE, SIZE)
    return shifts, noise


def _render(
    scenes: SceneArray, shifts: Int[np.ndarray, "N 2"], noise: Float[np.ndarray, "N 3 32 32"]
) -> UInt8[np.ndarray, "N 3 32 32"]:
    images = np.empty((len(scenes), 3, SIZE, SIZE))
    images[:] = _palette(_FRAMES, scenes[:, FRAME])
    inside = slice(BORDER, SIZE - BORDER)
    images[:, :, inside, inside] = _palette(_BACKGROUNDS, scenes[:, BACKGROUND])
    sideways = scenes[:, RELATION] < 2
    for number, (colour, shape, slot) in enumerate(((C0, S0, _LOW), (C1, S1, _HIGH))):
        cover = _BIG[scenes[:, shape]]
        cover = np.where((scenes[:, STRIPED] == number)[:, None, None], cover * _STRIPES, cover)
        _paint(images, scenes[:, colour], cover, _corner(sideways, slot, BORDER + shifts[:, number]))
    _paint(images, scenes[:, C2], _TINY[scenes[:, S2]], _corner(sideways, *_gap(shifts)))
    images += 255 * NOISE * noise
    return images.round().clip(0, 255).astype(np.uint8)


def _corner(sideways: np.ndarray, along: np.ndarray | int, across: np.ndarray) -> Int[np.ndarray, "N 2"]:
    """(row, column) of a glyph's first pixel."""
    along = np.broadcast_to(along, across.shape)
    return np.where(sideways, np.stack([across, along]), np.stack([along, across])).T


def _gap(shifts: Int[np.ndarray, "N 2"]) -> tuple[np.ndarray, np.ndarray]:
    """Middle of the widest gap beside one of the two objects; it is at least `SMALL` wide."""
    widths = np.concatenate([shifts, _ROOM - shifts], 1)
    widest = widths.argmax(1)
    width = widths.max(1)
    along = np.where(widest % 2 == 0, _LOW, _HIGH) + (GLYPH - SMALL) // 2
    start = np.where(widest < 2, BORDER, SIZE - BORDER - width)
    return along, start + (width - SMALL) // 2


def _paint(
    images: Float[np.ndarray, "N 3 S S"],
    colours: Int[np.ndarray, " N"],
    cover: Float[np.ndarray, "N G G"],
    corner: Int[np.ndarray, "N 2"],
) -> None:
    rows = np.flatnonzero(colours >= 0)  # absent objects have no colour
    pixels = np.arange(cover.shape[1])
    y = (corner[rows, 0, None] + pixels)[:, :, None]
    x = (corner[rows, 1, None] + pixels)[:, None, :]
    at = (rows[:, None, None], slice(None), y, x)  # [M, G, G, 3]: NumPy puts the sliced axis last
    share = cover[rows][..., None]
    images[at] = (1 - share) * images[at] + share * np.array(_COLOURS, float)[colours[rows]][:, None, None]


def _palette(colours: list[tuple[int, int, int]], numbers: Int[np.ndarray, " N"]) -> Float[np.ndarray, "N 3 1 1"]:
    return np.array(colours, float)[numbers][:, :, None, None]


def _glyphs(size: int) -> Float[np.ndarray, "8 G G"]:
    """Anti-aliased share of each pixel that a shape covers."""
    axis = (torch.arange(size, dtype=torch.float64) + 0.5) * (2 / size) - 1
    x, y = axis[None, :].expand(size, size), axis[:, None].expand(size, size)
    same = {"circle": "disk", "cross": "plus"}
    fields = {name: SILHOUETTES[same.get(name, name)] for name in SHAPES if name != "diamond"}
    fields["diamond"] = lambda x, y: (x.abs() + y.abs() - 0.95) * 0.7071
    return torch.stack([(0.5 - fields[name](x, y) * (size / 2)).clamp(0, 1) for name in SHAPES]).numpy()


_BIG, _TINY = _glyphs(GLYPH), _glyphs(SMALL)
_STRIPES = np.where(np.arange(GLYPH) % 4 < 2, 1.0, 0.3)[:, None]
