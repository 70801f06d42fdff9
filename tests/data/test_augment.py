"""Augmentation: torchvision's functional forms are the oracle; on top of it, what batches and views must satisfy."""

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data.augment import (
    CropBox,
    TwoViews,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    draw_crops,
    gaussian_blur,
    grayscale,
    resized_crop,
)
from zoo.data.pairs import PairBatch


def _images(n=6, height=20, width=24, seed=0):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def _batch(n=8, size=32):
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(n)
    return PairBatch(images, images, ids, ids, ids)


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (adjust_brightness, tv.adjust_brightness, [0.0, 0.3, 1.0, 1.8, 0.7, 2.5]),
        (adjust_contrast, tv.adjust_contrast, [0.0, 0.3, 1.0, 1.8, 0.7, 2.5]),
        (adjust_saturation, tv.adjust_saturation, [0.0, 0.3, 1.0, 1.8, 0.7, 2.5]),
        (adjust_hue, tv.adjust_hue, [-0.5, -0.2, 0.0, 0.1, 0.33, 0.5]),
    ],
)
def test_colour_matches_torchvision_per_image(ours, theirs, factors):
    images = _images()
    images[0, :, :5] = 0.4  # grey, black and two-channel ties: where hue is undefined or sits on an edge
    images[1, :, :5] = 0.0
    images[2, :2, :5] = 0.9
    expected = torch.stack([theirs(i, f) for i, f in zip(images, factors, strict=True)])
    torch.testing.assert_close(ours(images, torch.tensor(factors)), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("bytes_", [False, True])
@pytest.mark.parametrize("size", [8, 20, 33, 100])
def test_resized_crop_matches_torchvision(size, bytes_):
    images = _images()
    if bytes_:
        images = (images * 255).to(torch.uint8)
    box = CropBox(
        top=torch.tensor([0, 3, 19, 5, 0, 2]),
        left=torch.tensor([0, 4, 2, 0, 9, 1]),
        height=torch.tensor([20, 11, 1, 15, 3, 9]),
        width=torch.tensor([24, 7, 5, 24, 15, 23]),
    )
    flip = torch.tensor([False, True, False, True, True, False])
    expected = []
    for i, image in enumerate(images):
        top, left, height, width = (int(v[i]) for v in box)
        cut = tv.resized_crop(image, top, left, height, width, [size, size], antialias=True)
        expected.append(tv.horizontal_flip(cut) if flip[i] else cut)
    error = 0 if size > 96 else 1.1  # torchvision rounds after rows and after columns
    atol = error if bytes_ else 1e-5
    torch.testing.assert_close(resized_crop(images, box, size, flip), torch.stack(expected).float(), atol=atol, rtol=0)


@pytest.mark.parametrize("kernel", [3, 7])
def test_blur_and_grey_match_torchvision(kernel):
    images, sigma = _images(), torch.tensor([0.1, 0.5, 1.0, 1.5, 2.0, 0.0])
    blurred = gaussian_blur(images, sigma, kernel)
    for i, s in enumerate(sigma.tolist()):
        expected = tv.gaussian_blur(images[i], [kernel, kernel], [s, s]) if s else images[i]
        torch.testing.assert_close(blurred[i], expected, atol=1e-5, rtol=0)
    where = torch.tensor([True, False] * 3)
    grey = grayscale(images, where)
    torch.testing.assert_close(grey[where], tv.rgb_to_grayscale(images[where], 3), atol=1e-6, rtol=0)
    assert torch.equal(grey[~where], images[~where])


@settings(max_examples=15)
@given(height=st.integers(12, 140), width=st.integers(12, 140), reach=st.integers(1, 11), sigma=st.floats(0.1, 3))
def test_blur_matches_torchvision_at_any_size(height, width, reach, sigma):
    images, kernel = _images(1, height, width), 2 * reach + 1
    expected = tv.gaussian_blur(images, [kernel, kernel], [sigma, sigma])
    torch.testing.assert_close(gaussian_blur(images, torch.tensor([sigma]), kernel), expected, atol=1e-5, rtol=0)


@settings(max_examples=40)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    low=st.floats(0.01, 1),
    ratio=st.floats(0.2, 1),
    seed=st.integers(0, 999),
)
def test_crops_lie_inside_the_image(height, width, low, ratio, seed):
    torch.manual_seed(seed)
    top, left, h, w = draw_crops(16, height, width, (low, 1.0), (ratio, 1 / ratio))
    assert (h >= 1).all() and (w >= 1).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


