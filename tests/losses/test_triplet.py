"""NGAME's triplet losses against the formula written out row by row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.losses import HardestTriplet, hardest_triplet, hardest_triplet_multi


def _scores(b=4, m=7, seed=0):
    drawn = torch.rand(b, 1 + m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return [part.clone().requires_grad_() for part in drawn.split([1, m], 1)]


def _mask(b=4, m=7, seed=1):
    return torch.rand(b, m, generator=torch.Generator().manual_seed(seed)) < 0.6


def _softmax(x):
    total = sum(math.exp(v) for v in x)
    return [math.exp(v) / total for v in x]


def _explicit(positives, negatives, mask, margin, k, temperature, weighted):
    total = 0.0
    for s, n, kept in zip(positives[:, 0].tolist(), negatives.tolist(), mask.tolist(), strict=True):
        hard = sorted((x for x, keep in zip(n, kept, strict=True) if keep), reverse=True)[:k]
        losses = [max(0.0, x - s + margin) for x in hard]
        shares = _softmax([x / temperature if l > 0 else 0.0 for x, l in zip(hard, losses, strict=True)])
        total += sum(a * l for a, l in zip(shares, losses, strict=True)) if weighted else sum(losses)
    return total / (len(positives) * k)


@settings(max_examples=25)
@given(k=st.integers(1, 7), weighted=st.booleans(), margin=st.floats(0, 1), seed=st.integers(0, 999))
def test_formula_also_where_rows_lack_negatives(k, weighted, margin, seed):
    positives, negatives = _scores(seed=seed)
    mask = _mask(seed=seed)
    want = _explicit(positives, negatives, mask, margin, k, 0.2, weighted)
    assert hardest_triplet(positives, negatives, mask, margin, k, 0.2, weighted).item() == pytest.approx(want)
    assert HardestTriplet(margin, k, 0.2, weighted)(positives, negatives, mask).item() == pytest.approx(want)


@pytest.mark.parametrize("weighted", [True, False])
def test_gradient_is_that_of_finite_differences_weights_included(weighted):
    positives, negatives = _scores()
    mask = _mask()
    assert torch.autograd.gradcheck(
        lambda s, n: hardest_triplet(s, n, mask, 0.3, 3, 0.1, weighted), (positives, negatives)
    )


@pytest.mark.parametrize("weighted", [True, False])
def test_masked_entries_are_never_chosen_and_have_no_gradient(weighted):
    positives, negatives = _scores()
    mask = torch.arange(7).expand(4, 7) < torch.tensor([7, 3, 1, 0])[:, None]
    value = hardest_triplet(positives, negatives, mask, 2.5, 3, 0.1, weighted)
    assert hardest_triplet(positives, negatives.detach().masked_fill(~mask, 99.0), mask, 2.5, 3, 0.1, weighted) == value
    at_positives, at_negatives = torch.autograd.grad(value, (positives, negatives))
    assert at_negatives.isfinite().all() and not at_negatives[~mask].any() and at_negatives[2, 0] > 0
    assert at_positives[3] == 0 and at_positives[:3].all()


def test_zero_where_every_positive_leads_by_the_margin():
    negatives = torch.rand(4, 7)
    positives = negatives.amax(1, keepdim=True) + 0.3001
    assert hardest_triplet(positives, negatives, margin=0.3) == 0
    assert hardest_triplet(positives, negatives, margin=0.31) > 0


def test_negatives_within_the_margin_keep_a_share_of_the_weight():
    positives = torch.tensor([[0.5]])
    one_violates = hardest_triplet(positives, torch.tensor([[0.4, -0.9]]), margin=0.3, k=2, temperature=0.1)
    share = math.exp(4) / (math.exp(4) + 1)
    assert one_violates.item() == pytest.approx(share * 0.2 / 2, rel=1e-5)


def test_k_beyond_the_candidates_takes_all_and_none_give_zero():
    positives, negatives = _scores(m=3)
    assert hardest_triplet(positives, negatives, k=10) == hardest_triplet(positives, negatives, k=3)
    assert hardest_triplet(positives, negatives[:, :0]) == 0


def test_float_weight_multiplies_the_loss():
    positives, negatives = _scores()
    full = hardest_triplet(positives, negatives, torch.full((4, 7), 0.25, dtype=torch.float64))
    torch.testing.assert_close(full, hardest_triplet(positives, negatives) / 4)


def _explicit_multi(similarity, positive, p, k, margin):
    total = 0.0
    for row, own in zip(similarity.tolist(), positive.tolist(), strict=True):
        pull = sorted(s for s, mine in zip(row, own, strict=True) if mine)[:p]
        push = sorted((s for s, mine in zip(row, own, strict=True) if not mine), reverse=True)[:k]
        for low in pull:
            losses = [max(0.0, s - low + margin) for s in push]
            shares = _softmax([l if l > 0 else -100.0 for l in losses])
            total += sum(a * l for a, l in zip(shares, losses, strict=True))
    return total / (len(similarity) * p * k)


@settings(max_examples=25)
@given(p=st.integers(1, 4), k=st.integers(1, 5), seed=st.integers(0, 999))
def test_several_positives_also_where_rows_lack_some(p, k, seed):
    _, similarity = _scores(4, 7, seed)
    positive = _mask(4, 7, seed)
    value = hardest_triplet_multi(similarity, positive, p, k, 0.3)
    assert value.item() == pytest.approx(_explicit_multi(similarity, positive, p, k, 0.3))
    assert torch.autograd.grad(value, similarity)[0].isfinite().all()


def test_one_positive_and_one_negative_is_the_same_loss_in_both_forms():
    positives, negatives = _scores(m=1)
    both = torch.cat([positives, negatives], 1)
    multi = hardest_triplet_multi(both, torch.tensor([[True, False]]).expand(4, 2), 1, 1, 0.3)
    torch.testing.assert_close(multi, hardest_triplet(positives, negatives, margin=0.3, k=1))
