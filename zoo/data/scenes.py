"""The embedded image-text arena: rendered scenes, captions, exact edits of both."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.data import scene_edits, scene_render
from zoo.data.cache import cache_folder, cached_arrays
from zoo.data.collections import CollectionPairs, ImageArray, RetrievalSet, RetrievalSource
from zoo.data.pairs import Split
from zoo.data.scene_cases import Cases, composition_cases
from zoo.data.scene_edits import KINDS, caption, draw_scenes, edit, meaning
from zoo.data.scene_render import render
from zoo.errors import ZooError

_ORIGINAL = -1


class ScenePairs(CollectionPairs):
    """(image, caption) pairs that know their scenes, which generators of negatives edit.

    An image's known documents are all captions that are true of it. Columns: `group` is the number of the scene that a
    pair was made from (siblings share it), `edit` the number in `KINDS` of the edit that made it, -1 for none.

    Args:
        images: collection of the N images.
        scenes: their scenes `[N, 10]`.
        group: scene that each was made from.
        edits: how.
    """

    def __init__(self, images: ImageArray, scenes: np.ndarray, group: np.ndarray, edits: np.ndarray) -> None:
        captions = caption(scenes)
        numbers = {text: i for i, text in enumerate(dict.fromkeys(captions))}
        document_of = np.array([numbers[text] for text in captions])
        meanings = meaning(scenes)
        relevant = _same(meanings, document_of)
        columns = {"group": group, "edit": edits}
        super().__init__(images, list(numbers), np.arange(len(scenes)), document_of, relevant, columns)
        self.scenes = scenes
        self.document_of_meaning = dict(zip(meanings.tolist(), document_of.tolist(), strict=True))


class Scenes(RetrievalSource):
    """Pictures of two objects and sentences that say which is where; the query is the image, the document its caption.

    The same words in another order describe another picture, and both pictures and both sentences can be made: all that
    tests and trains composition is exact. Order alone says nothing (all four relations occur equally often), and two
    captions of a batch rarely have the same words, so plain contrastive training can do without composition. Some pairs
    of colour and shape (`scene_edits.HELD_OUT`) occur only in the compositional test cases that are named `_unseen`.
    Images must not be flipped. They are rendered once and memory-mapped from a cache.

    Args:
        seed: of the data set, which is the same for every run; not the run's seed.
        n_train: training scenes.
        n_val: validation scenes.
        n_test: test scenes.
        n_cases: compositional cases of each kind.
        siblings: training pairs made from each scene: itself and siblings with one edit each, no two the same picture.
            They stand side by side and share position and noise, so nothing but the edit tells them apart.
        edits: kinds of edits that siblings are made with (`scene_edits.KINDS`).
        extras: share of scenes with a third object or with stripes, which the `add` cases ask for.
    """

    name = "scenes"

    def __init__(
        self,
        seed: int = 0,
        n_train: int = 8000,
        n_val: int = 1000,
        n_test: int = 2000,
        n_cases: int = 1000,
        siblings: int = 1,
        edits: Sequence[str] = ("swap_att", "swap_obj", "replace_att", "replace_obj"),
        extras: float = 0.1,
    ) -> None:
        if unknown := set(edits) - set(KINDS):
            raise ZooError(f"unknown edit {min(unknown)!r}: choose from {', '.join(KINDS)}")
        if siblings < 1 or (siblings > 1 and not edits):
            raise ZooError("siblings counts the scene itself and needs edits: set --data.source.siblings to 1 or more")
        self.seed, self.n_cases, self.siblings, self.edits, self.extras = seed, n_cases, siblings, tuple(edits), extras
        self.lengths: dict[Split, int] = {"train": n_train, "val": n_val, "test": n_test}

    def prepare(self, root: Path | None) -> None:
        for split in self.lengths:
            self._images(split, root)

    def split(self, split: Split, root: Path | None) -> ScenePairs:
        images = ImageArray(self._images(split, root))
        return ScenePairs(images, *self.scenes(split))

    def retrieval(self, split: Split, root: Path | None) -> RetrievalSet:
        """Images of a split against its distinct captions; all that are true of an image are relevant."""
        pairs = self.split(split, root)
        relevance = [{int(document): 1 for document in row if document >= 0} for row in pairs.columns["known"]]
        return RetrievalSet(pairs.queries, pairs.documents, relevance)

    def composition_cases(self, split: Split, root: Path | None) -> dict[str, Cases]:
        """Compositional cases of a split by name, see `scene_cases.composition_cases`."""
        return composition_cases(self.n_cases, (self.seed, self._number(split)))

    def scenes(self, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scenes of a split `[N, 10]`, the scene that each was made from `[N]` and the edit (-1: none) `[N]`."""
        rng = np.random.default_rng([self.seed, self._number(split)])
        scenes = draw_scenes(self.lengths[split], rng, held_out=False, extras=self.extras)
        siblings = self.siblings if split == "train" else 1
        families, edits = _families(scenes, siblings, self.edits, rng)
        return families.reshape(-1, scenes.shape[1]), np.arange(len(scenes)).repeat(siblings), edits.ravel()

    def _number(self, split: Split) -> int:
        return list(self.lengths).index(split)

    def _images(self, split: Split, root: Path | None) -> np.ndarray:
        # The file's name carries everything that its contents depend on, the text of these files included.
        folder = cache_folder(root)
        arguments = (self.seed, split, self.lengths[split], self.extras)
        arguments += (self.siblings, self.edits) if split == "train" and self.siblings > 1 else ()
        identity = hashlib.sha256(repr(arguments).encode())
        for module in (__file__, inspect.getfile(type(self)), scene_edits.__file__, scene_render.__file__):
            identity.update(Path(module).read_bytes())
        path = folder / f"{self.name}-{split}-{identity.hexdigest()[:12]}.npy"

        def rendered() -> list[np.ndarray]:
            scenes, group, _ = self.scenes(split)
            return [render(scenes, (self.seed, self._number(split)), group)]

        return cached_arrays([path], rendered)[0]


def _families(
    scenes: np.ndarray, siblings: int, kinds: Sequence[str], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each scene with edits of it that show different pictures: scenes `[N, V, 10]`, edits `[N, V]`."""
    families = np.repeat(scenes[:, None], siblings, 1)
    edits = np.full((len(scenes), siblings), _ORIGINAL)
    for member in range(1, siblings):
        rows = np.arange(len(scenes))
        for _ in range(100):
            drawn = np.array([KINDS.index(kind) for kind in kinds])[rng.integers(len(kinds), size=len(rows))]
            for number in np.unique(drawn):
                chosen = rows[drawn == number]
                families[chosen, member] = edit(scenes[chosen], KINDS[number], rng)
            edits[rows, member] = drawn
            seen = np.stack([meaning(families[rows, m]) for m in range(member + 1)], 1)
            rows = rows[(seen[:, :-1] == seen[:, -1:]).any(1)]
            if not len(rows):
                break
        else:
            raise ZooError(f"{', '.join(kinds)} cannot make {siblings} different siblings: ask for fewer")
    return families, edits


def _same(meanings: np.ndarray, document_of: np.ndarray) -> np.ndarray:
    """(query, document) numbers of all captions that are true of an image."""
    documents: dict[int, set[int]] = {}
    for number, document in zip(meanings.tolist(), document_of.tolist(), strict=True):
        documents.setdefault(number, set()).add(document)
    return np.array([(q, d) for q, number in enumerate(meanings.tolist()) for d in sorted(documents[number])])
