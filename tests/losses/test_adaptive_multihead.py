"""AMCL: loops over anchors and heads as the oracle of eq. 2.1, and its limits."""

import pytest
import torch
from torch import nn

from zoo.errors import ZooError
from zoo.losses import AMCL, info_nce
from zoo.losses.adaptive_multihead import (
    Pairs,
    PairTemperature,
    adaptive_contrast,
    adaptive_cross_correlation,
    adaptive_info_nce,
    adaptive_negative_cosine,
    omega,
)
from zoo.methods.siamese import in_batch_candidates
from zoo.negatives import Candidates, FeatureTransformation, HardNegativeMixing, Queue

C, B, D = 3, 5, 4
FORMS = pytest.mark.parametrize("form", ["hard", "soft"])


def unit(x):
    return nn.functional.normalize(x, dim=-1)


def _views(seed=0, pairs=B, heads=C):
    g = torch.Generator().manual_seed(seed)
    return [unit(torch.randn(pairs, heads, D, generator=g).double()).flatten(1).requires_grad_() for _ in range(2)]


def _loss(form="hard", **kwargs):
    torch.manual_seed(0)
    return AMCL(**{"heads": C, "dim": D, "beta": 0.2, "form": form, "hidden": 6, **kwargs}).double()


def _candidates(keys=range(B), **kwargs):
    return in_batch_candidates(_views(**kwargs), torch.tensor(list(keys)))


def _by_loops(loss, x, form):
    """One anchor, one head, one pair at a time."""
    network = loss.temperature_of
    positives, negatives, mask = x.scores()
    del positives
    mask = torch.ones_like(negatives, dtype=torch.bool) if mask is None else mask
    total = []
    for i in range(len(x.query)):
        rows = torch.cat([x.shared, x.own[i]]) if x.own is not None else x.shared
        rows = rows[mask[i]]
        for c in range(loss.heads):
            part = slice(c * loss.dim, (c + 1) * loss.dim)
            if len(rows) == 0:
                continue
            anchor, positive = unit(x.query[i, part]), unit(x.positive[i, part])
            scored = anchor if x.positive_query is None else unit(x.positive_query[i, part])
            t = network(scored, positive)
            pull = scored @ positive / t - loss.beta * (D / 2 * t.log() + 1 / t)
            each = [(anchor @ n, network(anchor, n)) for n in unit(rows[:, part])]
            if form == "hard":
                s, t = max(each, key=lambda pair: pair[0].item())
                total.append(s / t - loss.beta * (D / 2 * t.log() + 1 / t) - pull)
            else:
                total.append(torch.stack([scored @ positive / t, *(s / u for s, u in each)]).logsumexp(0) - pull)
    return torch.stack(total).sum() / len(x.query)


@FORMS
@pytest.mark.parametrize("keys", [range(B), (0, 1, 0, 1, 2), (7,) * B])
def test_loss_is_that_of_single_pairs_and_copies_are_no_negatives(form, keys):
    loss, x = _loss(form), _candidates(keys)
    if len(set(keys)) == 1:
        views = _views()
        value = loss(in_batch_candidates(views, torch.tensor(list(keys))))
        assert value == 0
        gradients = torch.autograd.grad(value, [*views, *loss.parameters()], allow_unused=True, materialize_grads=True)
        assert not any(g.any() for g in gradients)
    else:
        torch.testing.assert_close(loss(x), _by_loops(loss, x, form))
        keys = torch.tensor(list(keys)).repeat(2)
        assert (keys[loss.seen.which[..., 0]] != keys).all()


@FORMS
def test_some_rows_without_negatives_count_nothing(form):
    loss, x = _loss(form), _candidates()
    mask = x.shared_mask & (torch.arange(2 * B) != 3)[:, None]
    x = Candidates(x.query, x.positive, x.shared, mask)
    torch.testing.assert_close(loss(x), _by_loops(loss, x, form))


@FORMS
def test_made_negatives_join_head_by_head(form):
    torch.manual_seed(1)
    queue = Queue(32, C * D).double()
    raw = Candidates(*(unit(v) for v in _views()), queue.rows, queue.mask(torch.arange(B)))
    loss = _loss(form)
    for module in (HardNegativeMixing(8, 4, 4), FeatureTransformation()):
        x = module(raw)
        torch.testing.assert_close(loss(x), _by_loops(loss, x, form))
    x = raw.add_own(unit(raw.query.detach()[:, None] + 0.01 * torch.randn(B, 2, C * D)))
    torch.testing.assert_close(loss(x), _by_loops(loss, x, form))
    assert (loss.seen.which >= 32).all()


@FORMS
def test_several_positives_are_averaged(form):
    loss, x = _loss(form), _candidates()
    more = unit(torch.randn(2 * B, 1, C * D)).double()
    one, two = loss(x), loss(x.replace(positive=more[:, 0]))
    torch.testing.assert_close(loss(x.replace(more_positives=more)), (one + two) / 2)


def test_cosine_of_the_row_is_the_mean_of_the_heads_cosines():
    positives, negatives, _ = _candidates().scores()
    loss, x = _loss(), _candidates()
    loss(x)
    torch.testing.assert_close(loss.seen.positive.similarity.mean(0), positives)
    heads = unit(x.query.unflatten(1, (C, D))).transpose(0, 1)
    torch.testing.assert_close((heads @ heads.mT).mean(0), negatives)


@FORMS
def test_identical_heads_count_as_one_each(form):
    views = [v.detach() for v in _views(heads=1)]
    single = _loss(form, heads=1)(in_batch_candidates(views, torch.arange(B)))
    triple = _loss(form)(in_batch_candidates([v.repeat(1, C) for v in views], torch.arange(B)))
    torch.testing.assert_close(triple, C * single)


