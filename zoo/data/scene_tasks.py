"""Further tasks on scenes: composed retrieval, and pictures of a single subject for out-of-distribution detection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from zoo.data.collections import CollectionPairs, ImageArray
from zoo.data.pairs import Split
from zoo.data.scene_cases import Cases
from zoo.data.scene_edits import (
    BACKGROUND,
    BACKGROUNDS,
    C0,
    C1,
    COLOURS,
    COLUMNS,
    FRAME,
    FRAMES,
    RELATION,
    S0,
    S1,
    SHAPES,
    SceneArray,
    draw_scenes,
    edit,
)
from zoo.data.scene_render import SIZE, render
from zoo.data.scenes import Scenes
from zoo.errors import ZooError

CHANGES = ("colour", "shape", "exchange", "background", "frame")
KNOWN_SHAPES = SHAPES[:6]
_PLACES = ("left", "right", "top", "bottom")  # of object 0 under each relation; object 1 is at the opposite


class Triplets(NamedTuple):
    """n composed queries: reference scene and modification text, and the scene that answers."""

    references: SceneArray
    texts: list[str]
    targets: SceneArray


def composed_triplets(
    n: int, rng: np.random.Generator, changes: Sequence[str] = CHANGES, held_out: bool = False, extras: float = 0.0
) -> Triplets:
    """Scenes, "make the left one red" and the scenes that this leads to.

    Args:
        n: number of triplets.
        rng: source of randomness.
        changes: what texts ask for, drawn uniformly: "make the left one red", "make the left one a star", "exchange the
            two", "put it on navy", "put it in oak".
        held_out: as in `draw_scenes`.
        extras: as in `draw_scenes`.
    """
    if unknown := set(changes) - set(CHANGES):
        raise ZooError(f"unknown change {min(unknown)!r}: choose from {', '.join(CHANGES)}")
    references = draw_scenes(n, rng, held_out, extras)
    targets, drawn = references.copy(), rng.integers(len(changes), size=n)
    for number, change in enumerate(changes):
        rows = drawn == number
        targets[rows] = _change(references[rows], change, rng)
    names = np.array(changes)[drawn].tolist()
    texts = [_request(*case) for case in zip(names, references.tolist(), targets.tolist(), strict=True)]
    return Triplets(references, texts, targets)


def _change(scenes: SceneArray, change: str, rng: np.random.Generator) -> SceneArray:
    kinds = {"colour": "replace_att", "shape": "replace_obj", "exchange": "swap_obj"}
    if change in kinds:
        return edit(scenes, kinds[change], rng)
    column, count = (BACKGROUND, len(BACKGROUNDS)) if change == "background" else (FRAME, len(FRAMES))
    changed = scenes.copy()
    changed[:, column] = (changed[:, column] + rng.integers(1, count, size=len(scenes))) % count
    return changed


def _request(change: str, old: list[int], new: list[int]) -> str:
    if change == "exchange":
        return "exchange the two"
    if change == "background":
        return f"put it on {BACKGROUNDS[new[BACKGROUND]]}"
    if change == "frame":
        return f"put it in {FRAMES[new[FRAME]]}"
    slots, names = ((C0, C1), COLOURS) if change == "colour" else ((S0, S1), SHAPES)
    which = int(old[slots[0]] == new[slots[0]])
    value = names[new[slots[which]]]
    return f"make the {_PLACES[old[RELATION] ^ which]} one {value if change == 'colour' else f'a {value}'}"


class OODSets(NamedTuple):
    """In-distribution images with their classes, and by name the images that no class fits."""

    classes: tuple[str, ...]
    images: UInt8[np.ndarray, "N 3 32 32"]
    labels: Int[np.ndarray, " N"]
    outside: dict[str, UInt8[np.ndarray, "N 3 32 32"]]


class SceneSubjects(Scenes):
    """Pictures of one object of the six shapes in `KNOWN_SHAPES`, whose captions leave things out.

    "a red circle on navy in oak", "a circle on navy", "a circle": the shape is always named, and half of the time each of
    the rest, so that "a circle" is a prompt like the captions. All captions of the split that are true of an image are
    known. The arena of out-of-distribution detection: `ood_sets` adds pictures that belong to no class. They cannot be
    edited.

    Args:
        seed: of the data set, which is the same for every run; not the run's seed.
        n_train: training scenes.
        n_val: validation scenes.
        n_test: test scenes.
    """

    name = "scene-subjects"

    def __init__(self, seed: int = 0, n_train: int = 8000, n_val: int = 1000, n_test: int = 2000) -> None:
        super().__init__(seed, n_train, n_val, n_test)

    def scenes(self, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        n = self.lengths[split]
        scenes = _subjects(n, np.random.default_rng([self.seed, self._number(split)]))
        return scenes, np.arange(n), np.full(n, -1)

    def split(self, split: Split, root: Path | None) -> CollectionPairs:  # type: ignore[override]
        images, (scenes, *_) = ImageArray(self._images(split, root)), self.scenes(split)
        true = [_mentions(*row) for row in scenes[:, [C0, S0, BACKGROUND, FRAME]].tolist()]
        drawn = np.random.default_rng([self.seed, self._number(split), 1]).integers(8, size=len(true))
        said = [texts[k] for texts, k in zip(true, drawn.tolist(), strict=True)]
        numbers = {text: i for i, text in enumerate(dict.fromkeys(said))}
        known = [(query, numbers[text]) for query, texts in enumerate(true) for text in texts if text in numbers]
        document_of = np.array([numbers[text] for text in said])
        return CollectionPairs(images, list(numbers), np.arange(len(true)), document_of, np.array(known))

    def composition_cases(self, split: Split, root: Path | None) -> dict[str, Cases]:
        """None: one object has nothing to be exchanged with."""
        return {}

    def ood_sets(self, split: Split, root: Path | None) -> OODSets:
        """Images of a split by shape, and as many of each kind outside.

        `near_erased` are the same pictures without their subject, `near_shape` with one of the two other shapes,
        `far_noise` uniform pixels, `far_texture` gratings. Methods that make their own negatives may use `near_erased`
        of the training split; `near_shape` stands for the unknown and is for evaluation alone.
        """
        scenes, rows, _ = self.scenes(split)
        seed = (self.seed, self._number(split))
        rng = np.random.default_rng([*seed, 2])
        erased, other = scenes.copy(), scenes.copy()
        erased[:, [C0, S0]] = -1
        other[:, S0] = rng.integers(len(KNOWN_SHAPES), len(SHAPES), size=len(scenes))
        outside = {
            "near_erased": render(erased, seed, rows),
            "near_shape": render(other, seed, rows),
            "far_noise": rng.integers(256, size=(len(scenes), 3, SIZE, SIZE), dtype=np.uint8),
            "far_texture": _gratings(len(scenes), rng),
        }
        return OODSets(KNOWN_SHAPES, np.asarray(self.split(split, root).queries.images), scenes[:, S0], outside)


def _subjects(n: int, rng: np.random.Generator) -> SceneArray:
    """Scenes of one known object, which the unseen relation gives its place."""
    scenes = np.empty((0, len(COLUMNS)), int)
    while len(scenes) < n:
        drawn = draw_scenes(2 * n + 16, rng)
        scenes = np.concatenate([scenes, drawn[drawn[:, S0] < len(KNOWN_SHAPES)]])
    scenes[:, [C1, S1]] = -1
    return scenes[:n]


def _mentions(colour: int, shape: int, ground: int, frame: int) -> list[str]:
    """The eight captions of one object, from its shape alone to all there is to say."""
    return [
        f"a{first} {SHAPES[shape]}{second}{third}"
        for first in ("", f" {COLOURS[colour]}")
        for second in ("", f" on {BACKGROUNDS[ground]}")
        for third in ("", f" in {FRAMES[frame]}")
    ]


def _gratings(n: int, rng: np.random.Generator) -> UInt8[np.ndarray, "N 3 32 32"]:
    """Two crossed waves between two colours."""
    axis = np.arange(SIZE) * (2 * np.pi / SIZE)
    waves = rng.uniform(-8, 8, (2, n, 2, 1, 1))
    first, second = (np.sin(w[:, 0] * axis[:, None] + w[:, 1] * axis) for w in waves)
    share = (0.5 + 0.25 * (first + second))[:, None]
    colours = rng.uniform(0, 255, (2, n, 3, 1, 1))
    return (share * colours[0] + (1 - share) * colours[1]).round().astype(np.uint8)
