"""The embedded image arena: rendered silhouettes under nuisance."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from zoo.data.cache import cache_folder, cached_arrays
from zoo.data.images import ImagePairs
from zoo.data.pairs import PairSource, Split

Field = Callable[[Tensor, Tensor], Tensor]


def _disk(x: Tensor, y: Tensor, r: float = 0.9) -> Tensor:
    return (x * x + y * y).sqrt() - r


def _box(x: Tensor, y: Tensor, w: float, h: float) -> Tensor:
    return torch.maximum(x.abs() - w, y.abs() - h)


def _all(*parts: Tensor) -> Tensor:
    """Intersection of shapes."""
    return torch.stack(torch.broadcast_tensors(*parts)).amax(0)


def _any(*parts: Tensor) -> Tensor:
    """Union of shapes."""
    return torch.stack(torch.broadcast_tensors(*parts)).amin(0)


def _half(x: Tensor, y: Tensor, degrees: float, offset: float = 0.0) -> Tensor:
    """The half-plane on the near side of a line whose normal points to `degrees`."""
    angle = np.deg2rad(degrees)
    return x * float(np.cos(angle)) + y * float(np.sin(angle)) - offset


def _star(x: Tensor, y: Tensor) -> Tensor:
    angle = torch.atan2(x, -y)
    tip = 2 * np.pi / 5
    folded = (torch.remainder(angle + tip / 2, tip) - tip / 2).abs()
    r = (x * x + y * y).sqrt()
    # The edge from a tip (radius 1) to the next notch (radius 0.42, half a turn of the tip's period away).
    notch_x, notch_y = 0.42 * np.sin(tip / 2), 0.42 * np.cos(tip / 2)
    length = np.hypot(notch_x, 1 - notch_y)
    return ((1 - notch_y) * r * folded.sin() + notch_x * (r * folded.cos() - 1)) / length


# y points down. Each function is negative inside; its zero line is exact, and near that line its slope is about 1.
SILHOUETTES: dict[str, Field] = {
    "disk": _disk,
    "ring": lambda x, y: (_disk(x, y, 0.7)).abs() - 0.2,
    "square": lambda x, y: _box(x, y, 0.78, 0.78),
    "frame": lambda x, y: _box(x, y, 0.65, 0.65).abs() - 0.17,
    "triangle": lambda x, y: _all(_half(x, y, 90, 0.6), _half(x, y, -30, 0.52), _half(x, y, 210, 0.52)),
    "star": _star,
    "plus": lambda x, y: _any(_box(x, y, 0.92, 0.28), _box(x, y, 0.28, 0.92)),
    "crescent": lambda x, y: _all(_disk(x, y, 0.92), -_disk(x - 0.48, y, 0.72)),
    "dome": lambda x, y: _all(_disk(x, y - 0.45, 1.0), _half(x, y, 90, 0.45)),
    "bar": lambda x, y: _box(x, y, 0.95, 0.3),
    "ell": lambda x, y: _any(_box(x + 0.5, y, 0.25, 0.9), _box(x, y - 0.65, 0.75, 0.25)),
    "tee": lambda x, y: _any(_box(x, y, 0.25, 0.85), _box(x, y + 0.6, 0.85, 0.25)),
    "chevron": lambda x, y: _all((y + 0.2 - x.abs()).abs() * 0.7071 - 0.3, _box(x, y, 0.85, 1.2)),
    "pacman": lambda x, y: _all(_disk(x, y, 0.92), _any(_half(x, y, 130), _half(x, y, 230))),
    "heart": lambda x, y: _any(
        _disk(x + 0.4, y + 0.3, 0.5),
        _disk(x - 0.4, y + 0.3, 0.5),
        _all(_half(x, y, 45, 0.57), _half(x, y, 135, 0.57), _half(x, y, 225, 0.2), _half(x, y, -45, 0.2)),
    ),
    "dumbbell": lambda x, y: _any(_disk(x + 0.58, y, 0.42), _disk(x - 0.58, y, 0.42), _box(x, y, 0.6, 0.14)),
}
_FIELDS = list(SILHOUETTES.values())

# Uniform draws of one object: kind, x, y, scale, rotation, then its surface; the background is a surface too.
_SURFACE = 3 + 3 + 5  # first colour, second colour; pattern, frequency, angle, phase, strength
_OBJECT = 5 + _SURFACE
_LIGHT = 3  # direction, strength, gain


class Shapes(PairSource):
    """One of 16 silhouettes per image; colours, textures, pose, light and smaller distractors are nuisance.

    Labels are the silhouettes. Raw pixels and random encoders do badly here, and a supervised network nearly solves it,
    so there is room to see a method work. Images are rendered once and memory-mapped from a cache.

    Every random number is a uniform draw of NumPy's PCG64 and rendering is in float64, so that the same arguments give
    the same images on every machine, save for a rare unit in the last place of a pixel.

    Args:
        size: side of the images in pixels.
        seed: of the data set, which is the same for every run; not the run's seed.
        n_train: training images.
        n_val: validation images.
        n_test: test images.
        scale: smallest and largest half-width of the object, as part of half the image.
        rotation: largest rotation in radians, either way.
        distractors: smaller silhouettes of any kind behind the object.
        texture: strength of textures, from 0 (flat colours) to 1.
    """

    name = "shapes"

    def __init__(
        self,
        size: int = 32,
        seed: int = 0,
        n_train: int = 6000,
        n_val: int = 1000,
        n_test: int = 2000,
        scale: tuple[float, float] = (0.6, 0.85),
        rotation: float = 0.4,
        distractors: int = 2,
        texture: float = 0.5,
    ) -> None:
        self.size, self.seed, self.scale, self.rotation = size, seed, scale, rotation
        self.distractors, self.texture = distractors, texture
        self.lengths: dict[Split, int] = {"train": n_train, "val": n_val, "test": n_test}

    def prepare(self, root: Path | None) -> None:
        for split in self.lengths:
            self._images(split, root)

    def split(self, split: Split, root: Path | None) -> ImagePairs:
        return ImagePairs(self._images(split, root), self.labels(split))

    def draws(self, split: Split) -> Float[np.ndarray, "N P"]:
        """The uniform numbers that each image is made of; a longer split starts with the rows of a shorter one."""
        number = list(self.lengths).index(split)
        width = _SURFACE + (1 + self.distractors) * _OBJECT + _LIGHT
        return np.random.default_rng([self.seed, number]).random((self.lengths[split], width))

    def labels(self, split: Split) -> np.ndarray:
        return (self.draws(split)[:, 0] * len(_FIELDS)).astype(np.int64)

    def render(self, split: Split) -> UInt8[np.ndarray, "N 3 S S"]:
        """Draw all images of a split (about 0.3 ms each)."""
        draws = torch.from_numpy(self.draws(split))
        return torch.cat([self._scenes(chunk) for chunk in draws.split(128)]).numpy()

    def _scenes(self, draws: Float[Tensor, "N P"]) -> UInt8[Tensor, "N 3 S S"]:
        axis = (torch.arange(self.size, dtype=torch.float64) + 0.5) * (2 / self.size) - 1
        x, y = axis[None, None, :], axis[None, :, None]
        counts = [_OBJECT] * (1 + self.distractors)
        *objects, ground, light = draws.split([*counts, _SURFACE, _LIGHT], 1)
        image = self._surface(x, y, ground, ground[:, :3])
        for i, draw in enumerate(reversed(objects)):
            pose, surface = draw[:, :5], draw[:, 5:]
            cover = self._cover(x, y, pose, small=i < self.distractors)
            # A colour far from the background's in each channel: objects may be hard to name, never hard to see.
            colour = torch.remainder(ground[:, :3] + 0.35 + 0.3 * surface[:, :3], 1)
            image = torch.lerp(image, self._surface(x, y, surface, colour), cover[:, None])
        angle, strength, gain = (c[:, None, None, None] for c in light.T)
        slope = (angle * 2 * np.pi).cos() * x + (angle * 2 * np.pi).sin() * y
        image = image * (0.75 + 0.25 * gain) * (1 + 0.3 * strength * slope)
        return (image.clamp(0, 1) * 255).round().to(torch.uint8)

    def _cover(self, x: Tensor, y: Tensor, pose: Float[Tensor, "N 5"], small: bool) -> Float[Tensor, "N S S"]:
        """Anti-aliased share of each pixel that an object covers."""
        kind, u, v, size, turn = (c[:, None, None] for c in pose.T)
        low, high = (0.12, 0.2) if small else self.scale
        scale = low + (high - low) * size
        reach = 0.8 * (1 - 0.85 * scale)  # all of the object stays inside the image
        dx, dy = x - (2 * u - 1) * reach, y - (2 * v - 1) * reach
        angle = (2 * turn - 1) * (np.pi if small else self.rotation)
        cos, sin = angle.cos() / scale, angle.sin() / scale
        px, py = dx * cos + dy * sin, dy * cos - dx * sin
        distance = torch.empty_like(px)
        for number in (kinds := (kind.flatten() * len(_FIELDS)).long()).unique().tolist():
            rows = kinds == number
            distance[rows] = _FIELDS[number](px[rows], py[rows])
        return (0.5 - distance * scale * (self.size / 2)).clamp(0, 1)

    def _surface(
        self, x: Tensor, y: Tensor, draw: Float[Tensor, "N U"], colour: Float[Tensor, "N 3"]
    ) -> Float[Tensor, "N 3 S S"]:
        """Stripes, checks or blots of two colours."""
        second = draw[:, 3:6, None, None]
        pattern, frequency, turn, phase, strength = (c[:, None, None] for c in draw[:, 6:].T)
        angle, frequency, phase = turn * np.pi, 3 + 9 * frequency, 2 * np.pi * phase
        along = (x * angle.cos() + y * angle.sin()) * frequency + phase
        across = (y * angle.cos() - x * angle.sin()) * frequency + 2.4 * phase
        stripes, waves = along.sin(), across.sin()
        blots = ((along * 0.5 + waves).sin() + (across * 0.5 + stripes).sin()) / 2
        wave = torch.where(pattern < 1 / 3, stripes, torch.where(pattern < 2 / 3, stripes * waves, blots))
        share = (self.texture * 0.45 * strength * (0.5 + 0.5 * wave))[:, None]
        return torch.lerp(colour[:, :, None, None], second, share)

    def _arguments(self) -> tuple[object, ...]:
        return self.size, self.seed, tuple(self.scale), self.rotation, self.distractors, self.texture

    def _images(self, split: Split, root: Path | None) -> np.ndarray:
        # The file's name carries everything that its contents depend on, the text of the classes' files included.
        folder = cache_folder(root)
        identity = hashlib.sha256(repr((self._arguments(), split, self.lengths[split])).encode())
        for kind in type(self).__mro__:
            if issubclass(kind, Shapes):
                identity.update(Path(inspect.getfile(kind)).read_bytes())
        path = folder / f"{self.name}-{split}-{identity.hexdigest()[:12]}.npy"
        return cached_arrays([path], lambda: [self.render(split)])[0]
