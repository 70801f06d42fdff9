"""Sums over negatives."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.losses.scores import log_sum_negatives, negative_logits


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 7),
    masked=st.sampled_from([None, 0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_log_sum_is_what_autograd_makes_of_masked_logits(rows, columns, masked, seed):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    mask = None if masked is None else torch.rand(rows, columns, generator=draw) >= masked
    upstream = torch.randn(rows, 1, generator=draw, dtype=torch.float64)
    found = []
    for way in (log_sum_negatives, lambda *x: negative_logits(*x).logsumexp(1, keepdim=True)):
        inputs = scores.clone().requires_grad_(), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        total = way(inputs[0], mask, inputs[1])
        found.append((total, *torch.autograd.grad((total * upstream).where(total > -1e300, 0.0).sum(), inputs)))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)
        assert torch.isfinite(ours).all()


def test_log_sum_of_no_negatives():
    assert log_sum_negatives(torch.zeros(2, 0), None, 0.1).tolist() == [[-torch.inf]] * 2
