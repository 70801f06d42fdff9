"""MoCo's step against the same computed by hand, gradients included."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from tests.methods.test_momentum import Linear, batch, method, step
from zoo.errors import ZooError


def test_step_is_cross_entropy_against_the_queue_before_it():
    module, data = method(momentum=0.9), batch()
    with torch.no_grad():
        for p in module.encoder.parameters():
            p += torch.randn_like(p)
    keys = copy.deepcopy(module.key_encoder)
    for old, new in zip(keys.parameters(), module.encoder.parameters(), strict=True):
        old.data = 0.9 * old.data + 0.1 * new.data  # before the key pass
    q, k = normalize(module.encoder(data.anchor)), normalize(keys(data.positive))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ module.queue.rows.T], 1) / 0.2
    expected = cross_entropy(logits, torch.zeros(len(data), dtype=torch.long))
    gradients = torch.autograd.grad(expected, list(module.encoder.parameters()))
    torch.testing.assert_close(step(module, data)["loss"], expected)
    for parameter, gradient in zip(module.encoder.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    torch.testing.assert_close(module.queue.rows[:4], k)


@pytest.mark.parametrize("symmetric", [False, True])
def test_positives_are_never_among_the_negatives(symmetric):
    module = method(symmetric=symmetric)
    for seed in range(5):  # round the queue more than once
        out = step(module, batch(seed=seed))
        assert not torch.isclose(out["negatives"], out["positives"], atol=1e-6).any()


def test_symmetric_queue_holds_the_keys_of_both_views_in_order():
    module, data = method(symmetric=True), batch()
    step(module, data)
    keys = normalize(module.key_encoder(torch.cat([data.positive, data.anchor])))
    torch.testing.assert_close(module.queue.rows[:8], keys)
    assert module.queue.keys[:8].tolist() == data.positive_key.tolist() * 2


def test_order_of_the_queue_does_not_matter():
    module, other = method(), method()
    other.queue.rows.copy_(module.queue.rows.flip(0))
    torch.testing.assert_close(step(module, batch())["loss"], step(other, batch())["loss"])


def test_shuffling_moves_keys_between_parts_of_the_batch():
    module, x = method(encoder=Linear(norm=True), bn_splits=2), batch(8).positive
    seen = []
    module.key_encoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    first, second = module.encode_keys(x), module.encode_keys(x)
    assert not torch.allclose(first, second)  # other rows share their part
    assert not torch.equal(seen[0], x) and sorted(seen[0].tolist()) == sorted(x.tolist())


def test_parts_have_to_be_equal():
    with pytest.raises(ZooError, match="batch of 6 does not divide into bn_splits = 4"):
        step(method(encoder=Linear(norm=True), bn_splits=4), batch(6))
