"""Batches of neighbouring places: the order of the card, and what the sampler makes of it."""

import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data.neighbour_batches import NeighbourBatches, neighbour_order
from zoo.data.text import TextPairs
from zoo.errors import ZooError
from zoo.negatives import NegativeTable


def literal_order(place_of, lists, batch_size, select, neighbour_range, patience, rng):
    """The card's pseudo-code, line by line."""
    k, half = [int(p) for p in place_of], select // 2
    rows = {} if lists is None else {p: [int(z) for z in row if z >= 0] for p, row in zip(k, lists, strict=True)}
    pool, used, current, in_batch, out, fails = list(range(len(k))), set(), [], set(), [], 0
    rng.shuffle(pool)

    def add(x):
        current.append(x)
        used.add(x)
        in_batch.add(k[x])

    while pool and fails < patience:
        i = pool.pop(0)
        if i in used or k[i] in in_batch:
            if i not in used:
                pool.append(i)
            fails += 1
            continue
        add(i)
        fails = 0
        if lists is not None and len(current) < batch_size:
            near = rows[k[i]][:neighbour_range]
            a, b = near[:half], near[half:]
            rng.shuffle(b)
            for z in a + b[:half]:
                if len(current) >= batch_size:
                    break
                if z in in_batch:
                    continue
                c = [x for x in range(len(k)) if k[x] == z and x not in used]
                rng.shuffle(c)
                if c:
                    add(c[0])
                    rows[k[i]].remove(z)
        if len(current) >= batch_size:
            out += current
            current.clear()
            in_batch.clear()
    return np.array(out, np.int64)


