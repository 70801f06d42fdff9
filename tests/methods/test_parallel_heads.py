"""The head's options of GroCo and AMCL, and both losses in the methods that use them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from zoo import ImageEncoder, MomentumContrast, SiameseContrast
from zoo.data import PairBatch
from zoo.losses import AMCL, GroCo, group_ordering_loss, info_nce
from zoo.losses.scores import normalize
from zoo.methods.encoders import split_batch_norm
from zoo.negatives import HardNegativeMixing

B, D = 12, 6


class Pixels(nn.Module):
    num_features = 12

    def forward(self, images):
        return images.flatten(1)


def encoder(**kwargs):
    torch.manual_seed(0)
    return ImageEncoder(Pixels(), dim=D, batch_norm=True, **kwargs)


def batch(views=2):
    g = torch.Generator().manual_seed(1)
    anchor, positive, *more = torch.randn(views, B, 3, 2, 2, generator=g)
    ids = torch.arange(B)
    return PairBatch(anchor, positive, ids, ids, ids, views=tuple(more))


def on_trainer(module):
    module._trainer = SimpleNamespace(current_epoch=0, global_step=0, log_every_n_steps=100, global_rank=0)
    return module


def test_last_norm_has_no_parameters_and_the_bias_before_it_is_gone():
    made = encoder(final_norm=True)
    assert [type(m).__name__ for m in made.head] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert not made.head[-1].affine and made.head[3].bias is None
    out = made(torch.randn(64, 3, 2, 2))
    torch.testing.assert_close(out.mean(0), torch.zeros(D), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(0, unbiased=False), torch.ones(D), atol=1e-3, rtol=0)
    split_batch_norm(made, 4)
    assert made.head[-1].weight is None
    parts = made(torch.randn(64, 3, 2, 2)).chunk(4)
    torch.testing.assert_close(torch.stack(parts).mean(1), torch.zeros(4, D), atol=1e-5, rtol=0)


def test_heads_side_by_side_have_the_mean_of_their_cosines():
    made = encoder(heads=3)
    a, b = (made(torch.randn(5, 3, 2, 2)) for _ in range(2))
    assert made.dim == 3 * D and a.shape == (5, 3 * D)
    x = made.features(torch.randn(5, 3, 2, 2))
    assert not torch.allclose(made.head[0](x), made.head[1](x))
    cosine = nn.functional.cosine_similarity
    heads = [cosine(p, q) for p, q in zip(a.split(D, 1), b.split(D, 1), strict=True)]
    torch.testing.assert_close(cosine(a, b), torch.stack(heads).mean(0))
    assert encoder(layers=0, heads=2).dim == 24


@pytest.mark.parametrize("views", [2, 4])
def test_groco_in_siamese_contrast(views):
    module = on_trainer(
        SiameseContrast(encoder(final_norm=True), GroCo(5), negatives_from="same", detach_candidates=True)
    )
    data = batch(views)
    images = [data.anchor, data.positive, *data.views]
    step = module.training_step(data, 0)
    unit = normalize(module.encoder(torch.cat(images))).chunk(views)
    others = [[v for v in range(views) if v != a] for a in range(views)]
    losses = []
    for a, rest in enumerate(others):
        positives = torch.stack([(unit[a] * unit[v]).sum(1) for v in rest], 1)
        negatives = (unit[a] @ unit[a].T)[~torch.eye(B, dtype=torch.bool)].view(B, B - 1)
        losses.append(group_ordering_loss(positives, negatives, n_negatives=5))
    torch.testing.assert_close(step["loss"], torch.stack(losses).mean())
    step["loss"].backward()
    assert all(p.grad.isfinite().all() for p in module.encoder.parameters())


def test_groco_and_mixing_in_momentum_contrast():
    mixing = HardNegativeMixing(n_hard=16, n_mix=8, n_query_mix=4)
    module = on_trainer(
        MomentumContrast(encoder(final_norm=True), GroCo(), queue_size=32, bn_splits=2, negatives=[mixing])
    )
    step = module.training_step(batch(), 0)
    assert step["negatives"].shape == (B, 32 + 12)
    positives, negatives, mask = step["positives"], step["negatives"], step["mask"]
    torch.testing.assert_close(step["loss"], group_ordering_loss(positives, negatives, mask))
    step["loss"].backward()
    assert any(p.grad.any() for p in module.encoder.parameters())


@pytest.mark.parametrize("form", ["hard", "soft"])
@pytest.mark.parametrize("kind", [SiameseContrast, MomentumContrast])
def test_amcl_in_both_methods(kind, form):
    options = {} if kind is SiameseContrast else {"queue_size": 32}
    module = on_trainer(kind(encoder(heads=3), AMCL(3, D, low=0.1, high=0.4, initial=0.2, form=form), **options))
    step = module.training_step(batch(), 0)
    step["loss"].backward()
    assert all(p.grad.isfinite().all() for p in module.loss.parameters())
    assert all(p.grad.any() for p in [*module.loss.parameters(), *(head[-1].weight for head in module.encoder.head)])
    if kind is MomentumContrast:
        assert module.queue.rows.shape == (32, 3 * D)
        module.on_after_backward()
        # A queue for each head: parts of equal norm.
        parts = module.queue.rows[:B].unflatten(1, (3, D)).norm(dim=2)
        torch.testing.assert_close(parts, torch.full((B, 3), 3**-0.5))
    else:
        # With a constant temperature the soft form is NT-Xent of each head.
        constant = AMCL(3, D, low=0.2, high=0.2, beta=0.0, form="soft")
        u = normalize(module.encoder(torch.cat([batch().anchor, batch().positive])).unflatten(1, (3, D))).transpose(
            0, 1
        )
        off = ~torch.eye(2 * B, dtype=torch.bool) & ~torch.eye(2 * B, dtype=torch.bool).roll(B, 0)
        want = sum(
            info_nce((h * h.roll(B, 0)).sum(1, keepdim=True), (h @ h.T)[off].view(2 * B, -1), None, 0.2) for h in u
        )
        on_trainer(module).loss = constant
        torch.testing.assert_close(module.training_step(batch(), 0)["loss"], want)
