"""Hard negative mixing: the written-out formula, every query's own pool, and MoCo as its limit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.losses import info_nce, normalize
from zoo.methods.momentum import queue_candidates
from zoo.methods.siamese import in_batch_candidates
from zoo.negatives import Candidates, HardNegativeMixing, Queue
from zoo.negatives.mochi import MixChoices, mix_hard

F64 = torch.float64


def _unit(*shape, seed=0):
    return normalize(torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed)))


def _mix(b=4, m=12, n=5, s=6, t=3, seed=0):
    torch.manual_seed(seed)
    query, negatives = _unit(b, 4, seed=seed), _unit(m, 4, seed=seed + 1)
    pool = (query @ negatives.T).topk(n).indices
    return query, negatives, pool, MixChoices.draw(query, n, s, t)


@settings(max_examples=15)
@given(seed=st.integers(0, 999))
def test_formula_and_unit_norm(seed):
    query, negatives, pool, c = _mix(seed=seed)
    h, h_prime = mix_hard(query, negatives, pool, c)
    for r in range(4):
        for m in range(6):
            a, one, two = c.alpha[r, m], negatives[pool[r, c.i[r, m]]], negatives[pool[r, c.j[r, m]]]
            mixed = a * one + (1 - a) * two
            torch.testing.assert_close(h[r, m], mixed / mixed.norm())
        for m in range(3):
            mixed = c.beta[r, m] * query[r] + (1 - c.beta[r, m]) * negatives[pool[r, c.l[r, m]]]
            torch.testing.assert_close(h_prime[r, m], mixed / mixed.norm())
    for made in (h, h_prime):
        torch.testing.assert_close(made.norm(dim=2), torch.ones(made.shape[:2], dtype=F64), atol=1e-6, rtol=0)


@settings(max_examples=15)
@given(seed=st.integers(0, 999))
def test_mixing_the_query_in_makes_harder_and_nothing_of_it_the_same(seed):
    query, negatives, pool, c = _mix(n=12, seed=seed)
    parents = negatives[pool.gather(1, c.l)]
    scores = torch.einsum("bd,bsd->bs", query, parents)
    _, h_prime = mix_hard(query, negatives, pool, c)
    assert (torch.einsum("bd,bsd->bs", query, h_prime) >= scores - 1e-12).all()
    _, limit = mix_hard(query, negatives, pool, c._replace(beta=torch.zeros_like(c.beta)))
    torch.testing.assert_close(limit, parents)


def test_parent_drawn_twice_is_a_plain_duplicate():
    query, negatives, pool, c = _mix()
    h, _ = mix_hard(query, negatives, pool, c._replace(j=c.i))
    torch.testing.assert_close(h, negatives[pool.gather(1, c.i)])


def test_rows_of_the_batch_permute_with_the_queries():
    query, negatives, pool, c = _mix()
    order = torch.tensor([2, 0, 3, 1])
    moved = mix_hard(query[order], negatives, pool[order], MixChoices(*(x[order] for x in c)))
    for got, made in zip(moved, mix_hard(query, negatives, pool, c), strict=True):
        torch.testing.assert_close(got, made[order])


def test_every_query_mixes_its_own_pool():
    """Each query has three negatives in two dimensions of its own; any other query's would show in other dimensions."""
    blocks = torch.zeros(4, 3, 8, dtype=F64)
    query = torch.zeros(4, 8, dtype=F64)
    for r in range(4):
        blocks[r, :, 2 * r : 2 * r + 2] = _unit(3, 2, seed=r).abs()
        query[r, 2 * r] = 1
    mixed = HardNegativeMixing(3, 50, 50)(Candidates(query, query, blocks.view(12, 8))).own
    for r in range(4):
        inside = mixed[r, :, 2 * r : 2 * r + 2]
        torch.testing.assert_close(inside.norm(dim=1), torch.ones(100, dtype=F64))


@settings(max_examples=40)
@given(n=st.integers(1, 12), share=st.sampled_from([0.0, 0.2, 0.6, 1.0]), seed=st.integers(0, 999))
def test_pool_is_the_top_of_what_is_not_masked(n, share, seed):
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(seed)) < share
    candidates = Candidates(_unit(4, 5, seed=seed), _unit(4, 5), _unit(9, 5, seed=seed + 1), mask)
    pool = HardNegativeMixing(n).pool(candidates)
    assert pool.shape == (4, min(n, 9))
    for r in range(4):
        allowed = [c for c in range(9) if mask[r, c]]
        allowed.sort(key=lambda c: -(candidates.query[r] @ candidates.shared[c]).item())
        if allowed:
            assert set(pool[r].tolist()) == set(allowed[:n])
            times = pool[r].bincount()[allowed[:n]]
            assert times.max() - times.min() <= 1
    plain = HardNegativeMixing(n).pool(candidates.replace(shared_mask=None))
    want = candidates.shared_scores.topk(min(n, 9)).indices
    assert torch.equal(plain.sort(dim=1).values, want.sort(dim=1).values)


