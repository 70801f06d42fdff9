"""SimCLR's step, and what the methods share."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from zoo import ImageEncoder, SiameseContrast, TimmBackbone
from zoo.data import PairBatch
from zoo.errors import ZooError
from zoo.losses import InfoNCE, info_nce, normalize
from zoo.methods.siamese import in_batch_candidates


class Pixels(nn.Module):
    num_features = 12

    def forward(self, images):
        return images.flatten(1)


def method(**kwargs):
    torch.manual_seed(0)
    module = SiameseContrast(ImageEncoder(Pixels(), dim=4), InfoNCE(0.5), **kwargs)
    module._trainer = SimpleNamespace(current_epoch=0, global_step=0, log_every_n_steps=100, global_rank=0)
    return module


def batch(keys=(0, 1, 2), **kwargs):
    g = torch.Generator().manual_seed(1)
    views = torch.randn(2, len(keys), 3, 2, 2, generator=g)
    return PairBatch(views[0], views[1], torch.arange(len(keys)), torch.tensor(keys), torch.tensor(keys), **kwargs)


def test_loss_is_nt_xent_of_the_projections():
    module, data = method(), batch()
    u = normalize(torch.cat([module.encoder(data.anchor), module.encoder(data.positive)]))
    logits = (u @ u.T / 0.5).fill_diagonal_(-torch.inf)
    expected = nn.functional.cross_entropy(logits, torch.arange(6).roll(3))
    torch.testing.assert_close(module.training_step(data, 0)["loss"], expected)


def test_copies_of_the_same_content_are_no_negatives():
    mask = method().training_step(batch((7, 8, 7)), 0)["mask"]
    assert mask[0].tolist() == [False, True, False, False, True, False]
    assert mask[1].tolist() == [True, False, True, True, False, True]


def test_explicit_negatives_join_both_views():
    extra = torch.randn(3, 3, 2, 2)
    mask = torch.tensor([[True], [False], [True]])
    module = method()
    out = module.training_step(batch(negatives=extra, negative_key=torch.zeros(3, 1).long(), negative_mask=mask), 0)
    own = normalize(module.encoder(extra)).repeat(2, 1)
    torch.testing.assert_close(out["negatives"][:, -1], (out["query"] * own).sum(1))
    assert out["mask"][:, -1].tolist() == [True, False, True] * 2
    torch.testing.assert_close(out["loss"], info_nce(out["positives"], out["negatives"], out["mask"], 0.5))


def test_evaluation_uses_features_before_the_head():
    module, data = method(), batch()
    assert torch.equal(module.validation_step(data, 0)["features"], data.anchor.flatten(1))
    assert torch.equal(module.predict_step(data, 0)["index"], data.index)


def test_schedules():
    cosine = method(schedule="cosine", warmup_epochs=10)
    assert [cosine.rate(e, 110) for e in (0, 5, 10, 60)] == pytest.approx([0, 0.5, 1, 0.5])
    assert cosine.rate(110, 110) == pytest.approx(0)
    step = method(schedule="step", milestones=(0.6, 0.8))
    assert [step.rate(e, 200) for e in (0, 119, 120, 160)] == pytest.approx([1, 1, 0.1, 0.01])
    assert method(schedule="constant").rate(7, 10) == 1


def test_no_decay_for_biases_and_norms():
    module = method(exclude_from_decay=True, optimizer=lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.5))
    decayed, plain = module.configure_optimizers().param_groups
    assert decayed["weight_decay"] == 0.5 and all(p.ndim > 1 for p in decayed["params"])
    assert plain["weight_decay"] == 0 and all(p.ndim == 1 for p in plain["params"]) and plain["params"]


@pytest.mark.parametrize(
    ("layers", "batch_norm", "linear", "norms"), [(0, False, 0, 0), (1, True, 1, 0), (3, True, 3, 2)]
)
def test_heads(layers, batch_norm, linear, norms):
    head = ImageEncoder(Pixels(), dim=4, hidden=5, layers=layers, batch_norm=batch_norm).head
    assert sum(isinstance(m, nn.Linear) for m in head) == linear
    assert sum(isinstance(m, nn.BatchNorm1d) for m in head) == norms
    assert head(torch.randn(2, 12)).shape == (2, 4 if layers else 12)


def test_small_images_keep_their_resolution_in_the_stem():
    images = torch.randn(2, 3, 32, 32)
    small, large = (TimmBackbone("resnet18", small_images=flag) for flag in (True, False))
    assert small.model.forward_features(images).shape[-1] == 4
    assert large.model.forward_features(images).shape[-1] == 1
    assert small(images).shape == (2, small.num_features)


@pytest.mark.parametrize("arguments", [{"name": "resnet51"}, {"name": "vit_tiny_patch16_224", "small_images": True}])
def test_backbones_that_do_not_exist_are_one_line(arguments):
    with pytest.raises(ZooError):
        TimmBackbone(**arguments)


def test_one_pair_is_an_error():
    with pytest.raises(ZooError, match="one pair has no negatives"):
        method().training_step(batch((0,)), 0)


def raw_views(n_views=3, n=4, dim=5):
    return list(torch.randn(n_views, n, dim, generator=torch.Generator().manual_seed(2)))


def test_every_other_view_of_an_image_is_a_positive_of_its_own():
    views = raw_views()
    u = normalize(torch.stack(views))
    positives, negatives, mask = in_batch_candidates(views, torch.arange(4)).scores()
    total = []
    for v, i in ((v, i) for v in range(3) for i in range(4)):
        others = torch.stack([u[w, j] for w in range(3) for j in range(4) if j != i]) @ u[v, i] / 0.5
        total += [torch.logaddexp(s := u[v, i] @ u[w, i] / 0.5, others.logsumexp(0)) - s for w in range(3) if w != v]
    torch.testing.assert_close(info_nce(positives, negatives, mask, 0.5), torch.stack(total).mean())


@pytest.mark.parametrize(
    ("scope", "kept"),
    [("all", {0: {0, 1, 2}, 2: {0, 1, 2}}), ("same", {0: {0}, 2: {2}}), ("later", {0: {1, 2}, 2: set()})],
)
def test_views_that_negatives_come_from(scope, kept):
    mask = in_batch_candidates(raw_views(), torch.arange(4), negatives_from=scope).scores()[2]
    for view, others in kept.items():
        columns = mask[4 * view + 1].view(3, 4)
        assert not columns[:, 1].any()
        assert (
            {w for w in range(3) if columns[w, [0, 2, 3]].all()} == others == {w for w in range(3) if columns[w].any()}
        )


def test_small_crops_are_anchors_and_negatives_but_no_positives():
    module = method(positive_views=2)
    small = tuple(torch.randn(2, 3, 3, 2, 2, generator=torch.Generator().manual_seed(3)))
    data = batch().replace(views=small)
    z = [module.encoder(x) for x in (data.anchor, data.positive, *small)]
    blocks = [
        info_nce(*in_batch_candidates(z, data.anchor_key, positive_views=2, anchors=a).scores(), 0.5)
        for a in (range(2), range(2, 4))
    ]
    torch.testing.assert_close(module.training_step(data, 0)["loss"], torch.stack(blocks).mean())
    u = normalize(torch.stack(z))
    crops = in_batch_candidates(z, data.anchor_key, positive_views=2, anchors=range(2, 4)).scores()[0]
    torch.testing.assert_close(crops.view(2, 3, 2), torch.einsum("cbd,pbd->cbp", u[2:], u[:2]))


class TwoReadings(nn.Module):
    """Reads each view plainly and upside down."""

    readings, dim = 2, 4

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 4)

    def forward(self, images):
        return torch.cat([self.head(images.flatten(1)), self.head(images.flip(2).flatten(1))])

    def encode_alike(self, views):
        return [self(view) for view in views]


def test_the_loss_is_the_mean_over_combinations_of_readings():
    module, data = method(), batch()
    module.encoder = TwoReadings()
    (a0, a1), (b0, b1) = (module.encoder(x).chunk(2) for x in (data.anchor, data.positive))
    losses = [info_nce(*in_batch_candidates([a, b], data.anchor_key).scores(), 0.5) for a in (a0, a1) for b in (b0, b1)]
    torch.testing.assert_close(module.training_step(data, 0)["loss"], torch.stack(losses).mean())


def test_a_loss_may_read_embeddings():
    class Spread(nn.Module):
        takes_candidates = True

        def forward(self, candidates):
            return (candidates.query - candidates.positive).square().sum(1).mean()

    module, data = method(), batch()
    module.loss = Spread()
    u = normalize(module.encoder(torch.cat([data.anchor, data.positive])))
    expected = (u - u.roll(3, 0)).square().sum(1).mean()
    torch.testing.assert_close(module.training_step(data, 0)["loss"], expected)
