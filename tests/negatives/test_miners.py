"""Miners and their rules against the card's procedure, query by query."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data.pairs import PairDataset
from zoo.data.text import TextPairs
from zoo.errors import ZooError
from zoo.negatives import NegativeTable
from zoo.negatives.miners import Bm25Miner, EmbeddingMiner, RandomMiner, Rules, jaccard, lowest_positive
from zoo.negatives.summary import summary

QUERIES, DOCUMENTS = 6, 40
SEEDS = st.integers(0, 999)
MARGINS = st.none() | st.sampled_from([-0.2, 0.0, 0.05, 0.5])


def world(seed):
    """Pairs with repeated queries and shared documents, known positives beyond the pairs, and unit embeddings."""
    rng = np.random.default_rng(seed)
    query_of = np.concatenate([np.arange(QUERIES), rng.integers(0, QUERIES, 4)])
    document_of = rng.integers(0, DOCUMENTS // 2, len(query_of))
    relevant = np.stack([rng.integers(0, QUERIES, 3), rng.integers(0, DOCUMENTS, 3)], 1)
    pairs = TextPairs(["q"] * QUERIES, ["d"] * DOCUMENTS, query_of, document_of, relevant)
    g = torch.Generator().manual_seed(seed)
    sides = {
        side: torch.nn.functional.normalize(torch.randn(rows, 5, generator=g, dtype=torch.float64), dim=1)
        for side, rows in (("query", QUERIES), ("document", DOCUMENTS))
    }
    return pairs, sides


def mined(pairs, sides, depth=20, **rules):
    return EmbeddingMiner(depth, Rules(**rules)).mine(pairs, sides.__getitem__)


def rows(table):
    return [[i for i in row if i >= 0] for row in table.ids.tolist()]


def known(pairs):
    return [{k for k in row if k >= 0} for row in pairs.columns["known"].tolist()]


def by_hand(pairs, sides, depth, r):
    """The card's steps, one candidate after the other."""
    scores = (sides["query"] @ sides["document"].T).numpy()
    for query, positives in zip(pairs.query_of, known(pairs), strict=True):
        s = scores[query]
        lowest = min(s[p] for p in positives)
        left = []
        for d in sorted(range(DOCUMENTS), key=lambda d: (-s[d], d))[:depth]:
            if (
                d in positives
                or (r.absolute_margin is not None and s[d] + r.absolute_margin > lowest)
                or (r.relative_margin is not None and s[d] > lowest - abs(lowest) * r.relative_margin)
                or (r.max_score is not None and s[d] > r.max_score)
                or (r.min_score is not None and s[d] < r.min_score)
            ):
                continue
            left.append(d)
        yield left[: r.within][r.skip_top :][: r.keep]


@settings(max_examples=60)
@given(
    SEEDS,
    st.builds(
        Rules,
        absolute_margin=MARGINS,
        relative_margin=MARGINS,
        max_score=st.none() | st.sampled_from([0.0, 0.6]),
        min_score=st.none() | st.sampled_from([-0.3, 0.2]),
        within=st.none() | st.integers(1, 25),
        skip_top=st.integers(0, 5),
        keep=st.none() | st.integers(1, 8),
    ),
    st.integers(1, DOCUMENTS),
)
def test_rules_are_the_cards(seed, rules, depth):
    pairs, sides = world(seed)
    table = EmbeddingMiner(depth, rules).mine(pairs, sides.__getitem__)
    assert rows(table) == list(by_hand(pairs, sides, depth, rules))
    scores = (sides["query"] @ sides["document"].T).numpy()[pairs.query_of]
    got = np.where(table.ids >= 0, np.take_along_axis(scores, np.maximum(table.ids, 0), 1), -np.inf)
    np.testing.assert_allclose(table.scores, got)
    assert (table.scores[:, 1:] <= table.scores[:, :-1]).all()
    rejected = sum(record["rejected"] for record in table.provenance if "rule" in record)
    assert rejected + table.counts.sum() == len(pairs) * depth


