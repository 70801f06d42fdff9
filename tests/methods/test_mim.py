"""Mutual information machines: what a step computes, what the decoder sees, and which features evaluation reads."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from zoo import ImageDecoder, MutualInformationMachine
from zoo.data import PairBatch, Shapes, Silhouettes, StillAndView
from zoo.errors import ZooError
from zoo.losses import CMIM, MIM, VAE, CodeInfoNCE, info_nce, normalize


class Posterior(nn.Module):
    dim = 8

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 4, 8)

    def forward(self, images):
        return self.layer(images.flatten(1))


def machine(loss, size=4, **kwargs):
    torch.manual_seed(0)
    module = MutualInformationMachine(Posterior(), loss, ImageDecoder(4, 6, size=size), **kwargs)
    module._trainer = SimpleNamespace(current_epoch=0, global_step=0, log_every_n_steps=100, global_rank=0)
    return module


def batch(keys=(0, 1, 2, 3)):
    images = torch.rand(2, len(keys), 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return PairBatch(images[0], images[1], torch.arange(len(keys)), torch.tensor(keys), torch.tensor(keys))


def step(module, data):
    torch.manual_seed(7)
    return module.training_step(data, 0)


def test_cmim_is_mim_with_its_factor():
    data = batch()
    ours, theirs = step(machine(CMIM()), data), step(machine(MIM()), data)
    torch.testing.assert_close(ours["terms"].likelihood, theirs["terms"].likelihood)
    torch.testing.assert_close(ours["loss"], theirs["loss"] - ours["terms"].match.mean())
    assert ours["positives"].eq(1).all()
    assert ours["terms"].match.max() < 0


def test_step_from_first_principles():
    module, data = machine(VAE()), batch()
    out = step(module, data)
    mean, log_scale = module.encoder(data.anchor).chunk(2, 1)
    torch.manual_seed(7)
    z = mean + log_scale.exp() * torch.randn_like(mean)
    grey = data.anchor.mean(1, keepdim=True)
    bits = nn.functional.binary_cross_entropy_with_logits(module.decoder(z), grey, reduction="sum") / len(data)
    q = torch.distributions.Normal(mean, log_scale.exp()).log_prob(z).sum(1).mean()
    p = torch.distributions.Normal(0, 1).log_prob(z).sum(1).mean()
    torch.testing.assert_close(out["loss"], bits - p + q)
    torch.testing.assert_close(out["query"], normalize(z))


def test_info_nce_takes_the_other_view_and_leaves_the_decoder_alone():
    module, data = machine(CodeInfoNCE(0.5)), batch()
    out = step(module, data)
    torch.testing.assert_close(out["loss"], info_nce(out["positives"], out["negatives"], out["mask"], 0.5))
    assert out["positives"].max() < 1
    assert not any(p.requires_grad for p in module.decoder.parameters())
    moved = step(module, data.replace(positive=data.positive.flip(0)))
    assert not torch.equal(moved["positives"], out["positives"])


def test_copies_of_the_same_content_are_no_negatives():
    out = step(machine(CMIM()), batch((5, 6, 5, 7)))
    assert out["mask"][0].tolist() == [False, True, False, True]


@pytest.mark.parametrize("loss", [CMIM(), MIM()])
def test_one_image_has_no_contrast(loss):
    out = step(machine(loss), batch((3,)))
    assert out["terms"].match.tolist() == [0.0] and out["loss"].isfinite()


def test_detached_candidates_halve_who_is_pushed():
    def grads(detach):
        module = machine(CMIM(), detach_candidates=detach)
        out = step(module, batch())
        return torch.autograd.grad(out["terms"].match.sum(), module.encoder.layer.weight)[0]

    full, half = grads(False), grads(True)
    assert half.norm() > 0 and not torch.allclose(full, half)


def test_scale_is_clamped():
    module = machine(MIM())
    module.encoder.layer.bias.data[4:] = -50
    _, log_scale = module.posterior(batch().anchor)
    assert log_scale.eq(-6).all()
    assert step(module, batch())["loss"].isfinite()


def test_reduction_and_normalisation_reach_the_terms():
    data = batch()
    plain = step(machine(MIM()), data)["terms"]
    other = step(machine(MIM(), reduction="mean", normalize="loss"), data)["terms"]
    torch.testing.assert_close(other.likelihood, plain.likelihood / 16)
    torch.testing.assert_close(other.posterior, plain.posterior / 4)
    torch.testing.assert_close(other.prior, plain.prior / 4)


def test_features():
    data = batch()
    mean, _ = machine(MIM()).posterior(data.anchor)
    torch.testing.assert_close(machine(MIM()).features(data.anchor), mean)
    decoder = machine(MIM(), features_from="decoder")
    found = decoder.features(data.anchor)
    torch.testing.assert_close(decoder.decoder.output(found).view(4, 1, 4, 4), decoder.decoder(mean))
    drawn = machine(MIM(), features_from="sample").features(data.anchor)
    assert drawn.shape == mean.shape and not torch.allclose(drawn, mean)


def test_decoder_of_colour_and_of_thumbnails():
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(ImageDecoder(4, size=8, channels=3).target(images), images)
    small = ImageDecoder(4, size=4).target(images)
    torch.testing.assert_close(small[:, 0, 0, 0], images[:, :, :2, :2].mean((1, 2, 3)))
    with pytest.raises(ZooError, match="hidden layer"):
        ImageDecoder(4, layers=0)


def test_widths_have_to_agree():
    with pytest.raises(ZooError, match="make it 10"):
        MutualInformationMachine(Posterior(), MIM(), ImageDecoder(5))


def test_training_makes_codes_tell_their_image():
    module, data = machine(CMIM()), batch()
    before = module.reconstruction_error(data.anchor).mean()
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        module.training_step(data, 0)["loss"].backward()
        optimizer.step()
    assert module.reconstruction_error(data.anchor).mean() < before
    assert module.posterior(data.anchor)[1].mean() < -0.3  # a posterior of low entropy is rewarded


def test_silhouettes_are_the_objects_of_the_shapes(tmp_path):
    arguments = {"size": 24, "n_train": 6, "n_val": 4, "n_test": 4, "distractors": 0}
    source = Silhouettes(**arguments)
    source.prepare(tmp_path)
    pairs = source.split("train", tmp_path)
    images = pairs.fetch(range(6))[0]
    assert images.unique().tolist() == [0, 255] and torch.equal(images[:, 0], images[:, 2])
    assert pairs.columns["label"].tolist() == Shapes(**arguments).labels("train").tolist()
    # Where a plain rendering has one colour for the ground, ink lies where its colour is another.
    plain = torch.from_numpy(Shapes(**arguments, texture=0.0).render("train")).float()
    ink = images[:, 0] > 0
    for image, where in zip(plain, ink, strict=True):
        inside, outside = image[:, where].mean(1), image[:, ~where].mean(1)
        assert (inside - outside).abs().max() > 30


def test_anchor_is_the_image_and_positive_a_view():
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    transform = StillAndView(size=8, crop_scale=(0.3, 0.5), mean=(0, 0, 0), std=(1, 1, 1))
    keys = torch.arange(3)
    made = transform(PairBatch(images, images, keys, keys, keys))
    torch.testing.assert_close(made.anchor, images / 255)
    assert made.positive.shape == made.anchor.shape and not torch.allclose(made.positive, made.anchor)
    assert made.views == ()
