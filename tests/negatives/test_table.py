"""NegativeTable against lists, anchor by anchor."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import ZooError
from zoo.negatives import NegativeTable, mine_random

SEEDS = st.integers(0, 9999)
M = 30


def _table(seed, n=5, k=7):
    """Rows of different lengths, hardest first, padded; some scores are equal."""
    rng = np.random.default_rng(seed)
    ids, scores = np.full((n, k), -1), np.full((n, k), -np.inf, np.float32)
    for r, count in enumerate(rng.integers(0, k + 1, n)):
        ids[r, :count] = rng.permutation(M)[:count]
        scores[r, :count] = np.sort(rng.integers(-8, 9, count) / 8)[::-1]
    return NegativeTable(ids, scores, [{"miner": "test"}]), rng


def _rows(table):
    return [[(i, s) for i, s in zip(*row, strict=True) if i >= 0] for row in zip(table.ids, table.scores, strict=True)]


def _assert_is(table, want, before, **record):
    """`table` holds the candidates `want`, padded, and its last provenance record counts what is gone."""
    assert _rows(table) == want
    assert table.ids.shape == before.ids.shape and table.scores.dtype == before.scores.dtype
    for ids, scores, row in zip(table.ids, table.scores, want, strict=True):
        assert (ids[len(row) :] == -1).all() and (scores[len(row) :] == -np.inf).all()
    assert table.counts.tolist() == [len(row) for row in want]
    rejected = sum(map(len, _rows(before))) - sum(map(len, want))
    assert table.provenance == [*before.provenance, {**record, "rejected": rejected}]


@settings(max_examples=30)
@given(seed=SEEDS)
def test_keep(seed):
    table, rng = _table(seed)
    kept = rng.random((5, 7)) < 0.5
    want = [
        [c for c, k in zip(row, kept_row, strict=False) if k] for row, kept_row in zip(_rows(table), kept, strict=True)
    ]
    _assert_is(table.keep(kept, "mine", why="test"), want, table, rule="mine", why="test")
    assert len(table.provenance) == 1


@settings(max_examples=20)
@given(seed=SEEDS, n=st.integers(0, 9))
def test_skip_top(seed, n):
    table, _ = _table(seed)
    _assert_is(table.skip_top(n), [row[n:] for row in _rows(table)], table, rule="skip_top", n=n)


@settings(max_examples=40)
@given(seed=SEEDS, absolute=st.sampled_from([0.0, 0.125, 0.5]), relative=st.sampled_from([0.0, 0.25, 0.5]))
def test_below_positive(seed, absolute, relative):
    table, rng = _table(seed)
    positive = rng.integers(-8, 9, 5) / 8
    want = [
        [(i, s) for i, s in row if s <= p - absolute and s <= p - relative * abs(p)]
        for row, p in zip(_rows(table), positive, strict=True)
    ]
    got = table.below_positive(positive, absolute, relative)
    _assert_is(got, want, table, rule="below_positive", absolute=absolute, relative=relative)


@settings(max_examples=30)
@given(seed=SEEDS, several=st.booleans())
def test_drop_positives(seed, several):
    table, rng = _table(seed)
    candidate_keys = rng.integers(0, 6, M)
    anchor_keys = rng.integers(-1, 6, (5, 3)) if several else rng.integers(0, 6, 5)
    want = [
        [(i, s) for i, s in row if candidate_keys[i] not in np.atleast_1d(keys)]
        for row, keys in zip(_rows(table), anchor_keys, strict=True)
    ]
    _assert_is(table.drop_positives(anchor_keys, candidate_keys), want, table, rule="drop_positives")


@settings(max_examples=30)
@given(seed=SEEDS, n=st.integers(1, 10))
def test_draw_gives_distinct_candidates_and_pads(seed, n):
    table, rng = _table(seed)
    anchors = rng.integers(0, 5, 8)
    drawn = table.draw(anchors, n, rng)
    assert drawn.shape == (8, n)
    for row, anchor in zip(drawn, anchors, strict=True):
        known = {i for i, _ in _rows(table)[anchor]}
        count = min(n, len(known))
        assert len(set(row[:count])) == count and set(row[:count]) <= known and (row[count:] == -1).all()


def test_draw_is_uniform_over_candidates_and_repeats_with_its_generator():
    table = NegativeTable(np.array([[4, 7, 9, 2, -1, -1]]), np.array([[3.0, 2, 1, 0, -np.inf, -np.inf]]))
    drawn = table.draw(np.zeros(20_000, int), 2, np.random.default_rng(0))
    share = np.array([[(drawn[:, place] == i).mean() for i in (4, 7, 9, 2)] for place in range(2)])
    np.testing.assert_allclose(share, 1 / 4, atol=0.015)
    again = table.draw(np.zeros(20_000, int), 2, np.random.default_rng(0))
    assert (again == drawn).all() and (table.draw(np.zeros(20_000, int), 2, np.random.default_rng(1)) != drawn).any()


def test_rules_chain_and_each_counts_its_own_toll():
    ids = np.array([[3, 1, 2, 0], [2, 3, -1, -1]])
    scores = np.array([[0.9, 0.8, 0.3, 0.1], [0.7, 0.2, -np.inf, -np.inf]])
    table = NegativeTable(ids, scores).skip_top(1).below_positive(np.array([0.5, 0.5]), absolute=0.1)
    table = table.drop_positives(np.array([0, 9]), np.arange(4))
    assert [r["rejected"] for r in table.provenance] == [2, 1, 1]
    assert table.ids.tolist() == [[2, -1, -1, -1], [3, -1, -1, -1]] and table.counts.tolist() == [1, 1]


@settings(max_examples=10)
@given(seed=SEEDS)
def test_saved_table_comes_back(seed, tmp_path_factory):
    table = _table(seed)[0].skip_top(1)
    folder = tmp_path_factory.mktemp("tables") / "below" / "here"
    table.save(folder)
    loaded = NegativeTable.load(folder)
    assert isinstance(loaded.ids, np.memmap)
    np.testing.assert_array_equal(loaded.ids, table.ids)
    np.testing.assert_array_equal(loaded.scores, table.scores)
    assert loaded.provenance == table.provenance and loaded.fingerprint == table.fingerprint
    assert _rows(loaded.skip_top(2)) == [row[2:] for row in _rows(table)]


@pytest.mark.parametrize("name", ["ids.npy", "scores.npy", "table.json"])
def test_missing_file_is_named(tmp_path, name):
    _table(0)[0].save(tmp_path / "table")
    (tmp_path / "table" / name).unlink()
    with pytest.raises(ZooError, match=name):
        NegativeTable.load(tmp_path / "table")
    with pytest.raises(ZooError, match="no negative table at .*nowhere"):
        NegativeTable.load(tmp_path / "nowhere")


def test_fingerprint_follows_candidates_and_provenance():
    table, _ = _table(3)
    ids = table.ids.copy()
    ids[0, 0] += 1
    prints = {table.fingerprint, NegativeTable(ids, table.scores, table.provenance).fingerprint}
    prints |= {NegativeTable(table.ids, table.scores, [{"miner": "other"}]).fingerprint}
    assert len(prints) == 3 and NegativeTable(table.ids.copy(), table.scores, table.provenance).fingerprint in prints


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        NegativeTable(np.zeros((2, 3), int), np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        NegativeTable(np.zeros(3, int), np.zeros(3))


def test_random_mining_covers_all_candidates_alike():
    table = mine_random(2000, 8, 5, seed=1)
    assert len(table) == 2000 and (table.counts == 5).all() and not table.scores.any()
    np.testing.assert_allclose(np.bincount(table.ids.ravel(), minlength=8) / 10_000, 1 / 8, atol=0.015)
    assert (mine_random(2000, 8, 5, seed=1).ids == table.ids).all() and (
        mine_random(2000, 8, 5, seed=2).ids != table.ids
    ).any()
    assert table.provenance == [{"miner": "random", "depth": 5, "seed": 1}]


def test_a_loaded_table_may_be_saved_over_itself(tmp_path):
    table = NegativeTable(np.array([[1, 2], [0, -1]]), np.array([[0.5, 0.4], [0.3, -np.inf]]), [{"miner": "x"}])
    table.save(tmp_path)
    NegativeTable.load(tmp_path).skip_top(1).save(tmp_path)
    loaded = NegativeTable.load(tmp_path)
    assert loaded.ids.tolist() == [[2, -1], [-1, -1]] and loaded.fingerprint != table.fingerprint


def test_a_teacher_s_scores_go_along_with_what_is_drawn(tmp_path):
    plain, rng = _table(4)
    positives = rng.random(5)
    table = NegativeTable(plain.ids, plain.scores, positives=positives)
    places = table.draw_places(np.array([0, 3, 3]), 9, np.random.default_rng(1))
    ids, scores = table.at(np.array([0, 3, 3]), places)
    assert (ids == table.draw(np.array([0, 3, 3]), 9, np.random.default_rng(1))).all()
    for row, found, judged in zip((0, 3, 3), ids, scores, strict=True):
        assert {(i, s) for i, s in zip(found, judged, strict=True) if i >= 0} <= set(_rows(table)[row])
        assert (judged[found < 0] == -np.inf).all()
    kept = table.skip_top(1)
    assert (kept.positives == positives).all() and table.fingerprint != plain.fingerprint
    kept.save(tmp_path)
    assert (NegativeTable.load(tmp_path).positives == positives).all()
    assert NegativeTable.load(tmp_path).fingerprint == kept.fingerprint
    plain.save(tmp_path)
    assert NegativeTable.load(tmp_path).positives is None
    with pytest.raises(ValueError, match=r"positives \(3,\)"):
        NegativeTable(plain.ids, plain.scores, positives=positives[:3])


@pytest.mark.parametrize("name", ["ids.npy", "scores.npy", "table.json"])
@pytest.mark.parametrize("how", ["shorter", "other"])
def test_a_damaged_table_is_not_trusted(tmp_path, name, how):
    _table(0)[0].save(tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    at = data.index(b'"fingerprint": "') + 16 if name == "table.json" else len(data) - 3
    path.write_bytes(data[: len(data) // 2] if how == "shorter" else data[:at] + b"?" + data[at + 1 :])
    with pytest.raises(ZooError, match="is damaged"):
        NegativeTable.load(tmp_path)
