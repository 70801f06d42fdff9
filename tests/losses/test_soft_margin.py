"""The weighted soft-margin triplet loss against SAFA's sums, written out."""

import math

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.callbacks.test_recall import Pixels, data, trainer
from zoo.callbacks.scores import ScoreStatistics
from zoo.losses import normalize, pairwise_logistic
from zoo.losses.soft_margin import SoftMarginTriplet, soft_margin_triplet, squared_distance
from zoo.methods.dual import DualEncoder


def batch(n=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    ground, tile = (normalize(torch.randn(n, 4, dtype=torch.float64, generator=g)) for _ in range(2))
    return ground, tile


def arguments(scores):
    return scores.diagonal()[:, None], scores, ~torch.eye(len(scores), dtype=torch.bool)


def both_directions(loss, scores):
    return (loss(*arguments(scores)) + loss(*arguments(scores.T))) / 2


def safa(ground, tile, w, k):
    """Sums over i, j of distances; the diagonal is in them."""
    n, distance = len(ground), torch.cdist(tile, ground).square().tolist()

    def term(own, other):
        return math.log1p(math.exp(w * (own - other)))

    to_tile = [[term(distance[j][j], distance[i][j]) for i in range(n)] for j in range(n)]
    to_ground = [[term(distance[i][i], distance[i][j]) for j in range(n)] for i in range(n)]
    if k is None:
        return sum(map(sum, to_tile + to_ground)) / (2 * n * (n - 1))
    hardest = [x for rows in (to_tile, to_ground) for row in rows for x in sorted(row)[-k:]]
    return sum(hardest) / len(hardest)


@settings(max_examples=25)
@given(n=st.integers(2, 7), k=st.one_of(st.none(), st.integers(1, 7)), w=st.floats(0.5, 30), seed=st.integers(0, 999))
def test_mean_of_both_directions_is_safa_s_loss(n, k, w, seed):
    ground, tile = batch(n, seed)
    loss = both_directions(SoftMarginTriplet(w, k), ground @ tile.T)
    assert loss.item() == pytest.approx(safa(ground, tile, w, k))


@pytest.mark.parametrize("k", [None, 1, 3])
def test_gradient_is_that_of_finite_differences(k):
    ground, tile = batch()
    scores = (ground @ tile.T).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: both_directions(SoftMarginTriplet(3.0, k), s), scores)


def test_gradient_of_the_card():
    ground, tile = batch()
    distance = squared_distance(tile @ ground.T).requires_grad_()
    n, w, own = len(ground), 10.0, distance.detach().diagonal()
    (gradient,) = torch.autograd.grad(both_directions(SoftMarginTriplet(w), 1 - distance.T / 2), distance)
    d, away = distance.detach(), ~torch.eye(n, dtype=torch.bool)
    pull = torch.sigmoid(w * (own[None, :] - d)), torch.sigmoid(w * (own[:, None] - d))
    expected = -w / (2 * n * (n - 1)) * (pull[0] + pull[1])
    torch.testing.assert_close(gradient[away], expected[away])
    towards = -(expected * away).sum() / n
    torch.testing.assert_close(gradient.diagonal().mean(), towards)


def test_limits_far_negatives_and_identical_descriptors():
    for n in (2, 8):
        identical = both_directions(SoftMarginTriplet(), torch.ones(n, n, dtype=torch.float64))
        assert identical.item() == pytest.approx(n * math.log(2) / (n - 1))
        apart = 2 * torch.eye(n, dtype=torch.float64) - 1
        far = both_directions(SoftMarginTriplet(weight=1e6), apart)
        assert far.item() == pytest.approx(math.log(2) / (n - 1)) and far.isfinite()


def test_the_positive_competes_for_the_hardest_places():
    easy, positive = torch.tensor([[-0.5, -0.6, 0.9]]), torch.tensor([[0.5]])
    hard = math.log1p(math.exp(10 * 2 * 0.4))
    got = soft_margin_triplet(positive, easy, top_k=2)
    assert got.item() == pytest.approx((hard + math.log(2)) / 2, rel=1e-5)


def test_without_the_constant_it_is_the_pairwise_logistic_loss():
    ground, tile = batch()
    scores, loss = ground @ tile.T, SoftMarginTriplet(4.0)
    plain = pairwise_logistic(*arguments(scores), loss.temperature)
    torch.testing.assert_close(loss(*arguments(scores)), plain + math.log(2) / 4)


@pytest.mark.parametrize("k", [None, 2])
def test_masked_entries_and_rows_without_any_have_no_part(k):
    g = torch.Generator().manual_seed(0)
    positives, negatives = (torch.rand(3, m, generator=g, dtype=torch.float64, requires_grad=True) for m in (1, 4))
    mask = torch.tensor([[True, True, False, True], [False] * 4, [False, True, False, False]])
    loss = soft_margin_triplet(positives, negatives, mask, top_k=k)
    filled = negatives.detach().masked_fill(~mask, 99.0)
    assert soft_margin_triplet(positives, filled, mask, top_k=k) == loss
    rows = mask.any(1)
    torch.testing.assert_close(soft_margin_triplet(positives[rows], negatives[rows], mask[rows], top_k=k), loss)
    at_positives, at_negatives = torch.autograd.grad(loss, (positives, negatives))
    assert at_positives[1] == 0 and not at_negatives[~mask].any() and at_negatives[0, 0] > 0
    nothing = soft_margin_triplet(positives, negatives, torch.zeros_like(mask), top_k=k)
    assert nothing == 0 and not torch.autograd.grad(nothing, negatives)[0].any()


@pytest.mark.parametrize("k", [None, 2])
def test_a_weight_is_a_share(k):
    ground, tile = batch()
    positives, scores, mask = arguments(ground @ tile.T)
    whole = soft_margin_triplet(positives, scores, mask.double(), top_k=k)
    torch.testing.assert_close(whole, soft_margin_triplet(positives, scores, mask, top_k=k))
    weight = mask.double()
    weight[0] *= 3
    twice = soft_margin_triplet(positives[:1], scores[:1], weight[:1])
    once = soft_margin_triplet(positives[:1], scores[:1], mask[:1])
    torch.testing.assert_close(twice - math.log(2) / 12, once - math.log(2) / 4)


def test_half_precision_is_widened():
    positives, negatives = torch.full((2, 1), -0.9).half(), torch.full((2, 3), 0.9).half()
    loss = soft_margin_triplet(positives, negatives, loss_weight=1e4)
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_a_symmetric_dual_encoder_has_both_directions_without_known_positives(tmp_path):
    class Check(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.others = batch.positive_key[:, None] != batch.positive_key  # other views of a tile are no negatives
            with torch.no_grad():
                x, y = pl_module.embed_queries(batch.anchor), pl_module.embed_documents(batch.positive)
            self.scores = x @ y.T

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            own = self.scores.diagonal()[:, None]
            both = [soft_margin_triplet(own, s, self.others) for s in (self.scores, self.scores.T)]
            torch.testing.assert_close(outputs["loss"], sum(both) / 2)
            self.seen = True

    check = Check()
    module = DualEncoder(Pixels(), SoftMarginTriplet(), symmetric=True)
    trainer(tmp_path, check, ScoreStatistics(1), max_steps=2, limit_val_batches=0).fit(module, data())
    assert check.seen
