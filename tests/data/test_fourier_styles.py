"""Style transfer against NumPy's full transform, and what views in batch styles must satisfy."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import MomentumContrast
from zoo.data.augment import TwoViews
from zoo.data.fourier_styles import FourierStyles, half_window, substitute_amplitudes
from zoo.data.pairs import PairBatch
from zoo.errors import ZooError
from zoo.losses import InfoNCE
from zoo.methods.encoders import ConvNet, ImageEncoder
from zoo.negatives import FeatureTransformation

PLAIN: dict[str, Any] = {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "flip": 0.0,
    "jitter_p": 0.0,
    "gray_p": 0.0,
    "blur_p": 0.0,
}
RAW: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def _images(n=5, height=12, width=9, seed=0, dtype=torch.float64):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _batch(n=8, size=16):
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(n)
    return PairBatch(images, images, ids, ids, ids)


def _frequencies(height, width, window):
    rows, columns = (np.abs(np.round(np.fft.fftfreq(n) * n)) for n in (height, width))
    return (rows[:, None] <= window[0]) & (columns[None] <= window[1])


def _reference(images, sources, window):
    """The definition: full spectrum, masked amplitudes, complex inverse."""
    height, width = images.shape[2:]
    spectrum = np.fft.fft2(images.numpy())
    amplitude = np.where(_frequencies(height, width, window), np.abs(spectrum)[sources], np.abs(spectrum))
    out = np.fft.ifft2(amplitude * np.exp(1j * np.angle(spectrum)))
    assert np.abs(out.imag).max() < 1e-12
    return out.real


@settings(max_examples=30)
@given(
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    window=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    seed=st.integers(0, 99),
    one=st.booleans(),
)
def test_transfer_is_the_definition_and_real(height, width, window, seed, one):
    images = _images(4, height, width, seed)
    sources = torch.randint(4, () if one else (4,), generator=torch.Generator().manual_seed(seed))
    out = substitute_amplitudes(images, sources, window)
    np.testing.assert_allclose(out, _reference(images, np.resize(sources, 4), window), atol=1e-10)


@pytest.mark.parametrize(("height", "width", "window"), [(12, 9, (2, 1)), (9, 12, (1, 3)), (8, 8, (0, 0))])
def test_low_amplitudes_are_the_styles_and_all_else_is_kept(height, width, window):
    images = _images(5, height, width)
    out = substitute_amplitudes(images, torch.tensor(3), window)
    before, after = np.fft.fft2(images.numpy()), np.fft.fft2(out.numpy())
    low = _frequencies(height, width, window)
    np.testing.assert_allclose(np.abs(after)[..., low], np.broadcast_to(np.abs(before)[3], before.shape)[..., low])
    np.testing.assert_allclose(np.abs(after)[..., ~low], np.abs(before)[..., ~low])
    np.testing.assert_allclose(after / np.abs(after), before / np.abs(before), atol=1e-9)
    torch.testing.assert_close(out[3], images[3])
    torch.testing.assert_close(substitute_amplitudes(out, torch.tensor(3), window), out)


def test_windows_from_the_mean_to_everything():
    images = _images()
    means = substitute_amplitudes(images, torch.tensor(2), (0, 0))
    torch.testing.assert_close(means - images, (images[2] - images).mean((2, 3), keepdim=True).expand_as(images))
    everything = substitute_amplitudes(images, torch.tensor(2), (6, 4))
    torch.testing.assert_close(substitute_amplitudes(images, torch.tensor(2), (50, 50)), everything)
    swapped = np.abs(np.fft.fft2(everything.numpy()))
    np.testing.assert_allclose(swapped, np.broadcast_to(swapped[2], swapped.shape))


def test_one_image_alone_keeps_its_style():
    alone = _images(1)
    torch.testing.assert_close(substitute_amplitudes(alone, torch.tensor(0), (3, 3)), alone)
    images = _images()
    torch.testing.assert_close(substitute_amplitudes(images, torch.arange(5), (3, 3)), images)


def test_an_image_without_contrast_takes_a_style_too():
    images = _images()
    images[1] = 0
    out = substitute_amplitudes(images, torch.tensor(0), (2, 2))
    assert out.isfinite().all()
    np.testing.assert_allclose(np.fft.fft2(out[1].numpy())[:, 0, 0], np.fft.fft2(images[0].numpy())[:, 0, 0])


def test_clamping_is_an_option_and_single_precision_stays():
    images = _images(dtype=torch.float32)
    free, cut = (substitute_amplitudes(images, torch.tensor(1), (3, 3), clamp) for clamp in (False, True))
    assert free.min() < 0 and torch.equal(free.clamp(0, 1), cut)
    assert free.dtype == torch.float32 and free.shape == images.shape
    torch.testing.assert_close(free[1], images[1], atol=1e-6, rtol=0)


def test_half_windows_are_rounded_down_and_follow_the_shape():
    assert half_window(0.0, 32, 32) == (0, 0)
    assert half_window(0.25, 32, 16) == (8, 4)
    assert half_window(0.2, 32, 48) == (7, 10)


def _styles(views):
    """Mean of each channel of each image: what a window of frequency zero exchanges."""
    return views.mean((2, 3))


def test_batch_mode_gives_each_view_one_style_of_its_own():
    batch = _batch(64)
    transform = FourierStyles(mode="batch", ratio=(0.0, 0.0), clamp=False, size=16, views=3, **PLAIN, **RAW)
    torch.manual_seed(0)
    made = transform(batch)
    chosen = []
    for view in (made.anchor, made.positive, *made.views):
        style = _styles(view)
        torch.testing.assert_close(style, style[:1].expand_as(style))
        distance = (_styles(batch.anchor / 255) - style[0]).abs().amax(1)
        assert distance.min() < 1e-5  # it is the style of an image of the batch
        chosen.append(int(distance.argmin()))
    assert len(set(chosen)) == 3


def test_image_mode_gives_each_image_a_style_of_its_own():
    batch = _batch(32)
    transform = FourierStyles(mode="image", ratio=(0.0, 0.0), clamp=False, size=16, **PLAIN, **RAW)
    torch.manual_seed(0)
    distance = (_styles(transform(batch).anchor)[:, None] - _styles(batch.anchor / 255)).abs().amax(2)
    assert distance.amin(1).max() < 1e-5 and len(distance.argmin(1).unique()) > 8


def test_shared_style_is_one_for_all_views():
    transform = FourierStyles(shared_style=True, ratio=(0.0, 0.2), size=16, **PLAIN, **RAW)
    for seed in range(3):
        torch.manual_seed(seed)
        made = transform(_batch())
        torch.testing.assert_close(made.anchor, made.positive)
    torch.manual_seed(0)
    assert not torch.allclose(FourierStyles(size=16, **PLAIN)(_batch()).anchor, transform(_batch()).positive)


@pytest.mark.parametrize("batch_colour", [True, False])
def test_colour_of_a_view_is_one_or_each_images_own(batch_colour):
    batch = _batch()
    same = batch.replace(anchor=batch.anchor[:1].expand(8, 3, 16, 16).contiguous())
    options: dict[str, Any] = {**PLAIN, "jitter_p": 1.0}
    for seed in range(3):
        torch.manual_seed(seed)
        made = FourierStyles(batch_colour=batch_colour, size=16, **options)(same)
        alike = torch.allclose(made.anchor, made.anchor[:1].expand_as(made.anchor), atol=1e-5)
        assert alike == batch_colour and not torch.allclose(made.anchor, made.positive, atol=1e-3)


def test_geometry_is_each_images_own_whatever_the_style():
    images = _batch().anchor[:1].expand(8, 3, 16, 16).contiguous()
    made = FourierStyles(size=16, **{**PLAIN, "crop_scale": (0.3, 0.6), "flip": 0.5}).augment(images)
    assert not torch.allclose(made[0], made[1], atol=1e-2)


def test_draws_repeat_with_the_seed_and_negatives_have_a_view():
    transform, batch = FourierStyles(size=16), _batch()
    batch = batch.replace(negatives=batch.anchor[:4])
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(transform(batch))
    assert torch.equal(made[0].anchor, made[1].anchor) and torch.equal(made[0].positive, made[1].positive)
    assert not torch.equal(made[0].anchor, made[2].anchor)
    assert made[0].negatives.shape == (4, 3, 16, 16)


@pytest.mark.parametrize("mode", ["batch", "image"])
def test_no_value_is_read_from_an_accelerator(mode):
    images, ids = torch.empty(4, 3, 40, 40, dtype=torch.uint8, device="meta"), torch.arange(4)
    transform = FourierStyles(mode, size=32, views=3).to("meta")
    views = transform(PairBatch(images, images, ids, ids, ids))
    assert views.positive.shape == views.views[0].shape == (4, 3, 32, 32)


def test_small_crops_may_have_other_styles_or_none():
    made = FourierStyles(size=16, crops=TwoViews(8, blur_kernel=3))(_batch())
    assert [view.shape[2] for view in made.views] == [8, 8]


def test_a_ratio_beyond_the_spectrum_is_refused():
    with pytest.raises(ZooError, match="ratio"):
        FourierStyles(ratio=(0.1, 1.5))


def test_batch_styles_and_feature_transformation_train_together():
    torch.manual_seed(0)
    encoder = ImageEncoder(ConvNet(8, 2), 16, batch_norm=True)
    method = MomentumContrast(encoder, InfoNCE(0.2), queue_size=32, negatives=[FeatureTransformation()])
    method._trainer = SimpleNamespace(  # what a step asks of Lightning
        current_epoch=0, global_step=0, log_every_n_steps=10, global_rank=0
    )
    step = method.training_step(FourierStyles(size=16)(_batch()), 0)
    step["loss"].backward()
    assert step["positives"].shape == (8, 1) and step["negatives"].shape == (8, 32)
    # Feature transformation moved the positives of the styled views further apart.
    assert (step["positives"] < step["raw_positives"]).all()
    assert all(p.grad.isfinite().all() for p in method.encoder.parameters())
