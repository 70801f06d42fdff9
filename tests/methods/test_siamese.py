"""SimCLR's step, and what the methods share."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from zoo import ImageEncoder, SiameseContrast, TimmBackbone
from zoo.data import PairBatch
from zoo.errors import ZooError
from zoo.losses import InfoNCE, info_nce, normalize


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
