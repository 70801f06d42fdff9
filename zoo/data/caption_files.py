"""Images with captions on disk, in COCO's layout."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zoo.data.collections import CollectionPairs, ImageFiles, RetrievalSet, RetrievalSource
from zoo.data.pairs import Split
from zoo.data.text_rows import cut_validation
from zoo.errors import ZooError
from zoo.negatives.caption_edits import CaptionEdits

_KARPATHY: dict[str, Split] = {"train": "train", "restval": "train", "val": "val", "test": "test"}
_COCO_LAYOUT = "annotations/captions_{train,val}2017.json, train2017/ and val2017/"


@dataclass
class _Captioned:
    """Images and the captions of each."""

    paths: list[Path]
    captions: list[list[str]]

    def take(self, rows: Sequence[int] | np.ndarray) -> _Captioned:
        return _Captioned([self.paths[i] for i in rows], [self.captions[i] for i in rows])


class CocoCaptions(RetrievalSource):
    """COCO as its authors publish it: `annotations/captions_{train,val}2017.json`, `train2017/` and `val2017/`.

    Queries are images, documents captions, and all captions of an image are relevant to it. Splits of 2017: `val2017` is
    the test split, and 5 % of the training images are the validation split. Karpathy's splits (`dataset_coco.json` in
    `annotations/` or the root; images in their folders of 2014 or in those of 2017): train with restval, val, test. In
    training, equal captions are one document; in evaluation each belongs to its image alone, as papers count.

    Args:
        name: name under which results are recorded.
        splits: whose splits.
        size: side of the square image: the shorter side is scaled to it and the centre cut out.
        max_missing: share of a split's image files that may be missing; they are left out and counted in `report`.
        edits: train only on captions that this generator can edit, as NegCLIP does.
    """

    def __init__(
        self,
        name: str = "coco",
        splits: Literal["2017", "karpathy"] = "2017",
        size: int = 224,
        max_missing: float = 0.0,
        edits: CaptionEdits | None = None,
    ) -> None:
        self.name, self.splits, self.size, self.max_missing, self.edits = name, splits, size, max_missing, edits
        self._read: dict[tuple[Path | None, Split], _Captioned] = {}
        self._pairs: dict[Path | None, CollectionPairs] = {}
        self._counts: dict[object, Counter[str]] = {}

    @property
    def arena(self) -> str:
        return self.name if self.splits == "2017" else f"{self.name}-karpathy"

    @property
    def report(self) -> dict[str, int]:
        return dict(sum(self._counts.values(), Counter()))

    def prepare(self, root: Path | None) -> None:
        for split in ("train", "val", "test"):
            self._load(root, split)

    def split(self, split: Split, root: Path | None) -> CollectionPairs:
        if split != "train":
            return self._paired(self._load(root, split))
        if root not in self._pairs:
            pairs = self._paired(self._load(root, split))
            self._counts["pairs"] = Counter(pairs=len(pairs))
            if self.edits is not None:
                pairs = self._only_editable(pairs, self.edits)
            self._pairs[root] = pairs
        return self._pairs[root]

    def retrieval(self, split: Split, root: Path | None) -> RetrievalSet:
        data = self._load(root, split)
        ends = np.cumsum([len(captions) for captions in data.captions])
        relevance = [
            dict.fromkeys(range(end - len(own), end), 1) for own, end in zip(data.captions, ends.tolist(), strict=True)
        ]
        documents = [caption for own in data.captions for caption in own]
        return RetrievalSet(ImageFiles(data.paths, self.size), documents, relevance)

    def _paired(self, data: _Captioned) -> CollectionPairs:
        number: dict[str, int] = {}
        rows = {
            (image, number.setdefault(caption, len(number))): None
            for image, captions in enumerate(data.captions)
            for caption in captions
        }
        query_of, document_of = np.array(list(rows), np.int64).reshape(-1, 2).T
        return CollectionPairs(ImageFiles(data.paths, self.size), list(number), query_of, document_of)

    def _only_editable(self, pairs: CollectionPairs, edits: CaptionEdits) -> CollectionPairs:
        kept = edits.editable(pairs)
        if not kept.any():
            raise ZooError(
                f"{self.name}: no caption can be edited: pass further kinds to --data.source.init_args.edits"
            )
        self._counts["pairs"] = Counter(pairs=int(kept.sum()), skipped_not_editable=int((~kept).sum()))
        everything = np.stack([pairs.query_of, pairs.document_of], 1)
        return CollectionPairs(
            pairs.queries, pairs.documents, pairs.query_of[kept], pairs.document_of[kept], everything
        )

    def _load(self, root: Path | None, split: Split) -> _Captioned:
        if root is None:
            raise ZooError(f"{self.name} is read from disk: pass --data.root, a folder that holds {_COCO_LAYOUT}")
        if (root, split) not in self._read:
            if self.splits == "karpathy":
                self._karpathy(root)
            else:
                self._official(root, "val" if split == "test" else "train")
        return self._read[root, split]

    def _official(self, root: Path, part: str) -> None:
        path = root / "annotations" / f"captions_{part}2017.json"
        content = _read_json(path)
        names = {
            _field(path, f"images[{i}]", row, "id", int): _field(path, f"images[{i}]", row, "file_name", str)
            for i, row in enumerate(_rows(path, content, "images"))
        }
        captions: dict[int, list[str]] = {image: [] for image in names}
        for i, row in enumerate(_rows(path, content, "annotations")):
            image = _field(path, f"annotations[{i}]", row, "image_id", int)
            if image not in captions:
                raise ZooError(
                    f"{path}: annotations[{i}] names an unknown image {image}: get an intact copy of the file"
                )
            captions[image].append(_field(path, f"annotations[{i}]", row, "caption", str).strip())
        folder = root / f"{part}2017"
        data = self._existing(part, {folder: [(folder / names[i], captions[i]) for i in sorted(names)]})
        if part == "val":
            self._read[root, "test"] = data
            return
        images = np.arange(len(data.paths))
        for split in ("train", "val"):
            self._read[root, split] = data.take(cut_validation(images, split))

    def _karpathy(self, root: Path) -> None:
        places = (root / "annotations" / "dataset_coco.json", root / "dataset_coco.json")
        path = next((place for place in places if place.exists()), places[0])
        found: dict[Split, dict[Path, list[tuple[Path, list[str]]]]] = {"train": {}, "val": {}, "test": {}}
        folders: dict[Path, frozenset[str]] = {}
        for i, row in enumerate(_rows(path, _read_json(path), "images")):
            where = f"images[{i}]"
            split = _KARPATHY.get(_field(path, where, row, "split", str))
            if split is None:
                raise ZooError(f"{path}: {where} has the split {row['split']!r}: known are {', '.join(_KARPATHY)}")
            sentences = _field(path, where, row, "sentences", list)
            captions = [_field(path, f"{where}.sentences[{n}]", x, "raw", str).strip() for n, x in enumerate(sentences)]
            folder = root / _field(path, where, row, "filepath", str)
            name = _field(path, where, row, "filename", str)
            later = f"{_field(path, where, row, 'cocoid', int):012d}.jpg"
            files = [folder / name, root / "train2017" / later, root / "val2017" / later]
            file = next((file for file in files if file.name in listing(file.parent, folders)), files[0])
            found[split].setdefault(file.parent, []).append((file, captions))
        for split, rows in found.items():
            self._read[root, split] = self._existing(split, rows)

    def _existing(self, part: str, folders: dict[Path, list[tuple[Path, list[str]]]]) -> _Captioned:
        """Images whose file is there and that have captions."""
        listed: dict[Path, frozenset[str]] = {}
        rows = [row for folder in folders.values() for row in folder]
        kept = [(path, captions) for path, captions in rows if path.name in listing(path.parent, listed)]
        lost = {path for path, _ in rows} - {path for path, _ in kept}
        share = len(lost) / max(len(rows), 1)
        if share > self.max_missing or not kept:
            raise ZooError(
                f"{self.name} {part}: {len(lost)} of {len(rows)} images are missing ({min(lost, default='none listed')}): "
                "complete --data.root, or leave them out with --data.source.init_args.max_missing"
            )
        with_captions = [(path, [c for c in captions if c]) for path, captions in kept]
        with_captions = [row for row in with_captions if row[1]]
        self._counts[part] = Counter(
            images=len(with_captions), skipped_missing=len(lost), skipped_no_caption=len(kept) - len(with_captions)
        )
        paths, captions = zip(*with_captions, strict=True) if with_captions else ((), ())
        return _Captioned(list(paths), list(captions))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ZooError(f"{path} cannot be read as JSON ({error}): get an intact copy of the file") from error


def _rows(path: Path, content: Any, name: str) -> list[Any]:
    return _field(path, "the file", content, name, list)


def _field(path: Path, where: str, row: Any, name: str, kind: type) -> Any:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        raise ZooError(f"{path}: {where} has no {kind.__name__} {name!r}: get an intact copy of the file")
    return value


def listing(folder: Path, known: dict[Path, frozenset[str]]) -> frozenset[str]:
    """Names in a folder, which is read once: a look at each of 100,000 files would take a while."""
    if folder not in known:
        known[folder] = frozenset(p.name for p in folder.iterdir()) if folder.is_dir() else frozenset()
    return known[folder]
