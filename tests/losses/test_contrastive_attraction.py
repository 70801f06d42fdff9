"""CACR: its weights, its two costs on views written out, its ablations, and the forms against momentum keys."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import mse_loss

from zoo import MomentumContrast
from zoo.data import PairBatch
from zoo.errors import ZooError
from zoo.losses import (
    CACR,
    MomentumCACR,
    QueueCACR,
    attraction_loss,
    attraction_weights,
    cacr,
    cacr_euclidean,
    cacr_rbf,
    euclidean_scores,
    info_nce,
    normalize,
    repulsion_loss,
    repulsion_weights,
)
from zoo.methods.siamese import in_batch_candidates
from zoo.negatives import BatchQueries, Candidates, HardNegativeMixing


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scores(z):
    """What `SiameseContrast(negatives_from="later")` gives the loss."""
    return in_batch_candidates(list(z), torch.arange(z.shape[1]), negatives_from="later").scores()


def written_out(z, tau_positive, tau_negative, alpha=1.0, beta=1.0, tau_plus=0.0):
    """The card's two means, by loops over views and images."""
    z = normalize(z)
    views, images = z.shape[:2]
    attraction, repulsion = [], []
    for v in range(views):
        for i in range(images):
            d = torch.stack([(z[v, i] - z[u, i]).square().sum() for u in range(views) if u != v])
            attraction.append(((tau_positive * d).softmax(0) * alpha * d).sum())
            for u in range(v + 1, views):
                d = torch.stack([(z[v, i] - z[u, j]).square().sum() for j in range(images) if j != i])
                pair = -beta * ((-tau_negative * d).softmax(0) * d).sum()
                repulsion.append((pair - tau_plus * (z[v, i] - z[u, i]).square().sum()) / (1 - tau_plus))
    return torch.stack(attraction).mean() + torch.stack(repulsion).mean()


@settings(max_examples=15, deadline=None)
@given(
    views=st.integers(2, 4),
    images=st.integers(2, 5),
    tau=st.tuples(st.floats(0, 4), st.floats(0, 4)),
    tau_plus=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 999),
)
def test_loss_of_views_is_the_mean_over_unordered_pairs_of_them(views, images, tau, tau_plus, seed):
    z = draw(views, images, 3, seed=seed).requires_grad_()
    loss = CACR(*tau, alpha=0.7, beta=1.3, tau_plus=tau_plus, groups=views)(*scores(z))
    want = written_out(z, *tau, 0.7, 1.3, tau_plus)
    torch.testing.assert_close(loss, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*(torch.autograd.grad(x, z)[0] for x in (loss, want)), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("weights", "tau"), [("both", (1.5, 2.0)), ("positive", (1.5, 0)), ("negative", (0, 2.0)), ("none", (0, 0))]
)
def test_ablations_weigh_one_side_or_none(weights, tau):
    z = draw(3, 5, 4)
    got = CACR(1.5, 2.0, weights=weights, groups=3)(*scores(z))
    torch.testing.assert_close(got, written_out(z, *tau))


@settings(max_examples=25)
@given(tau=st.floats(0, 20), p=st.integers(1, 6), seed=st.integers(0, 999))
def test_weights_sum_to_one_and_follow_the_distance(tau, p, seed):
    s = draw(4, p, seed=seed).tanh()
    nearest_first = s.sort(1, descending=True).values
    up, down = attraction_weights(nearest_first, tau), repulsion_weights(nearest_first, None, tau)[:, 0]
    for weights in (up, down):
        torch.testing.assert_close(weights.sum(1), torch.ones(4, dtype=torch.float64))
    assert (up.diff(dim=1) >= 0).all() and (down.diff(dim=1) <= 0).all()
    assert (attraction_loss(s, tau) - attraction_loss(s, 0) >= -1e-12).all()
    assert (repulsion_loss(s, tau=tau) - repulsion_loss(s, tau=0) >= -1e-12).all()


def test_weights_are_uniform_at_tau_zero_and_over_what_counts():
    s, mask = draw(2, 4).tanh(), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]) > 0
    assert attraction_weights(s, 0).unique().tolist() == [0.25]
    want = torch.tensor([[1 / 2, 1 / 2, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0]], dtype=torch.float64)
    torch.testing.assert_close(repulsion_weights(s, mask, 0)[:, 0], want)
    half = torch.tensor([[1.0, 0.5, 0, 0], [2, 2, 2, 0]], dtype=torch.float64)
    torch.testing.assert_close(repulsion_weights(s, half, 0)[0, 0, :2], torch.tensor([2 / 3, 1 / 3]).double())


def test_gradient_goes_through_the_weights():
    negatives, tau = draw(1, 6).tanh().requires_grad_(), 2.0
    distance, weights = 2 - 2 * negatives[0], repulsion_weights(negatives, None, tau)[0, 0]
    want = -weights * (1 - tau * (distance - (weights * distance).sum())) * -2  # d distance / d score = -2
    torch.testing.assert_close(torch.autograd.grad(repulsion_loss(negatives, tau=tau), negatives)[0][0], want)


