"""Solarised views, and chains of views of different kinds."""

import torch
import torchvision.transforms.v2.functional as tv

from zoo.data import PairBatch, SolarizedViews, TwoViews
from zoo.data.view_styles import solarize

PLAIN = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "jitter_p": 0.0, "gray_p": 0.0, "blur_p": 0.0}


def _batch(n=40, size=16):
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(n)
    return PairBatch(images, images, ids, ids, ids)


def test_solarize_matches_torchvision():
    images = torch.rand(4, 3, 8, 8)
    threshold = torch.tensor([0.0, 0.3, 0.5, 1.0])
    want = torch.stack([tv.solarize(i, float(t)) for i, t in zip(images, threshold, strict=True)])
    torch.testing.assert_close(solarize(images, threshold), want)


def test_some_views_are_solarised_and_the_others_left_alone():
    torch.manual_seed(0)
    batch = _batch()
    made = SolarizedViews(solarize_p=0.3, size=16, mean=(0.0,) * 3, std=(1.0,) * 3, **PLAIN)(batch)
    scaled = batch.anchor.float() / 255
    for view in (made.anchor, made.positive):
        plain = (view - scaled).abs().amax((1, 2, 3)) < 1e-5
        assert 15 < plain.sum() < 39
        torch.testing.assert_close(view[~plain], solarize(scaled, torch.full((40,), 0.5))[~plain], atol=1e-5, rtol=0)


def test_chain_makes_dinos_views_and_small_crops():
    kinds = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    small = TwoViews(views=3, size=8, crop_scale=(0.05, 0.14), **kinds)
    second = SolarizedViews(views=1, solarize_p=1.0, size=16, crops=small, **{**PLAIN, **kinds})
    batch = _batch()
    made = TwoViews(views=1, size=16, crops=second, **{**PLAIN, **kinds})(batch)
    scaled = batch.anchor.float() / 255
    torch.testing.assert_close(made.anchor, scaled)
    torch.testing.assert_close(made.positive, solarize(scaled, torch.full((40,), 0.5)))
    assert [view.shape for view in made.views] == [(40, 3, 8, 8)] * 3
