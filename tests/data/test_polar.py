"""The polar transform: formula, orientation, symmetry."""

import math

import numpy as np
import pytest
import torch

from zoo.data.collections import ImageArray, fetch
from zoo.data.polar import PolarTiles, polar_grid, polar_transform
from zoo.errors import ZooError

S, H, W = 48, 12, 32


def smooth(channels=3):
    """A tile without detail at the scale of a pixel."""
    y, x = torch.meshgrid(*(torch.linspace(0, 1, S, dtype=torch.float64) for _ in "yx"), indexing="ij")
    waves = [torch.sin(2 * a * x + 3 * y + a) + torch.cos(a * x * y) for a in range(1, channels + 1)]
    return torch.stack(waves)[None]


def test_grid_of_the_card_and_which_way_columns_look():
    row, column = polar_grid(S, H, W)
    for i in range(H):
        for j in range(W):
            radius, angle = S / 2 * (H - 1 - i) / H, 2 * math.pi * j / W
            assert row[i, j].item() == pytest.approx(S / 2 + radius * math.cos(angle))
            assert column[i, j].item() == pytest.approx(S / 2 - radius * math.sin(angle))
    assert (row[-1] == S / 2).all() and (column[-1] == S / 2).all()
    south, west, north, east = (j * W // 4 for j in range(4))
    assert row[0, south] > S / 2 > row[0, north] and column[0, west] < S / 2 < column[0, east]


def test_bilinear_sampling_by_hand():
    image = torch.rand(1, 2, S, S, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    polar = polar_transform(image, H, W)
    row, column = polar_grid(S, H, W)
    for i, j in ((0, 0), (3, 5), (7, 20), (11, 31)):
        r, c = row[i, j].item(), column[i, j].item()
        r0, c0 = math.floor(r), math.floor(c)
        a, b = r - r0, c - c0
        near = image[0, :, r0 : r0 + 2, c0 : c0 + 2]
        weights = torch.tensor([[(1 - a) * (1 - b), (1 - a) * b], [a * (1 - b), a * b]], dtype=torch.float64)
        torch.testing.assert_close(polar[0, :, i, j], (near * weights).sum((1, 2)))


def test_north_is_in_the_middle():
    tile = torch.zeros(1, 3, S, S)
    tile[:, :, : S // 4, S // 2 - 3 : S // 2 + 4] = 1.0  # a mark in the north
    at = polar_transform(tile, H, W)[0, 0, 0].nonzero()[:, 0].double()
    assert at.mean() == W / 2 and len(at) < W / 4


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_rotating_the_tile_rolls_the_polar_image(quarter):
    tile = smooth()
    turned = polar_transform(tile.rot90(quarter, (2, 3)), H, W)
    rolled = polar_transform(tile, H, W).roll(-quarter * W // 4, 3)
    # S / 2 is half a pixel off the centre of rotation, and a half turn doubles that in rows and columns.
    step = max(tile.diff(dim=d).abs().max() for d in (2, 3))
    assert (turned - rolled).abs().max() < 2 * step < (turned - rolled.roll(W // 4, 3)).abs().max()


def test_a_constant_channel_stays_constant_and_others_do_not_mind():
    tile = torch.cat([smooth(2), torch.full((1, 1, S, S), 0.7, dtype=torch.float64)], 1)
    polar = polar_transform(tile, H, W)
    torch.testing.assert_close(polar[:, 2], torch.full((1, H, W), 0.7, dtype=torch.float64))
    torch.testing.assert_close(polar[:, :2], polar_transform(tile[:, :2], H, W))


def test_beyond_the_border_is_black():
    polar = polar_transform(torch.ones(1, 1, 8, 8), 64, 16)  # its top row samples at 7.94, past the last pixel's centre
    assert 0 < polar[0, 0, 0, 0] < 0.1 and polar[0, 0, 0, 8] == 1


def test_bytes_are_rounded_and_the_batch_is_one_by_one():
    tiles = torch.randint(0, 256, (3, 3, S, S), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    polar = polar_transform(tiles, H, W)
    assert polar.dtype == torch.uint8 and polar.shape == (3, 3, H, W)
    exact = polar_transform(tiles.double(), H, W)
    assert (polar.double() - exact).abs().max() <= 0.501
    assert torch.equal(polar[1:2], polar_transform(tiles[1:2], H, W))


def test_a_loader_reads_polar_tiles():
    tiles = ImageArray(np.random.default_rng(0).integers(0, 256, (4, 3, S, S), np.uint8))
    polar = PolarTiles(tiles, H, W)
    assert len(polar) == 4 and polar[2].shape == (3, H, W)
    assert torch.equal(fetch(polar, np.array([3, 2])), polar_transform(tiles.fetch([3, 2]), H, W))
    assert torch.equal(polar[2], polar.fetch([2])[0])


def test_only_square_tiles():
    with pytest.raises(ZooError, match="square tiles, not 8 x 9"):
        polar_transform(torch.zeros(1, 3, 8, 9), 4, 8)