def ring(n, k):
    """The nearest places of each of n on a circle."""
    step = np.stack([np.arange(1, k // 2 + 1), -np.arange(1, k // 2 + 1)], 1).ravel()
    return (np.arange(n)[:, None] + step) % n


@st.composite
def worlds(draw):
    seed, n, n_places = draw(st.integers(0, 10**6)), draw(st.integers(1, 40)), draw(st.integers(1, 20))
    g = np.random.default_rng(seed)
    lists = g.integers(-1, n_places + 3, (n, draw(st.integers(0, 8))))  # repeats, padding, places that nobody has
    arguments = {
        "place_of": g.integers(0, n_places, n) * 7,
        "lists": None if draw(st.booleans()) else np.where(lists >= 0, lists * 7, -1),
        "batch_size": draw(st.integers(1, 6)),
        "select": draw(st.integers(0, 7)),
        "neighbour_range": draw(st.integers(0, 9)),
        "patience": draw(st.sampled_from([1, 3, 50])),
    }
    return arguments, seed


@given(worlds())
def test_order_is_the_cards(world):
    arguments, seed = world
    expected = literal_order(**arguments, rng=random.Random(seed))
    np.testing.assert_array_equal(neighbour_order(**arguments, rng=random.Random(seed)), expected)


@given(worlds())
def test_full_batches_of_distinct_places_and_no_sample_twice(world):
    arguments, seed = world
    order = neighbour_order(**arguments, rng=random.Random(seed))
    assert len(set(order.tolist())) == len(order)
    for batch in order.reshape(-1, arguments["batch_size"]):
        assert len(set(arguments["place_of"][batch].tolist())) == len(batch)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 12), st.integers(0, 99))
def test_unique_places_drop_less_than_a_batch(n, size, select, seed):
    order = neighbour_order(np.arange(n), ring(n, 8), size, select, 8, 10**6, random.Random(seed))
    assert len(order) == n // size * size


@given(st.integers(1, 3), st.integers(0, 99))
def test_selecting_none_is_the_random_shuffle(views, seed):
    places = np.arange(40) // views
    with_lists = neighbour_order(places, ring(40, 8)[places], 5, 0, 8, 1024, random.Random(seed))
    np.testing.assert_array_equal(with_lists, neighbour_order(places, None, 5, 0, 8, 1024, random.Random(seed)))


def test_batches_are_clusters():
    n, size = 2048, 32

    def distance(lists):
        order = neighbour_order(np.arange(n), lists, size, 16, 32, 1024, random.Random(0)).reshape(-1, size)
        gap = np.abs(order[:, :, None] - order[:, None])
        gap = np.minimum(gap, n - gap) + n * np.eye(size, dtype=int)
        return gap.min(2).mean()  # to the nearest other place in the batch; half its rank on a circle

    clustered, uniform = distance(ring(n, 32)), distance(None)
    assert uniform > n / size / 3  # as expected of uniform draws
    assert clustered < uniform / 4


def test_nearest_half_always_comes_along():
    n = 4096  # so many that the first batch meets no neighbour that is in use
    order = neighbour_order(np.arange(n), ring(n, 32), 17, 16, 32, 1024, random.Random(1))
    first = (order[:17] - order[0] + n // 2) % n - n // 2
    assert set(range(-4, 5)) <= set(first.tolist()) <= set(range(-16, 17)) and len(set(first.tolist())) == 17


# The sampler


def pairs(place_of, n_places=None, columns=None):
    places = [str(i) for i in range(n_places or max(place_of) + 1)]
    return TextPairs(
        [str(i) for i in range(len(place_of))], places, np.arange(len(place_of)), place_of, columns=columns
    )


def table(ids):
    return NegativeTable(ids, np.zeros(ids.shape, np.float32))


def batches(sampler):
    return np.stack([plan.indices for plan in sampler])


def bound(place_of, size=8, ids=None, **kwargs):
    sampler = NeighbourBatches(select=8, neighbour_range=16)
    if ids is not None:
        sampler.set_table(table(ids))
    return sampler.bind(pairs(place_of), size, 3, **kwargs)


def test_an_epoch_is_the_shuffle():
    ids = ring(64, 16)
    found = batches(bound(np.arange(64), ids=ids))
    seed = int(np.random.default_rng([3, 0]).integers(2**63))
    expected = neighbour_order(np.arange(64), ids, 8, 8, 16, 1024, random.Random(seed))
    np.testing.assert_array_equal(found.ravel(), expected)


def test_epochs_differ_and_a_new_table_counts_from_the_next_epoch():
    sampler = bound(np.arange(64))
    first = batches(sampler)
    sampler.set_table(table(ring(64, 16)))
    second = batches(sampler)
    sampler.set_epoch(1)
    third = batches(sampler)
    assert sorted(first.ravel()) == sorted(second.ravel()) == sorted(third.ravel()) == list(range(64))
    assert (first != second).any() and (second != third).any()


def test_ranks_share_one_batch_of_distinct_places():
    places, ids = np.arange(128) // 2, ring(64, 16)
    whole = batches(bound(places, 16, ids[places]))
    parts = [batches(bound(places, 4, ids[places], rank=r, world_size=4)) for r in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)
    assert all(len(set(places[batch])) == 16 for batch in whole)


def test_resumes_in_the_middle_of_an_epoch():
    ids = ring(64, 16)
    whole = batches(bound(np.arange(64), ids=ids))
    sampler = bound(np.arange(64), ids=ids)
    sampler.start = 5
    np.testing.assert_array_equal(batches(sampler), whole[5:])


def test_missing_batches_come_from_another_shuffle():
    places = np.array([0] * 60 + [1, 2, 3] * 10)  # place 0 can be in no more than ten batches of distinct places
    found = batches(bound(places, 4))
    assert found.shape == (90 // 4, 4)
    assert all(len(set(places[batch])) == 4 for batch in found)


def test_the_last_row_of_a_place_counts():
    places = np.arange(64) // 2
    ids = ring(32, 16)[places]
    noisy = ids.copy()
    noisy[::2] = -1  # the first sample of each place
    np.testing.assert_array_equal(batches(bound(places, ids=ids)), batches(bound(places, ids=noisy)))


def test_documents_are_places_by_identity():
    keys = 1000 + np.arange(64)

    class Keyed(TextPairs):
        def document_keys(self, numbers):
            return super().document_keys(numbers) + 1000

    text = [str(i) for i in range(64)]
    keyed = Keyed(text, text, np.arange(64), np.arange(64), columns={"positive_key": keys})
    sampler = NeighbourBatches(select=8, neighbour_range=16)
    sampler.set_table(table(ring(64, 16)))
    np.testing.assert_array_equal(batches(sampler.bind(keyed, 8, 3)), batches(bound(np.arange(64), ids=ring(64, 16))))


def test_too_few_places():
    with pytest.raises(ZooError, match="8 x 1 distinct places but the training split holds 4"):
        bound(np.arange(64) % 4)
    with pytest.raises(ZooError, match="lower --data.batch_size"):
        bound(np.arange(4))


def test_patience_too_small_for_any_batch():
    sampler = NeighbourBatches(patience=1).bind(pairs(np.array([0] * 99 + [1, 2, 3])), 4, 0)
    with pytest.raises(ZooError, match="patience 1"):
        list(sampler)


def test_a_table_of_other_pairs_is_refused():
    with pytest.raises(ZooError, match="32 rows for 64 pairs"):
        batches(bound(np.arange(64), ids=ring(32, 16)))


@pytest.mark.parametrize("wrong", [{"select": -1}, {"neighbour_range": -1}, {"patience": 0}])
def test_senseless_arguments(wrong):
    with pytest.raises(ZooError, match=r"patience 1 or more"):
        NeighbourBatches(**wrong)


@pytest.mark.slow
def test_a_hundred_thousand_pairs_take_seconds():
    start = time.perf_counter()
    neighbour_order(np.arange(100_000), ring(100_000, 128), 128, 64, 128, 1024, random.Random(0))
    views = np.arange(100_008) // 54
    neighbour_order(views, ring(1852, 128)[views], 128, 64, 128, 512, random.Random(0))
    assert time.perf_counter() - start < 15  # two seconds alone on a core; quadratic work would take minutes
