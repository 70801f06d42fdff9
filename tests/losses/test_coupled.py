"""CET: two models that weight each other's negatives."""

import pytest
import torch
from torch.nn.functional import softplus

from zoo.losses import CoupledPairLoss, selection_weight, weighted_pair_loss


def _scores(seed=0, b=4, k=3):
    drawn = torch.randn(b, 1 + k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return [x.clone().requires_grad_() for x in drawn.split([1, k], 1)]


def test_infinite_temperature_doubles_the_plain_loss_and_unselected_negatives_count_once():
    (r_pos, r_neg), (_, s_neg) = _scores(), _scores(1)
    plain = softplus(r_neg - r_pos).mean()
    torch.testing.assert_close(weighted_pair_loss(r_pos, r_neg), plain)
    torch.testing.assert_close(CoupledPairLoss(temperature=1e9)(r_pos, r_neg, s_neg), 2 * plain, rtol=1e-8, atol=0)
    torch.testing.assert_close(CoupledPairLoss(temperature=1.0)(r_pos, r_neg, s_neg - 1e3), plain)


def test_weight_is_inverse_to_the_probability_of_not_being_selected_and_limited():
    negatives = torch.linspace(-30, 30, 13, dtype=torch.float64)
    weight = selection_weight(negatives, 10.0)
    torch.testing.assert_close(weight, 1 / (1 - (negatives / 10).sigmoid()))
    assert (weight.diff() > 0).all()
    assert selection_weight(negatives, 1.0, limit=10.0).max() == 10
    assert selection_weight(torch.tensor([60000.0]).half(), 1.0, limit=10.0) == 10


def test_no_gradient_crosses_from_one_model_to_the_other():
    (r_pos, r_neg), (s_pos, s_neg) = _scores(), _scores(1)
    loss = CoupledPairLoss()
    relevance, selection = loss(r_pos, r_neg, s_neg), loss(s_pos, s_neg, r_neg)
    assert torch.autograd.grad(relevance, (s_pos, s_neg), allow_unused=True) == (None, None)
    assert torch.autograd.grad(selection, (r_pos, r_neg), allow_unused=True) == (None, None)


def test_normalised_weights_have_mean_one():
    (r_pos, r_neg), (_, s_neg) = _scores(), _scores(1)
    weight = selection_weight(s_neg, 1.0)
    want = (weight / weight.mean() * softplus(r_neg - r_pos)).mean()
    torch.testing.assert_close(CoupledPairLoss(1.0, normalise=True)(r_pos, r_neg, s_neg), want)
    constant = torch.full_like(r_neg, 7.0).detach()
    torch.testing.assert_close(
        weighted_pair_loss(r_pos, r_neg, constant, normalise=True), weighted_pair_loss(r_pos, r_neg)
    )


@pytest.mark.parametrize("normalise", [False, True])
def test_masked_negatives_are_absent(normalise):
    (r_pos, r_neg), (_, s_neg) = _scores(), _scores(1)
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]]) > 0
    loss = CoupledPairLoss(2.0, normalise=normalise)
    value = loss(r_pos, r_neg, s_neg, mask)
    torch.testing.assert_close(value, loss(r_pos[:3], r_neg[:3, :2], s_neg[:3, :2]))
    gradients = torch.autograd.grad(value, (r_pos, r_neg))
    assert not gradients[0][3].any() and not gradients[1][~mask].any() and gradients[1][mask].all()
    nothing = loss(r_pos, r_neg, s_neg, mask & False)
    assert nothing == 0 and not torch.autograd.grad(nothing, r_neg)[0].any()
