"""The embedded geo arena: what is drawn is what stands on the map, and the cues that it needs are there."""

import numpy as np
import pytest

from zoo.data.world import World
from zoo.data.world_map import N_PLACES, corners, degrees, metres
from zoo.data.world_render import CityMap, directions, panoramas, polar_tiles, tiles, trace_rays
from zoo.errors import ZooError


@pytest.fixture(scope="module")
def world():
    return World(n_train=500, n_val=40, n_test=60)


def first_hit(city, position, step, reach=14):
    """What stands in a ray's way, by walking in small steps: height, distance, colour."""
    for distance in np.arange(0, reach, 1e-2):
        cell = tuple(np.floor(position + distance * step).astype(int))
        if city.height[cell]:
            return float(city.height[cell]), distance, city.colour[cell]
    return 0.0, reach, None


@pytest.mark.parametrize("fraction", [(0.0, 0.0), (0.5, 0.5)])
def test_panoramas_agree_with_rays_that_walk_in_small_steps(world, fraction):
    city, kinds = world.area().city, set()
    sky = panoramas(_nothing(), np.full((1, 2), 20.0))[0, :, 0, 0]
    for position in world.places("test").position[:4] + fraction:
        image = panoramas(city, position[None])[0].transpose(1, 2, 0)
        for column in range(0, 64, 7):
            step = directions()[column]
            height, distance, colour = first_hit(city, position, step)
            for row in range(16):
                # Rows below the horizon; 6 rows are one camera height at distance 1. A step is 1 % of a cell.
                level = row + 0.5 - 9
                top, bottom = -6 * (height - 1) / distance, 6 / distance
                if min(abs(level - top), abs(level - bottom)) < 0.2:
                    continue
                if height and top < level < bottom:
                    kinds.add(height)
                    np.testing.assert_allclose(image[row, column], colour * (1 - distance / 28), atol=1e-3)
                elif level < 0:
                    assert np.array_equal(image[row, column], sky)
                else:
                    kinds.add("ground")
                    at = np.floor(position + 6 / level * step).astype(int)
                    assert np.array_equal(image[row, column], city.colour[tuple(at)])
    assert kinds == {"ground", 3.0, 4.0}


def _nothing():
    return CityMap(np.zeros((40, 40), np.uint8), np.full((40, 40, 3), 0.5))


def test_rays_pass_from_cell_to_adjacent_cell():
    for start in ([0.0, 0.0], [0.5, 0.5], [0.25, 0.9]):
        cells, enter = trace_rays(np.array(start))
        assert (enter[:, 0] == 0).all() and enter[np.isfinite(enter)].max() < 14
        for ray, distances in zip(cells, enter, strict=True):
            passed = ray[np.isfinite(distances)]
            assert (np.abs(np.diff(passed, axis=0)).sum(1) == 1).all()
            assert (np.diff(distances[np.isfinite(distances)]) > 0).all()


@pytest.mark.parametrize("fraction", [(0.0, 0.0), (0.5, 0.5)])
def test_turning_the_map_rolls_panoramas_and_polar_tiles_and_turns_tiles(world, fraction):
    city, centres = world.area().city, corners(world.places("test").block)
    # A quarter turn counter-clockwise takes the point (r, c) to (width - c, r).
    turned = CityMap(np.rot90(city.height).copy(), np.rot90(city.colour).copy())
    moved = np.stack([len(city.height) - centres[:, 1], centres[:, 0]], 1)
    position = centres + fraction
    moved_position = np.stack([len(city.height) - position[:, 1], position[:, 0]], 1)
    np.testing.assert_allclose(
        panoramas(turned, moved_position), np.roll(panoramas(city, position), -16, 3), atol=1e-12
    )
    assert np.array_equal(polar_tiles(turned, moved), np.roll(polar_tiles(city, centres), -16, 3))
    assert np.array_equal(tiles(turned, moved), np.rot90(tiles(city, centres), axes=(2, 3)))


def test_mirroring_the_map_mirrors_every_view(world):
    city, centres = world.area().city, corners(world.places("test").block)
    mirrored = CityMap(city.height[:, ::-1].copy(), city.colour[:, ::-1].copy())
    moved = np.stack([centres[:, 0], len(city.height) - centres[:, 1]], 1)
    for draw in (polar_tiles, tiles):
        assert np.array_equal(draw(mirrored, moved), draw(city, centres)[..., ::-1])
    seen = panoramas(city, centres.astype(float))
    np.testing.assert_allclose(panoramas(mirrored, moved.astype(float)), seen[..., ::-1], atol=1e-12)