@pytest.mark.parametrize("margin", ["absolute_margin", "relative_margin"])
def test_a_margin_of_zero_removes_exactly_what_scores_above_the_positive(margin):
    pairs, sides = world(0)
    lowest = lowest_positive(sides["query"], sides["document"], pairs)[pairs.query_of]
    worst = min(known(pairs)[0], key=lambda d: float(sides["query"][pairs.query_of[0]] @ sides["document"][d]))
    sides["document"][39] = sides["document"][worst]  # as good as the positive, not better: stays
    table, everything = mined(pairs, sides, DOCUMENTS, **{margin: 0.0}), mined(pairs, sides, DOCUMENTS)
    for kept, ids, scores, s in zip(rows(table), everything.ids, everything.scores, lowest, strict=True):
        assert kept == ids[(ids >= 0) & (scores <= s)].tolist()
    assert rows(table)[0][0] == 39


@pytest.mark.parametrize("start", [1, 4])
def test_skipping_is_the_same_as_cutting_a_longer_list(start):
    pairs, sides = world(1)
    longer = rows(mined(pairs, sides, keep=start + 5))
    assert rows(mined(pairs, sides, skip_top=start, keep=5)) == [row[start:] for row in longer]


def test_order_of_the_corpus_changes_ids_only():
    pairs, sides = world(2)
    order = torch.randperm(DOCUMENTS, generator=torch.Generator().manual_seed(0))
    place = order.argsort().numpy()
    other = TextPairs(
        pairs.queries, pairs.documents, pairs.query_of, place[pairs.document_of], relevant=_relevant(pairs, place)
    )
    moved = mined(other, {**sides, "document": sides["document"][order]}, relative_margin=0.05)
    assert [[int(order[i]) for i in row] for row in rows(moved)] == rows(mined(pairs, sides, relative_margin=0.05))


def _relevant(pairs, place):
    return np.array([(q, place[d]) for q, ds in zip(pairs.query_of, known(pairs), strict=True) for d in ds])


def test_the_same_model_finds_the_same_table():
    pairs, sides = world(3)
    one, two = (mined(pairs, sides, relative_margin=0.05) for _ in range(2))
    assert one.fingerprint == two.fingerprint and jaccard(one, two) == 1
    assert one.provenance[0] == {"depth": 20, "miner": "embedding", "index": "exact"}


def test_the_reference_is_the_lowest_positive_and_half_precision_is_widened():
    pairs = TextPairs(["q"], ["d"] * 3, np.zeros(2, int), np.array([0, 1]))
    queries, documents = torch.ones(1, 2), torch.tensor([[256.0, 1.0], [300.0, 0.0], [0.0, 0.0]])
    assert lowest_positive(queries.bfloat16(), documents.bfloat16(), pairs).tolist() == [257]  # no bfloat16


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_approximate_indexes_mine_nearly_the_same(index):
    pytest.importorskip("faiss")
    pairs, sides = world(4)
    sides = {side: x.float() for side, x in sides.items()}
    table = EmbeddingMiner(10, Rules(), index).mine(pairs, sides.__getitem__)
    assert jaccard(table, mined(pairs, sides, 10)) > 0.8
    assert not any(set(row) & k for row, k in zip(rows(table), known(pairs), strict=True))


