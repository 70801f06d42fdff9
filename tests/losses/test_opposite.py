"""CLIPN's losses: what they are at first, where they look, how they behave at CLIP's scale."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.losses.opposite import OppositeLoss, binary_opposite, semantic_opposite
from zoo.losses.scores import normalize


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_losses_where_no_is_yes():
    texts, zero = rand(5, 8), torch.zeros(5, 5, dtype=torch.float64)
    assert binary_opposite(zero[:, :1], zero).item() == pytest.approx(2 * math.log(2))
    assert semantic_opposite(texts, texts).item() == pytest.approx(1.99)
    loss = OppositeLoss()(zero[:, :1], zero, None, (texts, texts))
    assert loss.item() == pytest.approx((2 * math.log(2) + 1.99) / 2)


def test_binary_opposite_is_the_formula_and_so_is_its_gradient():
    n = 5
    yes, no = 3 * rand(n, n), (3 * rand(n, n, seed=1)).requires_grad_()
    difference, own = no - yes, torch.eye(n, dtype=torch.bool)
    loss = binary_opposite(difference.diagonal()[:, None], difference, ~own)
    p_no = no.exp() / (yes.exp() + no.exp())
    expected = -(1 - p_no.diagonal()).log().mean() - p_no[~own].log().mean()
    assert loss.item() == pytest.approx(expected.item())
    (gradient,) = torch.autograd.grad(loss, no)
    p_no = p_no.detach()
    torch.testing.assert_close(gradient, torch.where(own, p_no / n, -(1 - p_no) / (n * n - n)))


def test_each_half_looks_at_its_own_pairs():
    positives, negatives, mask = rand(4, 1), rand(4, 6, seed=1), torch.ones(4, 6, dtype=torch.bool)
    mask[:, 2] = False
    both = binary_opposite(positives, negatives, mask)
    assert binary_opposite(positives, negatives.index_fill(1, torch.tensor([2]), 50.0), mask) == both
    own = torch.nn.functional.softplus(positives).mean()
    for factor in (1.0, 2.0):  # the negatives' part does not notice the positives
        part = binary_opposite(factor * positives, negatives, mask)
        part -= torch.nn.functional.softplus(factor * positives).mean()
        torch.testing.assert_close(part, both - own)
    kept = negatives[:, [0, 1, 3, 4, 5]]
    torch.testing.assert_close(binary_opposite(positives, kept), both)


def test_weights_count_negatives_in_part():
    positives, negatives = rand(3, 1), rand(3, 2, seed=1)
    doubled = binary_opposite(positives, torch.cat([negatives, negatives[:, :1]], 1))
    weight = torch.tensor([[2.0, 1.0]] * 3, dtype=torch.float64)
    torch.testing.assert_close(binary_opposite(positives, negatives, weight), doubled)


def test_without_negatives_their_part_is_0():
    positives, negatives = rand(3, 1).requires_grad_(), rand(3, 2, seed=1).requires_grad_()
    nothing = torch.zeros(3, 2, dtype=torch.bool)
    loss = binary_opposite(positives, negatives, nothing)
    assert loss == torch.nn.functional.softplus(positives).mean()
    loss.backward()
    assert torch.equal(negatives.grad, torch.zeros(3, 2, dtype=torch.float64)) and positives.grad.isfinite().all()


def test_the_loss_does_not_underflow_at_the_scale_of_clip():
    far = torch.tensor([[200.0]], requires_grad=True)
    loss = binary_opposite(far, -far)
    assert loss.item() == pytest.approx(400.0)
    loss.backward()
    assert far.grad.item() == pytest.approx(2.0)
    assert binary_opposite(far.detach().half(), -far.detach().half()).dtype == torch.float32


@given(st.integers(0, 10**6))
def test_semantic_opposite_lies_between_the_same_and_the_opposite(seed):
    yes, no = 4 * rand(3, 5, seed=seed), rand(3, 5, seed=seed + 1)
    loss = semantic_opposite(yes, no)
    g, h = normalize(yes), normalize(no)
    assert loss.item() == pytest.approx((2 - ((g - h).square().sum(1) + 1e-4).sqrt()).mean().item())
    assert -1e-4 < loss < 2
    assert semantic_opposite(yes, -yes).item() == pytest.approx(0, abs=1e-4)
    assert semantic_opposite(yes, no, "cosine").item() == pytest.approx((1 + (g * h).sum(1)).mean().item())


def test_the_gradient_is_finite_where_no_is_yes():
    yes = rand(3, 5)
    no = yes.clone().requires_grad_()
    semantic_opposite(yes, no).backward()
    assert no.grad.isfinite().all()


def test_the_semantic_part_can_be_left_out_or_exchanged():
    scores, texts = (rand(4, 1), rand(4, 4, seed=1), None), (rand(4, 3, seed=2), rand(4, 3, seed=3))
    binary = binary_opposite(*scores)
    torch.testing.assert_close(OppositeLoss(None)(*scores, texts), binary / 2)
    with_cosine = (binary + semantic_opposite(*texts, "cosine")) / 2
    torch.testing.assert_close(OppositeLoss("cosine")(*scores, texts), with_cosine)
