"""Composed retrieval: a query is a reference image with a text that says what to change, the answer another image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from zoo.data.collections import CollectionPairs, RetrievalSet, fetch


@dataclass
class Composed:
    """B reference images with their modification texts.

    Attributes:
        image: images `[B, ...]`; None where a method looks their features up.
        text: B texts, or their tokens.
        image_key: number of each image in its collection.
        text_key: number of each text among the distinct ones.
    """

    image: Any
    text: Any
    image_key: Int[Tensor, "*B"]
    text_key: Int[Tensor, "*B"]

    def __len__(self) -> int:
        return len(self.image_key)

    def __getitem__(self, rows: Any) -> Composed:
        return self._each(lambda part: part[rows])

    def __str__(self) -> str:
        return str(self.text)

    def map(self, images: Callable[[Any], Any] | None = None, texts: Callable[[Any], Any] | None = None) -> Composed:
        """The same with images or texts put through a function; images that are not there are not."""
        image = self.image if images is None or self.image is None else images(self.image)
        return replace(self, image=image, text=self.text if texts is None else texts(self.text))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Composed:
        return self._each(lambda part: part.to(device, non_blocking=non_blocking) if hasattr(part, "to") else part)

    def pin_memory(self) -> Composed:
        return self._each(lambda part: part.pin_memory() if hasattr(part, "pin_memory") else part)

    def _each(self, change: Callable[[Any], Any]) -> Composed:
        image = None if self.image is None else change(self.image)
        return Composed(image, change(self.text), change(self.image_key), change(self.text_key))


class ComposedQueries:
    """A collection of composed queries, distinct in image or text.

    Args:
        images: collection of the images.
        texts: distinct texts.
        image_of: number of each query's image `[Q]`.
        text_of: number of each query's text `[Q]`.
    """

    def __init__(self, images: Any, texts: Sequence[str], image_of: np.ndarray, text_of: np.ndarray) -> None:
        self.images, self.texts, self.image_of, self.text_of = images, texts, image_of, text_of

    def __len__(self) -> int:
        return len(self.image_of)

    def __getitem__(self, number: int) -> Composed:
        return self.fetch([number])[0]

    def fetch(self, numbers: Sequence[int] | np.ndarray, load_images: bool = True) -> Composed:
        """Queries by number, with or without their images."""
        rows = np.asarray(numbers, np.int64)
        images, texts = self.image_of[rows], self.text_of[rows]
        return Composed(
            fetch(self.images, images) if load_images else None,
            [self.texts[int(t)] for t in texts],
            torch.as_tensor(images),
            torch.as_tensor(texts),
        )


class ComposedPairs(CollectionPairs):
    """Triplets (reference, text, target) over one collection of distinct images; images in no triplet are unlabelled.

    Args:
        images: collection of the images: references, targets and documents alike.
        reference: number of each triplet's reference `[N]`.
        texts: text of each triplet.
        target: number of each triplet's target `[N]`.
        columns: as in `CollectionPairs`.

    Attributes:
        load_images: False leaves images out of batches, for training on features that are known.
    """

    queries: ComposedQueries

    def __init__(
        self,
        images: Any,
        reference: np.ndarray,
        texts: Sequence[str],
        target: np.ndarray,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        asked = np.stack([np.asarray(reference, np.int64), [number[text] for text in texts]], 1)
        distinct, query_of = np.unique(asked, axis=0, return_inverse=True)
        queries = ComposedQueries(images, list(number), *distinct.T)
        super().__init__(queries, images, query_of.ravel(), target, columns=columns)
        self.load_images = True

    def fetch(self, indices: Sequence[int] | np.ndarray) -> tuple[Composed, Any]:
        rows = np.asarray(indices, np.int64)
        query = self.queries.fetch(self.query_of[rows], self.load_images)
        return query, fetch(self.documents, self.document_of[rows]) if self.load_images else None

    @property
    def used(self) -> Int[np.ndarray, " M"]:
        """Images that a triplet touches, ascending."""
        return np.union1d(self.queries.image_of[self.query_of], self.document_of)


class Selected:
    """Some items of a collection, in an order of their own.

    Args:
        collection: a sequence, or images with a `fetch`.
        numbers: of the items.
    """

    def __init__(self, collection: Any, numbers: np.ndarray) -> None:
        self.collection, self.numbers = collection, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Any:
        return self.collection[int(self.numbers[number])]

    def fetch(self, numbers: Sequence[int] | np.ndarray) -> Any:
        return fetch(self.collection, self.numbers[np.asarray(numbers, np.int64)])


@dataclass
class ComposedSet(RetrievalSet):
    """What composed retrieval is evaluated on; `ignored` holds the reference, which is no answer.

    Attributes:
        subsets: for each query the few images that are like its target, the target included (CIRR), where there are such.
    """

    subsets: list[list[int]] | None = field(default=None, repr=False)


def composed_set(pairs: ComposedPairs, subsets: Mapping[int, Sequence[int]] | None = None) -> ComposedSet:
    """The triplets' queries against all images, their own reference left out.

    Args:
        pairs: the triplets.
        subsets: by reference the images that are like it; None where the data set names none.
    """
    relevance: list[dict[int, int]] = [{} for _ in range(len(pairs.queries))]
    for query, target in zip(pairs.query_of.tolist(), pairs.document_of.tolist(), strict=True):
        relevance[query][target] = 1
    references = pairs.queries.image_of.tolist()
    like = None
    if subsets is not None:
        like = [
            sorted((set(subsets.get(image, ())) | set(right)) - {image})
            for image, right in zip(references, relevance, strict=True)
        ]
    ignored = [{image} - set(right) for image, right in zip(references, relevance, strict=True)]
    return ComposedSet(pairs.queries, pairs.documents, relevance, ignored, subsets=like)
