"""Candidates, the hardest of them, and chains of modules that change them."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.losses import normalize
from zoo.methods.base import ContrastiveMethod
from zoo.negatives import Candidates, FeatureTransformation, HardestNegatives, HardNegativeMixing


def _unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, dtype=torch.float64, generator=generator))


def _candidates(b=3, m=8, d=5, seed=0, mask=None):
    return Candidates(_unit(b, d, seed=seed), _unit(b, d, seed=seed + 1), _unit(m, d, seed=seed + 2), mask)


def _mask(b, m, seed):
    return torch.rand(b, m, generator=torch.Generator().manual_seed(seed)) < 0.6


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_scores_and_masks_come_in_order(shared, first, second):
    masks = [_mask(3, n, n) if there else None for n, there in ((8, shared), (2, first), (4, second))]
    base = _candidates(mask=masks[0])
    owns = _unit(3, 2, 5, seed=7), _unit(3, 4, 5, seed=8)
    positives, negatives, mask = base.add_own(owns[0], masks[1]).add_own(owns[1], masks[2]).scores()
    for r, q in enumerate(base.query):
        torch.testing.assert_close(positives[r, 0], q @ base.positive[r])
        torch.testing.assert_close(negatives[r], torch.cat([base.shared, owns[0][r], owns[1][r]]) @ q)
    if not (shared or first or second):
        assert mask is None
    else:
        kept = [torch.ones(3, n) > 0 if m is None else m for n, m in zip((8, 2, 4), masks, strict=True)]
        assert torch.equal(mask, torch.cat(kept, 1))
    assert base.own is None and base.scores()[1].shape == (3, 8)


def test_scores_follow_a_replaced_query_and_are_kept_by_further_negatives():
    base = _candidates()
    scores = base.shared_scores
    assert base.add_own(_unit(3, 2, 5)).shared_scores is scores
    other = _unit(3, 5, seed=9)
    torch.testing.assert_close(base.replace(query=other).shared_scores, other @ base.shared.T)
    torch.testing.assert_close(base.replace(shared=other).shared_scores, base.query @ other.T)


def test_query_of_the_positive_may_differ():
    base, other = _candidates(), _unit(3, 5, seed=9)
    positives, negatives, _ = base.replace(positive_query=other).scores()
    torch.testing.assert_close(positives, (other * base.positive).sum(1, keepdim=True))
    torch.testing.assert_close(negatives, base.query @ base.shared.T)


@settings(max_examples=30)
@given(n=st.integers(1, 12), masked=st.booleans(), seed=st.integers(0, 999))
def test_hardest_are_the_top_of_what_is_not_masked(n, masked, seed):
    mask = _mask(3, 8, seed) if masked else None
    base = _candidates(seed=seed, mask=mask)
    kept = HardestNegatives(n)(base).shared_mask
    for r in range(3):
        allowed = [c for c in range(8) if mask is None or mask[r, c]]
        allowed.sort(key=lambda c: -(base.query[r] @ base.shared[c]).item())
        assert set(kept[r].nonzero()[:, 0].tolist()) == set(allowed[:n])


@pytest.mark.parametrize("make", [HardestNegatives, HardNegativeMixing, FeatureTransformation])
def test_modules_act_from_their_start_epoch_on(make):
    arguments = {} if make is FeatureTransformation else {"n": 2} if make is HardestNegatives else {"n_hard": 2}
    base = _candidates()

    def at(epoch, module):
        return ContrastiveMethod.transform_candidates(SimpleNamespace(negatives=[module], current_epoch=epoch), base)

    module = make(**arguments, start_epoch=2)
    assert at(0, module) is base and at(1, module) is base
    assert at(2, module) is not base and at(5, module) is not base
    assert at(0, make(**arguments)) is not base


def test_mixing_after_transformation_mixes_what_was_transformed():
    base = _candidates(m=20, mask=_mask(3, 20, 1))
    transformed = FeatureTransformation()(base)
    mixed = HardNegativeMixing(6, 10, 0)(transformed)
    positives, negatives, mask = mixed.scores()
    torch.testing.assert_close(positives, (transformed.query * transformed.positive).sum(1, keepdim=True))
    torch.testing.assert_close(negatives[:, :20], transformed.query @ transformed.shared.T)
    torch.testing.assert_close(negatives[:, 20:], torch.einsum("bd,bsd->bs", transformed.query, mixed.own))
    assert torch.equal(mask[:, :20], transformed.shared_mask) and mask[:, 20:].all()
    for r in range(3):
        hard = (
            (transformed.query[r] @ transformed.shared.T).masked_fill(~transformed.shared_mask[r], -9).topk(6).indices
        )
        assert all(_is_mix_of_two(h, transformed.shared[hard]) for h in mixed.own[r])


def _is_mix_of_two(h, parents):
    """Is h, up to length, a n_i + (1 - a) n_j with a in [0, 1]?"""
    for i in range(len(parents)):
        for j in range(i, len(parents)):
            pair = parents[[i, j]] if i != j else parents[[i]]
            weights = torch.linalg.lstsq(pair.T, h[:, None]).solution
            if (weights > -1e-9).all() and torch.allclose(pair.T @ weights, h[:, None], atol=1e-9):
                return True
    return False


def test_transformation_after_mixing_leaves_the_mixed_alone_but_scores_them_with_its_query():
    base = _candidates(m=20, mask=_mask(3, 20, 1))
    mixed = HardNegativeMixing(6, 4, 2)(base)
    transformed = FeatureTransformation()(mixed)
    assert torch.equal(transformed.own, mixed.own) and torch.equal(transformed.own_mask, mixed.own_mask)
    assert not torch.equal(transformed.shared, mixed.shared)
    _, negatives, mask = transformed.scores()
    torch.testing.assert_close(negatives[:, 20:], torch.einsum("bd,bsd->bs", transformed.query, mixed.own))
    torch.testing.assert_close(negatives[:, :20], transformed.query @ transformed.shared.T)
    assert torch.equal(mask[:, :20], transformed.shared_mask) and mask[:, 20:].all()


def test_mixing_takes_from_the_hardest_that_are_kept():
    base = Candidates(_unit(3, 8), _unit(3, 8, seed=1), torch.eye(8, dtype=torch.float64))
    kept = HardestNegatives(3)(base)
    mixed = HardNegativeMixing(8, 40, 0)(kept)
    assert torch.equal(mixed.own.abs().sum(1) > 0, kept.shared_mask)


@pytest.mark.parametrize("module", [HardestNegatives(3), HardNegativeMixing(4, 5, 2), FeatureTransformation()])
@pytest.mark.parametrize("masked", [False, True])
def test_scores_kept_for_the_loss_carry_the_gradient(module, masked):
    query, shared = _unit(3, 5).requires_grad_(), _unit(8, 5, seed=2).requires_grad_()
    out = module(Candidates(query, _unit(3, 5, seed=1), shared, _mask(3, 8, 4) if masked else None))
    _, kept, _ = out.scores()
    _, fresh, _ = out.replace().scores()
    assert "shared_scores" not in vars(out.replace())
    for one, two in zip(
        *(torch.autograd.grad(s.sum(), (query, shared), retain_graph=True) for s in (kept, fresh)), strict=True
    ):
        torch.testing.assert_close(one, two)
