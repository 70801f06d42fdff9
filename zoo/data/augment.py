"""Augmentation of whole batches on the training device, each sample with parameters of its own.

Random crop, flip and blur are linear and separable: on small images two matrix products each, built from the very
weights that torchvision resamples with. The operations are pure functions of explicit parameters and agree with
`torchvision.transforms.v2.functional` on float images; `TwoViews` draws the parameters. Nothing waits for a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from zoo.data.pairs import PairBatch

Images = Float[Tensor, "N 3 H W"]
PerImage = Float[Tensor, " N"]

_DENSE = 96  # up to this side one matrix product per image is fastest; beyond it, what exploits the zeros in the matrix
_CHUNK = 65_536  # pixels per thread that a CPU augments at a time: temporaries stay in its cache


class CropBox(NamedTuple):
    """Crops in pixels, one per image."""

    top: Int[Tensor, " N"]
    left: Int[Tensor, " N"]
    height: Int[Tensor, " N"]
    width: Int[Tensor, " N"]


def draw_crops(
    n: int,
    height: int,
    width: int,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    device: torch.device | str = "cpu",
    attempts: int = 10,
) -> CropBox:
    """Random crops as torchvision's RandomResizedCrop draws them: area and aspect ratio until one fits.

    Args:
        n: number of crops.
        height: of the images.
        width: of the images.
        scale: range of the crop's area, as part of the image's.
        ratio: range of its aspect ratio (width by height), log-uniform.
        device: where to draw.
        attempts: draws per image before it falls back on the whole image, cut to the nearest allowed ratio.
    """
    u = torch.rand(4, n, attempts, device=device)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[0])
    aspect = torch.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * u[1])
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    whole = min(max(width / height, ratio[0]), ratio[1])
    last_w, last_h = round(min(width, height * whole)), round(min(height, width / whole))
    found = fits.any(1)
    w = torch.where(found, w.gather(1, first)[:, 0], last_w)
    h = torch.where(found, h.gather(1, first)[:, 0], last_h)
    top = torch.where(found, (u[2, :, 0] * (height - h + 1)).floor(), (height - last_h) // 2)
    left = torch.where(found, (u[3, :, 0] * (width - w + 1)).floor(), (width - last_w) // 2)
    return CropBox(top.long(), left.long(), h.long(), w.long())


def resized_crop(
    images: Images | UInt8[Tensor, "N 3 H W"], box: CropBox, size: int, flip: Bool[Tensor, " N"] | None = None
) -> Float[Tensor, "N 3 S S"]:
    """Cut a box out of each image and resize it to `size`, bilinear with antialiasing; then flip it where asked.

    Bytes become numbers from 0 to 255; a CPU that makes large views of them rounds these, as torchvision does.
    """
    if images.device.type == "cpu" and size > _DENSE:
        if not images.is_floating_point():
            images = images.contiguous(memory_format=torch.channels_last)  # several times as fast in this order
        views = torch.empty(len(images), 3, size, size, dtype=torch.promote_types(images.dtype, torch.float32))
        flips = [False] * len(images) if flip is None else flip.tolist()
        for i, (top, left, height, width) in enumerate(torch.stack(box, 1).tolist()):
            cut = images[i : i + 1, :, top : top + height, left : left + width]
            view = nn.functional.interpolate(cut, size=(size, size), mode="bilinear", antialias=True)[0]
            views[i] = view.flip(-1) if flips[i] else view
        return views
    images = images if images.is_floating_point() else images.float()
    rows = _resample_matrix(box.top, box.height, images.shape[2], size, images.dtype)
    columns = _resample_matrix(box.left, box.width, images.shape[3], size, images.dtype, flip)
    return _separable(images, rows, columns)


def adjust_brightness(images: Images, factor: PerImage) -> Images:
    """Multiply: 0 gives black, 1 the image."""
    return (images * factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(images: Images, factor: PerImage) -> Images:
    """Blend with the mean of the image's grey values: 0 gives flat grey, 1 the image."""
    mean, factor = _grey(images.mean((2, 3), keepdim=True)), factor[:, None, None, None]
    return (images * factor).add_((1 - factor) * mean).clamp_(0, 1)


def adjust_saturation(images: Images, factor: PerImage) -> Images:
    """Blend with the grey image: 0 gives grey, 1 the image."""
    return torch.lerp(_grey(images).expand_as(images), images, factor[:, None, None, None]).clamp_(0, 1)


