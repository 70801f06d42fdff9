"""Ranks, recall, CMC and average precision against dense and literal computations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import ZooError
from zoo.losses import normalize
from zoo.ranking import average_precision, cumulative_match, percent_index, positive_ranks, recall, transpose


def drawn(seed, q=17, n=40, most=4):
    """Embeddings, relevant documents (none for some queries) and ignored ones."""
    g = torch.Generator().manual_seed(seed)
    queries, documents = (normalize(torch.randn(m, 6, generator=g)) for m in (q, n))
    documents[n // 2 :: 3] = documents[: len(documents[n // 2 :: 3])]  # exact ties
    lists = [torch.randperm(n, generator=g)[: int(torch.randint(0, most + 1, (), generator=g))] for _ in range(2 * q)]
    relevance = [dict.fromkeys(x.tolist(), 1) for x in lists[:q]]
    return queries, documents, relevance, [set(x.tolist()) for x in lists[q:]]


def scores_of(queries, documents):
    """Products one by one, so that equal documents score equally."""
    return (queries[:, None].double() * documents.double()).sum(2).tolist()


def literal_ranks(queries, documents, relevance, ignored):
    ranks = []
    for row, right, skip in zip(scores_of(queries, documents), relevance, ignored, strict=True):
        best = max((row[d] for d in right), default=None)
        ranks.append(-1 if best is None else sum(s > best for d, s in enumerate(row) if d not in skip))
    return ranks


@settings(max_examples=25)
@given(seed=st.integers(0, 9999), chunk=st.integers(1, 20), masks=st.booleans())
def test_ranks_are_those_of_the_whole_matrix_whatever_the_chunks(seed, chunk, masks):
    queries, documents, relevance, ignored = drawn(seed)
    got = positive_ranks(queries, documents, relevance, ignored if masks else None, chunk)
    assert got.tolist() == literal_ranks(queries, documents, relevance, ignored if masks else [set()] * len(queries))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_no_dtype_is_narrowed(dtype):
    queries, documents, relevance, ignored = drawn(3)
    queries, documents = queries.to(dtype), documents.to(dtype)
    assert positive_ranks(queries, documents, relevance).tolist() == literal_ranks(
        queries, documents, relevance, [set()] * len(queries)
    )
    assert average_precision(queries, documents, relevance, ignored).dtype == torch.float64


@given(st.integers(0, 9999))
@settings(max_examples=15)
def test_the_order_of_documents_changes_nothing(seed):
    queries, documents, relevance, ignored = drawn(seed)
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed))
    place = order.argsort().tolist()
    moved = [{place[d]: g for d, g in row.items()} for row in relevance]
    hidden = [{place[d] for d in row} for row in ignored]
    for compute in (positive_ranks, average_precision):
        before = compute(queries, documents, relevance, ignored)
        after = compute(queries, documents[order], moved, hidden)
        assert after.tolist() == pytest.approx(before.tolist(), rel=1e-12)


def test_copies_of_the_right_document_cannot_lower_recall():
    queries, documents, _, _ = drawn(0, n=300)
    relevance = [{q: 1} for q in range(17)]
    before = positive_ranks(queries, documents, relevance)
    after = positive_ranks(queries, torch.cat([documents, documents[:17].repeat(5, 1)]), relevance)
    assert recall(after, 300)["r@1"] == recall(before, 300)["r@1"]
    collapsed = documents[:1].expand(300, -1)
    assert positive_ranks(queries, collapsed, relevance).tolist() == [0] * 17


def test_nearly_equal_documents_are_told_apart():
    queries = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    documents = torch.tensor([[1.0, 0.0], [1.0 + 1e-12, 0.0]], dtype=torch.float64)
    assert positive_ranks(queries, documents, [{0: 1}]).tolist() == [1]


@given(st.integers(0, 9999))
@settings(max_examples=15)
def test_hit_rate_is_at_least_recall_and_a_relevant_document_is_never_ignored(seed):
    queries, documents, relevance, ignored = drawn(seed)
    plain = positive_ranks(queries, documents, relevance)
    hit = positive_ranks(queries, documents, relevance, ignored)
    assert (hit <= plain).all() and ((hit < 0) == (plain < 0)).all()
    both = positive_ranks(queries, documents, relevance, [set(row) for row in relevance])
    assert torch.equal(both, plain)
    everything = positive_ranks(queries, documents, relevance, [set(range(len(documents)))] * len(queries))
    assert set(everything.tolist()) <= {0, -1}


def test_recall_leaves_out_queries_without_an_answer_and_floors_the_percent():
    ranks = torch.tensor([0, 2, 1, 5, -1])
    got = recall(ranks, 299, (1, 3))
    assert got == {"r@1": 0.25, "r@3": 0.75, "r@1%": 0.5}
    assert recall(ranks, 99)["r@1%"] == 0
    assert recall(torch.tensor([-1]), 500) == {"r@1": 0, "r@5": 0, "r@10": 0, "r@1%": 0}


def test_a_grade_of_zero_is_not_relevant():
    queries, documents, _, _ = drawn(1, q=2)
    assert positive_ranks(queries, documents, [{0: 0, 3: 2}, {4: 0}]).tolist() == [
        positive_ranks(queries[:1], documents, [{3: 1}]).item(),
        -1,
    ]


def literal_university(queries, documents, relevance, ignored):
    """AP and CMC as the card has them: sorted, junk taken out, right documents before their equals."""
    aps, cmc = [], [0.0] * len(documents)
    for row, right, skip in zip(scores_of(queries, documents), relevance, ignored, strict=True):
        kept = [d for d in range(len(row)) if d not in skip or d in right]
        ranking = sorted(kept, key=lambda d: (-row[d], d not in right))
        places = [p for p, d in enumerate(ranking) if d in right]
        ap = 0.0
        for i, p in enumerate(places):
            ap += ((i / p if p else 1.0) + (i + 1) / (p + 1)) / 2 / len(places)
        aps.append(ap)
        for depth in range(len(documents)):
            cmc[depth] += bool(places) and places[0] <= depth
    return aps, [c / len(queries) for c in cmc]


@settings(max_examples=25)
@given(seed=st.integers(0, 9999), chunk=st.integers(1, 20))
def test_average_precision_and_cmc_of_university(seed, chunk):
    queries, documents, relevance, ignored = drawn(seed, most=12)
    aps, cmc = literal_university(queries, documents, relevance, ignored)
    assert average_precision(queries, documents, relevance, ignored, chunk).tolist() == pytest.approx(aps)
    ranks = positive_ranks(queries, documents, relevance, ignored, chunk)
    assert cumulative_match(ranks, len(documents)).tolist() == pytest.approx(cmc)


def test_average_precision_without_any_answer_is_zero():
    queries, documents, _, _ = drawn(0)
    assert not average_precision(queries, documents, [{}] * len(queries)).any()


@pytest.mark.parametrize(("n", "index"), [(701, 7), (951, 10), (60, 1), (49, 0)])
def test_university_s_percent(n, index):
    assert percent_index(n) == index


@settings(max_examples=25)
@given(st.lists(st.dictionaries(st.integers(0, 6), st.integers(1, 3))))
def test_transposing_twice_is_the_identity(relevance):
    back = transpose(relevance, 7)
    assert len(back) == 7 and transpose(back, len(relevance)) == relevance


def test_a_lost_embedding_is_an_error_and_no_success():
    queries, documents, relevance, _ = drawn(0)
    for broken in (queries, documents):
        broken[1, 2] = float("nan")
        with pytest.raises(ZooError, match="not finite"):
            positive_ranks(queries, documents, relevance)


def test_the_matrix_is_never_whole(monkeypatch):
    sizes, plain = [], torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: sizes.append((x := plain(a, b)).numel()) or x)
    queries, documents, relevance, _ = drawn(0, q=60)
    positive_ranks(queries, documents, relevance, query_chunk=7)
    assert max(sizes) == 7 * len(documents) and len(sizes) == 9
