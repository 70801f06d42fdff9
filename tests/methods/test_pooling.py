"""Pooling of token states: what an embedding depends on."""

import pytest
import torch
from torch import nn

from zoo.methods.pooling import LatentAttentionPooling, first_token, last_token, masked_mean


def _states(b=3, l=6, d=8, seed=0):
    hidden = torch.randn(b, l, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0]])[:b] > 0
    return hidden.requires_grad_(), mask


def _latent(dim_head=None):
    torch.manual_seed(0)
    pooling = LatentAttentionPooling(8, n_latents=5, heads=2, dim_head=dim_head).double()
    for norm in (pooling.norm, pooling.latent_norm, pooling.mlp_norm):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return pooling


POOLINGS = pytest.mark.parametrize("pooling", [masked_mean, last_token, _latent(), _latent(3)])


def test_mean_and_single_tokens():
    hidden, mask = _states()
    torch.testing.assert_close(masked_mean(hidden, mask)[1], hidden[1, 2:].mean(0))
    assert torch.equal(last_token(hidden, mask), torch.stack([hidden[0, 3], hidden[1, 5], hidden[2, 2]]))
    assert torch.equal(first_token(hidden, mask), hidden[:, 0])
    assert not masked_mean(hidden, mask & False).any()


@POOLINGS
def test_tokens_outside_the_mask_do_not_matter(pooling):
    hidden, mask = _states()
    embedding = pooling(hidden, mask)
    (gradient,) = torch.autograd.grad(embedding.square().sum(), hidden)
    assert not gradient[~mask].any() and gradient[mask].any()
    more, no = torch.randn(3, 4, 8, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.bool)
    longer = pooling(torch.cat([more, hidden, more], 1), torch.cat([no, mask, no], 1))
    torch.testing.assert_close(longer, embedding)


def test_latent_attention_is_the_written_out_formula():
    hidden, mask = _states()
    p = _latent(3)
    rows = []
    for states, pooled in zip(hidden, mask, strict=True):
        x, c = p.norm(states), p.latent_norm(p.latents)
        keys, values = (c @ p.to_kv.weight.T).split(6, 1)
        q = x @ p.to_q.weight.T
        heads = []
        for h in range(2):
            at = slice(3 * h, 3 * h + 3)
            heads.append((q[:, at] @ keys[:, at].T / 3**0.5).softmax(1) @ values[:, at])
        y = torch.cat(heads, 1) @ p.to_out.weight.T + states
        inner = p.mlp_in(p.mlp_norm(y))
        a, gate = inner[:, :32], inner[:, 32:]
        y = p.mlp_out(a * gate * 0.5 * (1 + torch.erf(gate / 2**0.5))) + y
        rows.append(y[pooled].mean(0))
    torch.testing.assert_close(p(hidden, mask), torch.stack(rows))


def test_latent_attention_without_its_output_layers_is_the_masked_mean():
    hidden, mask = _states()
    pooling = _latent()
    for parameter in (pooling.to_out.weight, pooling.mlp_out.weight, pooling.mlp_out.bias):
        nn.init.zeros_(parameter)
    torch.testing.assert_close(pooling(hidden, mask), masked_mean(hidden, mask))


def test_order_of_latents_does_not_matter_and_all_parameters_are_trained():
    hidden, mask = _states()
    pooling = _latent()
    before = pooling(hidden, mask)
    before.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in pooling.parameters())
    with torch.no_grad():
        pooling.latents.copy_(pooling.latents[[3, 1, 4, 0, 2]])
    torch.testing.assert_close(pooling(hidden, mask), before)


def test_a_text_without_content_is_refused():
    hidden, mask = _states()
    mask[1] = False
    with pytest.raises(ValueError, match="no token to pool"):
        _latent()(hidden, mask)
