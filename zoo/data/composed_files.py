"""FashionIQ and CIRR on disk, as their authors publish them."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.collections import ImageFiles, RetrievalSource
from zoo.data.composed import ComposedPairs, ComposedSet, composed_set
from zoo.data.geo_files import checked_fraction, held_out
from zoo.data.geo_layout import check_files
from zoo.data.pairs import Split
from zoo.errors import ZooError


@dataclass
class Listed:
    """What a part's files list.

    Attributes:
        images: files that are searched.
        reference: file of each triplet's reference.
        texts: text of each triplet.
        target: file of each triplet's target.
        subsets: by reference the files that are like it.
    """

    images: list[Path]
    reference: list[Path] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    target: list[Path] = field(default_factory=list)
    subsets: dict[Path, list[Path]] = field(default_factory=dict)

    def where(self, rows: np.ndarray) -> Listed:
        """Some of the triplets, and the images and subsets of their references and targets."""
        numbers = rows.nonzero()[0].tolist()
        reference, target = ([files[i] for i in numbers] for files in (self.reference, self.target))
        texts = [self.texts[i] for i in numbers]
        subsets = {r: self.subsets[r] for r in dict.fromkeys(reference) if r in self.subsets}
        further = [file for like in subsets.values() for file in like]
        return Listed(list(dict.fromkeys([*reference, *target, *further])), reference, texts, target, subsets)


class ComposedFiles(RetrievalSource):
    """Triplets on disk. The test split is the published validation part, as the test part's targets are not public.

    The validation split is cut from the training references by a permutation that never changes. Training images with
    the same bytes are one image.

    Args:
        size: height and width of an image as it is read.
        val_fraction: part of the training references that becomes the validation split.
    """

    layout: str

    def __init__(self, size: int = 224, val_fraction: float = 0.05) -> None:
        self.size, self.val_fraction = size, checked_fraction(val_fraction)
        self._read: dict[tuple[Path, str], dict[str, Listed]] = {}

    @abstractmethod
    def load(self, root: Path, part: str) -> dict[str, Listed]:
        """What is listed of "train" or "val", by category."""

    def prepare(self, root: Path | None) -> None:
        folder = self._folder(root)
        for part in ("train", "val"):
            for listed in self._listed(folder, part).values():
                check_files([*listed.images, *listed.reference, *listed.target], folder, self.layout)

    def split(self, split: Split, root: Path | None) -> ComposedPairs:
        listed = list(self._parts(split, root).values())
        everything = [file for part in listed for file in part.images]
        same = _first_of_equals(everything) if split == "train" else {}
        files = list(dict.fromkeys(same.get(file, file) for file in everything))
        number = {file: i for i, file in enumerate(files)}
        reference, target = (
            np.array([number[same.get(file, file)] for file in side], np.int64)
            for side in ([f for p in listed for f in p.reference], [f for p in listed for f in p.target])
        )
        texts = [text for part in listed for text in part.texts]
        return ComposedPairs(ImageFiles(files, self.size), reference, texts, target)

    def retrieval(self, split: Split, root: Path | None) -> ComposedSet:
        return next(iter(self.retrievals(split, root).values()))

    def retrievals(self, split: Split, root: Path | None) -> dict[str, ComposedSet]:  # type: ignore[override]
        """The queries of each category against its images."""
        return {name: self._set(listed) for name, listed in self._parts(split, root).items()}

    def _set(self, listed: Listed) -> ComposedSet:
        number = {file: i for i, file in enumerate(listed.images)}
        reference, target = (np.array([number[f] for f in files]) for files in (listed.reference, listed.target))
        pairs = ComposedPairs(ImageFiles(listed.images, self.size), reference, listed.texts, target)
        subsets = {number[r]: [number[f] for f in like] for r, like in listed.subsets.items()}
        return composed_set(pairs, subsets or None)

    def _parts(self, split: Split, root: Path | None) -> dict[str, Listed]:
        if split == "test":
            return self._listed(root, "val")
        found = {}
        for name, listed in self._listed(root, "train").items():
            place = np.unique([str(file) for file in listed.reference], return_inverse=True)[1]
            cut = held_out(place, self.val_fraction, self.name)
            kept = listed.where(cut if split == "val" else ~cut)
            if split == "train":  # all that is listed, as unlabelled images
                kept.images = listed.images
            found[name] = kept
        return found

    def _listed(self, root: Path | None, part: str) -> dict[str, Listed]:
        folder = self._folder(root)
        if (folder, part) not in self._read:
            self._read[folder, part] = self.load(folder, part)
        return self._read[folder, part]

    def _folder(self, root: Path | None) -> Path:
        if root is None:
            raise ZooError(f"{self.name} is read from disk: pass --data.root, a folder that holds {self.layout}")
        return root


class FashionIQ(ComposedFiles):
    """FashionIQ: fashion articles of three categories, each with queries and a collection of its own.

    The two captions of a triplet are joined by "and", as CLIP4CIR does in evaluation.

    Source: Wu et al., "Fashion IQ", CVPR 2021 (arXiv 1905.12794).

    Args:
        categories: which of them.
        size, val_fraction: as in `ComposedFiles`.
    """

    name = "fashion-iq"
    layout = (
        "captions/cap.<category>.{train,val}.json, image_splits/split.<category>.{train,val}.json, images/<name>.png"
    )

    def __init__(
        self, categories: Sequence[str] = ("dress", "shirt", "toptee"), size: int = 224, val_fraction: float = 0.05
    ) -> None:
        super().__init__(size, val_fraction)
        self.categories = tuple(categories)

    def load(self, root: Path, part: str) -> dict[str, Listed]:
        found = {}
        for category in self.categories:
            path = root / "captions" / f"cap.{category}.{part}.json"
            names = _read_json(root / "image_splits" / f"split.{category}.{part}.json", list, self.layout)
            listed = Listed([root / "images" / f"{name}.png" for name in names])
            for row in _read_json(path, list, self.layout):
                candidate, target, captions = (_get(path, row, key) for key in ("candidate", "target", "captions"))
                listed.reference.append(root / "images" / f"{candidate}.png")
                listed.target.append(root / "images" / f"{target}.png")
                listed.texts.append(" and ".join(str(caption).strip(".?, ") for caption in captions))
            found[category] = _with_own_images(listed)
        return found


class CIRR(ComposedFiles):
    """CIRR: open-domain photographs in sets of six that look alike, of which R_s@k ranks one query's.

    Source: Liu et al., "Image Retrieval on Real-life Images with Pre-trained Vision-and-Language Models", ICCV 2021
    (arXiv 2108.04024).

    Args:
        size, val_fraction: as in `ComposedFiles`.
    """

    name = "cirr"
    layout = "captions/cap.rc2.{train,val}.json, image_splits/split.rc2.{train,val}.json and the images that those name"

    def load(self, root: Path, part: str) -> dict[str, Listed]:
        path = root / "captions" / f"cap.rc2.{part}.json"
        files = _read_json(root / "image_splits" / f"split.rc2.{part}.json", dict, self.layout)
        place = {name: root / file for name, file in files.items()}
        listed = Listed(list(place.values()))
        for row in _read_json(path, list, self.layout):
            reference, target, caption = (_get(path, row, key) for key in ("reference", "target_hard", "caption"))
            members = _get(path, _get(path, row, "img_set"), "members")
            if unknown := [name for name in (reference, target, *members) if name not in place]:
                raise ZooError(f"{path} names {unknown[0]!r}, which the image split lacks: get an intact copy")
            listed.reference.append(place[reference])
            listed.target.append(place[target])
            listed.texts.append(caption)
            listed.subsets.setdefault(place[reference], [place[name] for name in members])
        return {"": listed}


def _with_own_images(listed: Listed) -> Listed:
    """References and targets are searched too, whatever the list of images says."""
    listed.images = list(dict.fromkeys([*listed.images, *listed.reference, *listed.target]))
    return listed


def _first_of_equals(files: Sequence[Path]) -> dict[Path, Path]:
    """For each file whose bytes came before, the first that has them; only files of one length are read."""
    by_length: dict[int, list[Path]] = {}
    for file in dict.fromkeys(files):
        by_length.setdefault(file.stat().st_size, []).append(file)
    found = {}
    for alike in by_length.values():
        first: dict[bytes, Path] = {}
        for file in alike if len(alike) > 1 else []:
            same = first.setdefault(hashlib.sha256(file.read_bytes()).digest(), file)
            if same != file:
                found[file] = same
    return found


def _read_json(path: Path, kind: type, layout: str) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ZooError(f"{path} cannot be read as JSON ({error}); expected below --data.root: {layout}") from error
    if not isinstance(content, kind):
        raise ZooError(f"{path} holds no {kind.__name__}: get an intact copy of the file")
    return content


def _get(path: Path, row: Any, key: str) -> Any:
    if not isinstance(row, dict) or key not in row:
        raise ZooError(f"{path} has a row without {key!r}: get an intact copy of the file")
    return row[key]
