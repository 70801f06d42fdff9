"""Rows of pairs and triplets, from wherever they come."""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.collections import RetrievalSet, known_documents
from zoo.data.pairs import Split
from zoo.data.text import TextPairs, TextSource
from zoo.data.text_rows import OnError, RowErrors, cut_validation
from zoo.data.text_store import TextStore, TextWriter, cached, text_digest
from zoo.errors import ZooError
from zoo.negatives.table import NegativeTable

Row = dict[str, Any]


class TextTriplets(TextPairs):
    """Text pairs whose data set names negatives for each.

    Args:
        queries, documents, query_of, document_of: as in TextPairs; documents include those that are only negatives.
        negatives: document numbers of each pair's negatives `[N, K]` in the data set's order, -1 padded at the end.
    """

    def __init__(
        self,
        queries: TextStore,
        documents: TextStore,
        query_of: np.ndarray,
        document_of: np.ndarray,
        negatives: np.ndarray,
    ) -> None:
        super().__init__(queries, documents, query_of, document_of)
        self.negatives = negatives

    def table(self) -> NegativeTable:
        """The negatives as a table with scores 0, without those that are known positives of the query.

        Raises:
            ZooError: the data set names none.
        """
        if not (self.negatives >= 0).any():
            raise ZooError("the rows name no negatives: pass the column that holds them as `negatives`")
        scores = np.where(self.negatives >= 0, np.float32(0), np.float32(-np.inf))
        table = NegativeTable(self.negatives, scores, [{"miner": "data set", "depth": self.negatives.shape[1]}])
        return table.drop_positives(self.columns["known"], np.arange(self.n_documents))


@dataclass
class _Rows:
    """One file: its distinct queries and documents, pairs `[N, 2]`, negatives `[N, K]`."""

    queries: TextStore
    documents: TextStore
    pairs: np.ndarray
    negatives: np.ndarray