def test_two_views_are_aligned_by_squared_distance():
    z = draw(2, 5, 4)
    positives, _, _ = scores(z)
    assert (attraction_weights(positives, 3.0) == 1).all()
    first, second = normalize(z)
    torch.testing.assert_close(attraction_loss(positives, 3.0), 4 * mse_loss(first, second))  # of 4 numbers the mean


def test_equal_views_are_not_attracted_and_collapse_costs_nothing():
    one = draw(1, 5, 4)
    z = one.repeat(3, 1, 1).requires_grad_()
    loss = attraction_loss(scores(z)[0])
    assert loss.abs() < 1e-12 and torch.autograd.grad(loss, z)[0].abs().max() < 1e-12
    collapsed = CACR(groups=3)(*scores(one[:, :1].expand(3, 5, 4)))
    assert collapsed.abs() < 1e-12
    apart = CACR(tau_negative=0.0, groups=2)(*scores(torch.tensor([[[1.0], [-1.0]]] * 2)))
    assert apart.item() == pytest.approx(-4)  # the least that there is


def test_loss_does_not_change_under_rotation():
    z, rotation = draw(3, 4, 5), torch.linalg.qr(draw(5, 5, seed=1)).Q
    torch.testing.assert_close(CACR(groups=3)(*scores(z)), CACR(groups=3)(*scores(z @ rotation)))


@pytest.mark.parametrize("groups", [1, 3])
def test_what_is_masked_is_absent(groups):
    positives, negatives = draw(2, 2).tanh().requires_grad_(), draw(2, 6, seed=1).tanh().requires_grad_()
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]) > 0
    loss = CACR(groups=groups)(positives, negatives, mask)
    blocks = [slice(0, 3)] if groups == 1 else [slice(0, 2), slice(2, 3)]
    want = attraction_loss(positives) + torch.stack([repulsion_loss(negatives[:1, b], tau=0.9) for b in blocks]).mean()
    torch.testing.assert_close(loss, want)
    to_positives, to_negatives = torch.autograd.grad(loss, (positives, negatives))
    assert to_positives.all() and to_negatives[mask].all() and not to_negatives[~mask].any()
    nothing = repulsion_loss(negatives, mask & False, groups=groups)
    assert nothing == 0 and not torch.autograd.grad(nothing, negatives)[0].any()


def test_half_precision_is_computed_in_single():
    positives, negatives = draw(4, 1).tanh().bfloat16(), draw(4, 6).tanh().bfloat16()
    assert cacr(positives, negatives) == cacr(positives.float(), negatives.float())


def test_views_that_are_not_the_blocks_are_refused():
    with pytest.raises(ZooError, match="7 negatives into 2 equal blocks"):
        CACR(groups=2)(torch.zeros(2, 1), torch.zeros(2, 7))
    with pytest.raises(ZooError, match="3 positives come from 4 views: set groups"):
        CACR(groups=2)(torch.zeros(2, 3), torch.zeros(2, 6))
    with pytest.raises(ZooError, match="takes 2 positives a query, not 1"):
        repulsion_loss(torch.zeros(3, 6), groups=3, positives=torch.zeros(3, 1), tau_plus=0.1)
    with pytest.raises(ZooError, match="5 queries are not 2 views"):
        QueueCACR(views=2)(torch.zeros(5, 1), torch.zeros(5, 3))
    with pytest.raises(ZooError, match="5 queries are not 2 views"):
        BatchQueries(2)(Candidates(torch.zeros(5, 2), torch.zeros(5, 2), torch.zeros(3, 2)))
    with pytest.raises(ZooError, match="probability below 1"):
        CACR(tau_plus=1.0)


def test_temperature_is_that_of_the_weights_of_negatives():
    s, loss = draw(3, 5).tanh(), CACR(tau_negative=2.0)
    torch.testing.assert_close((s / loss.temperature).softmax(1), repulsion_weights(s, None, 2.0)[:, 0])


def test_euclidean_scores_are_cosines_of_unit_rows_and_have_the_gradient_of_squared_distance_elsewhere():
    a, b = draw(4, 3).requires_grad_(), draw(4, 3, seed=1)
    torch.testing.assert_close(euclidean_scores(normalize(a), normalize(b)), (normalize(a) * normalize(b)).sum(1))
    (gradient,) = torch.autograd.grad((2 - 2 * euclidean_scores(a, b)).sum(), a)
    torch.testing.assert_close(gradient, 2 * (a - b).detach())


# Forms against momentum keys: rows are the views of B images, view by view.


def momentum_scores(views=3, images=4, queue=5, seed=0):
    q, k, rows = draw(views, images, 6, seed=seed), draw(images, 6, seed=seed + 1), draw(queue, 6, seed=seed + 2)
    return normalize(q).requires_grad_(), normalize(k), normalize(rows)


