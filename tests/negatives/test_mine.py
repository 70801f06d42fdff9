"""`zoo.negatives.mine` against the full matrix of scores."""

import numpy as np
import pytest
import torch

from zoo.errors import ZooError
from zoo.negatives import Rules, mine

RNG = np.random.default_rng(0)
QUERIES, DOCUMENTS = (torch.from_numpy(RNG.normal(size=(n, 8)).astype(np.float32)) for n in (6, 30))
KNOWN = np.stack([RNG.permutation(30)[:2] for _ in range(6)])


@pytest.mark.parametrize("known", [None, KNOWN[:, 0], torch.from_numpy(KNOWN)], ids=["none", "one", "two"])
def test_the_k_best_that_are_not_known_to_be_right(known):
    scores = (QUERIES @ DOCUMENTS.T).numpy()
    if known is not None:
        np.put_along_axis(scores, np.asarray(known).reshape(6, -1), -np.inf, 1)
    table = mine(QUERIES, DOCUMENTS, 5, known)
    np.testing.assert_array_equal(table.ids, np.argsort(-scores, 1)[:, :5])
    np.testing.assert_allclose(table.scores, -np.sort(-scores, 1)[:, :5], rtol=1e-5)
    assert table.provenance[0] == {"miner": "embedding", "index": "exact", "depth": 5}


def test_fewer_documents_than_asked_for_leave_padding():
    table = mine(QUERIES, DOCUMENTS[:3], 5, np.zeros(6, np.int64))
    assert set(table.ids[0].tolist()) == {1, 2, -1} and (table.counts == 2).all()


def test_rules_compare_with_the_lowest_positive():
    lowest = (QUERIES[:, None] * DOCUMENTS[torch.from_numpy(KNOWN)]).sum(2).amin(1).numpy()
    table = mine(QUERIES, DOCUMENTS, 30, KNOWN, Rules(absolute_margin=0.1, keep=4))
    there = table.ids >= 0
    assert there.any() and (table.scores <= lowest[:, None] - 0.1 + 1e-5)[there].all()
    assert table.ids.shape[1] <= 30 and (there.sum(1) <= 4).all()


def test_rules_without_positives_are_an_error():
    with pytest.raises(ZooError, match="does not score positives"):
        mine(QUERIES, DOCUMENTS, 5, rules=Rules(absolute_margin=0.0))
