"""Text pairs, tokens, and what the datamodule makes of them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.data.collections import OneSide, RetrievalSet, known_documents
from zoo.data.datamodule import NegativesDataModule
from zoo.data.text import TextPairs, TextSource, Tokens
from zoo.data.tokenizers import Tokenizer, padded
from zoo.errors import ZooError
from zoo.negatives.miners import RandomMiner
from zoo.negatives.table import NegativeTable

# Query 0 has documents 0 and 2, query 1 document 0, query 2 document 1; document 3 has no pair.
QUERIES, DOCUMENTS = ["zero", "one", "two"], ["d", "dd", "ddd", "dddd"]


def pairs(**kwargs):
    return TextPairs(QUERIES, DOCUMENTS, np.array([0, 0, 1, 2]), np.array([2, 0, 0, 1]), **kwargs)


class Letters(Tokenizer):
    """A token for each letter."""

    def prepare(self, source, root):
        pass

    def encode(self, texts, length):
        return [[ord(c) for c in text][:length] for text in texts]


class Source(TextSource):
    name = "tiny"

    def prepare(self, root):
        pass

    def split(self, split, root):
        return pairs()

    def retrieval(self, split, root):
        return RetrievalSet(QUERIES, DOCUMENTS, [{0: 1, 2: 1}, {0: 1}, {1: 1}])


def module(**kwargs):
    data = NegativesDataModule(Source(), tokenizer=Letters(), batch_size=2, eval_batch_size=3, seed=0, **kwargs)
    data.prepare_data()
    data.setup("fit")
    return data


def test_pairs_name_queries_and_documents_by_number():
    data = pairs()
    assert len(data) == 4 and data[0] == ("zero", "ddd")
    assert data.fetch([3, 1]) == (["two", "zero"], ["dd", "d"])
    assert data.keys("anchor", [0, 1, 3]).tolist() == [0, 0, 2]
    assert data.keys("positive", [0, 1, 3]).tolist() == [2, 0, 1]
    assert data.column("known", [0, 1, 2, 3]).tolist() == [[0, 2], [0, 2], [0, -1], [1, -1]]
    assert data.n_documents == 4 and data.fetch_documents([3, 0]) == ["dddd", "d"]
    assert data.document_keys(np.array([3, 0])).tolist() == [3, 0]


def test_further_relevant_documents_are_known_but_no_pairs():
    data = pairs(relevant=np.array([[2, 3], [2, 1]]), columns={"task": np.arange(4)})
    assert len(data) == 4 and data.column("known", [3, 2]).tolist() == [[1, 3], [0, -1]]
    assert data.column("task", [2]).tolist() == [2]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9))))
def test_known_documents(found):
    known = known_documents(np.array(found, np.int64).reshape(-1, 2), 6)
    assert len(known) == 6
    for query, row in enumerate(known.tolist()):
        expected = sorted({d for q, d in found if q == query})
        assert row == expected + [-1] * (known.shape[1] - len(expected))


def test_one_side_alone():
    assert OneSide(DOCUMENTS, "document").fetch([1, 0]) == (None, ["dd", "d"])
    assert OneSide(QUERIES, "query").fetch([2]) == (["two"], None) and OneSide(QUERIES, "query")[1] == ("one", None)
    documents, queries = Source().evaluation("test", None)
    assert (documents.side, len(documents), queries.side, len(queries)) == ("document", 4, "query", 3)


def test_tokens_are_cut_and_moved_together():
    tokens = padded([[7, 8], [9]], 1)
    first = tokens[:1]
    assert len(first) == 1 and first.ids.tolist() == [[7, 8]] and first.pool.tolist() == [[False, True]]
    moved = tokens.to("meta")
    assert {x.device.type for x in (moved.ids, moved.mask, moved.pool)} == {"meta"}
    assert torch.equal(tokens[torch.tensor([1, 0])].ids, tokens.ids.flip(0))


@given(st.lists(st.lists(st.integers(1, 99), max_size=5), min_size=1), st.integers(0, 6))
def test_padding(rows, skipped):
    tokens = padded(rows, skipped)
    for i, row in enumerate(rows):
        n = max(len(row), 1)  # an empty text is a padding token, so that its mean is no NaN
        assert tokens.ids[i, tokens.mask[i]].tolist() == (row or [0])
        assert tokens.mask[i].tolist() == [True] * n + [False] * (tokens.mask.shape[1] - n)
        assert tokens.ids[i, n:].eq(0).all()
        assert tokens.pool[i].nonzero()[:, 0].tolist() == list(range(skipped if skipped < n else 0, n))


def test_skipped_may_differ_by_row():
    assert padded([[5, 6, 7], [8, 9]], [2, 1]).pool.int().tolist() == [[0, 0, 1], [0, 1, 0]]


def test_a_prefix_is_attended_to_but_not_pooled_and_takes_its_part_of_the_length():
    tokenizer = Letters(query_length=6, document_length=4, query_prefix="ask ")
    query, document = tokenizer(["hello", "h"], "query"), tokenizer(["hello", "h"], "document")
    assert query.ids.tolist() == [[ord(c) for c in "ask he"], [*(ord(c) for c in "ask h"), 0]]
    assert query.mask.int().tolist() == [[1] * 6, [1] * 5 + [0]]
    assert query.pool.int().tolist() == [[0] * 4 + [1, 1], [0] * 4 + [1, 0]]
    assert document.ids.tolist() == [[ord(c) for c in "hell"], [ord("h"), 0, 0, 0]]
    assert torch.equal(document.pool, document.mask)


def test_training_batches_are_tokens_with_keys_and_negatives_by_document_number():
    table = NegativeTable(np.array([[3, 1], [1, 3], [2, -1], [0, 2]]), np.ones((4, 2)), [])
    data = module(table=table, n_negatives=2)
    batches = list(data.train_dataloader())
    assert len(batches) == 2 and all(isinstance(b.anchor, Tokens) for b in batches)
    for batch in batches:
        expected = pairs()
        queries, documents = expected.fetch(batch.index.tolist())
        for tokens, texts in ((batch.anchor, queries), (batch.positive, documents)):
            assert ["".join(map(chr, row[m])) for row, m in zip(tokens.ids, tokens.mask, strict=True)] == texts
        assert batch.anchor_key.tolist() == expected.keys("anchor", batch.index.tolist()).tolist()
        assert batch.known.tolist() == expected.column("known", batch.index.tolist()).tolist()
        for row, pair in enumerate(batch.index.tolist()):
            there = table.ids[pair] >= 0
            assert sorted(batch.negative_key[row].tolist()) == sorted(table.ids[pair].tolist())
            assert batch.negative_mask[row].sum() == there.sum()
            for j in range(2):
                if batch.negative_mask[row, j]:  # document n has n + 1 letters
                    length = int(batch.negatives.mask[2 * row + j].sum())
                    assert length - 1 == batch.negative_key[row, j]
                else:
                    assert batch.negative_key[row, j] == -1


def test_another_table_serves_from_the_next_batch_on():
    one, other = (NegativeTable(np.full((4, 1), d), np.ones((4, 1)), []) for d in (3, 1))
    data = module(table=one, n_negatives=1)
    batches = iter(data.train_dataloader())
    assert next(batches).negative_key.eq(3).all()
    data.set_table(other)
    assert next(batches).negative_key.eq(1).all()
    assert next(iter(data.train_dataloader())).negative_key.eq(1).all()


def test_a_miner_makes_the_table_and_a_given_table_takes_precedence():
    data = module(miner=RandomMiner(depth=3), n_negatives=1)
    assert isinstance(data.table, NegativeTable) and len(data.table) == 4
    known = pairs().columns["known"]
    assert not (data.table.ids[:, :, None] == np.where(known < 0, -9, known)[:, None]).any()
    given_table = NegativeTable(np.full((4, 1), 3), np.ones((4, 1)), [])
    assert module(table=given_table, miner=RandomMiner(), n_negatives=1).table is given_table


def test_balanced_draws_over_scores():
    # Nine easy candidates share a bin, one hard one has its own: half of the draws each, and never padding.
    ids = np.tile(np.array([3, *[1] * 9, -1]), (4, 1))
    scores = np.tile(np.array([9.0, *np.linspace(0, 0.5, 9), -np.inf]), (4, 1))
    table = NegativeTable(ids, scores, [])
    drawn = table.draw_balanced(np.arange(4).repeat(1000), 10, np.random.default_rng(0))
    assert drawn.shape == (4000, 1) and set(drawn.ravel()) == {1, 3}
    assert (drawn == 3).mean() == pytest.approx(0.5, abs=0.04)
    uniform = np.array([table.draw(np.arange(4), 1, np.random.default_rng(i)) for i in range(500)])
    assert (uniform == 3).mean() == pytest.approx(0.1, abs=0.03)
    empty = NegativeTable(np.full((1, 2), -1), np.full((1, 2), -np.inf), [])
    assert empty.draw_balanced(np.array([0]), 10, np.random.default_rng(0)).tolist() == [[-1]]

    data, hard = module(table=table, n_negatives=1, balanced=10), []
    loader = data.train_dataloader()
    for epoch in range(100):
        data.sampler.epoch = epoch
        hard += [float((batch.negative_key == 3).float().mean()) for batch in loader]
    assert np.mean(hard) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"n_negatives": 1},
        {"miner": RandomMiner()},
        {"miner": RandomMiner(), "n_negatives": 2, "balanced": 10},
    ],
)
def test_what_does_not_fit_together_is_refused(kwargs):
    with pytest.raises(ZooError, match="--data.n_negatives"):
        NegativesDataModule(Source(), **kwargs)


def test_evaluation_reads_documents_then_queries_in_order():
    data = module()
    for loader, texts in zip(data.evaluation_dataloaders("test"), (DOCUMENTS, QUERIES), strict=True):
        found = []
        for batch in loader:
            tokens = batch.positive if texts is DOCUMENTS else batch.anchor
            assert (batch.anchor if texts is DOCUMENTS else batch.positive) is None
            found += ["".join(map(chr, row[m])) for row, m in zip(tokens.ids, tokens.mask, strict=True)]
        assert found == texts
