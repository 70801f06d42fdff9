"""The rows about augmentation."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torchvision.transforms import v2

from tests.benchmarks.rows import Pair
from zoo.data import TwoViews
from zoo.data.pairs import PairBatch


@contextmanager
def over_torchvision(size: int, stored: int, n: int) -> Iterator[Pair]:
    """Two views of MoCo v2's strength per image, of the batch at once or image by image, on one core.

    The peer is the faster of torchvision's own two ways, uint8 tensors and PIL images.
    """
    ours = TwoViews(size)
    images = torch.randint(0, 256, (n, 3, stored // 8, stored // 8), dtype=torch.uint8)
    images = v2.functional.resize(images, [stored, stored])
    keys = torch.arange(n)
    batch = PairBatch(images, images, keys, keys, keys)
    ways: list[Callable[[], Any]] = []
    for prepare, last in ((lambda x: x, []), (v2.functional.to_pil_image, [v2.PILToTensor()])):
        transform, items = per_image(ours, last), [prepare(image) for image in images]
        ways.append(lambda t=transform, xs=items: [torch.stack([t(x) for x in xs]) for _ in range(2)])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield Pair(lambda: ours(batch), min(ways, key=lambda way: min(timeit.repeat(way, number=1, repeat=3))), n)
    finally:
        torch.set_num_threads(threads)


def per_image(views: TwoViews, last: Sequence[v2.Transform]) -> v2.Compose:
    """The operations of `TwoViews` with the same probabilities, as torchvision's transforms."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(views.size, views.crop_scale, views.crop_ratio),
            v2.RandomHorizontalFlip(views.flip),
            v2.RandomApply([v2.ColorJitter(*views.jitter)], views.jitter_p),
            v2.RandomGrayscale(views.gray_p),
            v2.RandomApply([v2.GaussianBlur(views.blur_kernel, views.blur_sigma)], views.blur_p),
            *last,
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(views.mean.flatten().tolist(), (1 / views.per_std).flatten().tolist()),
        ]
    )
