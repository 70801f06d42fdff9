"""Captions with named negatives on disk: NegCLIP's files.

Source: Yuksekgonul et al. 2023 (arXiv 2210.01936), and the released file of the validation split.
"""

from __future__ import annotations

import ast
import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.caption_files import listing
from zoo.data.collections import CollectionPairs, ImageFiles, RetrievalSet, RetrievalSource
from zoo.data.pairs import Split
from zoo.errors import ZooError
from zoo.negatives.caption_edits import draw_captions
from zoo.negatives.generators import Generated, NegativeGenerator
from zoo.negatives.table import NegativeTable

_COLUMNS = ("title", "filepath", "neg_caption", "neg_image")


class NegClipPairs(CollectionPairs):
    """Pairs whose data set names negative captions and neighbours of the image of each.

    Args:
        images, captions, query_of, document_of, relevant: as in CollectionPairs.
        negatives: negative captions of each pair.
        neighbours: document numbers of the neighbours of each pair's image.
    """

    def __init__(
        self,
        images: Any,
        captions: list[str],
        query_of: np.ndarray,
        document_of: np.ndarray,
        relevant: np.ndarray,
        negatives: list[list[str]],
        neighbours: list[list[int]],
    ) -> None:
        super().__init__(images, captions, query_of, document_of, relevant)
        self.negatives, self.neighbours = negatives, neighbours

    def table(self) -> NegativeTable:
        """The neighbours as a table with scores 0, without captions of the image itself."""
        ids = np.full((len(self), max(map(len, self.neighbours))), -1, np.int64)
        for row, numbers in zip(ids, self.neighbours, strict=True):
            row[: len(numbers)] = numbers
        scores = np.where(ids >= 0, np.float32(0), np.float32(-np.inf))
        table = NegativeTable(ids, scores, [{"miner": "data set", "depth": ids.shape[1]}])
        return table.drop_positives(self.columns["known"], np.arange(self.n_documents))


class NegClipFile(RetrievalSource):
    """NegCLIP's tab-separated files: an index, `title`, `filepath`, `neg_caption` and `neg_image` under a header.

    `neg_caption` is a Python list of strings; `neg_image` one of row numbers (from 0) in the same file. Row numbers are
    document numbers. File paths are relative to the root; of one that is not there, the last two parts are tried below
    the root. Take the negative captions with `NamedCaptions` and the image neighbours with
    `zoo.negatives.image_neighbours.NamedNeighbours`.

    Args:
        name: name under which results are recorded.
        train, val, test: files below the root.
        size, max_missing: as in CocoCaptions; rows whose image is missing are left out, also as neighbours.
    """

    def __init__(
        self,
        name: str = "negclip",
        train: str = "train_neg_clip.tsv",
        val: str = "valid_neg_clip.tsv",
        test: str = "valid_neg_clip.tsv",
        size: int = 224,
        max_missing: float = 0.0,
    ) -> None:
        self.name, self.size, self.max_missing = name, size, max_missing
        self.files: dict[Split, str] = {"train": train, "val": val, "test": test}
        self._read: dict[Path, NegClipPairs] = {}
        self._counts: dict[Path, Counter[str]] = {}

    @property
    def report(self) -> dict[str, int]:
        return dict(sum(self._counts.values(), Counter()))

    def prepare(self, root: Path | None) -> None:
        for split in ("train", "val", "test"):
            self.split(split, root)

    def split(self, split: Split, root: Path | None) -> NegClipPairs:
        if root is None:
            raise ZooError(f"{self.name} is read from disk: pass --data.root, a folder that holds {self.files[split]}")
        path = root / self.files[split]
        if path not in self._read:
            self._read[path] = self._pairs(path, root)
        return self._read[path]

    def retrieval(self, split: Split, root: Path | None) -> RetrievalSet:
        pairs = self.split(split, root)
        captions = [pairs.documents[number] for number in pairs.document_of]
        relevance: list[dict[int, int]] = [{} for _ in range(len(pairs.queries))]
        for number, image in enumerate(pairs.query_of.tolist()):
            relevance[image][number] = 1
        return RetrievalSet(pairs.queries, captions, relevance)

    def _pairs(self, path: Path, root: Path) -> NegClipPairs:
        rows = _read_rows(path)
        folders: dict[Path, frozenset[str]] = {}
        places = [[root / row.filepath, root.joinpath(*Path(row.filepath).parts[-2:])] for row in rows]
        files = [next((p for p in two if p.name in listing(p.parent, folders)), None) for two in places]
        kept = np.array([number for number, file in enumerate(files) if file is not None], np.int64)
        lost = len(rows) - len(kept)
        if not len(kept) or lost / len(rows) > self.max_missing:
            first = next((two[0] for two, file in zip(places, files, strict=True) if file is None), "no rows")
            raise ZooError(
                f"{path}: the images of {lost} of {len(rows)} rows are missing ({first}): complete --data.root, or leave "
                "them out with --data.source.init_args.max_missing"
            )
        self._counts[path] = Counter(pairs=len(kept), skipped_missing=lost)
        images: dict[Path, int] = {}
        query_of = np.array([images.setdefault(files[i], len(images)) for i in kept], np.int64)  # type: ignore[arg-type]
        captions = [row.title for row in rows]
        return NegClipPairs(
            ImageFiles(list(images), self.size),
            captions,
            query_of,
            kept,
            _equal_captions(captions, query_of, kept),
            [rows[i].negatives for i in kept],
            [[n for n in rows[i].neighbours if files[n] is not None] for i in kept],
        )


