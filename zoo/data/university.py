"""University-1652: buildings seen from drones and from a satellite."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int
from torch import Tensor, as_tensor

from zoo.data.collections import CollectionPairs, ImageFiles, RetrievalSet, RetrievalSource
from zoo.data.geo_files import Size, checked_fraction, held_out
from zoo.data.geo_layout import list_folder
from zoo.data.pairs import Split
from zoo.errors import ZooError

View = Literal["drone", "satellite"]
_IMAGES = (".jpg", ".jpeg", ".png")


@dataclass
class BuildingViews:
    """Images of one kind and the building on each."""

    paths: list[Path] = field(repr=False)
    building: Int[np.ndarray, " N"]


class BuildingPairs(CollectionPairs):
    """Pairs whose documents are identified by their building: two views of it are never each other's negatives.

    Args:
        queries: images.
        documents: images.
        query_building: number of each query's building.
        document_building: number of each document's building.
    """

    def __init__(
        self,
        queries: ImageFiles,
        documents: ImageFiles,
        query_building: Int[np.ndarray, " Q"],
        document_building: Int[np.ndarray, " D"],
    ) -> None:
        query_of, document_of = same_building(query_building, document_building)
        self.document_building = document_building
        key = document_building[document_of]
        columns = {"positive_key": key, "known": key[:, None], "label": key}
        super().__init__(queries, documents, query_of, document_of, columns=columns)
        self.mined = CollectionPairs(queries, documents, query_of, document_of)  # `known` by number, not by building

    def document_keys(self, numbers) -> Tensor:
        return as_tensor(self.document_building[np.asarray(numbers)])


class University1652(RetrievalSource):
    """University-1652: 701 buildings to train on, 701 of 39 other universities to test on, among 951.

    Every drone view of a building (54) is a training pair with its first satellite image. Buildings that only the
    gallery shows are distractors; images in a folder `-1` are junk, left out and counted in `report`. There are no
    coordinates; a place is a building: pairs are identified by it, and the column `label` holds its published number.

    The validation split is cut from the training buildings by a permutation that never changes, and searches its own.

    Source: Zheng et al., "University-1652: A Multi-view Multi-source Benchmark for Drone-based Geo-localization", ACM
    MM 2020.

    Args:
        task: which view is the query: "drone2satellite" locates a drone, "satellite2drone" navigates one.
        tile_size: height and width of a satellite image as it is read; one number for a square.
        drone_size: the same for drone views.
        val_fraction: part of the training buildings that becomes the validation split.
    """

    name = "university1652"
    layout = "train/{satellite,drone}/<building>/*.jpg and test/{query,gallery}_{satellite,drone}/<building>/*.jpg"

    def __init__(
        self,
        task: Literal["drone2satellite", "satellite2drone"] = "drone2satellite",
        tile_size: Size = 384,
        drone_size: Size = 384,
        val_fraction: float = 0.1,
    ) -> None:
        self.task = task
        self.sizes: dict[View, Size] = {"satellite": tile_size, "drone": drone_size}
        self.val_fraction = checked_fraction(val_fraction)
        self._query: View = "drone" if task == "drone2satellite" else "satellite"
        self._document: View = "satellite" if task == "drone2satellite" else "drone"
        self._read: dict[tuple[Path, str], BuildingViews] = {}
        self._junk = 0

    @property
    def arena(self) -> str:
        return f"{self.name}-{self.task}"

    @property
    def report(self) -> dict[str, int]:
        counts = {name.replace("/", "_"): len(views.paths) for (_, name), views in self._read.items()}
        return counts | {"skipped_junk": self._junk}

    def prepare(self, root: Path | None) -> None:
        for split in ("train", "test"):
            self._views(split, root)

    def split(self, split: Split, root: Path | None) -> BuildingPairs:
        queries, documents = self._views(split, root)
        images = self._images(queries, documents)
        return BuildingPairs(*images, query_building=queries.building, document_building=documents.building)

    def retrieval(self, split: Split, root: Path | None) -> RetrievalSet:
        queries, documents = self._views(split, root)
        relevance: list[dict[int, int]] = [{} for _ in queries.paths]
        matches = same_building(queries.building, documents.building)
        for query, document in zip(*(numbers.tolist() for numbers in matches), strict=True):
            relevance[query][document] = 1
        return RetrievalSet(*self._images(queries, documents), relevance=relevance)

    def _images(self, queries: BuildingViews, documents: BuildingViews) -> tuple[ImageFiles, ImageFiles]:
        query = ImageFiles(queries.paths, self.sizes[self._query], resize="fit")
        return query, ImageFiles(documents.paths, self.sizes[self._document], resize="fit")

    def _views(self, split: Split, root: Path | None) -> tuple[BuildingViews, BuildingViews]:
        """Queries and documents of a split.

        Raises:
            ZooError: a building of the queries has no document, or in training the other way round.
        """
        if root is None:
            raise ZooError(f"{self.name} is read from disk: pass --data.root, a folder that holds {self.layout}")
        names = ("query_", "gallery_") if split == "test" else ("", "")
        part = "test" if split == "test" else "train"
        queries = self._scan(root, f"{part}/{names[0]}{self._query}")
        documents = self._scan(root, f"{part}/{names[1]}{self._document}")
        differ = np.setdiff1d if split == "test" else np.setxor1d  # a test gallery has distractors
        alone = differ(queries.building, documents.building)
        if len(alone):
            raise ZooError(
                f"buildings with images of one kind only in {root / part}: {len(alone)}, the first is {alone[0]:04d}; "
                f"expected below {root}: {self.layout}"
            )
        if split == "test":
            return queries, documents
        kept = []
        for views in (queries, documents):
            cut = held_out(views.building, self.val_fraction, self.name)
            rows = np.flatnonzero(cut if split == "val" else ~cut)
            kept.append(BuildingViews([views.paths[i] for i in rows.tolist()], views.building[rows]))
        return kept[0], kept[1]

    def _scan(self, root: Path, name: str) -> BuildingViews:
        """All images below `root/name`, by building; of the satellite in training one each."""
        if (root, name) not in self._read:
            paths: list[Path] = []
            buildings: list[int] = []
            for building in sorted(list_folder(root / name, root, self.layout)):
                folder = root / name / building
                if not folder.is_dir():
                    continue
                if not building.removeprefix("-").isdecimal():
                    raise ZooError(
                        f"{folder} is not named by a building's number; expected below {root}: {self.layout}"
                    )
                found = sorted(x for x in list_folder(folder, root, self.layout) if x.lower().endswith(_IMAGES))
                if int(building) < 0:
                    self._junk += len(found)
                    continue
                if name == "train/satellite":
                    found = found[:1]
                paths += [folder / x for x in found]
                buildings += [int(building)] * len(found)
            if not paths:
                raise ZooError(f"{root / name} has no images; expected below {root}: {self.layout}")
            self._read[root, name] = BuildingViews(paths, np.array(buildings))
        return self._read[root, name]


def same_building(
    queries: Int[np.ndarray, " Q"], documents: Int[np.ndarray, " D"]
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """All (query, document) pairs of one building, by query, then by document."""
    order = np.argsort(documents, kind="stable")
    first, end = (np.searchsorted(documents[order], queries, side=side) for side in ("left", "right"))
    counts = end - first
    rank = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(queries)), counts), order[np.repeat(first, counts) + rank]
