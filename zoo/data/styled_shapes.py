"""The image arena with domains: silhouettes in several styles, two of which no training sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from zoo.data.images import ImagePairs
from zoo.data.pairs import Split
from zoo.data.shapes import _OBJECT, Shapes
from zoo.errors import ZooError


class Style(NamedTuple):
    """The background of a domain's images: two colours and a texture, as `Shapes` draws them from uniform numbers."""

    colour: tuple[float, float, float]
    second: tuple[float, float, float]
    pattern: float  # below 1/3 stripes, below 2/3 checks, else blots
    frequency: float
    turn: float


# First colours are below 0.36, so that objects, 0.35 to 0.65 above them, are always the brighter part.
STYLES: dict[str, Style] = {
    "clay": Style((0.34, 0.18, 0.06), (1.0, 0.75, 0.5), 0.1, 0.75, 0.0),
    "moss": Style((0.08, 0.34, 0.10), (0.7, 1.0, 0.6), 0.5, 0.4, 0.25),
    "straw": Style((0.30, 0.30, 0.06), (1.0, 1.0, 0.6), 0.9, 0.9, 0.6),
    "slate": Style((0.06, 0.14, 0.34), (0.5, 0.7, 1.0), 0.1, 0.6, 0.5),
    "plum": Style((0.30, 0.06, 0.30), (1.0, 0.6, 1.0), 0.1, 0.3, 0.5),
}
_SPREAD = np.array([0.06] * 6 + [0.0, 0.1, 0.1])  # of an image's draws about those of its style


class StyledShapes(Shapes):
    """The silhouettes of `Shapes` in five styles, each a tint and a texture of the background; a style is a domain.

    Three styles are trained on, mixed and unnamed, and are the labelled reference of all evaluation. One further style
    is the validation split and another the test split: neither is ever trained on, and what is tuned for transfer to
    the one has not seen the other. Within a style, all nuisance of `Shapes` stays, objects' colours included.

    Data sets have a column `domain`, the place of the style in `STYLES`.

    Args:
        n_train: training images, of the three styles in turn.
        unseen: styles of validation and test.
        texture: strength of textures, from 0 (flat colours) to 1.
        **shapes: further arguments of Shapes.

    Raises:
        ZooError: `unseen` does not name two of the styles.
    """

    name = "styled-shapes"

    def __init__(
        self,
        n_train: int = 3000,
        unseen: tuple[str, str] = ("slate", "plum"),
        texture: float = 1.0,
        **shapes: Any,
    ) -> None:
        super().__init__(n_train=n_train, texture=texture, **shapes)
        if len(set(unseen) & STYLES.keys()) != 2:
            raise ZooError(f"unseen {tuple(unseen)}: name two of the styles {', '.join(STYLES)}")
        seen = [name for name in STYLES if name not in unseen]
        self.styles: dict[Split, list[str]] = {"train": seen, "val": [unseen[0]], "test": [unseen[1]]}

    def split(self, split: Split, root: Path | None) -> ImagePairs:
        pairs = super().split(split, root)
        return ImagePairs(pairs.images, pairs.columns["label"], {"domain": self.domains(split)})

    def domains(self, split: Split) -> Int[np.ndarray, " N"]:
        """Number of each image's style."""
        return np.resize([list(STYLES).index(name) for name in self.styles[split]], self.lengths[split])

    def draws(self, split: Split) -> Float[np.ndarray, "N P"]:
        draws = super().draws(split)
        ground = draws[:, (1 + self.distractors) * _OBJECT :]
        styles = np.array([[*s.colour, *s.second, s.pattern, s.frequency, s.turn] for s in STYLES.values()])
        ground[:, :9] = styles[self.domains(split)] + _SPREAD * (ground[:, :9] - 0.5)
        ground[:, 10] = (1 + ground[:, 10]) / 2  # a texture is always there
        return draws

    def _arguments(self) -> tuple[object, ...]:
        return *super()._arguments(), repr(self.styles)
