"""Pairs and triplets in tables: files on disk, and data sets of the Hugging Face hub."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.data.pair_rows import PairRows, Row
from zoo.data.pairs import Split
from zoo.data.text_rows import OnError, RowErrors, read_jsonl, read_lines
from zoo.data.text_store import file_stamp
from zoo.errors import ZooError

_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet", ".csv", ".tsv")


class PairFiles(PairRows):
    """Files `train`, `val` and `test` below the root: `.jsonl`, `.jsonl.gz`, `.parquet`, `.csv` or `.tsv`.

    CSV and TSV have a header; in TSV a quotation mark is a character like any other. Of Parquet, messages name the row.

    Args:
        name, anchor, positive, negatives, on_error, scores, answer: as in PairRows; CSV and TSV hold no lists, and so no
            scores.
    """

    def __init__(
        self,
        name: str = "pairs",
        anchor: str = "query",
        positive: str = "positive",
        negatives: str = "negative",
        on_error: OnError = "fail",
        scores: str | None = None,
        answer: str | None = None,
    ) -> None:
        super().__init__(name, anchor, positive, negatives, on_error, scores, answer)

    def has(self, split: Split, root: Path | None) -> bool:
        return bool(self._files(split, root))

    def rows(self, split: Split, root: Path | None, errors: RowErrors) -> tuple[object, Any, Iterator[tuple[int, Row]]]:
        found = self._files(split, root)
        if len(found) != 1:
            state = "is missing" if not found else "is ambiguous: " + ", ".join(path.name for path in found)
            raise ZooError(f"{split} file {state}; keep one of {split}{{{','.join(_SUFFIXES)}}} in {root}")
        path = found[0]
        if path.suffix == ".parquet":
            rows = self._parquet(path)
        elif path.suffix in (".csv", ".tsv"):
            rows = self._csv(path, errors)
        else:
            rows = read_jsonl(path, errors)
        return path, file_stamp(path), rows

    def _files(self, split: Split, root: Path | None) -> list[Path]:
        if root is None:
            raise ZooError(
                f"{self.name} is read from disk: pass --data.root, a folder that holds train.jsonl or the like"
            )
        return [path for suffix in _SUFFIXES if (path := root / f"{split}{suffix}").exists()]

    def _csv(self, path: Path, errors: RowErrors) -> Iterator[tuple[int, Row]]:
        # Bytes that are not UTF-8 become surrogates, which the check of each text then refuses.
        lines = (line.decode(errors="surrogateescape") for _, line in read_lines(path))
        if path.suffix == ".csv":
            reader = csv.reader(lines, strict=True)
        else:
            reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
        header = [name.removeprefix("\ufeff") for name in next(reader, [])]
        self._check(path, header)
        while True:
            line = reader.line_num + 1  # where the row starts: a quoted text may span lines
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                errors.bad(path, line, "malformed", f"the row cannot be parsed ({error})")
                continue
            if row and len(row) != len(header):
                errors.bad(path, line, "malformed", f"{len(row)} columns where the header has {len(header)}")
            elif row:
                yield line, dict(zip(header, row, strict=True))

    def _parquet(self, path: Path) -> Iterator[tuple[int, Row]]:
        parquet = _hub_module("pyarrow.parquet")
        try:
            file = parquet.ParquetFile(path)
            self._check(path, names := file.schema_arrow.names)
            columns = [name for name in self.columns if name in names]
            batches = file.iter_batches(batch_size=4096, columns=columns)
            line = 0
            for batch in batches:
                for line, row in enumerate(batch.to_pylist(), line + 1):  # noqa: B020, the count goes on
                    yield line, row
        except (OSError, ValueError) as error:
            raise ZooError(f"{path}: cannot be read as Parquet ({error}); get an intact copy of the file") from error

    def _check(self, path: Path, names: list[str]) -> None:
        for argument, column in (("anchor", self.anchor), ("positive", self.positive)):
            if column not in names:
                raise ZooError(
                    f"{path}:1: no column {column!r} among {', '.join(names)}; pass --data.source.init_args.{argument}"
                )


class HubDataset(PairRows):
    """Pairs or triplets from the Hugging Face hub, downloaded by `datasets` when prepared.

    Args:
        name: the data set's id there, under which results are recorded.
        subset: its configuration, where it has several.
        anchor, positive, negatives, on_error, scores, answer: as in PairRows.
        train: its split to train on.
        val: its split to validate on; None cuts it from the training split.
        test: its split to test on.
    """

    def __init__(
        self,
        name: str,
        subset: str | None = None,
        anchor: str = "query",
        positive: str = "positive",
        negatives: str = "negative",
        train: str = "train",
        val: str | None = None,
        test: str | None = "test",
        on_error: OnError = "fail",
        scores: str | None = None,
        answer: str | None = None,
    ) -> None:
        super().__init__(name, anchor, positive, negatives, on_error, scores, answer)
        self.subset = subset
        self.splits: dict[Split, str | None] = {"train": train, "val": val, "test": test}

    def has(self, split: Split, root: Path | None) -> bool:
        return self.splits[split] is not None

    def rows(self, split: Split, root: Path | None, errors: RowErrors) -> tuple[object, Any, Iterator[tuple[int, Row]]]:
        datasets = _hub_module("datasets")
        if self.splits[split] is None:
            raise ZooError(f"{self.name} has no {split} split: pass --data.source.init_args.{split}")
        try:
            data = datasets.load_dataset(self.name, self.subset, split=self.splits[split])
        except (OSError, ValueError) as error:
            what = (str(error).splitlines() or [type(error).__name__])[0]
            raise ZooError(
                f"{self.name} ({self.splits[split]}) cannot be loaded: {what}; check id, subset, split names"
            ) from error
        # `datasets` names a fingerprint of the contents; there is no public attribute for it.
        return f"{self.name}/{self.splits[split]}", (self.name, data._fingerprint), enumerate(data, 1)  # type: ignore[return-value]


def _hub_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ZooError(f"{name.split('.')[0]} is not installed: pip install negatives-zoo[hub]") from error
