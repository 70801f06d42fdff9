"""Geographic neighbours against brute force, and the miner's rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zoo.data.collections import CollectionPairs
from zoo.data.text import TextPairs
from zoo.errors import ZooError
from zoo.negatives import Rules
from zoo.negatives.geographic import EARTH_RADIUS, GeographicMiner, nearest_places


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def angle(coords):
    """Between all pairs of places, by their chord in space."""
    lat, lon = np.radians(coords).T
    xyz = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], 1)
    return 2 * np.arcsin(np.clip(np.linalg.norm(xyz[:, None] - xyz, axis=2) / 2, 0, 1))


def ranked(distance, k):
    """The k nearest others, ties by number."""
    others = distance + np.diag(np.full(len(distance), np.inf))
    ids = np.argsort(others, axis=1, kind="stable")[:, : min(k, len(distance) - 1)]
    return ids, np.take_along_axis(others, ids, 1)


@given(arrays(np.int64, st.tuples(st.integers(1, 40), st.just(2)), elements=st.integers(0, 4)), st.integers(1, 45))
def test_plane_equals_brute_force_with_ties_by_number(lattice, k):
    points = lattice.astype(np.float64)  # few positions: many ties, and places at one position
    ids, distances = nearest_places(points, k, "euclidean")
    expected, far = ranked(np.linalg.norm(points[:, None] - points, axis=2), k)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(distances, far)


@given(st.integers(2, 60), st.integers(1, 12), st.integers(0, 10**6))
def test_sphere_equals_brute_force(n, k, seed):
    g = np.random.default_rng(seed)
    coords = np.stack([np.degrees(np.arcsin(g.uniform(-1, 1, n))), g.uniform(-180, 180, n)], 1)
    ids, distances = nearest_places(coords, k)
    expected, far = ranked(angle(coords), k)
    np.testing.assert_allclose(distances, far, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(ids, expected)


def test_a_hundred_places_at_one_position_are_all_found_by_number():
    ids, distances = nearest_places(np.full((100, 2), 12.5), 7)
    assert (distances == 0).all()
    for i in (0, 3, 99):
        assert ids[i].tolist() == [j for j in range(9) if j != i][:7]


def test_across_the_date_line():
    ids, distances = nearest_places(np.array([[0, 179.9], [0, -179.9], [0, 179.0]]), 1)
    assert ids[:, 0].tolist() == [1, 0, 0]
    assert distances[0, 0] == pytest.approx(np.radians(0.2))


def test_across_a_pole():
    ids, distances = nearest_places(np.array([[89.9, 0], [89.9, 180], [88, 0], [-89.9, 0]]), 2)
    assert ids[0].tolist() == [1, 2]
    assert distances[0, 0] == pytest.approx(np.radians(0.2))
    at_pole, _ = nearest_places(np.array([[90.0, 0], [80, 0], [90, 77]]), 1)
    assert at_pole[0, 0] == 2 and at_pole[2, 0] == 0


def test_degrees_are_not_radians():
    # Places 2 pi degrees of longitude apart are neighbours only to those who take degrees for radians.
    ids, _ = nearest_places(np.array([[36.1, 0], [36.1, 2 * np.pi], [36.1, 1]]), 1)
    assert ids[0, 0] == 2


@pytest.mark.parametrize(
    ("coords", "message"),
    [([[0, 0], [np.nan, 0]], "not finite"), ([[0, 0], [91, 0]], "metric: euclidean")],
)
def test_unusable_coordinates(coords, message):
    with pytest.raises(ZooError, match=message):
        nearest_places(np.array(coords, np.float64), 1)


# The miner

COORDS = np.array([[0, 0], [0, 1], [60, 0], [0, 2.5], [60, 1]])


def pairs(document_of, coords, n_documents=None, query_of=None, **kwargs):
    query_of = np.arange(len(document_of)) if query_of is None else query_of
    texts = [str(i) for i in range(100)]
    return TextPairs(
        texts[: max(query_of) + 1],
        texts[: n_documents or max(document_of) + 1],
        np.array(query_of),
        np.array(document_of),
        columns={"coords": np.asarray(coords)},
        **kwargs,
    )


def test_rows_hold_the_other_places_by_distance():
    table = GeographicMiner(depth=2).mine(pairs(range(5), COORDS))
    np.testing.assert_array_equal(table.ids, [[1, 3], [0, 3], [4, 0], [1, 0], [2, 1]])
    degree = np.radians(1) * EARTH_RADIUS
    np.testing.assert_allclose(table.scores[0], [-degree, -2.5 * degree], rtol=1e-6)
    assert table.scores[2, 0] == pytest.approx(-degree / 2, rel=1e-3)  # a degree of longitude at 60 north
    assert table.provenance[0] == {"depth": 2, "miner": "geographic", "metric": "haversine"}


def test_several_pairs_of_a_place_have_its_list_without_the_place():
    document_of = np.array([3, 0, 3, 4, 1, 0])
    table = GeographicMiner(depth=3, metric="euclidean").mine(pairs(document_of, COORDS[document_of], 6))
    np.testing.assert_array_equal(table.ids[0], table.ids[2])
    np.testing.assert_array_equal(table.ids[1], [1, 3, 4])
    assert not (table.ids == document_of[:, None]).any()
    assert not np.isin(table.ids, [2, 5]).any()  # documents without a pair lie nowhere


def test_a_place_lies_where_its_last_pair_says():
    table = GeographicMiner(depth=1, metric="euclidean").mine(pairs([0, 1, 2, 0], [[9.0, 0], [1, 0], [8, 0], [0, 0]]))
    assert table.ids[:, 0].tolist() == [1, 0, 1, 1]


def test_other_known_positives_are_dropped():
    table = GeographicMiner(depth=2).mine(pairs(range(5), COORDS, relevant=np.array([[0, 1]])))
    assert table.ids[0].tolist() == [3, -1] and table.ids[1].tolist() == [0, 3]


def test_rules():
    table = GeographicMiner(depth=4, metric="euclidean", rules=Rules(min_score=-2.0, keep=1)).mine(
        pairs(range(5), COORDS)
    )
    assert table.ids[:, 0].tolist() == [1, 0, 4, 1, 2]
    assert table.counts.tolist() == [1] * 5


def test_more_asked_for_than_there_is():
    assert GeographicMiner(depth=50).mine(pairs(range(5), COORDS)).ids.shape == (5, 4)
    assert GeographicMiner().mine(pairs([0, 0], COORDS[[0, 0]])).ids.shape == (2, 0)


def test_pairs_without_positions():
    with pytest.raises(ZooError, match="needs positions"):
        GeographicMiner().mine(TextPairs(["a"], ["b"], np.array([0]), np.array([0])))


def test_neighbours_are_searched_once(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    coords = np.random.default_rng(0).random((12, 2))
    pairs = CollectionPairs(
        list("abcdefghijkl"), list("mnopqrstuvwx"), np.arange(12), np.arange(12), columns={"coords": coords}
    )
    first = GeographicMiner(4, "euclidean").mine(pairs)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr("zoo.negatives.geographic.nearest_places", None)
    assert GeographicMiner(4, "euclidean").mine(pairs).fingerprint == first.fingerprint
    with pytest.raises(TypeError):  # another depth is another search
        GeographicMiner(5, "euclidean").mine(pairs)
