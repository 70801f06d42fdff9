"""The embedded image arena: the same everywhere, cached safely, learnable but not by looking at pixels."""

import hashlib

import numpy as np
import pytest
import torch

from zoo.data.shapes import SILHOUETTES, Shapes
from zoo.errors import ZooError


@pytest.fixture
def shapes():
    return Shapes(n_train=400, n_val=60, n_test=100)


def test_draws_are_the_same_on_every_machine(shapes):
    assert hashlib.sha256(shapes.draws("train").tobytes()).hexdigest()[:16] == "0a46a0aa292af1cf"


def test_pixels_are_the_same_on_every_machine(shapes):
    images = shapes.render("val")
    assert images.shape == (60, 3, 32, 32) and images.dtype == np.uint8
    block_means = images.reshape(60, 3, 4, 8, 4, 8).mean((0, 3, 5))
    np.testing.assert_allclose(block_means[:, 1, 2], [113.556, 115.85, 105.786], atol=0.05)
    np.testing.assert_allclose(images[7, :, 16, 16], [78, 83, 45], atol=1)


def test_threads_change_nothing(shapes):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    one = shapes.render("val")
    torch.set_num_threads(2)
    two = shapes.render("val")
    torch.set_num_threads(before)
    assert np.array_equal(one, two)


def test_splits_share_no_image_and_a_longer_split_extends_a_shorter(shapes):
    draws = {name: shapes.draws(name) for name in ("train", "val", "test")}
    assert not set(draws["train"][:, 1]) & set(draws["test"][:, 1]) | set(draws["val"][:, 1]) & set(draws["test"][:, 1])
    longer = Shapes(n_train=450)
    assert np.array_equal(longer.draws("train")[:400], draws["train"])
    assert not np.array_equal(Shapes(seed=1, n_train=400).draws("train"), draws["train"])


def test_every_silhouette_is_drawn_and_distinct():
    clean = Shapes(size=64, n_train=600, distractors=0, texture=0.0, rotation=0.0, scale=(0.9, 0.9))
    labels = clean.labels("train")
    assert set(labels) == set(range(16))
    axis = torch.linspace(-1.2, 1.2, 65)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    masks = torch.stack([field(x, y) < 0 for field in SILHOUETTES.values()]).flatten(1).float()
    overlap = (masks @ masks.T) / (masks.sum(1)[:, None] + masks.sum(1)[None, :] - masks @ masks.T)
    assert (overlap - torch.eye(16)).max() < 0.85
    share = masks.mean(1)
    assert share.min() > 0.1 and share.max() < 0.6


@pytest.mark.parametrize("name", list(SILHOUETTES))
def test_outlines_have_unit_slope(name):
    # Anti-aliasing takes the field for a distance: across the outline it has to change by 1 per unit of length.
    axis = torch.linspace(-1.1, 1.1, 401, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x.requires_grad_(), y.requires_grad_()
    field = SILHOUETTES[name](x, y)
    dx, dy = torch.autograd.grad(field.sum(), (x, y))
    slope = torch.hypot(dx, dy)[field.detach().abs() < 0.02]
    assert abs(slope.median() - 1) < 0.05


def test_cache_is_reused_mapped_and_keyed_by_arguments(shapes, tmp_path, monkeypatch):
    shapes.prepare(tmp_path)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert len(files) == 3 and all(name.endswith(".npy") for name in files)
    monkeypatch.setattr(Shapes, "render", lambda *_: pytest.fail("rendered again"))
    pairs = shapes.split("train", tmp_path)
    assert isinstance(pairs.images, np.memmap)
    assert np.array_equal(pairs.columns["label"], shapes.labels("train"))
    with pytest.raises(pytest.fail.Exception):
        Shapes(n_train=400, rotation=0.1).split("train", tmp_path)


def test_cache_folder_from_the_environment(shapes, tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "new"))
    shapes.split("val", None)
    assert len(list((tmp_path / "new").iterdir())) == 1
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(ZooError, match="ZOO_CACHE"):
        shapes.split("val", None)


def test_pixels_alone_tell_little(shapes):
    train, test = shapes.render("train"), shapes.render("test")
    features = [
        torch.nn.functional.normalize(torch.from_numpy(i).float().flatten(1) - 127, dim=1) for i in (train, test)
    ]
    nearest = (features[1] @ features[0].T).argmax(1).numpy()
    assert (shapes.labels("train")[nearest] == shapes.labels("test")).mean() < 0.5