def test_masked_candidates_are_in_no_mix_though_the_pool_is_larger_than_the_rest():
    mask = torch.tensor([[True, True, False, False, False], [False] * 5, [False, False, False, False, True]])
    base = Candidates(_unit(3, 5).abs(), _unit(3, 5, seed=1), torch.eye(5, dtype=F64), mask)
    mixed = HardNegativeMixing(4, 30, 0)(base)
    assert not mixed.own[0, :, 2:].any()
    assert mixed.own[0, :, :2].any(0).all()
    torch.testing.assert_close(mixed.own[2], torch.eye(5, dtype=F64)[4].expand(30, 5))
    assert mixed.own_mask.all(1).tolist() == [True, False, True] and not mixed.own_mask[1].any()
    assert info_nce(*(x[1:2] for x in mixed.scores())) == 0


def test_pair_itself_is_in_no_mix_of_a_small_batch():
    views = torch.eye(3, dtype=F64)
    mixed = HardNegativeMixing(1024, 60, 0)(in_batch_candidates([views, views], torch.arange(3))).own
    for r in range(6):
        assert not mixed[r, :, r % 3].any() and (mixed[r].sum(0) > 0).sum() == 2


def test_parents_are_drawn_with_replacement_for_every_query():
    torch.manual_seed(0)
    c = MixChoices.draw(torch.zeros(300, 4), 5, 40, 30)
    assert c.i.shape == c.j.shape == c.alpha.shape == (300, 40) and c.l.shape == c.beta.shape == (300, 30)
    assert abs((c.i == c.j).float().mean() - 1 / 5) < 0.02
    for parents in (c.i, c.j, c.l):
        assert (parents.flatten().bincount(minlength=5) / parents.numel() - 1 / 5).abs().max() < 0.02
        assert (parents[0] != parents[1]).any()
    for weights, top in ((c.alpha, 1.0), (c.beta, 0.5)):
        assert weights.min() >= 0 and weights.max() <= top and abs(weights.mean() - top / 2) < 0.01
        assert weights.max() > 0.99 * top
    assert not any(x.any() for x in MixChoices.draw(torch.zeros(2, 4), 1, 3, 3)[:2])


@pytest.mark.parametrize("masked", [False, True])
def test_loss_only_grows_and_is_mocos_without_mixes(masked):
    query, queue = torch.randn(5, 6), Queue(16, 6)
    queue.enqueue(normalize(torch.randn(8, 6)), torch.arange(8))
    base = queue_candidates(query, torch.randn(5, 6), queue, torch.arange(5))
    base = base if masked else base.replace(shared_mask=None)
    rows = queue.rows.clone()

    def per_sample(candidates):
        scores = candidates.scores()
        return torch.stack([info_nce(*(None if x is None else x[r : r + 1] for x in scores)) for r in range(5)])

    assert torch.equal(per_sample(HardNegativeMixing(8, 0, 0)(base)), per_sample(base))
    assert (per_sample(HardNegativeMixing(8, 4, 2)(base)) > per_sample(base)).all()
    assert torch.equal(queue.rows, rows)


def test_gradient_takes_the_left_factor_only():
    raw, key, queue = (torch.randn(5, 6, dtype=F64).requires_grad_() for _ in range(3))
    base = Candidates(normalize(raw), normalize(key), normalize(queue))
    mixed = HardNegativeMixing(4, 6, 6)(base)
    assert not mixed.own.requires_grad
    own = torch.tensor(mixed.own.tolist(), dtype=F64)
    negatives = torch.cat([base.query @ base.shared.T, torch.einsum("bd,bsd->bs", base.query, own)], 1)
    want = info_nce((base.query * base.positive).sum(1, keepdim=True), negatives)
    got = info_nce(*mixed.scores())
    leaves = raw, key, queue
    for one, two in zip(*(torch.autograd.grad(x, leaves, retain_graph=True) for x in (got, want)), strict=True):
        torch.testing.assert_close(one, two)
