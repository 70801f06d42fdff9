"""PEG's weights: what the card says of them, and InfoNCE as the oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import ZooError
from zoo.losses import ProgressiveInfoNCE, difficulty, effective_number, info_nce, progressive_weights


def _scores(b=6, m=5, seed=0):
    drawn = torch.rand(b, 1 + m, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return [part.clone().requires_grad_() for part in drawn.split([1, m], 1)]


def _rows(positives, negatives, temperature=0.2):
    return torch.stack([info_nce(positives[i : i + 1], negatives[i : i + 1], None, temperature) for i in range(6)])


def _at(progress, *args, **kwargs):
    loss = ProgressiveInfoNCE(0.2, *args, **kwargs)
    loss.progress = progress
    return loss


@settings(max_examples=25)
@given(progress=st.floats(0, 1), strength=st.floats(0, 5), rank_based=st.booleans(), seed=st.integers(0, 999))
def test_weights_have_mean_one_and_follow_difficulty(progress, strength, rank_based, seed):
    losses = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 5
    weights = progressive_weights(losses, progress, strength, rank_based)
    assert weights.mean().item() == pytest.approx(1)
    steps = weights[losses.argsort()].diff()
    if strength * abs(progress - 0.5) > 1e-3:
        assert ((steps > 0) if progress > 0.5 else (steps < 0)).all()


def test_difficulty_is_the_probability_of_all_negatives():
    positives, negatives = _scores()
    probability = torch.cat([positives, negatives], 1).div(0.2).softmax(1)[:, 1:].sum(1)
    torch.testing.assert_close(difficulty(_rows(positives, negatives)), probability.detach())


@pytest.mark.parametrize(("progress", "strength"), [(0.5, 2.0), (0.0, 0.0), (0.9, 0.0)])
@pytest.mark.parametrize("variant", [{}, {"rank_based": True}, {"per_negative": True}])
def test_infonce_half_way_and_without_strength(progress, strength, variant):
    positives, negatives = _scores()
    loss, plain = _at(progress, strength, **variant)(positives, negatives), info_nce(positives, negatives, None, 0.2)
    torch.testing.assert_close(loss, plain)
    gradients = [torch.autograd.grad(x, (positives, negatives)) for x in (loss, plain)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("progress", [0.1, 0.9])
def test_gradient_is_the_weighted_sum_of_the_queries_gradients(progress):
    positives, negatives = _scores()
    loss = _at(progress, 3.0)
    value, rows = loss(positives, negatives), _rows(positives, negatives)
    weights = progressive_weights(rows, progress, 3.0)
    torch.testing.assert_close(loss.weights, weights)
    assert not weights.requires_grad and weights.std() > 0.1
    got = torch.autograd.grad(value, (positives, negatives))
    want = torch.autograd.grad((weights * rows).sum() / 6, (positives, negatives))
    torch.testing.assert_close(got, want)


def test_schedules():
    for progress, want in ((0.0, -2.0), (0.25, -1.0), (1.0, 2.0)):
        assert _at(progress).focus == want
        assert _at(progress, schedule="reversed").focus == -want
        assert _at(progress, schedule="constant").focus == 2.0


def test_rank_based_weights_ignore_the_scale_and_ties_share_one():
    losses = torch.tensor([0.3, 1.2, 0.1, 1.2])
    weights = progressive_weights(losses, 1.0, 2.0, rank_based=True)
    torch.testing.assert_close(progressive_weights(losses / 3, 1.0, 2.0, rank_based=True), weights)
    want = torch.tensor([1 / 3, 5 / 6, 0, 5 / 6])  # quantiles
    torch.testing.assert_close(weights, 4 * (2 * want).softmax(0))


def test_per_negative_weighs_by_similarity_within_the_sum():
    positives, negatives = _scores()
    mask = torch.rand(6, 5) < 0.7
    value = _at(0.9, 2.0, per_negative=True)(positives, negatives, mask)
    weight = (1.6 * negatives.detach()).exp() * mask
    torch.testing.assert_close(value, info_nce(positives, negatives, weight, 0.2))


def test_masked_rows_and_no_negatives_at_all():
    positives, negatives = _scores()
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[1] = False
    value = _at(0.0)(positives, negatives, mask)
    for gradient in torch.autograd.grad(value, (positives, negatives)):
        assert gradient.isfinite().all() and not gradient[1].any()
    assert _at(0.0)(positives, negatives[:, :0]) == 0


def test_weights_are_those_of_the_batch_over_all_ranks(monkeypatch):
    positives, negatives = _scores()
    whole = _at(0.9)
    value = whole(positives, negatives)
    rows = _rows(positives, negatives)
    monkeypatch.setattr("zoo.losses.progressive.gather", lambda x: rows.detach())
    parts = []
    for number in (0, 1):
        monkeypatch.setattr("zoo.losses.progressive.rank", lambda number=number: number)
        part = _at(0.9)
        parts.append(part(positives[3 * number :][:3], negatives[3 * number :][:3]))
        torch.testing.assert_close(part.weights, whole.weights[3 * number :][:3])
    torch.testing.assert_close(torch.stack(parts).mean(), value)


def test_effective_number():
    assert effective_number(torch.ones(7)).item() == pytest.approx(7)
    assert effective_number(torch.tensor([3.0, 0.0, 0.0])).item() == pytest.approx(1)


def test_two_variants_at_once_are_refused():
    with pytest.raises(ZooError, match="only one"):
        ProgressiveInfoNCE(per_negative=True, rank_based=True)