class PairRows(TextSource):
    """Rows of pairs or triplets, from wherever a subclass reads them.

    Equal texts are one query or document, and rows with the same anchor and positive are one pair with all their
    negatives. The queries of a split search the documents of its own file, negatives included. Without a validation
    file, 5 % of the training queries are the validation split and leave the training split. Texts are read once into a
    memory-mapped cache (`$ZOO_CACHE`).

    Args:
        name: name under which results are recorded.
        anchor: column of the queries.
        positive: column of their documents.
        negatives: column of a negative or a list of them; rows may lack it.
        on_error: "fail" ends with place and number of the first bad row; "skip" leaves bad rows out and counts them in
            `report` (malformed, missing a field, empty).
    """

    def __init__(
        self,
        name: str,
        anchor: str = "query",
        positive: str = "positive",
        negatives: str = "negative",
        on_error: OnError = "fail",
    ) -> None:
        self.name, self.anchor, self.positive, self.negatives = name, anchor, positive, negatives
        self.on_error: OnError = on_error
        self._loaded: dict[tuple[Split, Path | None], _Rows] = {}
        self._counts: dict[object, Counter[str]] = {}

    @abstractmethod
    def has(self, split: Split, root: Path | None) -> bool:
        """Whether there are rows for this split."""

    @abstractmethod
    def rows(self, split: Split, root: Path | None, errors: RowErrors) -> tuple[object, Any, Iterator[tuple[int, Row]]]:
        """Where the rows are (for messages), a stamp of their contents, and the rows with their line numbers."""

    def prepare(self, root: Path | None) -> None:
        for split in ("train", "val", "test"):
            if self.has(split, root):
                self._load(split, root)

    @property
    def report(self) -> dict[str, int]:
        return dict(sum(self._counts.values(), Counter()))

    def split(self, split: Split, root: Path | None) -> TextTriplets:
        rows, chosen = self._choose(split, root)
        numbers, query_of = np.unique(rows.pairs[chosen, 0], return_inverse=True)
        if split == "train":
            self._counts["pairs"] = Counter(pairs=len(query_of))
        queries = rows.queries.take(numbers)
        return TextTriplets(queries, rows.documents, query_of, rows.pairs[chosen, 1], rows.negatives[chosen])

    def retrieval(self, split: Split, root: Path | None) -> RetrievalSet:
        pairs = self.split(split, root)
        known = known_documents(np.stack([pairs.query_of, pairs.document_of], 1), len(pairs.queries))
        return RetrievalSet(pairs.queries, pairs.documents, [{d: 1 for d in row if d >= 0} for row in known.tolist()])

    def _choose(self, split: Split, root: Path | None) -> tuple[_Rows, np.ndarray]:
        """Rows of the file that holds a split, and the numbers of the split's pairs in it."""
        cut = split != "test" and not self.has("val", root)
        rows = self._load("train" if cut else split, root)
        if not cut:
            return rows, np.arange(len(rows.pairs))
        queries = cut_validation(np.unique(rows.pairs[:, 0]), split)
        return rows, np.flatnonzero(np.isin(rows.pairs[:, 0], queries))

    def _load(self, split: Split, root: Path | None) -> _Rows:
        if (split, root) not in self._loaded:
            errors = RowErrors(self.on_error)
            where, stamp, rows = self.rows(split, root, errors)
            columns = (self.anchor, self.positive, self.negatives)
            folder, counts = cached(
                "pairs", (stamp, columns, self.on_error), lambda to: self._write(rows, where, to, errors)
            )
            pairs, negatives = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pairs", "negatives"))
            if not len(pairs):
                raise ZooError(f"{where}: holds no usable pair; check the file and the columns {columns[:2]}")
            queries, documents = TextStore(folder, "queries"), TextStore(folder, "documents")
            self._loaded[split, root] = _Rows(queries, documents, pairs, negatives)
            self._counts[split, root] = counts
        return self._loaded[split, root]

    def _write(self, rows: Iterator[tuple[int, Row]], where: object, folder: Path, errors: RowErrors) -> Counter[str]:
        numbers: dict[tuple[int, int], int] = {}
        owners, found = array("q"), array("q")
        with TextWriter(folder, "queries") as to_queries, TextWriter(folder, "documents") as to_documents:
            queries, documents = _Distinct(to_queries), _Distinct(to_documents)
            for line, row in rows:
                anchor = errors.text(where, line, self.anchor, row.get(self.anchor))
                positive = None if anchor is None else errors.text(where, line, self.positive, row.get(self.positive))
                negatives = None if positive is None else self._negatives(where, line, row.get(self.negatives), errors)
                if anchor is None or positive is None or negatives is None:
                    continue
                pair = numbers.setdefault((queries.number(anchor), documents.number(positive)), len(numbers))
                owners.extend([pair] * len(negatives))
                found.extend(map(documents.number, negatives))
            to_queries.close()
            to_documents.close()
        np.save(folder / "pairs.npy", np.array(list(numbers), np.int64).reshape(-1, 2))
        np.save(folder / "negatives.npy", _padded(np.array(owners, np.int64), np.array(found, np.int64), len(numbers)))
        return errors.counts

    def _negatives(self, where: object, line: int, value: Any, errors: RowErrors) -> list[str] | None:
        """Texts of a row's negatives; None if one is unusable, which is reported."""
        if value is None or value == "":  # in a table every row has the column
            return []
        texts = []
        for text in value if isinstance(value, list) else [value]:
            if errors.text(where, line, self.negatives, text) is None:
                return None
            texts.append(text)
        return texts


class _Distinct:
    """Numbers distinct texts in order of appearance, and writes them."""

    def __init__(self, writer: TextWriter) -> None:
        self.writer = writer
        self._numbers: dict[bytes, int] = {}

    def number(self, text: str) -> int:
        digest = text_digest(text, 16)
        if digest not in self._numbers:
            self._numbers[digest] = len(self._numbers)
            self.writer.append(text)
        return self._numbers[digest]


def _padded(owners: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """Distinct values of each of `n` owners in order of appearance, `[n, K]`, -1 padded."""
    first = np.sort(np.unique(np.stack([owners, values], 1), axis=0, return_index=True)[1])
    first = first[np.argsort(owners[first], kind="stable")]
    owners, values = owners[first], values[first]
    counts = np.bincount(owners, minlength=n)
    padded = np.full((n, max(1, counts.max(initial=0))), -1, np.int64)
    padded[owners, np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)] = values
    return padded
