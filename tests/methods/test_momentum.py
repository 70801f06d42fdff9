"""MoCo's step: order of operations, the key encoder, the queue."""

import copy
from types import SimpleNamespace

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from zoo import MomentumContrast
from zoo.data import PairBatch
from zoo.losses import InfoNCE, normalize
from zoo.methods.encoders import SplitBatchNorm, split_batch_norm
from zoo.methods.momentum import ema_update


class Linear(nn.Sequential):
    """An encoder without batch statistics."""

    def __init__(self, norm=False):
        super().__init__(nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 4))
        self.dim = 4

    features = nn.Sequential.forward


def method(**kwargs):
    torch.manual_seed(0)
    module = MomentumContrast(
        kwargs.pop("encoder", None) or Linear(), InfoNCE(0.2), queue_size=kwargs.pop("queue_size", 12), **kwargs
    )
    module._trainer = SimpleNamespace(  # what a step asks of Lightning
        current_epoch=0, global_step=0, log_every_n_steps=100, global_rank=0
    )
    return module.train()


def batch(n=4, seed=0, **kwargs):
    g = torch.Generator().manual_seed(seed)
    views, keys = torch.randn(2, n, 6, generator=g), torch.arange(n) + 100 * seed
    return PairBatch(views[0], views[1], keys, keys, keys, **kwargs)