def test_constant_temperature_without_regulariser_is_the_margin_to_the_hardest_negative():
    x = _candidates(heads=1)
    positives, negatives, mask = x.scores()
    margin = negatives.masked_fill(~mask, -2).amax(1, keepdim=True) - positives
    settings = {"heads": 1, "low": 0.3, "high": 0.3, "beta": 0.0}
    torch.testing.assert_close(_loss(**settings)(x), margin.mean() / 0.3)
    torch.testing.assert_close(_loss("soft", **settings)(x), info_nce(positives, negatives, mask, 0.3))


@FORMS
def test_gradient_reaches_every_head_and_the_temperature_network(form):
    views, loss = _views(), _loss(form)
    loss(in_batch_candidates(views, torch.arange(B))).backward()
    for view in views:
        assert view.grad.unflatten(1, (C, D)).abs().sum((0, 2)).gt(0).all()
    assert all(p.grad.any() for p in loss.parameters())


def test_order_of_the_batch_moves_with_temperatures():
    views, loss, order = [v.detach() for v in _views()], _loss(), torch.randperm(B)
    values = [loss(in_batch_candidates(views, torch.arange(B)))]
    before = loss.seen
    values.append(loss(in_batch_candidates([v[order] for v in views], torch.arange(B)[order])))
    both = torch.cat([order, order + B])
    torch.testing.assert_close(loss.seen.positive.temperature, before.positive.temperature[:, both])
    torch.testing.assert_close(loss.seen.hardest.temperature, before.hardest.temperature[:, both])
    torch.testing.assert_close(*values)


def test_temperatures_start_at_the_initial_one_and_keep_to_their_limits():
    torch.manual_seed(0)
    network = PairTemperature(64, 0.05, 2.0, 0.1)
    a, b = unit(torch.randn(2, 200, 64))
    start = network(a, b)
    assert 0.09 < start.mean() < 0.12 and start.std() < 0.02
    assert not torch.equal(network(b, a), start)
    with torch.no_grad():
        network.last.weight.mul_(1e4)
    stretched = network(a, b)
    assert stretched.min() >= 0.05 and stretched.max() <= 2.0 and stretched.max() - stretched.min() > 1.9
    everything = network(a[:, None], b[None, :7])
    torch.testing.assert_close(everything.diagonal(), stretched[:7])


def test_omega_is_least_at_two_over_the_dimension():
    temperature = torch.tensor([0.9, 1.0, 1.1], dtype=torch.float64) * 2 / 16
    assert omega(temperature, 16).argmin() == 1
    assert omega(torch.ones(1), 16) == 1


def _pairs(*shape, seed=0):
    torch.manual_seed(seed)
    return Pairs(torch.rand(*shape) * 2 - 1, torch.rand(*shape) + 0.1)


def test_other_objectives_follow_their_equations():
    p, n = _pairs(C, 20), _pairs(C, 20, seed=1)
    contrast = adaptive_contrast(p, n, D, 0.2)
    nce = adaptive_info_nce(p, n, D, 0.2)
    negative_cosine = adaptive_negative_cosine(p, n, D, 0.2)
    ahead = p.similarity > n.similarity
    for i in range(20):
        terms = [n.logit[c, i] - p.logit[c, i] for c in range(C)]
        terms = [t + 0.2 * (omega(p[1][c, i], D) - omega(n[1][c, i], D)) for c, t in enumerate(terms)]
        torch.testing.assert_close(contrast[i], sum(terms))
        torch.testing.assert_close(nce[i], sum((t for c, t in enumerate(terms) if not ahead[c, i]), torch.zeros(())))
        terms = [0.2 * (omega(p[1][c, i], D) + omega(n[1][c, i], D)) for c in range(C)]
        terms = [t - p[0][c, i] / (2 * p[1][c, i]) - n[0][c, i] / (2 * n[1][c, i]) for c, t in enumerate(terms)]
        torch.testing.assert_close(negative_cosine[i], sum(terms))


def test_cross_correlation_follows_its_equation():
    pairs = _pairs(C, D, D)
    want = torch.zeros(())
    for matrix, temperature in zip(*pairs, strict=True):
        for l in range(D):
            for m in range(D):
                t = temperature[l, m]
                sign = 1 if l == m else -1
                term = (1 - matrix[l, l] / t) ** 2 if l == m else 0.01 * matrix[l, m] ** 2 / t
                want = want + term + sign * 0.2 * omega(t, 16)
    torch.testing.assert_close(adaptive_cross_correlation(pairs, 16, 0.2, 0.01), want)
    # At temperature 1 and without regulariser it is Barlow Twins.
    matrix = pairs.similarity[:1]
    plain = adaptive_cross_correlation(Pairs(matrix, torch.ones_like(matrix)), 16, 0.0, 0.01)
    eye = torch.eye(D)
    torch.testing.assert_close(plain, ((matrix[0] - eye) ** 2 * (eye + 0.01 * (1 - eye))).sum())


@pytest.mark.parametrize("limits", [(0.0, 1.0, 0.1), (0.2, 1.0, 0.1), (0.05, 0.1, 0.2), (1.0, 0.5, 0.7)])
def test_limits_out_of_order_are_one_line(limits):
    with pytest.raises(ZooError, match="low < initial < high"):
        PairTemperature(4, *limits)


def test_rows_of_other_width_are_one_line():
    with pytest.raises(ZooError, match="3 heads of 4, and rows are 8 wide"):
        _loss()(_candidates(heads=2))
