"""Text pairs, what retrieval is evaluated on, and tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from zoo.data.pairs import PairDataset, PairSource, Split

Side = Literal["query", "document"]


@dataclass
class Tokens:
    """A batch of token ids.

    Attributes:
        ids: `[B, L]`, padded on the right.
        mask: True at tokens, False at padding: what attention sees.
        pool: tokens that pooling reads: not the padding, nor an instruction.
    """

    ids: Int[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]
    pool: Bool[Tensor, "B L"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | Tensor) -> Tokens:
        return Tokens(self.ids[rows], self.mask[rows], self.pool[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Tokens:
        return Tokens(*(x.to(device, non_blocking=non_blocking) for x in (self.ids, self.mask, self.pool)))

    def pin_memory(self) -> Tokens:
        return Tokens(*(x.pin_memory() for x in (self.ids, self.mask, self.pool)))


class TextPairs(PairDataset):
    """(query, document) pairs over lists of distinct queries and documents.

    Keys are numbers in these lists. The column `known` `[N, P]` (-1 padded) holds for each pair all documents that are
    known to be relevant to its query, and a NegativeTable's ids are document numbers.

    Args:
        queries: texts of the queries.
        documents: texts of the documents; those without a pair are candidates for mining.
        query_of: number of each pair's query `[N]`.
        document_of: number of each pair's document `[N]`.
        relevant: further known (query, document) pairs `[R, 2]`, which mask but are not trained on.
        columns: further columns of length N (`group`, `task`, ...).
    """

    def __init__(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        query_of: np.ndarray,
        document_of: np.ndarray,
        relevant: np.ndarray | None = None,
        columns: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.queries, self.documents = queries, documents
        self.mined: TextPairs = self  # what miners read; its numbers of pairs, queries and documents hold here too
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

    def __getitem__(self, index: int) -> tuple[str, str]:
        return self.queries[int(self.query_of[index])], self.documents[int(self.document_of[index])]

    def fetch(self, indices: Sequence[int] | np.ndarray) -> tuple[list[str], list[str]]:
        pairs = [self[int(i)] for i in indices]
        return [a for a, _ in pairs], [p for _, p in pairs]

    @property
    def n_documents(self) -> int:
        return len(self.documents)

    def fetch_documents(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        return [self.documents[int(i)] for i in numbers]

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


class Texts(PairDataset):
    """One side alone, to be encoded in order.

    Args:
        texts: the texts.
        side: which side they are; the other is None in a batch.
    """

    def __init__(self, texts: Sequence[str], side: Side) -> None:
        self.texts, self.side = texts, side
        self.columns = {}

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        text = self.texts[index]
        return (text, None) if self.side == "query" else (None, text)

    def fetch(self, indices: Sequence[int] | np.ndarray) -> tuple[Any, Any]:
        texts = [self.texts[int(i)] for i in indices]
        return (texts, None) if self.side == "query" else (None, texts)


@dataclass
class RetrievalSet:
    """What retrieval is evaluated on.

    Attributes:
        queries: texts of the queries.
        documents: texts of the collection that is searched.
        relevance: for each query its relevant documents: number in `documents` to grade (> 0).
    """

    queries: Sequence[str]
    documents: Sequence[str]
    relevance: list[dict[int, int]] = field(repr=False)


class TextSource(PairSource):
    """A collection of texts with fixed splits."""

    @property
    def arena(self) -> str:
        """Name under which results can be compared."""
        return self.name

    @property
    def report(self) -> dict[str, int]:
        """What was read and what was skipped: entries of the result."""
        return {}

    @abstractmethod
    def split(self, split: Split, root: Path | None) -> TextPairs: ...

    @abstractmethod
    def retrieval(self, split: Split, root: Path | None) -> RetrievalSet:
        """Queries of a split, and the collection that they search."""

    def evaluation(self, split: Split, root: Path | None) -> list[PairDataset]:
        """The documents that are searched, then the queries."""
        data = self.retrieval(split, root)
        return [Texts(data.documents, "document"), Texts(data.queries, "query")]