def test_queue_form_detaches_what_comes_from_keys():
    q, k, queue = momentum_scores()
    candidates = Candidates(q.flatten(0, 1), k.repeat(3, 1), queue)
    loss = QueueCACR(1.2, 1.7, 0.8, 1.1, views=3, queue_size=5)(*BatchQueries(3)(candidates).scores())
    attraction, repulsion = [], []
    for i in range(4):
        d = 2 - 2 * q[:, i] @ k[i]
        attraction.append(((1.2 * d).softmax(0).detach() * d).sum() * 0.8)
        for v in range(3):
            of_queue = 2 - 2 * queue @ q[v, i]
            of_batch = torch.stack([2 - 2 * q[v, j] @ q[v, i] for j in range(4) if j != i])
            weights = (-1.7 * torch.cat([of_queue.detach(), of_batch])).softmax(0)
            repulsion.append(-1.1 * (weights * torch.cat([of_queue, of_batch])).sum())
    want = torch.stack(attraction).mean() + torch.stack(repulsion).mean()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, q)[0] for x in (loss, want)))


def test_batch_queries_keep_the_masks_and_leave_other_views_out():
    q, k, queue = momentum_scores(views=2, images=3)
    mask = torch.ones(6, 5, dtype=torch.bool)
    mask[0, 2] = False
    joined = BatchQueries(2)(Candidates(q.flatten(0, 1), k.repeat(2, 1), queue, mask))
    _, negatives, kept = joined.scores()
    assert negatives.shape == kept.shape == (6, 5 + 6)
    assert kept[:, :5].equal(mask)
    assert [row.nonzero().flatten().tolist() for row in kept[:, 5:]] == [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]]


class Linear(nn.Sequential):
    dim = 4

    def __init__(self):
        super().__init__(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def test_queue_form_composes_with_mixed_negatives_in_momentum_contrast():
    torch.manual_seed(0)
    mixing, queries = HardNegativeMixing(n_hard=4, n_mix=3, n_query_mix=2), BatchQueries(2)
    loss = QueueCACR(views=2, queue_size=8)
    module = MomentumContrast(Linear(), loss, queue_size=8, momentum=0.9, negatives=[mixing, queries])
    module._trainer = SimpleNamespace(current_epoch=0, global_step=0, log_every_n_steps=100, global_rank=0)
    anchor, positive, third = torch.randn(3, 4, 6)
    keys = torch.arange(4)
    out = module.train().training_step(PairBatch(anchor, positive, keys, keys, keys, views=(third,)), 0)
    assert out["positives"].shape == (8, 1) and out["negatives"].shape == (8, 8 + 8 + 5)
    torch.testing.assert_close(out["loss"], loss(out["positives"], out["negatives"], out["mask"]))
    plain = loss(out["positives"], out["negatives"][:, :-5], out["mask"][:, :-5])
    assert out["loss"] > plain  # harder negatives are closer, so that repulsion earns less
    out["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in module.encoder.parameters())
    assert all(p.grad is None for p in module.key_encoder.parameters())


def test_rbf_form_of_one_view_is_moco_v3():
    q, k, queue = momentum_scores(views=1)
    given = Candidates(q[0], k, queue).scores()
    torch.testing.assert_close(cacr_rbf(*given, temperature=0.3), 2 * 0.3 * info_nce(*given, temperature=0.3))


def test_momentum_forms_weigh_the_farther_views_by_constants():
    q, k, queue = momentum_scores()
    given = Candidates(q.flatten(0, 1), k.repeat(3, 1), queue).scores()
    distance = 2 - 2 * (q * k).sum(2)
    p = (distance / 0.5).softmax(0).detach()
    rbf = euclid = 0.0
    for v in range(3):
        for i in range(4):
            row = Candidates(q[v, i : i + 1], k[i : i + 1], queue).scores()
            rbf = rbf + 2 * 0.5 * p[v, i] * info_nce(*row, temperature=0.5) / 4
            cost = 1 - queue @ q[v, i]
            repulsion = ((-cost / 0.5).softmax(0).detach() * cost).sum()
            euclid = euclid + p[v, i] * (distance[v, i] / 2 - repulsion)
    for cost, want in (("rbf", rbf), ("euclidean", euclid)):
        got = MomentumCACR(cost, 0.5, 3)(*given)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(*(torch.autograd.grad(x, q, retain_graph=True)[0] for x in (got, want)))


@pytest.mark.parametrize("form", [cacr_rbf, cacr_euclidean])
def test_momentum_forms_ignore_what_is_masked(form):
    q, k, queue = momentum_scores(views=2)
    positives, negatives, _ = Candidates(q.flatten(0, 1), k.repeat(2, 1), queue).scores()
    mask = torch.tensor([1, 1, 0, 1, 0]).bool().repeat(8, 1)
    torch.testing.assert_close(
        form(positives, negatives, mask, 0.5, 2), form(positives, negatives[:, mask[0]], None, 0.5, 2)
    )
    free = negatives.detach().requires_grad_()
    loss = form(positives.detach(), free, mask & False, 0.5, 2)
    assert loss.isfinite() and not torch.autograd.grad(loss, free)[0].any()