def adjust_hue(images: Images, shift: PerImage) -> Images:
    """Turn the hue of HSV by `shift` full turns (-0.5 to 0.5), keeping saturation and value."""
    r, g, b = images.unbind(1)
    value, low = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    span = (value - low).mul_(6)
    per_span = (span + torch.finfo(span.dtype).tiny).reciprocal_()
    # Hue in turns, by which channel is the maximum. A sign (0 there, else 1) selects faster than a mask.
    by_r, by_g, by_b = (g - b).mul_(per_span), (b - r).mul_(per_span).add_(1 / 3), (r - g).mul_(per_span).add_(2 / 3)
    hue = by_g.sub_(by_b).mul_((value - b).sign_()).add_(by_b)
    hue = hue.sub_(by_r).mul_((value - r).sign_()).add_(by_r)
    hue = hue.add_(1 + shift[:, None, None]).frac_()
    # Back: each channel's share of the span is a trapezium over the hue.
    out = torch.empty_like(images)
    torch.addcmul(low, span, (hue - 1 / 2).abs_().sub_(1 / 6).clamp_(0, 1 / 6), out=out[:, 0])
    torch.addcmul(low, span, (hue - 1 / 3).abs_().neg_().add_(1 / 3).clamp_(0, 1 / 6), out=out[:, 1])
    torch.addcmul(low, span, hue.sub_(2 / 3).abs_().neg_().add_(1 / 3).clamp_(0, 1 / 6), out=out[:, 2])
    return out


def grayscale(images: Images, where: Bool[Tensor, " N"]) -> Images:
    """Replace the images for which `where` holds by their grey values."""
    return adjust_saturation(images, 1 - where.to(images.dtype))


def gaussian_blur(images: Images, sigma: PerImage, kernel: int) -> Images:
    """Blur with `kernel` taps (odd) and a width of `sigma` pixels; borders are reflected. Sigma 0 keeps an image."""
    n, channels, height, width = images.shape
    if max(height, width) <= _DENSE:
        rows = _blur_matrix(sigma, kernel, height)
        return _separable(images, rows, rows if height == width else _blur_matrix(sigma, kernel, width))
    block, reach = 32, kernel // 2
    # The same band of weights blurs every block of pixels: such products beat a convolution per image.
    band = _blur_band(sigma, kernel, block)
    padded = nn.functional.pad(images, (reach,) * 4, mode="reflect")
    padded = nn.functional.pad(padded, (0, -width % block, 0, -height % block))
    wide = padded.unfold(3, block + 2 * reach, block).reshape(n, -1, block + 2 * reach)
    wide = torch.bmm(wide, band.mT).view(n, channels, padded.shape[2], -1)
    tall = torch.matmul(band[:, None, None], wide.unfold(2, block + 2 * reach, block).mT)
    return tall.view(n, channels, -1, wide.shape[3])[:, :, :height, :width]