def test_random_draws_repeat_with_their_seed_and_spare_known_positives():
    pairs, _ = world(5)
    tables = [RandomMiner(30, seed=seed).mine(pairs) for seed in (0, 0, 1)]
    assert tables[0].fingerprint == tables[1].fingerprint != tables[2].fingerprint
    assert not any(set(row) & k for row, k in zip(rows(tables[0]), known(pairs), strict=True))
    assert set(np.unique(tables[0].ids)) - {-1} > set(range(DOCUMENTS // 2, DOCUMENTS))  # documents without a pair too


def test_bm25_ranks_by_shared_words_and_leaves_out_those_without():
    documents = ["def readLines(path)", "read_lines of a file", "lines", "unrelated", "read lines of a path twice"]
    pairs = TextPairs(["read the lines", "nothing shared"], documents, np.array([0, 1]), np.array([0, 3]))
    table = Bm25Miner(5).mine(pairs)
    assert rows(table) == [[1, 4, 2], []]
    assert (np.diff(table.scores[0, :3]) < 0).all()
    assert table.provenance == [{"depth": 5, "miner": "bm25"}, {"rule": "drop_positives", "rejected": 1}]


def test_bm25_scores_positives_for_the_margins():
    documents = ["read lines", "read", "read lines lines", "other", "lines again"]
    pairs = TextPairs(["read lines", "missing"], documents, np.array([0, 1]), np.array([0, 3]))
    ids, scores, positives, _ = Bm25Miner(5).search(pairs, None)
    own = scores[0][ids[0] == 0]
    assert positives.tolist() == [*own, 0.0]
    table = Bm25Miner(5, Rules(relative_margin=0.05)).mine(pairs)
    assert (
        set(rows(table)[0]) == {n for n, s in zip(ids[0], scores[0], strict=True) if -np.inf < s <= 0.95 * own} != set()
    )


class Other(PairDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return 0, 0


def test_what_a_miner_cannot_do_is_one_line():
    pairs, sides = world(6)
    with pytest.raises(ZooError, match="does not score positives"):
        RandomMiner(rules=Rules(relative_margin=0.05)).mine(pairs)
    with pytest.raises(ZooError, match="needs an encoder"):
        EmbeddingMiner().mine(pairs)
    with pytest.raises(ZooError, match="RandomMiner mines pairs of two collections"):
        RandomMiner().mine(Other())
    assert len(mined(pairs, sides, depth=999).ids[0]) == DOCUMENTS  # deeper than the collection is all of it


def table_of(ids, scores=None, provenance=()):
    ids = np.array(ids)
    return NegativeTable(ids, np.zeros(ids.shape, np.float32) if scores is None else np.array(scores), [*provenance])


IDS = st.lists(st.lists(st.integers(-1, 4), min_size=3, max_size=3), min_size=4, max_size=4)


@given(IDS, IDS)
def test_jaccard_of_sets(old, new):
    sets = [[set(row) - {-1} for row in ids] for ids in (old, new)]
    want = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in zip(*sets, strict=True)]
    assert jaccard(table_of(old), table_of(new)) == pytest.approx(np.mean(want))


def test_summary_tells_scores_and_what_each_rule_took():
    provenance = [
        {"depth": 3, "miner": "embedding"},
        {"rule": "drop_positives", "rejected": 2},
        {"rule": "max_score", "score": 0.9, "rejected": 1},
    ]
    table = table_of([[4, 5, -1], [6, -1, -1], [-1] * 3], [[0.5, 0.25, -np.inf], [0.0, *[-np.inf] * 2], [-np.inf] * 3])
    table.provenance = provenance
    lines = summary(table, np.array([0.5, 0.75, 1.0])).splitlines()
    assert lines[:2] == ["3 negatives of 3 pairs: 1.0 per pair, 1 pairs without", "depth 3, miner embedding"]
    numbers = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in lines[4:6]}
    assert numbers["positives"] == pytest.approx([0.75, 0.525, 0.625, 0.75, 0.875, 0.975])
    assert numbers["negatives"] == pytest.approx([0.25, 0.025, 0.125, 0.25, 0.375, 0.475])
    assert [line.split(maxsplit=2) for line in lines[-2:]] == [
        ["2", "33.3%", "drop_positives"],
        ["1", "25.0%", "max_score (score 0.9)"],
    ]


def test_summary_of_nothing():
    assert summary(table_of([[-1, -1]])).startswith("0 negatives of 1 pairs: 0.0 per pair, 1 pairs without")
