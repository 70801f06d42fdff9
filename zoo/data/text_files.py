"""Retrieval collections on disk, in BEIR's layout."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.data.collections import RetrievalSet
from zoo.data.pairs import Split
from zoo.data.text import TextPairs, TextSource
from zoo.data.text_rows import OnError, RowErrors, cut_validation, read_jsonl, read_lines
from zoo.data.text_store import IdIndex, TextStore, TextWriter, cached, file_stamp
from zoo.errors import ZooError

_PARTS: dict[Split, str] = {"train": "train", "val": "dev", "test": "test"}


@dataclass
class _Judgements:
    """Rows of a qrels file, by number of query and document."""

    query: np.ndarray
    document: np.ndarray
    grade: np.ndarray
    line: np.ndarray

    def where(self, rows: np.ndarray) -> _Judgements:
        return _Judgements(self.query[rows], self.document[rows], self.grade[rows], self.line[rows])


class BeirCollection(TextSource):
    """A collection in BEIR's layout: `corpus.jsonl`, `queries.jsonl` and `qrels/{train,dev,test}.tsv` below the root.

    The first two may be gzipped (`.jsonl.gz`). Qrels are tab-separated `query-id corpus-id score` under that header, or
    `query 0 document grade` without one, as MS MARCO and TREC publish them. A document is its title, a blank and its
    text. Pairs are all (query, document) with a grade above 0, and every split searches the whole corpus.

    The validation split is `dev.tsv`; without one it is 5 % of the training queries, which then leave the training
    split. Texts are read once into a memory-mapped cache (`$ZOO_CACHE`).

    Args:
        name: name under which results are recorded (`scifact`, `msmarco`, ...).
        on_error: "fail" ends with file and line of the first bad row; "skip" leaves bad rows out and counts them in
            `report`: malformed, missing a field, empty, duplicate, naming an unknown id, or judged in an evaluation
            split without a relevant document.
    """

    def __init__(self, name: str = "beir", on_error: OnError = "fail") -> None:
        self.name = name
        self.on_error: OnError = on_error
        self._texts: dict[Path, tuple[IdIndex, TextStore]] = {}
        self._judged: dict[Path, _Judgements] = {}
        self._counts: dict[object, Counter[str]] = {}

    def prepare(self, root: Path | None) -> None:
        root = self._root(root)
        found = [part for part in _PARTS.values() if self._qrels_path(root, part).exists()]
        if not found:
            raise ZooError(f"{root / 'qrels'} has none of train.tsv, dev.tsv and test.tsv: put one there")
        for part in found:
            self._qrels(root, part)

    @property
    def report(self) -> dict[str, int]:
        return dict(sum(self._counts.values(), Counter()))

    def split(self, split: Split, root: Path | None) -> TextPairs:
        root = self._root(root)
        judged = self._relevant(root, split)
        numbers, query_of = np.unique(judged.query, return_inverse=True)
        queries, documents = self._read(root, "queries")[1], self._read(root, "corpus")[1]
        if split == "train":
            self._counts["pairs"] = Counter(pairs=len(query_of))
        return TextPairs(queries.take(numbers), documents, query_of, judged.document)

    def retrieval(self, split: Split, root: Path | None) -> RetrievalSet:
        root = self._root(root)
        judged = self._relevant(root, split)
        numbers, query_of = np.unique(judged.query, return_inverse=True)
        relevance: list[dict[int, int]] = [{} for _ in numbers]
        for query, document, grade in zip(
            query_of.tolist(), judged.document.tolist(), judged.grade.tolist(), strict=True
        ):
            relevance[query][document] = grade
        queries, documents = self._read(root, "queries")[1], self._read(root, "corpus")[1]
        return RetrievalSet(queries.take(numbers), documents, relevance)

    def _root(self, root: Path | None) -> Path:
        if root is None:
            layout = "corpus.jsonl, queries.jsonl and qrels/"
            raise ZooError(f"{self.name} is read from disk: pass --data.root, a folder that holds {layout}")
        return root

    def _qrels_path(self, root: Path, part: str) -> Path:
        return root / "qrels" / f"{part}.tsv"

    def _relevant(self, root: Path, split: Split) -> _Judgements:
        """Judgements of a split that say relevant."""
        cut = split != "test" and not self._qrels_path(root, "dev").exists()
        part = "train" if cut else _PARTS[split]
        judged = self._qrels(root, part)
        judged = judged.where(judged.grade > 0)
        if not len(judged.query):
            raise ZooError(
                f"{self._qrels_path(root, part)}: no query has a relevant document; check the ids and grades"
            )
        if cut:
            judged = judged.where(np.isin(judged.query, cut_validation(np.unique(judged.query), split)))
        return judged

    def _qrels(self, root: Path, part: str) -> _Judgements:
        path = self._qrels_path(root, part)
        if path not in self._judged:
            if not path.exists():
                raise ZooError(f"{path} is missing: put it there, or use another split")
            errors = RowErrors(self.on_error)
            self._judged[path] = self._judge(root, path, evaluation=part != "train", errors=errors)
            self._counts[path] = errors.counts
        return self._judged[path]

    def _judge(self, root: Path, path: Path, evaluation: bool, errors: RowErrors) -> _Judgements:
        rows = list(_read_qrels(path, errors))
        line, query_id, document_id, grade = zip(*rows, strict=True) if rows else ((), (), (), ())
        query, document = self._read(root, "queries")[0].find(query_id), self._read(root, "corpus")[0].find(document_id)
        judged = _Judgements(query, document, *(np.array(x, np.int64) for x in (grade, line)))
        for row in np.flatnonzero((query < 0) | (document < 0)).tolist():
            lost = f"query {query_id[row]!r}" if query[row] < 0 else f"document {document_id[row]!r}"
            errors.bad(
                path, line[row], "unknown", f"{lost} is not in {'queries' if query[row] < 0 else 'corpus'}.jsonl"
            )
        judged = judged.where((query >= 0) & (document >= 0))
        _, first = np.unique(np.stack([judged.query, judged.document], 1), axis=0, return_index=True)
        for row in np.setdiff1d(np.arange(len(judged.query)), first):
            errors.bad(path, int(judged.line[row]), "duplicate", "the query and document were judged further up")
        judged = judged.where(np.sort(first))
        if not evaluation:
            return judged
        queries, first = np.unique(judged.query, return_index=True)
        lost = ~np.isin(queries, judged.query[judged.grade > 0])
        for row in np.sort(first[lost]):
            name = self._read(root, "queries")[0].ids[int(judged.query[row])]
            errors.bad(path, int(judged.line[row]), "no_positive", f"query {name!r} has no relevant document")
        return judged.where(~np.isin(judged.query, queries[lost]))

    def _read(self, root: Path, stem: str) -> tuple[IdIndex, TextStore]:
        path = next((p for p in (root / f"{stem}.jsonl", root / f"{stem}.jsonl.gz") if p.exists()), None)
        if path is None:
            raise ZooError(
                f"{root / stem}.jsonl (or .jsonl.gz) is missing: pass a folder in BEIR's layout as --data.root"
            )
        if path not in self._texts:
            stamp = (file_stamp(path), self.on_error)
            folder, counts = cached(f"beir-{stem}", stamp, lambda to: _index(path, to, RowErrors(self.on_error)))
            self._texts[path] = IdIndex(folder), TextStore(folder, "texts")
            self._counts[path] = counts + Counter({stem.replace("corpus", "documents"): len(self._texts[path][1])})
        return self._texts[path]


def _index(path: Path, folder: Path, errors: RowErrors) -> Counter[str]:
    """Writes the ids and texts of a JSON-lines file to a folder of the cache."""
    lines = array("q")
    with TextWriter(folder, "ids") as ids, TextWriter(folder, "texts") as texts:
        for line, row in read_jsonl(path, errors):
            name = row.get("_id")
            key = errors.text(path, line, "_id", str(name) if type(name) is int else name)
            if key is None:
                continue
            title, body = row.get("title") or "", row.get("text")
            if not isinstance(title, str):
                errors.bad(path, line, "malformed", "the field 'title' is no text")
                continue
            text = f"{title} {body}".strip() if isinstance(body, str) else body  # a title alone is a document too
            if (text := errors.text(path, line, "text", text)) is not None:
                ids.append(key)
                texts.append(text)
                lines.append(line)
        kept = IdIndex.write(folder, ids)
        for row in np.flatnonzero(~kept).tolist():
            errors.bad(path, lines[row], "duplicate", "the _id has occurred further up")
        texts.close(kept)
    return errors.counts


def _read_qrels(path: Path, errors: RowErrors) -> Iterator[tuple[int, str, str, int]]:
    for number, line in read_lines(path):
        text = line.decode(errors="replace").strip()
        fields = text.split("\t") if "\t" in text else text.split()
        if not fields or (number == 1 and fields[0].lstrip("\ufeff") == "query-id"):
            continue
        if len(fields) not in (3, 4):
            columns = "query-id corpus-id score, or query 0 document grade"
            errors.bad(path, number, "malformed", f"{len(fields)} columns where there must be {columns}")
            continue
        query, document, grade = fields[0], fields[-2], fields[-1]
        if re.fullmatch(r"[+-]?\d{1,9}", grade):
            yield number, query, document, int(grade)
        else:
            errors.bad(path, number, "malformed", f"the grade {grade!r} is no integer")
