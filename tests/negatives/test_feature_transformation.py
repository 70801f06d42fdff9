"""Feature transformation: the paper's identities, its limits, and what one step draws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.losses import info_nce, normalize
from zoo.methods.momentum import queue_candidates
from zoo.negatives import Candidates, FeatureTransformation, Queue
from zoo.negatives.feature_transformation import extrapolate_positives, interpolate_negatives

F64 = torch.float64
MODES = pytest.mark.parametrize("mode", ["none", "both", "positives", "negatives"])


def _unit(*shape, seed=0):
    return normalize(torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed)))


def _score(pair):
    return (pair[0] * pair[1]).sum(1)


@settings(max_examples=40)
@given(lam=st.floats(1, 2), seed=st.integers(0, 999))
def test_scalar_extrapolation_identities(lam, seed):
    q, k = _unit(5, 6, seed=seed), _unit(5, 6, seed=seed + 1)
    pair, s = extrapolate_positives(q, k, lam), _score((q, k))
    torch.testing.assert_close(_score(pair), s + 2 * lam * (1 - lam) * (1 - s))
    assert (_score(pair) <= s + 1e-12).all()
    torch.testing.assert_close(pair[0] + pair[1], q + k)
    torch.testing.assert_close(pair[0].square().sum(1), 1 + 2 * lam * (lam - 1) * (1 - s))
    unit = extrapolate_positives(q, k, lam, renormalize=True)
    for one, two in zip(unit, pair, strict=True):
        torch.testing.assert_close(one, two / two.norm(dim=1, keepdim=True))


@settings(max_examples=25)
@given(seed=st.integers(0, 999))
def test_elementwise_extrapolation_identities(seed):
    q, k = _unit(5, 6, seed=seed), _unit(5, 6, seed=seed + 1)
    lam = 1 + torch.rand(5, 6, dtype=F64, generator=torch.Generator().manual_seed(seed))
    pair, s = extrapolate_positives(q, k, lam), _score((q, k))
    torch.testing.assert_close(_score(pair), s - (lam * (lam - 1) * (q - k).square()).sum(1))
    assert (_score(pair) <= s + 1e-12).all()
    torch.testing.assert_close(pair[0] + pair[1], q + k)
    torch.testing.assert_close(pair[0], k + lam * (q - k))


@settings(max_examples=25)
@given(gam=st.floats(0, 1), elementwise=st.booleans(), seed=st.integers(0, 999))
def test_interpolation_lies_between_its_parents(gam, elementwise, seed):
    generator = torch.Generator().manual_seed(seed)
    n, permutation = _unit(7, 5, seed=seed), torch.randperm(7, generator=generator)
    weight = torch.rand(7, 5, dtype=F64, generator=generator) if elementwise else gam
    mixed = interpolate_negatives(n, weight, permutation)
    for j in range(7):
        w, one, two = weight[j] if elementwise else weight, n[j], n[permutation[j]]
        torch.testing.assert_close(mixed[j], w * one + (1 - w) * two)
        assert (mixed[j] >= torch.minimum(one, two) - 1e-12).all()
        assert (mixed[j] <= torch.maximum(one, two) + 1e-12).all()
    assert elementwise or (mixed.norm(dim=1) <= 1 + 1e-12).all()


def test_gradient_reaches_the_query_through_the_key_too():
    lam = 1.4
    q, k = _unit(3, 4).requires_grad_(), _unit(3, 4, seed=1)
    pair = extrapolate_positives(q, k, lam)
    (both,) = torch.autograd.grad(_score(pair).sum(), q, retain_graph=True)
    torch.testing.assert_close(both, (lam**2 + (1 - lam) ** 2) * k + 2 * lam * (1 - lam) * q.detach())
    (one,) = torch.autograd.grad(_score((pair[0], pair[1].detach())).sum(), q)
    assert (both - one).abs().max() > 0.1


def _moco(dtype=torch.float32):
    queue = Queue(16, 6).to(dtype)
    queue.enqueue(normalize(torch.randn(8, 6, dtype=dtype)), torch.arange(8))
    query, key = (torch.randn(5, 6, dtype=dtype).requires_grad_() for _ in range(2))
    return query, key, queue, queue_candidates(query, key, queue, torch.arange(5))


@MODES
def test_neutral_coefficients_give_moco_bit_for_bit(mode, monkeypatch):
    _, _, _, base = _moco()
    module = FeatureTransformation(elementwise=mode)
    monkeypatch.setattr(module, "_coefficient", lambda alpha, like, side: torch.tensor(float(side == "negatives")))
    monkeypatch.setattr(torch, "randperm", lambda n, device: torch.arange(n, device=device))
    for one, two in zip(module(base).scores(), base.scores(), strict=True):
        assert torch.equal(one, two)
    monkeypatch.undo()
    off = FeatureTransformation(None, None)(base)
    assert torch.equal(info_nce(*off.scores()), info_nce(*base.scores()))
    assert not torch.equal(info_nce(*FeatureTransformation(elementwise=mode)(base).scores()), info_nce(*base.scores()))


def test_stored_queue_and_key_encoder_are_left_alone():
    query, key, queue, base = _moco()
    rows = queue.rows.clone()
    info_nce(*FeatureTransformation()(base).scores()).backward()
    assert torch.equal(queue.rows, rows) and queue.rows.grad is None
    assert key.grad is None and query.grad.abs().max() > 0


def _coefficients(module):
    """What one step drew, read off its output: lam per element of q, gam per element of one-hot negatives."""
    base = Candidates(_unit(40, 30, seed=1), _unit(40, 30, seed=2), torch.eye(30, dtype=F64))
    out = module(base)
    return (out.query - base.positive) / (base.query - base.positive), out.shared


@MODES
def test_each_side_draws_one_coefficient_or_one_per_element(mode):
    torch.manual_seed(1)
    module = FeatureTransformation(elementwise=mode)
    lam, mixed = _coefficients(module)
    assert (lam.std() > 0.1) == (mode in ("both", "positives"))
    assert lam.min() >= 1 - 1e-9 and lam.max() <= 2 + 1e-9
    weights = mixed[mixed > 0]
    assert mixed.min() >= 0 and mixed.max() <= 1
    assert (len(weights.round(decimals=9).unique()) > 3) == (mode in ("both", "negatives"))
    again, mixed_again = _coefficients(module)
    assert not torch.allclose(lam, again) and not torch.allclose(mixed, mixed_again)


def test_mixing_partners_are_a_permutation():
    torch.manual_seed(1)
    _, mixed = _coefficients(FeatureTransformation())
    torch.testing.assert_close(mixed.sum(0), torch.ones(30, dtype=F64))
    torch.testing.assert_close(mixed.sum(1), torch.ones(30, dtype=F64))
    assert ((mixed > 0).sum(1) == 2).sum() > 20


@pytest.mark.parametrize("concentration", [0.5, 1.6, 2.0])
def test_coefficients_follow_the_symmetric_beta_distribution(concentration):
    torch.manual_seed(0)
    base = Candidates(_unit(200, 100), _unit(200, 100, seed=1), torch.eye(2, dtype=F64).repeat(1, 50))
    out = FeatureTransformation(concentration, None, elementwise="both")(base)
    lam = (out.query - base.positive) / (base.query - base.positive)
    assert abs(lam.mean() - 1.5) < 0.01
    assert abs(lam.var() - 1 / (4 * (2 * concentration + 1))) < 0.003
    assert torch.equal(out.shared, base.shared)


def test_mix_is_masked_where_a_parent_is():
    torch.manual_seed(2)
    mask = torch.rand(40, 30) < 0.7
    base = Candidates(_unit(40, 30), _unit(40, 30, seed=1), torch.eye(30, dtype=F64), mask)
    out = FeatureTransformation(None, 1.6)(base)
    for j in range(30):
        parents = out.shared[j].nonzero()[:, 0]
        assert torch.equal(out.shared_mask[:, j], mask[:, parents].all(1))
    assert torch.equal(out.query, base.query) and torch.equal(out.positive, base.positive)
    assert torch.equal(base.shared_mask, mask)


def test_negatives_are_scored_with_either_query():
    _, _, _, base = _moco(F64)
    for which in ("transformed", "original"):
        torch.manual_seed(3)
        out = FeatureTransformation(negative_query=which)(base)
        torch.manual_seed(3)
        pair = FeatureTransformation()(base)
        positives, negatives, mask = out.scores()
        torch.testing.assert_close(positives[:, 0], _score((pair.query, pair.positive)))
        query = pair.query if which == "transformed" else base.query
        torch.testing.assert_close(negatives, query @ pair.shared.T)
        assert torch.equal(mask, pair.shared_mask)


@MODES
@settings(max_examples=10)
@given(seed=st.integers(0, 999))
def test_every_step_lowers_the_score_of_positives(mode, seed):
    torch.manual_seed(seed)
    _, _, _, base = _moco(F64)
    out = FeatureTransformation(elementwise=mode)(base)
    assert (out.scores()[0] <= base.scores()[0] + 1e-12).all()
    torch.testing.assert_close(out.query + out.positive, base.query + base.positive)
    assert mode in ("both", "negatives") or (out.shared.norm(dim=1) <= 1 + 1e-6).all()
    unit = FeatureTransformation(elementwise=mode, renormalize=True)(base)
    torch.testing.assert_close(unit.query.norm(dim=1), torch.ones(5, dtype=F64))
    torch.testing.assert_close(unit.positive.norm(dim=1), torch.ones(5, dtype=F64))
