"""Scores and metrics of out-of-distribution detection, against scikit-learn, NumPy and definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_curve

from zoo import ood
from zoo.losses.scores import normalize


def logits(rows=7, classes=4, seed=0, scale=3.0):
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_class_weights_are_unit_means_of_unit_prompts():
    embeddings = torch.randn(3, 5, 4, dtype=torch.float64) * torch.tensor([1.0, 7.0, 0.1])[:, None, None]
    weights = ood.class_weights(embeddings)
    expected = sum(e / e.norm(dim=1, keepdim=True) for e in embeddings)
    torch.testing.assert_close(weights, expected / expected.norm(dim=1, keepdim=True))
    torch.testing.assert_close(ood.class_weights(embeddings.flip(0)), weights)


def test_scores_of_yes_logits():
    z = logits()
    np.testing.assert_allclose(ood.msp(z), [np.max(np.exp(r) / np.exp(r).sum()) for r in z.numpy()])
    np.testing.assert_allclose(ood.max_logit(z), z.numpy().max(1))
    np.testing.assert_allclose(ood.energy(z), np.log(np.exp(z.numpy()).sum(1)))


def test_competing_to_win_asks_the_predicted_class_alone():
    z, u = logits(), logits(seed=1)
    best = z.argmax(1)
    expected = [1 / (1 + np.exp(float(u[i, c] - z[i, c]))) for i, c in enumerate(best.tolist())]
    np.testing.assert_allclose(ood.competing_to_win(z, u), expected)
    other = u.clone()
    other[torch.arange(7), (best + 1) % 4] += 5
    assert torch.equal(ood.competing_to_win(z, other), ood.competing_to_win(z, u))


def test_agreeing_to_differ_is_what_the_unknown_class_leaves():
    z, u = logits(), logits(seed=1)
    pi, p_no = z.softmax(1), u.exp() / (z.exp() + u.exp())
    torch.testing.assert_close(1 - ood.agreeing_to_differ(z, u), (pi * p_no).sum(1))
    torch.testing.assert_close(ood.agreeing_to_differ(z, z), torch.full((7,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(ood.agreeing_to_differ(z, z - 100), torch.ones(7, dtype=torch.float64))
    for score in (ood.agreeing_to_differ, ood.competing_to_win):
        torch.testing.assert_close(score(z + 9, u + 9), score(z, u))


def test_scores_stay_finite_at_the_scale_of_clip_and_in_half_precision():
    z, u = logits(scale=300.0).half(), logits(seed=1, scale=300.0).half()
    for score in (ood.agreeing_to_differ(z, u), ood.competing_to_win(z, u), ood.msp(z), ood.energy(z)):
        assert score.dtype == torch.float32 and score.isfinite().all()


def test_neg_label_is_a_share_of_the_softmax():
    known, negative = logits(), logits(classes=9, seed=1)
    share = torch.cat([known, negative], 1).softmax(1)[:, :4].sum(1)
    torch.testing.assert_close(ood.neg_label(known, negative), share)
    parts = [torch.cat([known, part], 1).softmax(1)[:, :4].sum(1) for part in (negative[:, :5], negative[:, 5:])]
    torch.testing.assert_close(ood.neg_label(known, negative, groups=2), (parts[0] + parts[1]) / 2)


scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=25)  # ties are the rule


def both(known, novel):
    truth = np.r_[np.ones(len(known)), np.zeros(len(novel))]
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (known, novel)]
    return truth, np.r_[known, novel], tensors


@given(scores, scores)
def test_auroc_and_fpr_are_scikit_learn_s(known, novel):
    truth, values, tensors = both(known, novel)
    assert ood.auroc(*tensors) == pytest.approx(roc_auc_score(truth, values))
    false, true, _ = sklearn_curve(truth, values, drop_intermediate=False)
    np.testing.assert_allclose(ood.roc_curve(*tensors)[0], false)
    np.testing.assert_allclose(ood.roc_curve(*tensors)[1], true)
    for tpr in (0.5, 0.95, 1.0):
        assert ood.fpr_at_tpr(*tensors, tpr) == pytest.approx(np.interp(tpr, true, false))


@given(scores, scores)
def test_aupr_goes_through_every_threshold_from_precision_0(known, novel):
    _, values, tensors = both(known, novel)
    recall, precision = [0.0], [0.0]
    for threshold in sorted(set(values), reverse=True):
        hits, all_reached = sum(k >= threshold for k in known), sum(v >= threshold for v in values)
        recall.append(hits / len(known))
        precision.append(hits / all_reached)
    assert ood.aupr_in(*tensors) == pytest.approx(np.trapezoid(precision, recall))


def test_aupr_misses_half_a_known_input_of_a_perfect_separation():
    assert ood.aupr_in(torch.arange(10.0, 20.0), torch.arange(5.0)) == pytest.approx(1 - 1 / 20)


def test_interpolated_fpr_and_that_of_a_threshold():
    known, novel = torch.arange(40.0), torch.tensor([-1.0, 1.0, 1.5, 2.0, 2.5, 30.0])
    # Place round(0.05 * 40) = 2: the third smallest known score; equal to it is not above it.
    assert ood.fpr_at_threshold(known, novel) == pytest.approx(2 / 6)
    # 38 of 40 known reach 2.0; the curve stands at this rate down to just above 1.0, and 4 novel ones reach 1.5.
    assert ood.fpr_at_tpr(known, novel) == pytest.approx(4 / 6)
    # Half-way between the points of 37 and 38 known.
    assert ood.fpr_at_tpr(known, novel, 37.5 / 40) == pytest.approx((2 / 6 + 3 / 6) / 2)
    assert ood.fpr_at_threshold(torch.ones(1), torch.tensor([2.0, 0.0])) == 0.5


def test_cosine_logits_need_no_unit_norm():
    x, labels = torch.randn(3, 4, dtype=torch.float64) * 5, torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(ood.cosine_logits(x, labels, 10.0), 10 * normalize(x) @ normalize(labels).T)
