"""Two collections, the pairs between them, and what retrieval is evaluated on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from zoo.data.pairs import PairDataset, PairSource, Split
from zoo.errors import ZooError

Side = Literal["query", "document"]


class ImageArray:
    """A collection of images that lie in memory, or in a mapped file.

    Args:
        images: uint8 `[N, 3, H, W]`.
    """

    def __init__(self, images: UInt8[np.ndarray, "N 3 H W"]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> UInt8[Tensor, "3 H W"]:
        return self.fetch([number])[0]

    def fetch(self, numbers: Sequence[int] | np.ndarray) -> UInt8[Tensor, "B 3 H W"]:
        """Images by number."""
        return torch.from_numpy(np.ascontiguousarray(self.images[np.asarray(numbers, np.int64)]))


class ImageFiles:
    """A collection of image files, decoded when read, in the loader's workers.

    Args:
        paths: the files.
        size: height and width of what is read; one number for a square.
        resize: "crop" keeps the proportions, scales the shorter side and cuts the centre out; "fit" stretches.
    """

    def __init__(
        self, paths: Sequence[Path], size: int | tuple[int, int], resize: Literal["crop", "fit"] = "crop"
    ) -> None:
        self.paths = paths
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.resize = resize

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> UInt8[Tensor, "3 H W"]:
        path = self.paths[int(number)]
        try:
            with Image.open(path) as file:
                file.draft("RGB", (2 * self.width, 2 * self.height))
                image = file.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise ZooError(f"cannot read the image {path} ({error}): restore the file") from error
        return torch.from_numpy(np.array(self._resized(image))).permute(2, 0, 1)

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.resize == "fit":
            return image.resize((self.width, self.height), Image.Resampling.BICUBIC)
        scale = max(self.width / image.width, self.height / image.height)
        wide, high = self.width / scale, self.height / scale
        left, top = (image.width - wide) / 2, (image.height - high) / 2
        box = (left, top, left + wide, top + high)
        return image.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box)

    def fetch(self, numbers: Sequence[int] | np.ndarray) -> UInt8[Tensor, "B 3 H W"]:
        """Images by number.

        Raises:
            ZooError: a file is missing, truncated or not an image.
        """
        return torch.stack([self[int(number)] for number in numbers])


def fetch(collection: Any, numbers: Sequence[int] | np.ndarray) -> Any:
    """Items of a collection by number: a list, or what the collection's own `fetch` collates."""
    if hasattr(collection, "fetch"):
        return collection.fetch(numbers)
    return [collection[int(number)] for number in numbers]


class CollectionPairs(PairDataset):
    """(query, document) pairs over collections of distinct queries and documents.

    A collection is a sequence of texts, or images with a `fetch` of their own. Keys are numbers in the collections. The
    column `known` `[N, P]` (-1 padded) holds for each pair all documents that are known to be relevant to its query, and
    a NegativeTable's ids are document numbers.

    Args:
        queries: the queries.
        documents: the documents; those without a pair are candidates for mining.
        query_of: number of each pair's query `[N]`.
        document_of: number of each pair's document `[N]`.
        relevant: further known (query, document) pairs `[R, 2]`, which mask but are not trained on.
        columns: further columns of length N (`group`, `task`, `coords`, ...).
    """

    def __init__(
        self,
        queries: Any,
        documents: Any,
        query_of: np.ndarray,
        document_of: np.ndarray,
        relevant: np.ndarray | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.queries, self.documents = queries, documents
        self.mined: CollectionPairs = self  # what miners read; its pairs, queries and documents have these numbers too
        pairs = np.stack([np.asarray(query_of), np.asarray(document_of)], 1).astype(np.int64)
        self.query_of, self.document_of = pairs.T
        everything = pairs if relevant is None else np.concatenate([pairs, relevant])
        self.columns = {
            "anchor_key": self.query_of,
            "positive_key": self.document_of,
            "known": known_documents(everything, len(queries))[self.query_of],
            **(columns or {}),
        }

    def __len__(self) -> int:
        return len(self.query_of)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.queries[int(self.query_of[index])], self.documents[int(self.document_of[index])]

    def fetch(self, indices: Sequence[int] | np.ndarray) -> tuple[Any, Any]:
        rows = np.asarray(indices, np.int64)
        return fetch(self.queries, self.query_of[rows]), fetch(self.documents, self.document_of[rows])

    @property
    def n_documents(self) -> int:
        return len(self.documents)

    def fetch_documents(self, numbers: Sequence[int] | np.ndarray) -> Any:
        return fetch(self.documents, numbers)

    def document_keys(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(numbers))


def known_documents(pairs: np.ndarray, n_queries: int) -> np.ndarray:
    """For each query the numbers of its documents, `[Q, P]`, ascending, -1 padded.

    Args:
        pairs: (query, document) numbers `[N, 2]`.
        n_queries: Q.
    """
    pairs = np.unique(pairs, axis=0)
    counts = np.bincount(pairs[:, 0], minlength=n_queries)
    known = np.full((n_queries, max(1, counts.max(initial=0))), -1, np.int64)
    rank = np.arange(len(pairs)) - np.repeat(np.cumsum(counts) - counts, counts)
    known[pairs[:, 0], rank] = pairs[:, 1]
    return known


class OneSide(PairDataset):
    """One collection alone, to be encoded in order.

    Args:
        items: the collection.
        side: which side they are; the other is None in a batch.
    """

    def __init__(self, items: Any, side: Side) -> None:
        self.items, self.side = items, side
        self.columns = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self._place(self.items[index])

    def fetch(self, indices: Sequence[int] | np.ndarray) -> tuple[Any, Any]:
        return self._place(fetch(self.items, indices))

    def _place(self, x: Any) -> tuple[Any, Any]:
        return (x, None) if self.side == "query" else (None, x)


@dataclass
class RetrievalSet:
    """What retrieval is evaluated on.

    Attributes:
        queries: collection of the queries.
        documents: collection that is searched.
        relevance: for each query its relevant documents: number in `documents` to grade (> 0).
        ignored: for each query documents that are neither right nor wrong, where there are such.
        coords: where the queries were taken `[Q, 2]`, where that is known.
    """

    queries: Any
    documents: Any
    relevance: list[dict[int, int]] = field(repr=False)
    ignored: list[set[int]] | None = field(default=None, repr=False)
    coords: np.ndarray | None = field(default=None, repr=False)


class RetrievalSource(PairSource):
    """Two collections with fixed splits."""

    @property
    def arena(self) -> str:
        """Name under which results can be compared."""
        return self.name

    @property
    def report(self) -> dict[str, int]:
        """What was read and what was skipped: entries of the result."""
        return {}

    @abstractmethod
    def split(self, split: Split, root: Path | None) -> CollectionPairs: ...

    @abstractmethod
    def retrieval(self, split: Split, root: Path | None) -> RetrievalSet:
        """Queries of a split, and the collection that they search."""

    def retrievals(self, split: Split, root: Path | None) -> dict[str, RetrievalSet]:
        """All that a split is evaluated on, by name: "", and others that test generalisation further."""
        return {"": self.retrieval(split, root)}

    def evaluation(self, split: Split, root: Path | None) -> list[PairDataset]:
        """For each retrieval set the documents that are searched, then the queries."""
        listed: list[PairDataset] = []
        for data in self.retrievals(split, root).values():
            listed += [OneSide(data.documents, "document"), OneSide(data.queries, "query")]
        return listed
