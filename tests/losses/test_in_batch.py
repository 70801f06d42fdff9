"""NT-Xent, DCL and DCLW on the views of a batch: written-out double loops, closed forms, and symmetries."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.losses import DCL, DCLW, InfoNCE, info_nce, normalize
from zoo.methods.siamese import in_batch_candidates

LOSSES = pytest.mark.parametrize("loss", [InfoNCE(0.2), DCL(0.2), DCLW(0.2)], ids=["nt_xent", "dcl", "dclw"])


def _views(b=5, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(b, d, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]


def _value(loss, z0, z1):
    return loss(*in_batch_candidates([z0, z1], torch.arange(len(z0))).scores())


def _nt_xent(z0, z1, keys, temperature):
    """Similarities pair by pair; an anchor's negatives are the views of other content."""
    views, content = [*z0, *z1], keys * 2
    unit = [z / z.norm() for z in views]
    total = 0
    for i, u in enumerate(unit):
        positive = (u @ unit[(i + len(z0)) % len(unit)] / temperature).exp()
        negatives = [(u @ v / temperature).exp() for v, key in zip(unit, content, strict=True) if key != content[i]]
        total -= (positive / (positive + sum(negatives))).log()
    return total / len(unit)


@settings(max_examples=20)
@given(
    keys=st.lists(st.integers(0, 6), min_size=1, max_size=6), temperature=st.floats(0.05, 1), seed=st.integers(0, 99)
)
def test_nt_xent_with_repeated_content_is_the_double_loop(keys, temperature, seed):
    z0, z1 = _views(len(keys), seed=seed)
    mine = info_nce(*in_batch_candidates([z0, z1], torch.tensor(keys)).scores(), temperature)
    theirs = _nt_xent(z0, z1, keys, temperature)
    torch.testing.assert_close(mine, theirs)
    for one, two in zip(*(torch.autograd.grad(x, (z0, z1)) for x in (mine, theirs)), strict=True):
        torch.testing.assert_close(one, two, atol=1e-10, rtol=1e-7)


def test_nt_xent_is_info_nce_on_the_others_handed_over():
    z0, z1 = _views()
    u = normalize(torch.cat([z0, z1]))
    others = torch.stack([torch.stack([u[j] for j in range(10) if j % 5 != i % 5]) for i in range(10)])
    positives = (u * u.roll(5, 0)).sum(1, keepdim=True)
    want = info_nce(positives, torch.einsum("bd,bmd->bm", u, others), None, 0.2)
    torch.testing.assert_close(_value(InfoNCE(0.2), z0, z1), want)


@LOSSES
def test_views_are_exchangeable_and_so_are_pairs(loss):
    z0, z1 = _views()
    order = torch.tensor([3, 0, 4, 1, 2])
    want = _value(loss, z0, z1)
    torch.testing.assert_close(_value(loss, z1, z0), want)
    torch.testing.assert_close(_value(loss, z0[order], z1[order]), want)


@LOSSES
def test_length_of_a_row_does_not_matter(loss):
    z0, z1 = _views()
    scale = torch.tensor([0.01, 0.5, 1.0, 3.0, 200.0], dtype=torch.float64)[:, None]
    value = _value(loss, z0, z1)
    torch.testing.assert_close(_value(loss, scale * z0, scale.flip(0) * z1), value)
    for z, gradient in zip((z0, z1), torch.autograd.grad(value, (z0, z1)), strict=True):
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close((z * gradient).sum(1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)


def test_one_pair_has_zero_nt_xent_and_gradient():
    views = _views(1)
    value = _value(InfoNCE(0.1), *views)
    assert value == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, views))


@pytest.mark.parametrize("b", [2, 5, 16])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_orthogonal_images_have_a_closed_form(b, temperature):
    views = torch.eye(b, dtype=torch.float64)
    value = _value(InfoNCE(temperature), views, 3 * views)
    assert value.item() == pytest.approx(math.log1p((2 * b - 2) * math.exp(-1 / temperature)), rel=1e-12)
    assert _value(DCL(temperature), views, views).item() == pytest.approx(math.log(2 * b - 2) - 1 / temperature)


def test_detached_candidates_leave_the_left_factor():
    z0, z1 = _views()
    u = normalize(torch.cat([z0, z1]))
    value = info_nce(*in_batch_candidates([z0, z1], torch.arange(5), detach_candidates=True).scores(), temperature=0.2)
    scores = (u @ u.detach().T / 0.2).masked_fill(torch.eye(10, dtype=torch.bool), -torch.inf)
    want = torch.nn.functional.cross_entropy(scores, torch.arange(10).roll(5))
    torch.testing.assert_close(value, want)
    for one, two in zip(*(torch.autograd.grad(x, (z0, z1)) for x in (value, want)), strict=True):
        torch.testing.assert_close(one, two)


def test_half_precision_embeddings_are_scored_in_float32():
    z0, z1 = (z.detach().bfloat16() for z in _views())
    positives, negatives, _ = in_batch_candidates([z0, z1], torch.arange(5)).scores()
    assert positives.dtype == negatives.dtype == torch.float32
    torch.testing.assert_close(_value(InfoNCE(0.2), z0, z1), _value(InfoNCE(0.2), z0.float(), z1.float()))
    torch.testing.assert_close(negatives.diagonal(), torch.ones(10))
