"""DCL and DCLW: their exact relations to NT-Xent."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import softplus

from zoo.losses import DCL, DCLW, coupling, dcl, dclw_weight, info_nce
from zoo.methods.siamese import in_batch_candidates


def _views(b=6, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(b, d, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]


def _scores(b=6, d=5, seed=0):
    return in_batch_candidates(_views(b, d, seed), torch.arange(b)).scores()


@settings(max_examples=25)
@given(b=st.integers(2, 8), temperature=st.floats(0.05, 2), seed=st.integers(0, 999))
def test_coupling_is_the_ratio_of_the_gradients_of_a_free_anchor(b, temperature, seed):
    candidates = in_batch_candidates([z.detach() for z in _views(b, seed=seed)], torch.arange(b))
    anchor = candidates.query.clone().requires_grad_()
    positives = (anchor * candidates.positive).sum(1, keepdim=True)
    scores = positives, anchor @ candidates.shared.T, candidates.shared_mask
    losses = info_nce(*scores, temperature), dcl(*scores, temperature)
    coupled, decoupled = (torch.autograd.grad(loss, anchor, retain_graph=True)[0] for loss in losses)
    q = coupling(*scores, temperature)
    torch.testing.assert_close(coupled, q * decoupled, atol=1e-10, rtol=0)
    full = torch.cat([positives, scores[1].masked_fill(~scores[2], -torch.inf)], 1) / temperature
    torch.testing.assert_close(q, 1 - full.softmax(1)[:, :1], atol=1e-12, rtol=0)


@settings(max_examples=25)
@given(b=st.integers(2, 8), temperature=st.floats(0.05, 2), seed=st.integers(0, 999))
def test_nt_xent_exceeds_dcl_by_softplus_of_the_margin(b, temperature, seed):
    positives, negatives, mask = _scores(b, seed=seed)
    for i in range(2 * b):
        row = positives[i : i + 1], negatives[i : i + 1], mask[i : i + 1]
        margin = positives[i] / temperature - (negatives[i, mask[i]] / temperature).logsumexp(0)
        difference = info_nce(*row, temperature) - dcl(*row, temperature)
        assert difference >= -1e-12
        torch.testing.assert_close(difference, softplus(margin).squeeze(), atol=1e-12, rtol=1e-9)


def test_value_is_negative_where_positives_are_easy():
    positives, negatives = torch.ones(4, 1), -torch.ones(4, 3)
    assert dcl(positives, negatives, temperature=0.1).item() == pytest.approx(np.log(3) - 20)


def test_no_negatives_is_an_error():
    with pytest.raises(ValueError, match="at least one negative"):
        dcl(torch.zeros(3, 1), torch.zeros(3, 0))
    with pytest.raises(ValueError, match="at least one negative"):
        DCLW()(torch.zeros(3, 1), torch.zeros(3, 0))


def test_batch_of_one_pair_is_masked_to_zero():
    views = _views(1)
    value = dcl(*in_batch_candidates(views, torch.arange(1)).scores())
    assert value == 0
    assert not any(g.any() for g in torch.autograd.grad(value, views))


@settings(max_examples=25)
@given(b=st.integers(1, 20), sigma=st.floats(0.1, 5), seed=st.integers(0, 999))
def test_weight_follows_its_formula(b, sigma, seed):
    scores = np.random.default_rng(seed).uniform(-1, 1, (b, 1))
    weight = dclw_weight(torch.as_tensor(scores), sigma)
    np.testing.assert_allclose(weight, 2 - np.exp(scores / sigma) / np.exp(scores / sigma).mean(), rtol=1e-9, atol=1e-9)
    assert abs(weight.mean() - 1) < 1e-12


def test_weight_is_negative_for_one_pair_much_easier_than_the_rest():
    weight = dclw_weight(torch.tensor([[1.0], *[[-1.0]] * 15]), 0.5)
    assert weight[0] < -10 and (weight[1:] > 1).all()


def test_weight_of_dclw_is_a_constant():
    views = _views()
    scores = in_batch_candidates(views, torch.arange(6)).scores()
    constant = torch.tensor(dclw_weight(scores[0].detach(), 0.5).tolist(), dtype=torch.float64)
    want = dcl(*scores, 0.2, constant)
    got = DCLW(0.2, 0.5)(*scores)
    torch.testing.assert_close(got, want)
    through = dcl(*scores, 0.2, dclw_weight(scores[0], 0.5))
    gradients = [torch.autograd.grad(x, views[0], retain_graph=True)[0] for x in (got, want, through)]
    torch.testing.assert_close(gradients[0], gradients[1])
    assert (gradients[0] - gradients[2]).abs().max() > 1e-3


def test_weight_of_the_positive_multiplies_the_pull_only():
    positives, negatives, mask = _scores()
    weight = torch.linspace(-1, 3, 12, dtype=torch.float64)[:, None]
    pull = ((weight - 1) * positives / 0.3).mean()
    torch.testing.assert_close(
        dcl(positives, negatives, mask, 0.3, weight), dcl(positives, negatives, mask, 0.3) - pull
    )


def test_wide_sigma_gives_dcl():
    scores = _scores()
    torch.testing.assert_close(DCLW(0.1, 1e9)(*scores), DCL(0.1)(*scores), atol=1e-7, rtol=0)
    assert abs(DCLW(0.1, 0.5)(*scores) - DCL(0.1)(*scores)) > 1e-3
    torch.testing.assert_close(DCL(0.1)(*scores), dcl(*scores, 0.1))