def test_crops_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    _, _, h, w = draw_crops(20_000, 32, 32, (0.3, 1.0))
    from torchvision.transforms.v2 import RandomResizedCrop

    theirs = RandomResizedCrop(32, (0.3, 1.0), antialias=True)
    image = torch.zeros(3, 32, 32)
    drawn = [theirs.make_params([image]) for _ in range(4000)]
    for ours, name in ((h, "height"), (w, "width")):
        reference = torch.tensor([float(d[name]) for d in drawn])
        assert abs(ours.double().mean() - reference.mean()) < 0.4
        assert abs(ours.double().std() - reference.std()) < 0.4


def test_views_differ_between_views_and_images_and_repeat_with_the_seed():
    transform, batch = TwoViews(32, blur_p=0.5), _batch()
    batch.anchor[1] = batch.anchor[0]
    torch.manual_seed(0)
    one = transform(batch)
    torch.manual_seed(0)
    two = transform(batch)
    assert torch.equal(one.anchor, two.anchor) and torch.equal(one.positive, two.positive)
    assert one.anchor.shape == (8, 3, 32, 32) and one.anchor.dtype == torch.float32
    assert not torch.equal(one.anchor, one.positive) and not torch.equal(one.anchor[0], one.anchor[1])
    assert batch.anchor.dtype == torch.uint8  # the input is left alone


def test_all_probabilities_zero_is_evaluation():
    transform, batch = TwoViews(32, (1.0, 1.0), (1.0, 1.0), 0.0, jitter_p=0.0, gray_p=0.0, blur_p=0.0), _batch()
    views, still = transform(batch), transform.evaluate(batch.anchor)
    torch.testing.assert_close(views.anchor, still, atol=1e-5, rtol=0)
    torch.testing.assert_close(still, (batch.anchor / 255 - 0.5) / 0.25)


def test_evaluation_crops_the_centre():
    images = torch.randint(0, 256, (2, 3, 40, 48), dtype=torch.uint8)
    out = TwoViews(28, eval_crop=0.7, mean=(0.0,) * 3, std=(1.0,) * 3).evaluate(images)
    torch.testing.assert_close(out, tv.center_crop(images / 255, [28, 28]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("jitter", [(0.8, 0.8, 0.8, 0.2), (1.5, 0.0, 1.5, 0.5)])
def test_views_stay_in_range(jitter):
    views = TwoViews(32, jitter=jitter, jitter_p=1.0, blur_p=0.5, mean=(0.0,) * 3, std=(1.0,) * 3).augment(
        _batch(64).anchor
    )
    assert views.min() >= -1e-5 and views.max() <= 1 + 1e-5 and views.isfinite().all()


def test_augments_explicit_negatives():
    batch = _batch()
    assert TwoViews(16)(batch.replace(negatives=batch.anchor[:4])).negatives.shape == (4, 3, 16, 16)


@pytest.mark.parametrize("size", [32, 112])
def test_views_do_not_depend_on_the_chunks_that_make_them(size, monkeypatch):
    transform, images = TwoViews(size), _batch(12, size).anchor
    torch.manual_seed(3)
    whole = transform.augment(images)
    monkeypatch.setattr("zoo.data.augment._CHUNK", 5 * size**2)
    torch.manual_seed(3)
    torch.testing.assert_close(transform.augment(images), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [32, 112])
def test_operations_skipped_on_a_cpu_are_neutral_elsewhere(size, monkeypatch):
    """What a CPU skips for an image, a GPU computes and discards: both give the same views."""
    transform, images = TwoViews(size), _batch(12, size).anchor
    torch.manual_seed(4)
    skipped = transform.augment(images)

    def everywhere(rows, function, images, amount):
        return torch.where(rows[:, None, None, None], function(images, amount), images)

    monkeypatch.setattr("zoo.data.augment._where", everywhere)
    torch.manual_seed(4)
    torch.testing.assert_close(transform.augment(images), skipped, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [32, 112])
def test_no_value_is_read_from_an_accelerator(size):
    """The meta device has no values: reading one (a GPU would stop for it) is an error there."""
    transform, images = TwoViews(size).to("meta"), torch.empty(4, 3, 120, 120, dtype=torch.uint8, device="meta")
    ids = torch.arange(4)
    views = transform(PairBatch(images, images, ids, ids, ids, negatives=images))
    assert views.anchor.shape == views.positive.shape == views.negatives.shape == (4, 3, size, size)
    assert transform.evaluate(images).shape == (4, 3, size, size)


def test_strength_of_each_part_follows_its_probability():
    """Of many views of one colourful image, as many are grey as asked."""
    torch.manual_seed(0)
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[:, 0], image[:, 2] = 200, 50
    views = TwoViews(8, gray_p=0.3, blur_kernel=3, mean=(0.0,) * 3, std=(1.0,) * 3).augment(image.expand(4000, 3, 8, 8))
    grey = (views.amax(1) - views.amin(1)).amax((1, 2)) < 1e-4
    assert abs(grey.float().mean() - 0.3) < 0.03
