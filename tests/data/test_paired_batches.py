"""Batches of hard images (NegCLIP) and of siblings (GNM), and the tables of neighbouring images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data.collections import CollectionPairs, ImageArray
from zoo.data.images import ImagePairs
from zoo.data.paired_batches import NeighbourPairs, SiblingBatches
from zoo.errors import ZooError
from zoo.negatives.image_neighbours import ImageNeighbourMiner, NamedNeighbours
from zoo.negatives.table import NegativeTable


def pairs(query_of, columns=None):
    """Pairs of images with one caption each, documents in another order than pairs."""
    query_of = np.asarray(query_of)
    images = ImageArray(np.zeros((query_of.max() + 1, 3, 1, 1), np.uint8))
    captions = [f"caption {i}" for i in range(len(query_of))]
    return CollectionPairs(images, captions, query_of, np.arange(len(query_of))[::-1], columns=columns)


def table(ids):
    ids = np.asarray(ids)
    return NegativeTable(ids, np.where(ids >= 0, 0.0, -np.inf))


def epoch(sampler, number=0):
    sampler.set_epoch(number)
    return np.array([plan.indices for plan in sampler])


# Hard images


@settings(max_examples=30)
@given(st.integers(4, 30), st.integers(1, 4), st.integers(1, 2), st.integers(0, 9))
def test_every_pair_is_followed_by_one_of_its_neighbours(n, half, world, seed):
    data = pairs(np.arange(n))
    near = np.random.default_rng(seed).integers(0, n, (n, 3))
    if n < 2 * half * world:
        with pytest.raises(ZooError, match=r"lower --data.batch_size"):
            NeighbourPairs().bind(data, 2 * half, seed, 0, world)
        return
    first = []
    for rank in range(world):
        sampler = NeighbourPairs().bind(data, 2 * half, seed, rank, world)
        sampler.set_table(table(near))
        for batch in [*epoch(sampler, 2), *epoch(sampler, 3)]:
            assert len(batch) == 2 * half
            for pair, hard in zip(batch[:half], batch[half:], strict=True):
                assert data.document_of[hard] in near[pair]
            first += batch[:half].tolist()
    assert len(first) == len(set(first)) == n // (2 * half * world) * 2 * half * world


def test_neighbours_are_drawn_uniformly_and_anew_each_epoch():
    sampler = NeighbourPairs().bind(pairs(np.arange(4)), 4, 0)
    sampler.set_table(table([[1, 2, 3], [0, -1, -1], [0, -1, -1], [0, -1, -1]]))
    hard = np.concatenate([(b := epoch(sampler, e))[:, 2:][b[:, :2] == 0] for e in range(300)])
    documents = 3 - hard  # pair i has document 3 - i
    assert np.bincount(documents, minlength=4)[0] == 0
    assert np.bincount(documents, minlength=4)[1:].min() > 35


def test_of_a_document_with_several_pairs_any_is_drawn():
    images = ImageArray(np.zeros((3, 3, 1, 1), np.uint8))
    data = CollectionPairs(images, ["a", "b"], np.arange(3), np.array([0, 1, 1]))
    sampler = NeighbourPairs().bind(data, 2, 0)
    sampler.set_table(table([[1], [0], [0]]))
    hard = np.concatenate([(b := epoch(sampler, e))[:, 1][b[:, 0] == 0] for e in range(80)])
    assert set(hard) == {1, 2}


def test_a_pair_without_neighbours_gets_any():
    sampler = NeighbourPairs().bind(pairs(np.arange(8)), 8, 0)
    sampler.set_table(table(np.full((8, 2), -1)))
    hard = np.concatenate([epoch(sampler, e)[:, 4:].ravel() for e in range(20)])
    assert set(hard) == set(range(8))


def test_a_neighbour_that_no_pair_has_is_none():
    images = ImageArray(np.zeros((2, 3, 1, 1), np.uint8))
    data = CollectionPairs(images, list("abc"), np.arange(2), np.array([0, 2]))
    sampler = NeighbourPairs().bind(data, 2, 0)
    sampler.set_table(table([[1], [1]]))
    assert {epoch(sampler, e)[0][1] for e in range(20)} == {0, 1}


def test_random_batches_until_there_is_a_table():
    assert NeighbourPairs.reads_table
    sampler = NeighbourPairs().bind(pairs(np.arange(8)), 4, 0)
    before = epoch(sampler)
    sampler.set_table(table((np.arange(8)[:, None] + 1) % 8))
    after = epoch(sampler)
    assert before.shape == after.shape == (2, 4)
    assert len(set(before.ravel())) == 8
    # Pair i has document 7 - i.
    np.testing.assert_array_equal(7 - after[:, 2:], (after[:, :2] + 1) % 8)


def test_neighbour_pairs_refuse():
    with pytest.raises(ZooError, match="even"):
        NeighbourPairs().bind(pairs(np.arange(8)), 3, 0)
    sampler = NeighbourPairs().bind(pairs(np.arange(8)), 4, 0)
    sampler.set_table(table([[0]]))
    with pytest.raises(ZooError, match="1 rows and the training split 8"):
        epoch(sampler)


# Tables of neighbouring images


def test_mined_neighbours_are_the_nearest_other_images():
    query_of = [0, 0, 1, 1, 2, 2, 2, 3, 4, 4]
    data = pairs(query_of)
    unit = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    mined = ImageNeighbourMiner(3).mine(data, {"query": unit, "document": torch.zeros(10, 4)}.__getitem__)
    image_of = np.empty(10, int)
    image_of[data.document_of] = data.query_of
    scores = (unit @ unit.T).numpy()
    assert mined.ids.shape == (10, 3) and mined.ids.min() >= 0
    for row, query in enumerate(query_of):
        nearest = sorted((i for i in range(5) if i != query), key=lambda i: -scores[query, i])[:3]
        assert image_of[mined.ids[row]].tolist() == nearest
        assert mined.scores[row] == pytest.approx(scores[query, nearest], abs=1e-5)


def test_all_captions_of_a_neighbour_occur():
    data = pairs([0, 0, 1, 1])
    mined = ImageNeighbourMiner(1).mine(data, lambda side: torch.eye(2))
    assert sorted(mined.ids[:, 0].tolist()) == [0, 1, 2, 3]


def test_images_without_pairs_and_twins_are_no_trouble():
    images = ImageArray(np.zeros((4, 3, 1, 1), np.uint8))
    data = CollectionPairs(images, list("abc"), np.array([0, 2, 3]), np.arange(3))
    unit = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    mined = ImageNeighbourMiner(1).mine(data, lambda side: unit)
    assert mined.ids[:2, 0].tolist() == [1, 0] and mined.counts.tolist() == [1, 1, 1]


def test_miners_refuse():
    with pytest.raises(ZooError, match="RefreshNegatives"):
        ImageNeighbourMiner().mine(pairs([0, 1]))
    with pytest.raises(ZooError, match="images and captions"):
        ImageNeighbourMiner().mine(ImagePairs(np.zeros((2, 3, 1, 1), np.uint8), np.zeros(2)))
    with pytest.raises(ZooError, match="NegClipFile"):
        NamedNeighbours().mine(pairs([0, 1]))


# Siblings


def edited(groups, ordinary, captions=2):
    """Variations with some captions each: `groups` gives the number of variations of each group."""
    group = [g for g, v in enumerate(groups) for _ in range(v * captions)]
    score = np.arange(len(group)) % 5 / 2
    query_of = [
        *np.repeat(np.arange(len(group) // captions), captions),
        *(len(group) // captions + np.arange(ordinary)),
    ]
    order = np.random.default_rng(0).permutation(len(query_of))
    columns = {
        "item": np.array(group + [-1] * ordinary)[order],
        "match_score": np.concatenate([score, np.zeros(ordinary)])[order],
    }
    return pairs(np.array(query_of)[order], columns)


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 4), min_size=4, max_size=8),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 2),
    st.sampled_from([None, "match_score"]),
)
def test_siblings_are_adjacent_and_never_repeated(groups, per_group, ordinary, world, score):
    data, unit = edited(groups, 7), per_group + ordinary
    item, seen = data.columns["item"], []
    for rank in range(world):
        sampler = SiblingBatches("item", per_group, ordinary, score).bind(data, 2 * unit, 5, rank, world)
        batches = epoch(sampler, 2)
        assert batches.shape == (len(groups) // (2 * world), 2 * unit)
        for row in batches.reshape(-1, unit):
            group = item[row[0]]
            n = min(per_group, groups[group])
            assert (item[row[:n]] == group).all() and (item[row[n:]] == -1).all()
            assert len(set(data.query_of[row[:n]])) == n
            seen.append(group)
    assert len(seen) == len(set(seen))


def test_ordinary_pairs_are_walked_through_across_epochs():
    data = edited([2] * 4, 7)
    sampler = SiblingBatches("item", 2, 3).bind(data, 10, 0)
    walked = np.concatenate([epoch(sampler, e).reshape(-1, 5)[:, 2:].ravel() for e in range(7)])
    assert len(walked) == 7 * 12
    for start in range(0, len(walked), 7):
        assert set(walked[start : start + 7]) == set(np.flatnonzero(data.columns["item"] == -1))
    assert len({tuple(walked[start : start + 7]) for start in range(0, 84, 7)}) > 1


def test_siblings_follow_their_scores_and_captions_are_uniform():
    score = np.array([-1.0, 1.0, 1.0, 2.0, 3.0])  # variation 0 with mean 0, variation 1 with mean 2
    data = pairs([0, 0, 1, 1, 1], {"group": np.zeros(5, int), "match_score": score})
    weighted = SiblingBatches(per_group=1, ordinary=0, score="match_score").bind(data, 1, 0)
    uniform = SiblingBatches(per_group=1, ordinary=0).bind(data, 1, 0)
    share = [np.bincount([epoch(s, e)[0, 0] for e in range(600)], minlength=5) / 600 for s in (weighted, uniform)]
    np.testing.assert_allclose(share[0], [1 / 12, 1 / 12, 5 / 18, 5 / 18, 5 / 18], atol=0.045)
    np.testing.assert_allclose(share[1], [1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6], atol=0.045)


def test_the_column_is_the_mode():
    columns = {
        "item": np.array([0, 0, 1, 1, -1]),
        "image": np.array([0, 0, 0, 0, -1]),
        "variation": np.array([0, 1, 2, 3, -1]),
    }
    data = pairs(np.arange(5), columns)
    by_image = [set(epoch(SiblingBatches("image", 2, 1).bind(data, 3, s))[0][:2]) for s in range(20)]
    assert any(siblings & {0, 1} and siblings & {2, 3} for siblings in by_image)
    by_item = [set(b[:2]) for s in range(20) for b in epoch(SiblingBatches("item", 2, 1).bind(data, 3, s))]
    assert all(siblings in ({0, 1}, {2, 3}) for siblings in by_item)
    assert len(SiblingBatches("variation", 1, 1).bind(data, 2, 0)) == 4


@pytest.mark.parametrize(
    ("sampler", "batch_size", "message"),
    [
        (SiblingBatches("nope"), 10, "no column 'nope'.*it has"),
        (SiblingBatches("item", score="nope"), 10, "no column 'nope'"),
        (SiblingBatches("item", 2, 3), 12, "a multiple of 5"),
        (SiblingBatches("item", 2, 3), 100, "20 x 1 groups .* holds 4"),
    ],
)
def test_sibling_batches_refuse(sampler, batch_size, message):
    with pytest.raises(ZooError, match=message):
        sampler.bind(edited([2] * 4, 7), batch_size, 0)


def test_groups_have_to_suffice_without_ordinary_pairs():
    with pytest.raises(ZooError, match="no pair is ordinary"):
        SiblingBatches("item", 2, 1).bind(edited([2] * 4, 0), 3, 0)
    with pytest.raises(ZooError, match="no pair is ordinary"):
        SiblingBatches("item", 2, 0).bind(edited([2, 1], 0), 2, 0)
    assert len(SiblingBatches("item", 2, 0).bind(edited([2, 2], 0), 2, 0)) == 2
    with pytest.raises(ZooError, match="at least 1 sibling"):
        SiblingBatches(per_group=0)


def test_groups_start_with_their_epoch():
    data = edited([2] * 8, 0)
    sampler = SiblingBatches("item", 2, 0, start_epoch=1).bind(data, 4, 0)
    together = [
        np.mean([len(set(np.asarray(data.columns["item"])[batch])) for batch in epoch(sampler, e)]) for e in (0, 1)
    ]
    assert together[0] > together[1] == 2