@pytest.mark.parametrize(("bearing", "offset"), [(0, (-5, 0)), (90, (0, 5)), (180, (5, 0)), (270, (0, -5))])
def test_a_pole_stands_in_the_same_column_of_panorama_and_polar_tile(bearing, offset):
    city = _nothing()
    red = (1.0, 0.0, 0.0)
    cell = (np.array([20, 20]) + offset)[0], (np.array([20, 20]) + offset)[1]
    city.height[cell], city.colour[cell] = 3, red
    centre = np.array([[20, 20]])
    seen = []
    for image in (panoramas(city, centre.astype(float)), polar_tiles(city, centre)):
        reddish = (image[0, 0] > 0) & (image[0, 1] == 0)
        seen.append(np.flatnonzero(reddish.any(0)))
    assert len(seen[1]) >= 2 and set(seen[1]) <= set(seen[0])
    # The cell lies right of the line of sight along its bearing: north is between columns 31 and 32.
    azimuth = (seen[0].mean() - 31.5) * 360 / 64
    assert abs((azimuth - bearing + 180) % 360 - 180) < 15
    row, column = 12 + offset[0], 12 + offset[1]
    assert np.array_equal(tiles(city, centre)[0, :, row, column], red)


def test_poles_in_view_have_one_colour_in_both_views(world):
    # On the world's own map, at columns in which the panorama shows a pole that is near enough for the tile.
    city, centres = world.area().city, corners(world.places("test").block)
    polar, checked = polar_tiles(city, centres), 0
    cells, enter = trace_rays(np.zeros(2))
    for place, centre in enumerate(centres):
        for column in range(64):
            at = tuple((centre + cells[column]).T)
            hit = int((city.height[at] > 0).argmax())
            if (
                city.height[at][hit] == 3
                and enter[column, hit + 1] - enter[column, hit] > 0.75
                and enter[column, hit] < 11
            ):
                colour = city.colour[at][hit]
                assert (colour == polar[place, :, :, column].T).all(1).any()
                checked += 1
    assert checked > 50


