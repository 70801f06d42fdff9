"""Images in each other's style: low-frequency Fourier amplitudes are style, phases are content.

Sources: Scalbert et al., "Towards domain-invariant Self-Supervised Learning with Batch Styles Standardization", ICLR 2024
(arXiv 2303.06088); the transfer itself: Yang and Soatto, "FDA: Fourier Domain Adaptation for Semantic Segmentation",
CVPR 2020 (arXiv 2004.05498).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from zoo.data.augment import TwoViews
from zoo.errors import ZooError


def half_window(ratio: float, height: int, width: int) -> tuple[int, int]:
    """Half sides of the centred window that covers about `ratio` of the spectrum, rounded down; 0 is the mean alone."""
    side = math.sqrt(ratio)
    return int(side * height / 2), int(side * width / 2)


def substitute_amplitudes(
    images: Float[Tensor, "B C H W"],
    style: Int[Tensor, ""] | Int[Tensor, " B"],
    window: tuple[int, int],
    clamp: bool = False,
) -> Float[Tensor, "B C H W"]:
    r"""Give images the low frequencies' amplitudes of other images of the batch, channel by channel; phases stay.

    With $A$ and $\Phi$ amplitude and phase of the Fourier transform, $x'_i = F^{-1}(A'_i e^{j \Phi_i})$, where $A'_i$ is
    $A_s$ at frequencies $|f_y| \le b_h, |f_x| \le b_w$ and $A_i$ elsewhere. The window is symmetric, so the inverse is
    real. (FDA's PyTorch code cuts corners that are not, and drops an imaginary part without notice.)

    Args:
        images: not negative, as normalisation may turn the sign of a mean, which is phase; without padding, whose
            borders would be style.
        style: which image gives the style: one for all (batch styles standardisation), or one for each (Fourier
            augmentation).
        window: $b_h, b_w$ in whole frequencies; (0, 0) exchanges means only, and half the sides everything.
        clamp: cut what leaves the range from 0 to 1, which changes the style a little.
    """
    height, width = images.shape[2:]
    tall, wide = window
    spectrum = torch.fft.rfft2(images)
    # Rows of an even height end with a frequency that is its own mirror image and stands there once.
    rows = torch.arange(-min(tall, (height - 1) // 2), min(tall, height // 2) + 1, device=images.device)
    low = (..., rows.remainder(height), slice(wide + 1))
    given = spectrum[low]
    # Not `[style]`: that would read a number from the device.
    amplitude = given.abs().index_select(0, style.reshape(-1)).expand_as(given)
    spectrum[low] = torch.polar(amplitude.contiguous(), given.angle())
    out = torch.fft.irfft2(spectrum, s=(height, width))
    return out.clamp_(0, 1) if clamp else out


class StyleDraw(NamedTuple):
    """What one view's styles are made of: image(s) that give them, and the window as part of the spectrum."""

    source: Tensor
    ratio: float


class FourierStyles(TwoViews):
    """Views in styles of the batch: crop and flip per image, style, colour jitter, grey and blur, normalisation.

    With `mode` "batch", all images of a view take the style of one of them, each view of another: within a view, style
    tells no negatives apart; across views, it joins no positives (batch styles standardisation; the batch may mix
    domains, and needs no labels of them). With "image", each image takes the style of one of its own (Fourier
    augmentation, the baseline).

    Args:
        mode: one style for a view, or one for each of its images.
        ratio: range of the share of the spectrum whose amplitudes are exchanged; drawn once per view.
        shared_style: all views take image and window of the first (an ablation: positives can then be told by style).
        batch_colour: colour jitter, grey and blur have the same parameters for all images of a view, as they change
            style; else each image has its own.
        clamp: cut what leaves the range of pixel values.
        **views: arguments of TwoViews.

    Raises:
        ZooError: a ratio outside 0 to 1.
    """

    def __init__(
        self,
        mode: Literal["batch", "image"] = "batch",
        ratio: tuple[float, float] = (0.02, 0.2),
        shared_style: bool = False,
        batch_colour: bool = True,
        clamp: bool = True,
        **views: Any,
    ) -> None:
        super().__init__(**views)
        if not 0 <= ratio[0] <= ratio[1] <= 1:
            raise ZooError(f"ratio {tuple(ratio)}: it is a range of parts of the spectrum, from 0 to 1")
        self.mode, self.ratio, self.shared_style = mode, ratio, shared_style
        self.batch_colour, self.clamp = batch_colour, clamp

    @torch.no_grad()
    def views_of(self, images: UInt8[Tensor, "N 3 H W"]) -> list[Float[Tensor, "N 3 _ _"]]:
        """All views of each image: one after the other, as each has a style of its own."""
        style = self._draw_style(len(images), images.device) if self.shared_style else None
        views = [self.augment(images, style) for _ in range(self.views)]
        return views if self.crops is None else views + self.crops.views_of(images)

    @torch.no_grad()
    def augment(self, images: UInt8[Tensor, "N 3 H W"], style: StyleDraw | None = None) -> Float[Tensor, "N 3 S S"]:
        """One random view of each image, in drawn style(s) or in the given."""
        n, device = len(images), images.device
        draws = self._draw(n, images.shape[2], images.shape[3], device)
        order = torch.randperm(4).tolist()
        source, ratio = self._draw_style(n, device) if style is None else style
        views = self._cut(images, draws.pop("box"), draws.pop("flip"))
        views = substitute_amplitudes(views, source, half_window(ratio, self.size, self.size), self.clamp)
        if self.batch_colour:
            draws = {name: drawn[:1].expand_as(drawn) for name, drawn in draws.items()}
        return self._by_chunk(partial(self._colour, order=order), views, draws)

    def _draw_style(self, n: int, device: torch.device) -> StyleDraw:
        source = torch.randint(n, () if self.mode == "batch" else (n,), device=device)
        low, high = self.ratio
        # The window is a shape, hence drawn by the CPU's generator: reading it from a GPU would stall its queue.
        return StyleDraw(source, low + (high - low) * float(torch.rand(())))
