"""What all formats share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.inputs import image_size
from zoo.methods.towers import Tower
from zoo.runs import Run

SAMPLES = ("a red disk left of a blue ring", "read a file and return its lines", "join two paths", "x")


@dataclass
class Usage:
    """How to use what was written.

    Attributes:
        code: Python that works in the folder; its last line prints a shape.
        notes: what to know about inputs and embeddings, line by line.
        packages: distributions whose versions matter.
    """

    code: str
    notes: list[str] = field(default_factory=list)
    packages: tuple[str, ...] = ()


class Pixels(NamedTuple):
    """Images as an encoder reads them: height, width, and mean and standard deviation per channel, of values from 0 to 1."""

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def pixels(run: Run, tower: Tower) -> Pixels:
    """What the evaluation of a run does to images, found by showing it black, grey and white ones.

    Raises:
        ZooError: the run has no transform, or one that is not a rescaling of pixels.
    """
    transform: Any = run.datamodule.transform
    if transform is None:
        raise ZooError("the run has no --data.transform, so nothing says how pixels are scaled")
    plain = torch.full((3, 3, *image_size(run, tower)), 0, dtype=torch.uint8)
    plain[1], plain[2] = 51, 255
    black, grey, white = transform.evaluate(plain)
    flat = all(torch.allclose(x, x.mean((1, 2), keepdim=True), atol=1e-4) for x in (black, grey, white))
    if not flat or not torch.allclose(grey, black + (white - black) / 5, atol=1e-4):
        raise ZooError(f"{type(transform).__name__} does more to pixels than scaling them")
    low, high = black.mean((1, 2)), white.mean((1, 2))
    std = 1 / (high - low)
    rounded = [tuple(round(v, 6) for v in x.tolist()) for x in (-low * std, std)]
    return Pixels(black.shape[1], black.shape[2], rounded[0], rounded[1])


class Scaled(nn.Module):
    """8-bit images to those that an encoder reads."""

    mean: Tensor
    std: Tensor

    def __init__(self, pixels: Pixels) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(pixels.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(pixels.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() / 255 - self.mean) / self.std


def sample_images(pixels: Pixels, n: int) -> Tensor:
    """Random 8-bit images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, pixels.height, pixels.width), dtype=torch.uint8, generator=generator)


def compare(name: str, ours: Float[Tensor, "B D"], theirs: Float[Tensor, "B D"]) -> None:
    """Hold what a library embeds against the run.

    Raises:
        ZooError: the two differ by more than rounding.
    """
    gap = float((ours - theirs.float()).abs().max() / ours.abs().max().clamp_min(1e-12))
    if not gap < 1e-3:
        raise ZooError(
            f"{name} embeds otherwise than the run (by {gap:.1%} of the largest number): choose another format"
        )


def unfit(run: Run, to: str, reason: str) -> ZooError:
    """The error for a model that does not fit a format: it names those that it fits."""
    first = [tower[0] for tower in run.towers.values()]
    fits = {
        "timm": all(hasattr(x, "timm_model") and not getattr(x, "small_images", False) for x in first),
        "sentence-transformers": all(hasattr(encoder, "sentence_transformers") for encoder in first),
        "open_clip": hasattr(run.model.encoder, "save_open_clip"),
    }
    others = [name for name, fit in fits.items() if fit and name != to]
    return ZooError(f"{run.path} does not go to {to}: {reason}; it goes to {', '.join([*others, 'onnx', 'torch'])}")