@pytest.fixture(scope="module")
def regions():
    """Distances in metres between the training places of the default world, and which pairs share a palette."""
    world = World()
    block = world.places("train").block
    where = metres(corners(block))
    distance = np.hypot(*(where[:, None] - where).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    palette = world.area().palette[tuple(block.T)]
    return distance, palette[:, None] == palette


def test_neighbours_share_the_region_far_more_often_than_random_places(regions):
    distance, alike = regions
    near = np.take_along_axis(alike, np.argsort(distance, 1)[:, :8], 1).mean()
    assert near > 0.5 and near > 20 * (alike.mean())


def test_most_look_alikes_are_far_away(regions):
    distance, alike = regions
    far = alike & (distance > 500) & np.isfinite(distance)  # a region is about 170 m wide
    assert far.sum() > 0.5 * (alike.sum() - len(alike))
    unique = World(palettes=180)
    assert len(np.unique(unique.area().palette)) == 180


def test_coordinates_in_degrees_agree_with_metres(world):
    position = corners(world.places("train").block)
    north, east = np.radians(degrees(position) - degrees(position[:1])).T
    on_sphere = 6_378_137 * np.stack([east * np.cos(np.radians(48.0)), north], 1)
    np.testing.assert_allclose(on_sphere, metres(position) - metres(position[:1]), atol=5)  # of 2000; radii are rounded


def test_splits_share_no_place_and_more_training_places_move_no_others(world):
    blocks = {s: {tuple(b) for b in world.places(s).block.tolist()} for s in ("train", "val", "test")}
    assert [len(b) for b in blocks.values()] == [500, 40, 60]
    assert len(set.union(*blocks.values())) == 600
    larger = World(n_train=700, n_val=40, n_test=60)
    assert np.array_equal(larger.places("test").block, world.places("test").block)
    assert np.array_equal(larger.places("train").block[:500], world.places("train").block)


def test_same_seed_same_world_another_seed_another(world):
    for one, two in zip(world.render("val"), World(n_train=500, n_val=40, n_test=60).render("val"), strict=True):
        assert np.array_equal(one, two)
    other = World(seed=1, n_train=500, n_val=40, n_test=60)
    assert not np.array_equal(other.area().palette, world.area().palette)
    assert not np.array_equal(world.area("cross").palette, world.area().palette)


def test_pixels_are_the_same_on_every_machine(world):
    ground, tile = world.render("val")
    assert ground.shape == (40, 3, 16, 64) and tile.shape == (40, 3, 24, 24) and ground.dtype == tile.dtype == np.uint8
    np.testing.assert_allclose(ground.mean((0, 2, 3)), [122.409, 131.668, 137.254], atol=0.05)
    np.testing.assert_allclose(tile[7, :, 12, 12], [112, 235, 111], atol=1)


def test_tiles_of_both_forms_belong_to_the_same_panoramas_and_arena(world):
    polar = World(n_train=500, n_val=40, n_test=60, polar=True)
    assert polar.arena == world.arena != World(n_train=500, n_val=40, n_test=60, palettes=180).arena
    assert np.array_equal(polar.render("val")[0], world.render("val")[0])
    assert polar.render("val")[1].shape == (40, 3, 16, 64)


def test_occluders_and_noise_are_all_that_differs_from_a_clean_view(world):
    clean = World(n_train=500, n_val=40, n_test=60, gain=0, noise=0, occluders=0)
    drawn = panoramas(clean.area().city, clean.places("val").position)
    assert np.abs(clean.render("val")[0] - 255 * drawn).max() <= 0.5 + 1e-9
    hidden = World(n_train=500, n_val=40, n_test=60, gain=0, noise=0).render("val")[0] != clean.render("val")[0]
    columns = hidden.any((1, 2)).sum(1)
    assert 6 <= columns.mean() <= 12 and columns.max() <= 14


def test_pairs_hold_each_place_once_with_its_own_images(world, tmp_path):
    pairs = world.split("val", tmp_path)
    assert len(pairs) == 40 and pairs.n_documents == 40
    assert np.array_equal(pairs.columns["positive_key"], np.arange(40))
    block = world.places("val").block
    assert np.array_equal(pairs.columns["group"], world.area().palette[tuple(block.T)])
    np.testing.assert_allclose(pairs.columns["coords"], (block[:, ::-1] * 8 + 1) * (3.0, -3.0))
    for read, drawn in zip(pairs.fetch([3, 1]), world.render("val"), strict=True):
        assert np.array_equal(read.numpy(), drawn[[3, 1]])


def test_test_places_of_both_maps_are_searched_apart(world, tmp_path):
    sets = world.retrievals("test", tmp_path)
    assert list(sets) == ["", "cross"] and list(world.retrievals("val", tmp_path)) == [""]
    for which, data in sets.items():
        assert len(data.queries) == len(data.documents) == 60 and data.ignored is None
        assert data.relevance == [{i: 1} for i in range(60)]
        np.testing.assert_allclose(data.coords, metres(world.places("test", which).position))
    assert not np.array_equal(sets[""].queries.images, sets["cross"].queries.images)
    assert len(world.evaluation("test", tmp_path)) == 4


def test_semi_positives_surround_the_panorama(tmp_path):
    world = World(n_train=500, n_val=40, n_test=60, vigor=True)
    places, data = world.places("test"), world.retrieval("test", tmp_path)
    assert 60 < len(places.place_of) < 120 and set(places.place_of) == set(range(60))
    city, centre = world.area().city, corners(places.block)
    assert (city.height[tuple(np.floor(places.position).astype(int).T)] == 0).all()
    for query, (own, semi) in enumerate(zip(places.place_of, places.semi, strict=True)):
        four = centre[[own, *semi]]
        away = np.abs(places.position[query] - four)
        assert len({tuple(c) for c in four}) == 4 and (away < 8).all()  # inside the tiles, whose sides are 24
        assert away[0].max() < 3 and (away[0] <= away[1:]).all()
        assert data.relevance[query] == {own: 1} and data.ignored is not None and data.ignored[query] == set(semi)
    assert len(data.documents) == len(places.block) == len({tuple(b) for b in places.block.tolist()})
    pairs = world.split("test", tmp_path)
    assert pairs.n_documents == 60 and np.array_equal(pairs.document_of, places.place_of)
    inside = places.semi < 60
    assert np.array_equal(pairs.columns["semi_positive"] >= 0, inside) and not inside.all()
    assert np.array_equal(pairs.columns["semi_positive"][inside], places.semi[inside])


def test_cache_is_reused_mapped_and_keyed_by_arguments(world, tmp_path, monkeypatch):
    world.prepare(tmp_path)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert len(files) == 8 and all(name.endswith(".npy") for name in files)
    monkeypatch.setattr(World, "render", lambda *_: pytest.fail("rendered again"))
    assert isinstance(world.split("train", tmp_path).queries.images, np.memmap)
    with pytest.raises(pytest.fail.Exception):
        World(n_train=500, n_val=40, n_test=60, noise=0.1).split("train", tmp_path)


def test_a_cache_that_cannot_be_written_is_named(world, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ZooError, match="ZOO_CACHE"):
        world.split("val", tmp_path)


def test_a_map_too_small_is_reported():
    with pytest.raises(ZooError, match=str(N_PLACES)):
        World(n_train=N_PLACES)
    with pytest.raises(ZooError, match="palette"):
        World(palettes=0)