def step(module, data):
    out = module.training_step(data, 0)
    out["loss"].backward()
    module.on_after_backward()
    return out


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, "start"), (0.0, "query"), (0.9, "blend")])
def test_momentum_update_precedes_the_key_pass(momentum, expected):
    module = method(momentum=momentum)
    start = [p.clone() for p in module.key_encoder.parameters()]
    with torch.no_grad():
        for p in module.encoder.parameters():
            p.add_(1)
    data = batch()
    step(module, data)
    query = [p.detach() for p in module.encoder.parameters()]
    wanted = {"start": start, "query": query, "blend": [0.9 * a + 0.1 * b for a, b in zip(start, query, strict=True)]}
    for got, want in zip(module.key_encoder.parameters(), wanted[expected], strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(module.queue.rows[:4], normalize(module.key_encoder(data.positive)).detach())


def test_keys_are_enqueued_after_the_loss_and_never_their_own_negatives():
    module, data = method(), batch()
    before = module.queue.rows.clone()
    out = module.training_step(data, 0)
    torch.testing.assert_close(out["negatives"], out["query"] @ before.T)
    assert torch.equal(module.queue.rows, before)
    module.on_after_backward()
    assert module.queue.keys[:4].tolist() == [0, 1, 2, 3]
    again = module.training_step(data, 0)  # the same content: its old keys are no negatives
    assert not again["mask"][torch.arange(4), torch.arange(4)].any() and again["mask"].sum() == 4 * 12 - 4


def test_only_the_query_encoder_is_trained():
    module = method(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    step(module, batch())
    assert all(p.grad is None and not p.requires_grad for p in module.key_encoder.parameters())
    trained = {id(p) for group in module.configure_optimizers().param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.encoder.parameters()}


def test_the_loss_of_a_query_does_not_depend_on_the_others():
    module, data = method(momentum=1.0), batch()
    out = module.training_step(data, 0)
    module._pending.clear()
    alone = PairBatch(data.anchor[:1], data.positive[:1], data.index[:1], data.anchor_key[:1], data.positive_key[:1])
    torch.testing.assert_close(module.training_step(alone, 0)["negatives"], out["negatives"][:1])


def test_batch_norm_of_the_key_encoder_keeps_its_own_statistics():
    module = method(encoder=Linear(norm=True), momentum=0.5)
    data = batch(8)
    data = data.replace(positive=data.positive * 3 + 1)
    step(module, data)
    ours, theirs = module.encoder[1].running_mean, module.key_encoder[1].running_mean
    x = module.key_encoder[0](data.positive)
    torch.testing.assert_close(theirs, 0.1 * x.mean(0))
    assert not torch.allclose(ours, theirs)


def test_symmetric_loss_averages_both_directions_and_enqueues_both_keys():
    data = batch()
    single, swapped = method(momentum=1.0), method(momentum=1.0)
    other = data.replace(anchor=data.positive, positive=data.anchor)
    expected = (single.training_step(data, 0)["loss"] + swapped.training_step(other, 0)["loss"]) / 2
    both = method(momentum=1.0, symmetric=True)
    torch.testing.assert_close(step(both, data)["loss"], expected)
    assert both.queue.pointer == 8


def test_shuffled_keys_come_back_in_order():
    module = method(bn_splits=2)
    x = batch(8).anchor
    torch.testing.assert_close(module.encode_keys(x), module.key_encoder(x))


def test_explicit_negatives_are_scored_by_the_key_encoder():
    extra = torch.randn(8, 6)
    mask = torch.tensor([[True, True], [True, False], [True, True], [False, False]])
    module = method(momentum=1.0)
    out = module.training_step(batch(negatives=extra, negative_key=torch.zeros(4, 2).long(), negative_mask=mask), 0)
    own = normalize(module.key_encoder(extra)).view(4, 2, 4)
    torch.testing.assert_close(out["negatives"][:, 12:], torch.einsum("bd,bkd->bk", out["query"], own))
    assert torch.equal(out["mask"][:, 12:], mask)


def test_split_batch_norm_is_batch_norm_of_each_part():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.BatchNorm2d(3))
    split = nn.Sequential(nn.BatchNorm2d(3))
    split_batch_norm(split, 2)
    assert isinstance(split[0], SplitBatchNorm)
    x = torch.randn(6, 3, 4, 4) * 3 + 1
    parts = [nn.BatchNorm2d(3) for _ in range(2)]
    expected = torch.cat([bn(part) for bn, part in zip(parts, x.chunk(2), strict=True)])
    torch.testing.assert_close(split(x), expected)
    torch.testing.assert_close(split[0].running_var, (parts[0].running_var + parts[1].running_var) / 2)
    plain.load_state_dict(split.state_dict())
    torch.testing.assert_close(split.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("training", [True, False])
def test_split_batch_norm_keeps_what_timm_fused_with_it(training):
    fused = BatchNormAct2d(3).train(training)
    split = nn.Sequential(BatchNormAct2d(3))
    split_batch_norm(split, 2)
    x = torch.randn(6, 3, 4, 4)
    parts = x.chunk(2) if training else [x]
    torch.testing.assert_close(split.train(training)(x), torch.cat([fused(part) for part in parts]))
    assert split.state_dict().keys() == nn.Sequential(fused).state_dict().keys()


def test_ema_leaves_buffers_alone():
    average, source = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    source.running_mean.fill_(5)
    ema_update(average, source, 0.5)
    assert average.running_mean.tolist() == [0, 0]


def test_further_views_are_queries_of_the_same_key():
    module, data = method(), batch()
    more = batch(seed=7).anchor
    out = module.training_step(data.replace(views=(more,)), 0)
    single = [method().training_step(data.replace(anchor=view), 0) for view in (data.anchor, more)]
    torch.testing.assert_close(out["loss"], (single[0]["loss"] + single[1]["loss"]) / 2)
    torch.testing.assert_close(out["negatives"], torch.cat([s["negatives"] for s in single]))


class TwoReadings(nn.Module):
    """Reads every view as it is, and through a part that the momentum copy shares."""

    readings, dim = 2, 4

    def __init__(self):
        super().__init__()
        self.plain, self.shared = Linear(), nn.Linear(6, 6)

    def forward(self, x):
        return torch.cat([self.plain(x), self.plain(self.shared(x))])

    def encode_alike(self, views):
        return [self(view) for view in views]

    def momentum_copy(self):
        return copy.deepcopy(self, {id(self.shared): self.shared})


def test_all_readings_meet_and_are_enqueued():
    module, data = method(encoder=TwoReadings(), queue_size=16), batch()
    before = module.queue.rows.clone()
    queries, keys = module.encoder(data.anchor).chunk(2), module.key_encoder(data.positive).chunk(2)
    losses = []
    for q in queries:
        for k in keys:
            q1, k1 = normalize(q), normalize(k)
            logits = torch.cat([(q1 * k1).sum(1, keepdim=True), q1 @ before.T], 1) / 0.2
            losses.append(nn.functional.cross_entropy(logits, torch.zeros(4, dtype=torch.long)))
    out = step(module, data)
    torch.testing.assert_close(out["loss"], torch.stack(losses).mean())
    torch.testing.assert_close(module.queue.rows[:8], normalize(torch.cat(keys)))


def test_shared_parts_learn_and_are_not_averaged():
    module = method(encoder=TwoReadings(), queue_size=16)
    assert module.key_encoder.shared is module.encoder.shared
    before = module.encoder.shared.weight.clone()
    step(module, batch())
    assert module.encoder.shared.weight.grad.abs().sum() > 0
    assert torch.equal(module.encoder.shared.weight, before)


def test_shuffled_readings_come_back_in_order():
    module, data = method(encoder=TwoReadings(), queue_size=16, bn_splits=2), batch()
    torch.testing.assert_close(module.encode_keys(data.anchor), module.key_encoder(data.anchor))