class TwoViews(nn.Module):
    """Two (or more) random views of every image of a batch: crop and flip, colour jitter, grey, blur, normalisation.

    Parameters are drawn per view and image; the order of the four parts of the colour jitter once per batch. The
    defaults are those of MoCo v2.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, appendix A.

    Args:
        size: side of the views in pixels.
        crop_scale: range of the crop's area; `(1, 1)` with `crop_ratio` `(1, 1)` only resizes.
        crop_ratio: range of its aspect ratio.
        flip: probability of a horizontal flip.
        jitter: strength of brightness, contrast, saturation (factors from 1 - s to 1 + s) and hue (turns).
        jitter_p: probability of colour jitter.
        gray_p: probability of grey.
        blur_p: probability of blur.
        blur_sigma: range of its width in pixels.
        blur_kernel: its taps, odd; None takes about a tenth of `size`.
        eval_crop: for evaluation, side of the central crop as part of the shorter side (0.875 on ImageNet).
        mean: subtracted per channel, of values from 0 to 1.
        std: divided by.
        views: number of views; those beyond the second are the batch's `views`.
        crops: makes further views in its own way (multi-crop: smaller ones, of smaller parts of the image).
    """

    mean: Tensor
    per_std: Tensor

    def __init__(
        self,
        size: int = 32,
        crop_scale: tuple[float, float] = (0.2, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
        jitter_p: float = 0.8,
        gray_p: float = 0.2,
        blur_p: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
        blur_kernel: int | None = None,
        eval_crop: float = 1.0,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
        views: int = 2,
        crops: TwoViews | None = None,
    ) -> None:
        super().__init__()
        self.views, self.crops = views, crops
        self.size, self.crop_scale, self.crop_ratio, self.flip = size, crop_scale, crop_ratio, flip
        self.jitter, self.jitter_p, self.gray_p = jitter, jitter_p, gray_p
        self.blur_p, self.blur_sigma, self.blur_kernel = blur_p, blur_sigma, blur_kernel or size // 20 * 2 + 1
        self.eval_crop = eval_crop
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("per_std", 1 / torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, batch: PairBatch) -> PairBatch:
        """Views of the images in `batch.anchor`, in place of anchor and positive; negatives get one view each."""
        anchor, positive, *more = self.views_of(batch.anchor)
        negatives = None if batch.negatives is None else self.augment(batch.negatives)
        return batch.replace(anchor=anchor, positive=positive, views=tuple(more), negatives=negatives)

    @torch.no_grad()
    def views_of(self, images: UInt8[Tensor, "N 3 H W"]) -> list[Float[Tensor, "N 3 _ _"]]:
        """All views of each image. Override it where views are not made alike, or not each by itself."""
        views = list(self.augment(torch.cat([images] * self.views)).chunk(self.views))
        return views if self.crops is None else views + self.crops.views_of(images)

    @torch.no_grad()
    def augment(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 S S"]:
        """One random view of each image."""
        draws = self._draw(len(images), images.shape[2], images.shape[3], images.device)
        # Of a batch one order, from the CPU's generator: reading it from a GPU would stall the queue of kernels.
        order = torch.randperm(4).tolist()
        return self._by_chunk(partial(self._view, order=order), images, draws)

    @torch.no_grad()
    def evaluate(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 S S"]:
        """Resize and normalise, without randomness."""
        return self._by_chunk(self._still, images)

    def _by_chunk(
        self, function: Callable[..., Tensor], images: Tensor, draws: dict[str, Tensor] | None = None
    ) -> Float[Tensor, "N 3 S S"]:
        """`function` of images and draws, normalised: at once on an accelerator, in pieces that fit a CPU's cache."""
        views = torch.empty(len(images), 3, self.size, self.size, device=images.device)
        step = len(images)
        if images.device.type == "cpu":
            step = _CHUNK * torch.get_num_threads() // max(self.size**2, images.shape[2] * images.shape[3])
        for start in range(0, len(images), max(step, 1)):
            part = slice(start, start + max(step, 1))
            view = function(images[part], **{k: drawn[part] for k, drawn in (draws or {}).items()})
            torch.addcmul(-self.mean * self.per_std, view, self.per_std, out=views[part])
        return views

    def _draw(self, n: int, height: int, width: int, device: torch.device) -> dict[str, Tensor]:
        """Parameters of n views."""
        box = draw_crops(n, height, width, self.crop_scale, self.crop_ratio, device)
        chance, amount = torch.rand(4, n, device=device), torch.rand(n, 5, device=device)
        low, high = self.blur_sigma
        spread = zip(amount.unbind(1), self.jitter, (1, 1, 1, 0), (0, 0, 0, -0.5), strict=False)
        return {
            "box": torch.stack(box, 1),
            "flip": chance[0] < self.flip,
            "jitter": torch.stack([(at + s * (2 * u - 1)).clamp_min(lowest) for u, s, at, lowest in spread], 1),
            "jittered": chance[1] < self.jitter_p,
            "grey": chance[2] < self.gray_p,
            "sigma": low + (high - low) * amount[:, 4],
            "blurred": chance[3] < self.blur_p,
        }

    def _view(
        self, images: UInt8[Tensor, "N 3 H W"], box: Int[Tensor, "N 4"], flip: Bool[Tensor, " N"], **colour: Any
    ) -> Float[Tensor, "N 3 S S"]:
        return self._colour(self._cut(images, box, flip), **colour)

    def _cut(
        self, images: UInt8[Tensor, "N 3 H W"], box: Int[Tensor, "N 4"], flip: Bool[Tensor, " N"]
    ) -> Float[Tensor, "N 3 S S"]:
        return resized_crop(images, CropBox(*box.unbind(1)), self.size, flip).div_(255)

    def _colour(
        self,
        views: Images,
        order: Sequence[int],
        jitter: Float[Tensor, "N 4"],
        jittered: Bool[Tensor, " N"],
        grey: Bool[Tensor, " N"],
        sigma: PerImage,
        blurred: Bool[Tensor, " N"],
    ) -> Images:
        if self.jitter_p > 0:
            views = _where(jittered, partial(self._jitter, order=order), views, jitter)
        if self.gray_p > 0:
            views = _where(grey, grayscale, views, grey)
        if self.blur_p > 0:
            views = _where(blurred, partial(gaussian_blur, kernel=self.blur_kernel), views, sigma)
        return views

    def _jitter(self, views: Images, amount: Float[Tensor, "N 4"], order: Sequence[int]) -> Images:
        steps = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
        for i in order:
            if self.jitter[i] > 0:
                views = steps[i](views, amount[:, i])
        return views

    def _still(self, images: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 S S"]:
        n, _, height, width = images.shape
        side = round(self.eval_crop * min(height, width))
        if (height, width) == (self.size, self.size) and side == self.size:
            return images.float().div_(255)
        values = ((height - side) // 2, (width - side) // 2, side, side)
        box = CropBox(*(torch.full((n,), v, device=images.device) for v in values))
        return resized_crop(images, box, self.size).div_(255)


def _where(
    rows: Bool[Tensor, " N"], function: Callable[[Images, Tensor], Images], images: Images, amount: Tensor
) -> Images:
    """Apply an operation to the images in `rows`. A CPU leaves the others out; a GPU would have to wait for them."""
    if images.device.type != "cpu":
        return torch.where(rows[:, None, None, None], function(images, amount), images)
    index = rows.nonzero()[:, 0]
    if len(index) == 0:
        return images
    if len(index) == len(images):
        return function(images, amount)
    return images.index_copy_(0, index, function(images.index_select(0, index), amount[index]))


def _separable(
    images: Images, rows: Float[Tensor, "N S H"], columns: Float[Tensor, "N T W"]
) -> Float[Tensor, "N 3 S T"]:
    """Apply one matrix to the rows and one to the columns of each image, the same for its channels."""
    n, channels, height, width = images.shape
    wide = torch.bmm(images.reshape(n, channels * height, width), columns.mT)
    wide = wide.view(n, channels, height, -1)
    return torch.matmul(rows[:, None], wide)


def _resample_matrix(
    start: Int[Tensor, " N"],
    length: Int[Tensor, " N"],
    full: int,
    size: int,
    dtype: torch.dtype,
    flip: Bool[Tensor, " N"] | None = None,
) -> Float[Tensor, "N S F"]:
    """Weights that resize pixels start .. start + length of `full` to `size`: a triangle as wide as an output pixel."""
    step = (length / size).to(dtype)[:, None, None]
    out = torch.arange(size, device=start.device, dtype=dtype) + 0.5
    out = torch.where(flip[:, None], size - out, out) if flip is not None else out.expand(len(start), size)
    source = torch.arange(full, device=start.device, dtype=dtype) - start[:, None]
    distance = source[:, None, :] + 0.5 - out[:, :, None] * step
    weight = (1 - distance.abs_() / step.clamp_min(1)).clamp_min_(0)
    weight = weight * ((source >= 0) & (source < length[:, None]))[:, None, :]
    return weight / weight.sum(2, keepdim=True)


def _blur_band(sigma: PerImage, kernel: int, block: int) -> Float[Tensor, "N S T"]:
    """Weights of `kernel` Gaussian taps that turn S + kernel - 1 neighbouring pixels into the S inner ones."""
    reach = torch.arange(kernel, device=sigma.device) - kernel // 2
    taps = torch.softmax(-0.5 * (reach / sigma.clamp_min(1e-3)[:, None]) ** 2, 1)
    taps = taps * (taps > 1e-12)  # denormal numbers would slow the products down tenfold
    # Rows of kernel + block numbers, read as if they were one shorter, move one column to the right from row to row.
    rows = nn.functional.pad(taps, (0, block)).repeat(1, block)
    return rows[:, : block * (block + kernel - 1)].unflatten(1, (block, -1))


def _blur_matrix(sigma: PerImage, kernel: int, size: int) -> Float[Tensor, "N S S"]:
    """The band for a whole row of pixels, its overhang reflected (the edge pixel itself not repeated)."""
    reach = kernel // 2
    band = _blur_band(sigma, kernel, size)
    left, matrix, right = band.split([reach, size, reach], 2)
    matrix = matrix.contiguous()
    matrix[:, :, 1 : reach + 1] += left.flip(2)
    matrix[:, :, size - 1 - reach : size - 1] += right.flip(2)
    return matrix


def _grey(images: Images) -> Float[Tensor, "N 1 H W"]:
    r, g, b = images.unbind(1)
    return r.mul(0.2989).add_(g, alpha=0.587).add_(b, alpha=0.114)[:, None]
