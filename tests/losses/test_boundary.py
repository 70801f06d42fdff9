"""The boundary score is highest where a classifier cannot decide."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.losses.boundary import boundary_loss, boundary_score

values = st.lists(st.floats(-20, 20), min_size=2, max_size=8)


@given(values)
def test_the_score_is_at_most_that_of_constant_logits(row):
    logits = torch.tensor([row], dtype=torch.float64)
    score = boundary_score(logits)
    assert score <= -math.log(len(row)) + 1e-12
    assert boundary_score(torch.full_like(logits, row[0])).item() == pytest.approx(-math.log(len(row)))
    if np.ptp(row) > 0.01:
        assert score < -math.log(len(row)) - 1e-6
    torch.testing.assert_close(boundary_score(logits + 7), score)


def test_the_score_falls_with_confidence():
    direction = torch.tensor([[1.0, 0.0, -1.0]])
    scores = torch.cat([boundary_score(scale * direction) for scale in (0, 1, 2, 4, 100)])
    assert (scores.diff() < 0).all() and scores.isfinite().all()


def test_the_gradient_points_from_confident_to_undecided():
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    loss = boundary_loss(logits, -5.0)
    scores = logits.mean(1) - logits.exp().sum(1).log()
    assert loss.item() == pytest.approx(((-5 - scores) ** 2).mean().item())
    (gradient,) = torch.autograd.grad(loss, logits)
    softmax = logits.softmax(1)
    expected = (scores + 5)[:, None] * (1 / 3 - softmax)  # 2 (e - tau) / B times d e / d f
    torch.testing.assert_close(gradient, expected.detach())
    assert gradient[1].abs().max() < 1e-12
    reached = boundary_loss(logits, boundary_score(logits[:1]).item())
    assert reached.item() == pytest.approx((scores[0] - scores[1]).item() ** 2 / 2)
