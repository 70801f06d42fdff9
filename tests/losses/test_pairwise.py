"""Pairwise logistic losses against sums written out pair by pair."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.losses import PairwiseLogistic, append_missing, pairwise_logistic, rank_weighted_logistic


def _scores(b=4, m=6, seed=0):
    drawn = torch.randn(b, 1 + m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return [part.clone().requires_grad_() for part in drawn.split([1, m], 1)]


def _mask(b=4, m=6, seed=1):
    return torch.rand(b, m, generator=torch.Generator().manual_seed(seed)) < 0.6


def _softplus(x):
    return math.log1p(math.exp(x))


@settings(max_examples=20)
@given(b=st.integers(1, 4), m=st.integers(0, 6), temperature=st.floats(0.1, 2), seed=st.integers(0, 999))
def test_mean_over_the_usable_pairs_of_the_whole_batch(b, m, temperature, seed):
    positives, negatives = _scores(b, m, seed)
    mask = _mask(b, m, seed)
    pairs = [_softplus((negatives[i, j] - positives[i, 0]).item() / temperature) for i, j in mask.nonzero().tolist()]
    want = sum(pairs) / len(pairs) if pairs else 0.0
    assert pairwise_logistic(positives, negatives, mask, temperature).item() == pytest.approx(want)
    assert PairwiseLogistic(temperature)(positives, negatives, mask).item() == pytest.approx(want)


def test_masked_pairs_have_no_influence_and_do_not_shrink_the_scale():
    positives, negatives = _scores()
    mask = _mask()
    mask[2] = False
    changed = negatives.detach().masked_fill(~mask, 1e5)
    value = pairwise_logistic(positives, negatives, mask)
    assert pairwise_logistic(positives, changed, mask) == value
    for gradient in torch.autograd.grad(value, (positives, negatives)):
        assert gradient.isfinite().all() and not gradient[2].any()
    constant = torch.zeros(4, 6)
    for kept in (mask, torch.ones_like(mask)):
        assert pairwise_logistic(constant[:, :1], constant, kept).item() == pytest.approx(math.log(2))


def test_nothing_usable_is_zero_in_value_and_gradient():
    positives, negatives = _scores()
    value = pairwise_logistic(positives, negatives, torch.zeros(4, 6, dtype=torch.bool))
    gradients = torch.autograd.grad(value, (positives, negatives))
    assert value == 0 and not any(g.any() for g in gradients)


def test_float_weight_is_that_many_copies():
    positives, negatives = _scores()
    times = torch.tensor([0, 1, 2, 3, 1, 0])
    repeated = pairwise_logistic(positives, negatives.repeat_interleave(times, 1))
    torch.testing.assert_close(pairwise_logistic(positives, negatives, times.double().expand(4, 6)), repeated)


def test_half_precision_is_widened():
    positives, negatives = (x.detach().bfloat16() for x in _scores())
    value = pairwise_logistic(positives, negatives, None, 0.05)
    assert value == pairwise_logistic(positives.float(), negatives.float(), None, 0.05)


def _adore(scores, relevant, valid, cut):
    """The card's double sum, list by list."""
    lists = []
    for z, y in ((row[v].tolist(), y[v].tolist()) for row, y, v in zip(scores, relevant, valid, strict=True)):
        a = [1 / r if cut is None or r <= cut else 0.0 for r in range(1, len(z) + 1)]
        up, down = [i for i, one in enumerate(y) if one], [i for i, one in enumerate(y) if not one]
        terms = [abs(a[r] - a[t]) * _softplus(z[t] - z[r]) for r in up for t in down]
        lists.append(sum(terms) / len(terms) if terms else 0.0)
    return sum(lists) / len(lists)


@settings(max_examples=25)
@given(cut=st.none() | st.integers(0, 9), seed=st.integers(0, 999))
def test_rank_weighted_loss_is_the_double_sum(cut, seed):
    _, scores = _scores(5, 8, seed)
    relevant, valid = _mask(5, 8, seed) & _mask(5, 8, seed + 1), _mask(5, 8, seed + 2)
    value = rank_weighted_logistic(scores, relevant, valid, cut)
    assert value.item() == pytest.approx(_adore(scores, relevant & valid, valid, cut))
    assert torch.autograd.grad(value, scores)[0].isfinite().all()


def test_no_cut_is_not_a_cut_of_everything():
    _, scores = _scores()
    relevant = torch.zeros(4, 6, dtype=torch.bool)
    relevant[:, 2] = True
    assert rank_weighted_logistic(scores, relevant) == rank_weighted_logistic(scores, relevant, metric_cut=6) > 0
    assert rank_weighted_logistic(scores, relevant, metric_cut=0) == 0


def test_positive_at_the_top_weighs_the_rest_by_one_minus_its_reciprocal_rank():
    z = torch.tensor([[3.0, 2.0, 1.0, -1.0]])
    relevant = torch.tensor([[True, False, False, False]])
    want = sum((1 - 1 / t) * _softplus(z[0, t - 1].item() - 3) for t in (2, 3, 4)) / 3
    assert rank_weighted_logistic(z, relevant).item() == pytest.approx(want)


def test_weights_belong_to_ranks_not_to_scores():
    z = torch.tensor([[0.0, 2.0, 1.0, -1.0]])
    relevant = torch.tensor([[True, False, False, False]])
    swapped = z[:, [0, 2, 1, 3]]
    assert rank_weighted_logistic(z, relevant) != rank_weighted_logistic(swapped, relevant)


def test_lists_without_pairs_count_as_zero():
    _, scores = _scores(3, 4)
    relevant = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]]) > 0
    value = rank_weighted_logistic(scores, relevant)
    torch.testing.assert_close(3 * value, rank_weighted_logistic(scores[2:], relevant[2:]))
    assert not torch.autograd.grad(value, scores)[0][:2].any()


def test_all_positives_are_appended_where_none_was_retrieved():
    retrieved = torch.tensor([[4, 7, 1], [4, 7, 1], [4, -1, -1], [4, 7, 1]])
    positives = torch.tensor([[7, 9], [8, 9], [3, -1], [1, -1]])
    ids, valid, relevant = append_missing(retrieved, positives)
    assert ids.tolist() == [[4, 7, 1, -1, -1], [4, 7, 1, 8, 9], [4, -1, -1, 3, -1], [4, 7, 1, -1, -1]]
    assert torch.equal(valid, ids >= 0)
    want = [[0, 1, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 0], [0, 0, 1, 0, 0]]
    assert relevant.int().tolist() == want


def test_appended_positive_takes_the_next_rank_and_is_cut_off_at_k():
    _, valid, relevant = append_missing(torch.tensor([[5, 6, -1]]), torch.tensor([[2, -1]]))
    z = torch.tensor([[1.0, 0.5, 9.0, 0.0, 9.0]])  # 9: padding
    pair = [_softplus(1.0), _softplus(0.5)]
    full = (abs(1 / 3 - 1) * pair[0] + abs(1 / 3 - 1 / 2) * pair[1]) / 2
    cut = (1 * pair[0] + 1 / 2 * pair[1]) / 2
    assert rank_weighted_logistic(z, relevant, valid).item() == pytest.approx(full)
    assert rank_weighted_logistic(z, relevant, valid, 2).item() == pytest.approx(cut)
