"""Statistics of scores against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.losses import coupling, proxy_accuracy, score_statistics, uniformity


def _drawn(b, p, m, seed):
    rng = np.random.default_rng(seed)
    positives, negatives = rng.uniform(-1, 1, (b, p)), rng.uniform(-1, 1, (b, m))
    mask = rng.random((b, m)) < 0.6
    mask[:, :2] = True
    return positives, negatives, mask


@settings(max_examples=25)
@given(b=st.integers(1, 5), p=st.integers(1, 3), m=st.integers(2, 9), masked=st.booleans(), seed=st.integers(0, 999))
def test_statistics_match_numpy(b, p, m, masked, seed):
    positives, negatives, mask = _drawn(b, p, m, seed)
    mask = mask if masked else np.ones_like(mask)
    tensors = torch.tensor(positives), torch.tensor(negatives), torch.tensor(mask) if masked else None
    five, above, one_minus_p = [], [], []
    for s, n in zip(positives, (row[kept] for row, kept in zip(negatives, mask, strict=True)), strict=True):
        five.append([n.mean(), n.var(ddof=1), s.mean(), np.exp(n / 0.2).mean(), np.exp(s / 0.2).mean()])
        above.append(s > n.max())
        down = np.exp(n / 0.2).sum()
        one_minus_p.append(down / (down + np.exp(s / 0.2)))
    np.testing.assert_allclose(score_statistics(*tensors, temperature=0.2), five, rtol=1e-10)
    assert proxy_accuracy(*tensors).item() == pytest.approx(np.mean(above))
    np.testing.assert_allclose(coupling(*tensors, temperature=0.2), one_minus_p, rtol=1e-10)


@settings(max_examples=15)
@given(b=st.integers(2, 12), t=st.floats(0.5, 4), seed=st.integers(0, 999))
def test_uniformity_is_over_pairs_of_different_rows(b, t, seed):
    rows = np.random.default_rng(seed).normal(size=(b, 4))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    potential = [np.exp(-t * ((rows[i] - rows[j]) ** 2).sum()) for i in range(b) for j in range(b) if i != j]
    assert uniformity(torch.tensor(rows), t).item() == pytest.approx(np.log(np.mean(potential)), rel=1e-9)


def test_uniformity_of_a_collapsed_and_of_an_antipodal_pair():
    one = torch.tensor([[1.0, 0.0]])
    assert uniformity(torch.cat([one, one])).item() == pytest.approx(0.0)
    assert uniformity(torch.cat([one, -one])).item() == pytest.approx(-8.0)


def test_ties_are_no_success():
    positives, negatives = torch.tensor([[0.5], [0.5]]), torch.tensor([[0.5, 0.1], [0.4, 0.9]])
    assert proxy_accuracy(positives, negatives) == 0
    assert proxy_accuracy(positives, negatives, torch.tensor([[True, True], [True, False]])) == 0.5


def test_masked_scores_count_nothing_even_where_they_overflow():
    positives, negatives = torch.zeros(1, 1), torch.tensor([[0.0, 0.0, 1.0]])
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(score_statistics(positives, negatives, mask, 0.01), torch.tensor([[0.0, 0, 0, 1, 1]]))


def test_fully_masked_row_stays_finite():
    positives, negatives, mask = torch.ones(1, 1), torch.ones(1, 4), torch.zeros(1, 4, dtype=torch.bool)
    assert score_statistics(positives, negatives, mask, 0.1).isfinite().all()
    assert coupling(positives, negatives, mask) == 0 and proxy_accuracy(positives, negatives, mask) == 1


def test_half_precision_is_widened():
    positives, negatives, _ = _drawn(3, 1, 6, 0)
    half = torch.tensor(positives).bfloat16(), torch.tensor(negatives).bfloat16()
    wide = tuple(x.float() for x in half)
    assert torch.equal(score_statistics(*half), score_statistics(*wide))
    assert torch.equal(coupling(*half), coupling(*wide))
