"""Sharpening and holes, for whole batches on their device, each image with parameters of its own."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from zoo.data.augment import Images, PerImage


def sharpen(images: Images, alpha: PerImage, lightness: PerImage) -> Images:
    """Blend each image with its edges: weights -1 around a centre of 8 + lightness; borders are reflected.

    Args:
        images: values from 0 to 1.
        alpha: weight of the edges; 0 keeps an image.
        lightness: sum of the weights of the edges' kernel.
    """
    around = nn.functional.avg_pool2d(nn.functional.pad(images, (1, 1, 1, 1), mode="reflect"), 3, 1)
    alpha, lightness = alpha[:, None, None, None], lightness[:, None, None, None]
    return ((1 - alpha) * images + alpha * ((9 + lightness) * images - 9 * around)).clamp_(0, 1)


def grid_holes(height: int, width: int, ratio: float, device: torch.device | str = "cpu") -> Bool[Tensor, "H W"]:
    """A grid of holes: square cells, a tenth of the width on a side, with a hole at the top left of each.

    Args:
        height: of the images.
        width: of the images.
        ratio: side of a hole as part of the cell's.
        device: of the result.
    """
    inside = []
    for length in (height, width):
        cell = max(min(width // 10, length), 2)
        hole = min(max(int(cell * ratio), 1), cell - 1)
        inside.append(torch.arange(length, device=device) % cell < hole)
    return inside[0][:, None] & inside[1]


def coarse_holes(
    n: int,
    height: int,
    width: int,
    number: tuple[int, int] = (10, 25),
    side: tuple[float, float] = (0.1, 0.2),
    device: torch.device | str = "cpu",
) -> Bool[Tensor, "N H W"]:
    """Rectangular holes at random places in each of n images, drawn from the device's generator.

    Args:
        n: number of images.
        height: of the images; the unit of `side`.
        width: of the images.
        number: range of the number of holes.
        side: range of each side of a hole, as part of the height.
        device: where to draw.
    """
    most = number[1]
    count = torch.randint(number[0], most + 1, (n,), device=device)
    low, high = (max(1, int(part * height)) for part in side)
    inside = []
    for length in (height, width):
        extent = torch.randint(low, high + 1, (n, most), device=device).clamp_max(length)
        start = (torch.rand(n, most, device=device) * (length - extent + 1)).long()
        pixel = torch.arange(length, device=device)
        inside.append((pixel >= start[..., None]) & (pixel < (start + extent)[..., None]))
    rows, columns = inside
    rows = rows & (torch.arange(most, device=device) < count[:, None])[..., None]
    return torch.bmm(rows.float().mT, columns.float()) > 0
