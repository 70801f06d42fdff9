"""Self-aware hard negatives: owners, the filter, two passes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import ZooError
from zoo.losses.scores import normalize
from zoo.negatives.self_aware import self_aware_clusters


def draw(seed, rows=40, documents=25, dim=6):
    rng = np.random.default_rng(seed)
    q, d = (normalize(torch.from_numpy(rng.normal(size=(n, dim)))) for n in (rows, documents))
    return q, d, rng.integers(documents, size=rows)


def members(clusters):
    return [row[row >= 0].tolist() for row in clusters]


def oracle(queries, documents, owned, k, pool_mult):
    """The published procedure, step by step, with sets."""
    q, d = queries.numpy(), documents.numpy()
    used, found, first = set(), [], k * pool_mult
    phase2 = 0
    for limit, taken in ((first, used), (2 * first, set())):
        for i in range(len(q)):
            if i in used:
                continue
            ranked = np.argsort(-(d @ q[i]), kind="stable")[: 2 * first].tolist()
            owners = []
            for document in ranked:
                left = [a for a in range(len(q)) if owned[a] == document and a not in taken]
                if document != owned[i] and left and len(owners) < limit:
                    owners.append(max(left, key=lambda a: (q[i] @ q[a], -a)))
            if not owners:
                continue
            kept = sorted(owners, key=lambda a: q[i] @ q[a])[:k]
            found.append([i, *kept])
            used |= {i, *kept}
            taken |= set(kept)
        phase2 = phase2 or len(found)
    return found, phase2


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 3))
def test_the_published_procedure(seed, k, pool_mult):
    inputs = draw(seed)
    rows, phase2 = self_aware_clusters(*inputs, k, pool_mult)
    expected, passes = oracle(*inputs, k, pool_mult)
    assert members(rows) == expected and phase2 == passes


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 3))
def test_first_pass_is_disjoint_and_anchors_never_meet_their_own_document(seed, k, pool_mult):
    queries, documents, owned = draw(seed)
    rows, phase2 = self_aware_clusters(queries, documents, owned, k, pool_mult)
    first = [i for cluster in members(rows[:phase2]) for i in cluster]
    assert len(first) == len(set(first)) and rows.shape[1] == k + 1
    for anchor, *others in members(rows):
        assert owned[anchor] not in owned[others] and len(set(owned[others])) == len(others) >= 1
        assert (np.diff([queries[anchor] @ queries[i] for i in others]) >= 0).all()


def test_the_filter_drops_owners_whose_query_is_the_anchors():
    queries = normalize(torch.tensor([[1.0, 0, 0], [1, 0.01, 0], [0, 1, 0], [0, 0, 1]]))
    documents = normalize(torch.tensor([[1.0, 0, 0], [1, 0, 0.1], [1, 0.3, 0], [1, 0, 0.5]]))
    found = {
        keep: members(self_aware_clusters(queries, documents, np.arange(4), 1, 3, keep).rows)[0]
        for keep in ("farthest", "nearest", "hardest")
    }
    assert found["nearest"] == found["hardest"] == [0, 1]  # a false negative
    assert found["farthest"] == [0, 2]


def test_of_a_documents_rows_the_nearest_speaks_for_it():
    queries = normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.8, 0.6, 0], [0.8, 0.6, 0]]))
    rows, _ = self_aware_clusters(queries, torch.eye(3)[:2], np.array([0, 1, 1, 1]), 1, 1)
    assert members(rows)[0] == [0, 2]


def test_with_one_row_per_document_and_a_pool_that_holds_all_the_filter_only_reorders():
    queries, documents, _ = draw(3, 20, 20)
    owned = np.arange(20)
    ours, naive = (
        self_aware_clusters(queries, documents, owned, 10, 1, keep, disjoint=False).rows
        for keep in ("farthest", "hardest")
    )
    assert [set(c) for c in members(ours)] == [set(c) for c in members(naive)] and (ours != naive).any()
    ranked = (queries @ documents.T - 9 * torch.eye(20)).argsort(1, descending=True)[:, :10]
    assert np.array_equal(naive[:, 1:], ranked.numpy()) and naive[:, 0].tolist() == list(range(20))


def test_known_documents_are_no_negatives():
    queries, documents, _ = draw(4, 12, 12)
    known = np.full((12, 2), -1)
    known[0] = [3, 7]
    rows, _ = self_aware_clusters(queries, documents, np.arange(12), 11, 1, disjoint=False, known=known)
    assert set(members(rows)[0]) == set(range(12)) - {3, 7} and set(members(rows)[1]) == set(range(12))


def test_the_second_pass_serves_those_left_over():
    # All rows but the last two are used up by the first pass; those may then borrow.
    queries, documents, _ = draw(5, 14, 14)
    rows, phase2 = self_aware_clusters(queries, documents, np.arange(14), 3, 1)
    once, twice = (set(np.unique(part[part >= 0]).tolist()) for part in (rows[:phase2], rows[phase2:]))
    assert phase2 < len(rows) and not set(rows[phase2:, 0].tolist()) & once and twice & once
    kept = rows[phase2:, 1:]
    assert len(np.unique(kept[kept >= 0])) == (kept >= 0).sum()


def test_nothing_to_find():
    rows, _ = self_aware_clusters(torch.eye(3), torch.eye(3)[:1], np.zeros(3, int), 2, 1)
    assert rows.shape == (0, 3)
    with pytest.raises(ZooError, match="1 or more"):
        self_aware_clusters(torch.eye(3), torch.eye(3), np.arange(3), 0)