class NamedCaptions(NegativeGenerator):
    """No edits: the negative captions that the data set's rows name (`NegClipFile`), drawn uniformly each epoch.

    What is a true caption of the image is no negative.

    Args:
        n_negatives: K, drawn without replacement; a row with fewer has the rest masked.
        start_epoch: as in NegativeGenerator.
    """

    def __init__(self, n_negatives: int = 1, start_epoch: int = 0) -> None:
        super().__init__(start_epoch)
        self.n_negatives = n_negatives

    def generate(self, pairs: CollectionPairs, indices: np.ndarray, rng: np.random.Generator) -> Generated:
        if not isinstance(pairs, NegClipPairs):
            raise ZooError("NamedCaptions needs a data set that names negative captions: zoo.data.NegClipFile")
        found = []
        for index in indices:
            known = pairs.columns["known"][int(index)]
            true = {pairs.documents[int(number)] for number in known if number >= 0}
            found.append([caption for caption in pairs.negatives[int(index)] if caption not in true])
        return draw_captions(found, pairs.fetch_documents(pairs.document_of[indices]), self.n_negatives, rng)


def _equal_captions(captions: list[str], query_of: np.ndarray, document_of: np.ndarray) -> np.ndarray:
    """(image, document) for all documents that read like a caption of the image, `[R, 2]`."""
    alike: dict[str, list[int]] = {}
    for number, caption in enumerate(captions):
        alike.setdefault(caption, []).append(number)
    pairs = zip(query_of.tolist(), document_of.tolist(), strict=True)
    return np.array([(image, other) for image, own in pairs for other in alike[captions[own]]], np.int64).reshape(-1, 2)


@dataclass
class _Row:
    title: str
    filepath: str
    negatives: list[str]
    neighbours: list[int]


def _read_rows(path: Path) -> list[_Row]:
    rows: list[tuple[int, _Row]] = []
    line = 1
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, delimiter="\t", strict=True)
            header = next(reader, [])
            lacking = [name for name in _COLUMNS if name not in header]
            if lacking:
                raise ZooError(f"{path}:1: no column {lacking[0]!r}; the header must have {', '.join(_COLUMNS)}")
            line = reader.line_num + 1
            for row in reader:
                if row:
                    rows.append((line, _row(path, line, header, row)))
                line = reader.line_num + 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ZooError(f"{path}:{line}: cannot be read ({error}); get an intact copy of the file") from error
    for line, row in rows:
        wrong = [n for n in row.neighbours if not 0 <= n < len(rows)]
        if wrong:
            raise ZooError(f"{path}:{line}: neg_image names row {wrong[0]} of {len(rows)}; rows count from 0")
    return [row for _, row in rows]


def _row(path: Path, line: int, header: list[str], row: list[str]) -> _Row:
    if len(row) != len(header):
        raise ZooError(f"{path}:{line}: {len(row)} columns where the header has {len(header)}; correct the row")
    fields = dict(zip(header, row, strict=True))
    for name in ("title", "filepath"):
        if not fields[name].strip():
            raise ZooError(f"{path}:{line}: the field {name!r} is empty; correct or remove the row")
    lists: dict[str, list[Any]] = {}
    for name, kind in (("neg_caption", str), ("neg_image", int)):
        try:
            value = ast.literal_eval(fields[name])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
        if not isinstance(value, list) or any(type(item) is not kind or item == "" for item in value):
            raise ZooError(
                f"{path}:{line}: {name} is no Python list of {'texts' if kind is str else 'row numbers'}; correct the row"
            )
        if not value:
            raise ZooError(f"{path}:{line}: {name} is empty; remove the row, as it has nothing to draw from")
        lists[name] = value
    return _Row(fields["title"], fields["filepath"], lists["neg_caption"], lists["neg_image"])
