"""Retrieval metrics against ir-measures, and BM25 against its formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.retrieval import bm25_run, relevance_of, retrieval_metrics

KS = (1, 3, 10, 50)


def judged(rng, queries, documents, most=6):
    return [
        {int(d): int(rng.integers(1, 4)) for d in rng.choice(documents, rng.integers(0, most), replace=False)}
        for _ in range(queries)
    ]


@settings(max_examples=15)
@given(st.integers(0, 999), st.integers(1, 60))
def test_equals_ir_measures_with_grades_and_unjudged_queries(seed, depth):
    import ir_measures
    from ir_measures import AP, RR, R, nDCG

    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(60)[:depth] for _ in range(12)])
    ids[0, depth // 2 :] = -1  # a list that ends early
    relevance = judged(rng, 12, 80)
    relevance[1] = {int(d): 1 for d in rng.choice(80, 30, replace=False)}  # more than the ten that an ideal list has
    got = retrieval_metrics(torch.from_numpy(ids), relevance, KS)
    qrels = [ir_measures.Qrel(str(q), str(d), g) for q, row in enumerate(relevance) for d, g in row.items()]
    run = [
        ir_measures.ScoredDoc(str(q), str(d), -float(rank))
        for q, row in enumerate(ids)
        for rank, d in enumerate(row)
        if d >= 0
    ]
    names = {RR @ 10: "mrr@10", nDCG @ 10: "ndcg@10", AP: f"map@{depth}"} | {R @ k: f"recall@{k}" for k in KS}
    want = ir_measures.calc_aggregate(list(names), qrels, run)
    assert got == pytest.approx({names[m]: value for m, value in want.items()})


def test_by_hand():
    ids = torch.tensor([[7, 2, 5], [1, 0, 3], [4, 5, 6]])
    relevance = [{2: 1, 5: 2, 9: 1}, {8: 1}, {}]  # the last query has no answer and counts for nothing
    got = retrieval_metrics(ids, relevance, ks=(1, 2, 3))
    gain = 1 / math.log2(3) + 2 / 2
    ideal = 2 + 1 / math.log2(3) + 1 / 2
    assert got == pytest.approx(
        {
            "mrr@10": (1 / 2 + 0) / 2,
            "recall@1": 0,
            "recall@2": (1 / 3) / 2,
            "recall@3": (2 / 3) / 2,
            "ndcg@10": gain / ideal / 2,
            "map@3": ((1 / 2 + 2 / 3) / 3) / 2,
        }
    )


@given(st.integers(0, 999))
def test_relevance_is_looked_up_for_each_rank(seed):
    rng = np.random.default_rng(seed)
    ids, relevance = rng.integers(-1, 12, (5, 7)), judged(rng, 5, 12)
    want = [[row.get(int(d), 0) for d in ranked] for ranked, row in zip(ids, relevance, strict=True)]
    assert relevance_of(torch.from_numpy(ids), relevance).tolist() == want


@pytest.mark.parametrize("relevance", [[{}, {}], [{1: 0}, {}]])
def test_without_any_answer_all_is_zero(relevance):
    got = retrieval_metrics(torch.tensor([[0, 1], [1, 0]]), relevance, (1,))
    assert got == {"mrr@10": 0, "recall@1": 0, "ndcg@10": 0, "map@2": 0}


DOCUMENTS = [
    "def readLines(path)",
    "read_lines of READ files",
    "",
    "unrelated words",
    "...",
    "path lines",
    "path lines",
]
TERMS = [
    ["def", "read", "lines", "path"],
    ["read", "lines", "of", "read", "files"],
    [],
    ["unrelated", "words"],
    [],
    ["path", "lines"],
    ["path", "lines"],
]


def bm25(query, k1=1.5, b=0.75):
    """Lucene's BM25 of each document; bm25s counts an empty document as one word long."""
    lengths = [max(len(t), 1) for t in TERMS]
    mean, n = sum(lengths) / len(lengths), len(TERMS)
    scores = []
    for terms, length in zip(TERMS, lengths, strict=True):
        score = 0.0
        for word in query:
            df, tf = sum(word in t for t in TERMS), terms.count(word)
            idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * length / mean))
        scores.append(score)
    return scores


def test_bm25_of_identifiers_with_ties_by_number():
    queries = {"readLines": ["read", "lines"], "the PATH": ["the", "path"], "zzz": ["zzz"], "!?": []}
    ids, scores = bm25_run(list(queries), DOCUMENTS, 4)
    for row, got, terms in zip(ids.tolist(), scores, queries.values(), strict=True):
        want = bm25(terms)
        order = [d for d in sorted(range(len(want)), key=lambda d: (-want[d], d)) if want[d] > 0][:4]
        assert row == order + [-1] * (4 - len(order))
        np.testing.assert_allclose(got[: len(order)], [want[d] for d in order], rtol=1e-5)
        assert (got[len(order) :] == -np.inf).all()
    assert ids.dtype == np.int64 and scores.dtype == np.float32


@pytest.mark.parametrize(
    ("documents", "found"), [(["word"], [[0]]), (["", "?"], [[-1, -1]]), (["", "word"], [[1, -1]])]
)
def test_bm25_of_few_or_empty_documents(documents, found):
    assert bm25_run(["word"], documents, 5)[0].tolist() == found


def test_bm25_cuts_many_ties_by_number():
    documents = ["other"] * 5 + ["alpha"] * 40 + ["alpha beta"] * 40
    ids, _ = bm25_run(["alpha beta"], documents, 60)
    assert ids.tolist() == [[*range(45, 85), *range(5, 25)]]
