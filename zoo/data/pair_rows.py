"""Rows of pairs and triplets, from wherever they come."""

from __future__ import annotations

import math
from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
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
        scores: a teacher's scores of each pair's positive, then of its negatives `[N, 1 + K]`, where the data set has them.
        answers: of each pair the text that its documents help to write, where the data set has them.
    """

    def __init__(
        self,
        queries: Sequence[str],
        documents: Sequence[str],
        query_of: np.ndarray,
        document_of: np.ndarray,
        negatives: np.ndarray,
        scores: np.ndarray | None = None,
        answers: Sequence[str] | None = None,
    ) -> None:
        super().__init__(queries, documents, query_of, document_of)
        self.negatives, self.scores, self.answers = negatives, scores, answers

    def table(self) -> NegativeTable:
        """The negatives as a table, by falling score or with scores 0, without known positives of the query.

        Raises:
            ZooError: the data set names none.
        """
        if not (self.negatives >= 0).any():
            raise ZooError("the rows name no negatives: pass the column that holds them as `negatives`")
        ids, positives, there = self.negatives, None, self.negatives >= 0
        scores = np.where(there, np.float32(0), np.float32(-np.inf))
        if self.scores is not None:
            positives, scores = self.scores[:, 0], np.where(there, self.scores[:, 1:], np.float32(-np.inf))
            order = np.argsort(-scores, axis=1, kind="stable")
            ids, scores = (np.take_along_axis(x, order, 1) for x in (ids, scores))
        table = NegativeTable(ids, scores, [{"miner": "data set", "depth": ids.shape[1]}], positives)
        return table.drop_positives(self.columns["known"], np.arange(self.n_documents))


@dataclass
class _Rows:
    """One file: its distinct queries and documents, pairs `[N, 2]`, negatives `[N, K]`, scores `[N, 1 + K]`, answers."""

    queries: TextStore
    documents: TextStore
    pairs: np.ndarray
    negatives: np.ndarray
    scores: np.ndarray | None
    answers: TextStore | None


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
        scores: column of a teacher's scores, a list for the positive and then each negative of a training row, to be
            distilled; None where there are none.
        answer: column of the answer to a training row's query, for `zoo.methods.CausalReward`; None where there is none.
    """

    def __init__(
        self,
        name: str,
        anchor: str = "query",
        positive: str = "positive",
        negatives: str = "negative",
        on_error: OnError = "fail",
        scores: str | None = None,
        answer: str | None = None,
    ) -> None:
        self.name, self.anchor, self.positive, self.negatives = name, anchor, positive, negatives
        self.on_error: OnError = on_error
        self.scores, self.answer = scores, answer
        self._loaded: dict[tuple[Split, Path | None], _Rows] = {}
        self._counts: dict[object, Counter[str]] = {}

    @property
    def columns(self) -> list[str]:
        """Names of the columns that are read."""
        return [c for c in (self.anchor, self.positive, self.negatives, self.scores, self.answer) if c is not None]

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
        scores = None if rows.scores is None else rows.scores[chosen]
        answers = None if rows.answers is None else rows.answers.take(chosen)
        return TextTriplets(
            queries, rows.documents, query_of, rows.pairs[chosen, 1], rows.negatives[chosen], scores, answers
        )

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
            scores, answer = (self.scores, self.answer) if split == "train" else (None, None)
            columns = (self.anchor, self.positive, self.negatives, scores, answer)
            folder, counts = cached(
                "pairs",
                (stamp, columns, self.on_error),
                lambda to: self._write(rows, where, to, errors, scores, answer),
            )
            pairs, negatives = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pairs", "negatives"))
            if not len(pairs):
                raise ZooError(f"{where}: holds no usable pair; check the file and the columns {columns[:2]}")
            queries, documents = TextStore(folder, "queries"), TextStore(folder, "documents")
            judged = None if scores is None else np.load(folder / "scores.npy", mmap_mode="r")
            answers = None if answer is None else TextStore(folder, "answers")
            self._loaded[split, root] = _Rows(queries, documents, pairs, negatives, judged, answers)
            self._counts[split, root] = counts
        return self._loaded[split, root]

    def _write(
        self,
        rows: Iterator[tuple[int, Row]],
        where: object,
        folder: Path,
        errors: RowErrors,
        scores: str | None,
        answer: str | None,
    ) -> Counter[str]:
        numbers: dict[tuple[int, int], int] = {}
        owners, found, of_negatives, of_positives = array("q"), array("q"), array("f"), array("f")
        writers = (TextWriter(folder, name) for name in ("queries", "documents", "answers"))
        with next(writers) as to_queries, next(writers) as to_documents, next(writers) as to_answers:
            queries, documents = _Distinct(to_queries), _Distinct(to_documents)
            for line, row in rows:
                anchor = errors.text(where, line, self.anchor, row.get(self.anchor))
                positive = None if anchor is None else errors.text(where, line, self.positive, row.get(self.positive))
                negatives = None if positive is None else self._negatives(where, line, row.get(self.negatives), errors)
                if anchor is None or positive is None or negatives is None:
                    continue
                judged = _scores(where, line, row, scores, 1 + len(negatives), errors)
                written = "" if answer is None else errors.text(where, line, answer, row.get(answer))
                if judged is None or written is None:
                    continue
                pair = numbers.setdefault((queries.number(anchor), documents.number(positive)), len(numbers))
                if pair == len(of_positives):  # a new one
                    of_positives.append(judged[0])
                    to_answers.append(written)
                owners.extend([pair] * len(negatives))
                found.extend(map(documents.number, negatives))
                of_negatives.extend(judged[1:])
            for writer in (to_queries, to_documents, to_answers):
                writer.close()
        np.save(folder / "pairs.npy", np.array(list(numbers), np.int64).reshape(-1, 2))
        owner, n = np.array(owners, np.int64), len(numbers)
        kept, place = _distinct(owner, np.array(found, np.int64), n)
        padded = np.full((n, 1 + place.max(initial=0)), -1, np.int64)
        padded[owner[kept], place] = np.array(found, np.int64)[kept]
        np.save(folder / "negatives.npy", padded)
        if scores is not None:
            judgements = np.zeros((n, 1 + padded.shape[1]), np.float32)
            judgements[:, 0] = of_positives
            judgements[owner[kept], 1 + place] = np.array(of_negatives, np.float32)[kept]
            np.save(folder / "scores.npy", judgements)
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


def _scores(where: object, line: int, row: Row, name: str | None, n: int, errors: RowErrors) -> Sequence[float] | None:
    """Scores of a row's positive and negatives, zeros where none are read; None if unusable, which is reported."""
    if name is None:
        return [0.0] * n
    value = row.get(name)
    numbers = value if isinstance(value, list) else []
    if len(numbers) == n and all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
        return numbers
    what = f"the field {name!r} is no list of {n} numbers, one for the positive and one for each negative"
    errors.bad(where, line, "malformed", what)
    return None


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


def _distinct(owners: np.ndarray, values: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each of `n` owners' values those that are new to it, in order of appearance: their indices, and their ranks."""
    first = np.sort(np.unique(np.stack([owners, values], 1), axis=0, return_index=True)[1])
    first = first[np.argsort(owners[first], kind="stable")]
    counts = np.bincount(owners[first], minlength=n)
    return first, np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
