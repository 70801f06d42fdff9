"""The embedded arena of composed retrieval: a scene, "make the left one red", and the scene that this leads to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoo.data.collections import ImageArray, RetrievalSource
from zoo.data.composed import ComposedPairs, ComposedSet, composed_set
from zoo.data.composed_positives import generate_triplets
from zoo.data.pairs import Split
from zoo.data.scene_edits import caption, edit, meaning
from zoo.data.scene_render import render
from zoo.data.scene_tasks import CHANGES, composed_triplets
from zoo.errors import ZooError

_SIBLINGS = ("swap_att", "swap_obj", "replace_att", "replace_obj")
_LONGEST = 18  # words that fit into the smallest model's context


class _Drawn(NamedTuple):
    scenes: np.ndarray  # distinct pictures
    reference: np.ndarray
    texts: list[str]
    target: np.ndarray
    siblings: np.ndarray  # [n, siblings]


class ComposedScenes(RetrievalSource):
    """Reference scenes, texts that change one thing, and the scenes that answer.

    An image is a distinct picture with a position and a noise of its own, so nothing but what it shows relates a target
    to its reference. Each reference also has siblings, with other edits, that are in no triplet: wrong answers that look
    right in evaluation, unlabelled images in training.

    Args:
        seed: of the data set, which is the same for every run; not the run's seed.
        n_train: training triplets.
        n_val: validation triplets.
        n_test: test triplets.
        siblings: further edits of each reference.
        changes: what texts ask for (`scene_tasks.CHANGES`).
        generated: at most so many training triplets more, made from captions (`generate_triplets`); similarity is the
            number of shared properties, and references are those that there are.
        window: ranks of their targets.
    """

    name = "composed-scenes"

    def __init__(
        self,
        seed: int = 0,
        n_train: int = 2000,
        n_val: int = 500,
        n_test: int = 1000,
        siblings: int = 4,
        changes: Sequence[str] = CHANGES,
        generated: int = 0,
        window: tuple[int, int] = (1000, 4000),
    ) -> None:
        if min(n_train, n_val, n_test) < 1 or min(siblings, generated) < 0:
            raise ZooError(
                "each split takes 1 or more triplets, siblings and generated 0 or more: change --data.source"
            )
        self.seed, self.siblings, self.changes = seed, siblings, tuple(changes)
        self.generated, self.window = generated, window
        self.lengths: dict[Split, int] = {"train": n_train, "val": n_val, "test": n_test}
        self._made: dict[Split, tuple[ComposedPairs, _Drawn]] = {}

    def prepare(self, root: Path | None) -> None:
        self._draw("train")

    def split(self, split: Split, root: Path | None) -> ComposedPairs:
        return self._pairs(split)[0]

    def retrieval(self, split: Split, root: Path | None) -> ComposedSet:
        """Queries of a split against all its pictures; the subset of a query is its target and its siblings."""
        pairs, drawn = self._pairs(split)
        subsets: dict[int, list[int]] = {}
        for reference, siblings in zip(drawn.reference.tolist(), drawn.siblings.tolist(), strict=True):
            subsets.setdefault(reference, []).extend(siblings)
        return composed_set(pairs, subsets if self.siblings else None)

    def _pairs(self, split: Split) -> tuple[ComposedPairs, _Drawn]:
        if split not in self._made:
            drawn = self._draw(split)
            images = ImageArray(render(drawn.scenes, (self.seed, self._number(split), 1)))
            reference, texts, target = drawn.reference, drawn.texts, drawn.target
            if split == "train" and self.generated:
                more = self._generate(drawn)
                reference, target = np.append(reference, more.references), np.append(target, more.targets)
                texts = [*texts, *more.texts]
            self._made[split] = ComposedPairs(images, reference, texts, target), drawn
        return self._made[split]

    def _generate(self, drawn: _Drawn):
        properties = drawn.scenes - drawn.scenes.min(0)
        features = np.concatenate([np.eye(column.max() + 1)[column] for column in properties.T], 1)
        return generate_triplets(
            features,
            caption(drawn.scenes),
            self.window,
            np.random.default_rng([self.seed, self._number("train"), 2]),
            references=np.unique(drawn.reference),
            limit=self.generated,
            fits=lambda text: len(text.split()) <= _LONGEST,
        )

    def _draw(self, split: Split) -> _Drawn:
        rng = np.random.default_rng([self.seed, self._number(split), 0])
        n = self.lengths[split]
        references, texts, targets = composed_triplets(n, rng, self.changes)
        kinds = rng.integers(len(_SIBLINGS), size=(self.siblings, n))
        siblings = np.repeat(references[None], self.siblings, 0)
        for sibling, drawn in zip(siblings, kinds, strict=True):
            for number, kind in enumerate(_SIBLINGS):
                sibling[drawn == number] = edit(references[drawn == number], kind, rng)
        everything = np.concatenate([references, targets, *siblings])
        _, first, number = np.unique(meaning(everything), return_index=True, return_inverse=True)
        order = np.argsort(first)  # images by where they first occur
        number = np.argsort(order)[number.ravel()].reshape(2 + self.siblings, n)
        return _Drawn(everything[first[order]], number[0], texts, number[1], number[2:].T)

    def _number(self, split: Split) -> int:
        return list(self.lengths).index(split)
