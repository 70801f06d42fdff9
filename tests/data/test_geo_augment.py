"""Paired augmentation: geometry that keeps both views in step, and the looks of each view."""

import math

import pytest
import torch
import torch.nn.functional as tf
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data.geo_augment import GeoAugment, flip_images, roll_panoramas, rotate_tiles
from zoo.data.image_filters import coarse_holes, grid_holes, sharpen
from zoo.data.pairs import PairBatch
from zoo.data.polar import polar_transform
from zoo.errors import ZooError

PLAIN = {"jitter_p": 0.0, "filter_p": 0.0, "holes_p": 0.0, "mean": (0, 0, 0), "std": (1, 1, 1)}
STILL = {"flip": 0.0, "rotate": 0.0}


def _images(n, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def _batch(ground, tile, negatives=None):
    ids = torch.arange(len(ground))
    return PairBatch(ground, tile, ids, ids, ids, negatives=negatives)


def _run(transform, batch, seed=0):
    torch.manual_seed(seed)
    return transform(batch)


def _matches(views, candidates):
    """For each view, which candidate `[K, 3, H, W]` of values from 0 to 1 it equals."""
    equal = (views[:, None] - candidates[None].float() / 255).abs().flatten(2).amax(2) < 1e-5
    assert (equal.sum(1) == 1).all()
    return equal.long().argmax(1)


# Geometry


@settings(max_examples=25)
@given(turns=st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_turns_are_those_of_torch(turns):
    tile, panorama, r = _images(len(turns), 5, 5), _images(len(turns), 3, 8), torch.tensor(turns)
    expected = torch.stack([x.rot90(k, (1, 2)) for x, k in zip(tile, turns, strict=True)])
    assert torch.equal(rotate_tiles(tile, r), expected)
    expected = torch.stack([x.roll(-2 * k, 2) for x, k in zip(panorama, turns, strict=True)])
    assert torch.equal(roll_panoramas(panorama, r), expected)


def test_four_turns_and_two_flips_are_the_identity():
    tile, panorama = _images(6, 6, 6), _images(6, 4, 12)
    r, four = torch.tensor([0, 1, 2, 3, 1, 2]), torch.full((6,), 4)
    assert torch.equal(rotate_tiles(tile, four), tile)
    assert torch.equal(roll_panoramas(panorama, four), panorama)
    assert torch.equal(rotate_tiles(rotate_tiles(tile, r), 4 - r), tile)
    assert torch.equal(roll_panoramas(roll_panoramas(panorama, r), 4 - r), panorama)
    where = torch.tensor([True, False] * 3)
    flipped = flip_images(tile, where)
    assert torch.equal(flipped[1::2], tile[1::2]) and torch.equal(flipped[0], tile[0].flip(2))
    assert torch.equal(flip_images(flipped, where), tile)


SIDE, WIDTH = 64, 96


def _marked(azimuth):
    """A tile, north up, with a light in a direction (degrees clockwise from north); the panorama, north at its centre."""
    centre, angle = (SIDE - 1) / 2, math.radians(azimuth)
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    north, east = centre - row, column - centre
    light = (north - 22 * math.cos(angle)) ** 2 + (east - 22 * math.sin(angle)) ** 2 < 9
    direction = (torch.arange(WIDTH) + 0.5) / WIDTH * 360 - 180
    away = (direction - azimuth + 180) % 360 - 180
    pillar = (away.abs() < 8).expand(16, WIDTH)
    return (255 * light).byte().expand(3, -1, -1), (255 * pillar).byte().expand(3, -1, -1)


def _direction_in_tile(tile):
    weight, centre = tile[0], (SIDE - 1) / 2
    row, column = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return math.degrees(math.atan2((weight * (column - centre)).sum(), (weight * (centre - row)).sum()))


def _direction_in_panorama(image):
    weight = image[0].sum(0)
    angle = ((torch.arange(image.shape[2]) + 0.5) / image.shape[2] - 0.5) * 2 * math.pi
    return math.degrees(math.atan2((weight * angle.sin()).sum(), (weight * angle.cos()).sum()))


def _apart(a, b):
    return abs((a - b + 180) % 360 - 180)


@pytest.mark.parametrize("polar", [False, True])
def test_a_direction_is_the_same_in_both_views(polar):
    azimuths = [10, 20, 75, 110, 160, 200, 250, 300, 345] * 4
    tile, ground = (torch.stack(x) for x in zip(*map(_marked, azimuths), strict=True))
    tolerance = 3.0  # a column is 3.75 degrees
    if polar:
        tile, tolerance = (
            polar_transform(tile, 16, WIDTH),
            6,
        )  # its centre and columns are half a pixel off
    read = _direction_in_panorama if polar else _direction_in_tile
    for a, t, g in zip(azimuths, tile, ground, strict=True):  # the pairs are what they should be
        assert _apart(read(t.float()), a) < tolerance and _apart(_direction_in_panorama(g.float()), a) < tolerance
    out = _run(GeoAugment(polar=polar, **PLAIN), _batch(ground, tile))
    moved = set()
    for a, t, g in zip(azimuths, out.positive, out.anchor, strict=True):
        seen = _direction_in_panorama(g)
        assert _apart(seen, read(t)) < tolerance
        allowed = {(f, r): f * a - 90 * r for f in (1, -1) for r in range(4)}  # mirrored, then turned: east comes up
        assert min(_apart(seen, x) for x in allowed.values()) < 3
        moved |= {key for key, x in allowed.items() if _apart(seen, x) < 3}
    assert len(moved) == 8


def test_mirror_and_turn_have_the_stated_probabilities():
    n = 4000
    tile, ground = _images(1, 4, 4).expand(n, -1, -1, -1), _images(1, 2, 8, seed=1).expand(n, -1, -1, -1)
    out = _run(GeoAugment(**PLAIN), _batch(ground, tile))
    tiles = torch.stack([x.rot90(r, (1, 2)) for x in (tile[0], tile[0].flip(2)) for r in range(4)])
    grounds = torch.stack([x.roll(-2 * r, 2) for x in (ground[0], ground[0].flip(2)) for r in range(4)])
    which = _matches(out.positive, tiles)
    assert torch.equal(which, _matches(out.anchor, grounds))
    share = torch.bincount(which, minlength=8) / n
    torch.testing.assert_close(share, torch.full((8,), 0.125), atol=0.02, rtol=0)  # 0.5 x 0.25: also r = 0
    some = _run(GeoAugment(**PLAIN, flip=0.1, rotate=0.3), _batch(ground, tile))
    share = torch.bincount(_matches(some.positive, tiles), minlength=8) / n
    assert share[4:].sum() == pytest.approx(0.1, abs=0.02) and share[[0, 4]].sum() == pytest.approx(0.7, abs=0.025)


def test_drone_views_are_not_rolled_and_may_be_mirrored_alone():
    n = 2000
    tile, ground = _images(1, 4, 4).expand(n, -1, -1, -1), _images(1, 4, 4, seed=1).expand(n, -1, -1, -1)
    tiles = torch.stack([x.rot90(r, (1, 2)) for x in (tile[0], tile[0].flip(2)) for r in range(4)])
    grounds = torch.stack([ground[0], ground[0].flip(2)])
    joint = _run(GeoAugment(**PLAIN, roll=False), _batch(ground, tile))
    which = _matches(joint.positive, tiles)
    assert torch.equal(which >= 4, _matches(joint.anchor, grounds) == 1)
    assert set(which.tolist()) == set(range(8))
    alone = _run(GeoAugment(**PLAIN, roll=False, joint_flip=False), _batch(ground, tile))
    flips = (_matches(alone.positive, tiles) >= 4).long() * 2 + _matches(alone.anchor, grounds)
    torch.testing.assert_close(torch.bincount(flips, minlength=4) / n, torch.full((4,), 0.25), atol=0.04, rtol=0)


def test_the_tile_may_be_the_anchor():
    ground, tile = _images(5, 8, 16), _images(5, 12, 12)
    usual = _run(GeoAugment(), _batch(ground, tile))
    swapped = _run(GeoAugment(tile="anchor"), _batch(tile, ground))
    assert torch.equal(usual.anchor, swapped.positive) and torch.equal(usual.positive, swapped.anchor)


def test_negatives_are_tiles_turned_by_themselves():
    negatives, n = _images(1, 4, 4).expand(400, -1, -1, -1), 200
    tile = negatives[:n]
    out = _run(GeoAugment(**PLAIN), _batch(_images(n, 2, 8), tile, negatives))
    tiles = torch.stack([x.rot90(r, (1, 2)) for x in (tile[0], tile[0].flip(2)) for r in range(4)])
    which = _matches(out.negatives, tiles)
    assert set(which.tolist()) == set(range(8))
    assert (which[:n] == _matches(out.positive, tiles)).float().mean() < 0.3
    assert _run(GeoAugment(), _batch(_images(2, 2, 8), tile[:2])).negatives is None
    rolled = _run(GeoAugment(**PLAIN, polar=True), _batch(_images(n, 2, 8), _images(n, 2, 8), _images(1, 2, 8)))
    strips = torch.stack(
        [x.roll(-2 * r, 2) for x in (_images(1, 2, 8)[0], _images(1, 2, 8)[0].flip(2)) for r in range(4)]
    )
    _matches(rolled.negatives, strips)


def test_shapes_that_cannot_be_turned_are_refused():
    square, wide = _images(2, 4, 4), _images(2, 4, 8)
    with pytest.raises(ZooError, match="4 x 8.*square"):
        GeoAugment()(_batch(wide, wide))
    with pytest.raises(ZooError, match="multiple of 4"):
        GeoAugment()(_batch(_images(2, 4, 6), square))
    with pytest.raises(ZooError, match="polar"):
        GeoAugment(polar=True, roll=False)
    GeoAugment(rotate=0, filter_p=0)(_batch(_images(2, 4, 6), wide))


# Looks


def test_without_strength_only_normalisation_is_left():
    ground, tile = _images(3, 8, 16), _images(3, 8, 8)
    transform = GeoAugment(**STILL, jitter_p=0, filter_p=0, holes_p=0)
    out = _run(transform, _batch(ground, tile))
    for view, images in ((out.anchor, ground), (out.positive, tile)):
        expected = tv.normalize(images.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        torch.testing.assert_close(view, expected)
        assert torch.equal(transform.evaluate(images), view)
    zero = GeoAugment(**STILL, jitter=(0, 0, 0, 0), jitter_p=1, filter_p=0, holes_p=0)
    assert torch.equal(_run(zero, _batch(ground, tile)).anchor, out.anchor)


def test_a_seed_gives_the_same_views_and_inputs_stay():
    ground, tile = _images(16, 20, 40), _images(16, 20, 20)
    before = ground.clone(), tile.clone()
    transform = GeoAugment()
    first, again, other = (_run(transform, _batch(ground, tile), seed) for seed in (1, 1, 2))
    assert torch.equal(first.anchor, again.anchor) and torch.equal(first.positive, again.positive)
    assert not torch.equal(first.anchor, other.anchor) and not torch.equal(first.positive, other.positive)
    assert torch.equal(ground, before[0]) and torch.equal(tile, before[1])
    assert first.anchor.dtype == torch.float32 and first.anchor.isfinite().all()
    assert not transform.state_dict()


def test_each_image_has_its_own_parameters_and_views_differ():
    same = _images(1, 40, 40).expand(64, -1, -1, -1)
    for strength in ({"jitter_p": 1.0}, {"filter_p": 1.0}, {"holes_p": 1.0, "grid_ratio": (0.3, 0.7)}):
        out = _run(GeoAugment(**STILL, **{**PLAIN, **strength}), _batch(same, same))
        assert len(out.anchor.flatten(1).unique(dim=0)) > 30  # grids are all alike
        assert (out.anchor - out.positive).abs().flatten(1).amax(1).gt(1e-3).float().mean() > 0.9


@pytest.mark.parametrize(("what", "share"), [("jitter_p", 0.5), ("filter_p", 0.3), ("holes_p", 0.3)])
def test_each_change_has_its_probability(what, share):
    images = _images(1, 20, 20).expand(2000, -1, -1, -1)
    options = {**PLAIN, **STILL}
    del options[what]
    out = _run(GeoAugment(**options), _batch(images, images))
    for views in (out.anchor, out.positive):
        changed = (views - images.float() / 255).abs().flatten(1).amax(1) > 1e-4
        assert changed.float().mean() == pytest.approx(share, abs=0.035)
    if what == "filter_p":  # blur smooths, sharpening does the opposite
        rough = out.anchor.diff(dim=3).abs().mean((1, 2, 3))
        still = (images[0].float() / 255).diff(dim=2).abs().mean()
        assert (rough < still - 1e-3).float().mean() == pytest.approx(0.15, abs=0.03)
        assert (rough > still + 1e-3).float().mean() == pytest.approx(0.15, abs=0.03)


def test_jitter_stays_within_its_strength():
    grey = torch.full((200, 3, 8, 8), 100, dtype=torch.uint8)
    options = {**PLAIN, **STILL, "jitter_p": 1.0, "jitter": (0.15, 0.0, 0.0, 0.0)}
    value = _run(GeoAugment(**options), _batch(grey, grey)).anchor[:, 0, 0, 0] * 255 / 100
    assert 0.85 <= value.min() < 0.87 and 1.13 < value.max() <= 1.15
    red = torch.tensor([200, 50, 50], dtype=torch.uint8)[None, :, None, None].expand(200, 3, 8, 8)
    options["jitter"] = (0.0, 0.0, 0.0, 0.15)
    r, g, b = (_run(GeoAugment(**options), _batch(red, red)).anchor[:, :, 0, 0] * 255).unbind(1)
    turn = (g - b) / 150 / 6  # around red, hue is this share of a turn
    assert (r <= 200.01).all() and 0.13 < turn.max() <= 0.1501 and -0.1501 <= turn.min() < -0.13


def test_sharpening_is_a_convolution():
    images = torch.rand(4, 3, 9, 11, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.3
    alpha, lightness = torch.tensor([0.0, 0.2, 0.5, 1.0]), torch.tensor([0.5, 1.0, 0.7, 0.5])
    out = sharpen(images, alpha, lightness)
    for i in range(4):
        kernel = torch.full((3, 3), -float(alpha[i]))
        kernel[1, 1] = 1 - alpha[i] + alpha[i] * (8 + lightness[i])
        padded = tf.pad(images[i][:, None], (1, 1, 1, 1), mode="reflect")
        expected = tf.conv2d(padded, kernel[None, None])[:, 0].clamp(0, 1)
        torch.testing.assert_close(out[i], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("height", "width", "ratio"), [(384, 384, 0.4), (140, 768, 0.5), (16, 64, 0.5), (3, 8, 0.9)])
def test_grid_of_holes(height, width, ratio):
    holes = grid_holes(height, width, ratio)
    expected = torch.zeros(height, width, dtype=torch.bool)
    cell = max(2, width // 10)
    rows = max(2, min(cell, height))
    for top in range(0, height, rows):
        for left in range(0, width, cell):
            down, right = (min(max(1, int(ratio * side)), side - 1) for side in (rows, cell))
            expected[top : top + down, left : left + right] = True
    assert torch.equal(holes, expected) and 0 < holes.float().mean() < 1


@settings(max_examples=25)
@given(height=st.integers(8, 60), width=st.integers(8, 90), seed=st.integers(0, 999))
def test_a_coarse_hole_is_a_rectangle_inside_the_image(height, width, seed):
    torch.manual_seed(seed)
    low, high = max(1, int(0.1 * height)), max(1, int(0.2 * height))
    for hole in coarse_holes(8, height, width, number=(1, 1)):
        rows, columns = hole.any(1), hole.any(0)
        assert hole.sum() == rows.sum() * columns.sum()  # filled
        assert low <= rows.sum() <= high and min(low, width) <= columns.sum() <= high
        assert (rows.diff().sum() <= 2) and (columns.diff().sum() <= 2)  # in one piece


def test_coarse_holes_vary_in_number_and_reach_the_borders():
    torch.manual_seed(0)
    holes = coarse_holes(600, 40, 80)
    assert holes.any(0).all()  # everywhere, borders and corners too
    share = holes.float().mean((1, 2))
    assert share.std() > 0.02 and share.min() > 0.05 and share.max() < 0.4
    ones = coarse_holes(2000, 100, 100, number=(0, 2), side=(0.01, 0.01)).sum((1, 2))
    share = torch.bincount(ones, minlength=3) / 2000
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), atol=0.04, rtol=0)


def test_holes_are_black_in_both_views():
    white = torch.full((40, 3, 20, 20), 255, dtype=torch.uint8)
    transform = GeoAugment(**STILL, jitter_p=0, filter_p=0, holes_p=1)
    out = _run(transform, _batch(white, white))
    black = (0 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    for views in (out.anchor, out.positive):
        holes = (views - black[:, None, None]).abs().amax(1) < 1e-5
        assert holes.flatten(1).any(1).all() and not holes.flatten(1).all(1).any()
        kept = views.movedim(1, -1)[~holes]
        torch.testing.assert_close(kept, transform.evaluate(white[:1])[0, :, 0, 0].expand_as(kept))


@pytest.mark.parametrize("tile", ["positive", "anchor"])
def test_each_view_has_its_own_grid(tile):
    white = torch.full((60, 3, 40, 40), 255, dtype=torch.uint8)
    options = {**PLAIN, **STILL, "holes_p": 1.0, "grid_ratio": (0.5, 0.25), "holes": (0, 0)}  # coarse: none
    out = _run(GeoAugment(tile=tile, **options), _batch(white, white))
    ground, other = (out.anchor, out.positive) if tile == "positive" else (out.positive, out.anchor)
    for views, share in ((ground, 1 / 4), (other, 1 / 16)):
        black = (views == 0).all(1).float().mean((1, 2))
        assert sorted(set(black.tolist())) == [0, share] and 0.3 < (black > 0).float().mean() < 0.7
