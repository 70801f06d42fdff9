"""MIM, cMIM and VAE: closed forms, invariances, and what their gradients do."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.losses import (
    CMIM,
    MIM,
    VAE,
    CodeInfoNCE,
    LogTerms,
    SymmetricMIM,
    cmim,
    info_nce,
    match_log_probability,
    mim,
    normalize,
    symmetric_mim,
    vae,
)
from zoo.losses.mutual_information import bernoulli_log_likelihood, gaussian_log_density


def contrast(z, temperature=0.1, **kwargs):
    u = normalize(z)
    others = ~torch.eye(len(z), dtype=torch.bool)
    return match_log_probability(torch.ones(len(z), 1, dtype=z.dtype), u @ u.T, others, temperature, **kwargs)


def terms(n=5, seed=0):
    rows = torch.randn(4, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return LogTerms(*rows)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_closed_forms(n, temperature):
    orthogonal = contrast(torch.eye(n, dtype=torch.float64), temperature)
    torch.testing.assert_close(orthogonal, torch.full_like(orthogonal, -math.log1p(math.exp(-1 / temperature))))
    equal = contrast(torch.ones(n, 4, dtype=torch.float64), temperature)
    torch.testing.assert_close(equal, torch.full_like(equal, -math.log(2)))
    summed = contrast(torch.ones(n, 4, dtype=torch.float64), temperature, average=False)
    torch.testing.assert_close(summed, torch.full_like(summed, -math.log(n)))


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 1000))
def test_repeated_negatives_change_nothing(copies, n, seed):
    g = torch.Generator().manual_seed(seed)
    positives, negatives = torch.rand(3, 1, generator=g), torch.rand(3, n, generator=g)
    once = match_log_probability(positives, negatives)
    torch.testing.assert_close(match_log_probability(positives, negatives.repeat(1, copies)), once)
    assert (match_log_probability(positives, negatives.repeat(1, copies), average=False) < once).all()


def test_the_sum_is_info_nce():
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(4, 1, generator=g), torch.rand(4, 6, generator=g), torch.rand(4, 6, generator=g) < 0.7
    torch.testing.assert_close(-match_log_probability(*scores, 0.3, average=False).mean(), info_nce(*scores, 0.3))


def test_mask_leaves_the_mean_over_what_remains():
    g = torch.Generator().manual_seed(0)
    positives, negatives = torch.rand(2, 1, generator=g), torch.rand(2, 5, generator=g)
    mask = torch.tensor([[True, True, False, True, False]] * 2)
    torch.testing.assert_close(
        match_log_probability(positives, negatives, mask), match_log_probability(positives, negatives[:, mask[0]])
    )


@pytest.mark.parametrize("n", [1, 0, 3])
def test_without_negatives_there_is_neither_loss_nor_gradient(n):
    z = torch.randn(1 if n == 1 else 2, 4, requires_grad=True)
    scores = normalize(z) @ normalize(torch.ones(n, 4)).T
    value = match_log_probability(scores.new_ones(len(z), 1), scores, torch.zeros_like(scores, dtype=torch.bool))
    assert value.tolist() == [0.0] * len(z)
    value.sum().backward()
    assert z.grad is not None and z.grad.eq(0).all()


def test_contrast_only_turns_codes():
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(contrast(z).sum(), z)
    torch.testing.assert_close((grad * z).sum(1), torch.zeros(6, dtype=torch.float64), atol=1e-10, rtol=0)
    assert grad.norm() > 1e-3
    # A step along it makes the codes less alike.
    before, after = (normalize(x) @ normalize(x).T for x in (z, z + 1e-3 * grad))
    assert (after / 0.1).exp().sum() < (before / 0.1).exp().sum()


def test_losses_differ_by_the_terms_that_they_say():
    x = terms()
    torch.testing.assert_close(vae(x) - mim(x), 1.5 * x.posterior - 0.5 * x.prior)
    torch.testing.assert_close(cmim(x), mim(x) - x.match)
    torch.testing.assert_close(cmim(LogTerms(x.likelihood, x.match * 0, x.posterior, x.prior)), mim(x))
    torch.testing.assert_close(symmetric_mim(x), 0.5 * (mim(x) - 0.5 * (x.posterior + x.prior)))


def test_modules_average_their_functions():
    x = terms()
    for module, function in ((CMIM(), cmim), (MIM(), mim), (VAE(), vae)):
        torch.testing.assert_close(module(x), function(x).mean())
    torch.testing.assert_close(CodeInfoNCE()(x), -x.match.mean())


def test_symmetric_mim_warms_up():
    x, loss = terms(), SymmetricMIM(warmup=0.5)
    torch.testing.assert_close(loss(x), -0.5 * (x.likelihood + x.prior).mean())
    loss.progress = 0.25
    torch.testing.assert_close(loss(x), symmetric_mim(x, 0.5).mean())
    loss.progress = 0.9
    torch.testing.assert_close(loss(x), symmetric_mim(x).mean())


def test_normalisation_divides_values_or_gradients():
    z = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)

    def of(what):
        prior = gaussian_log_density(z)
        x = LogTerms(prior * 0, prior * 0, prior, prior).normalized(8, what)
        return x.prior, torch.autograd.grad(x.prior.sum(), z)[0]

    (plain, grad), (same, scaled), (divided, scaled_too) = of("none"), of("gradient"), of("loss")
    torch.testing.assert_close(same, plain)
    torch.testing.assert_close(divided, plain / 8)
    torch.testing.assert_close(scaled, grad / 8)
    torch.testing.assert_close(scaled_too, grad / 8)


def test_densities_are_torchs():
    z, mean, log_scale = torch.randn(3, 4, 6, dtype=torch.float64)
    want = torch.distributions.Normal(mean, log_scale.exp()).log_prob(z).sum(1)
    torch.testing.assert_close(gaussian_log_density(z, mean, log_scale), want)
    torch.testing.assert_close(gaussian_log_density(z), torch.distributions.Normal(0, 1).log_prob(z).sum(1).double())
    logits, pixels = torch.randn(2, 4, 1, 3, 3, dtype=torch.float64)
    pixels = (pixels > 0).double()
    want = torch.distributions.Bernoulli(logits=logits).log_prob(pixels).flatten(1)
    torch.testing.assert_close(bernoulli_log_likelihood(logits, pixels), want.sum(1))
    torch.testing.assert_close(bernoulli_log_likelihood(logits, pixels, "mean"), want.mean(1))


def test_half_precision_at_the_clamp_stays_finite():
    mean = torch.zeros(2, 4, dtype=torch.float16)
    density = gaussian_log_density(mean, mean, torch.full_like(mean, -6.0))
    assert density.dtype == torch.float32
    torch.testing.assert_close(density, torch.full((2,), 4 * (6 - 0.5 * math.log(2 * math.pi))))
