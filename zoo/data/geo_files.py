"""Street panoramas and the satellite tiles they lie in, on disk: what CVUSA, CVACT and VIGOR share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from zoo.data.collections import CollectionPairs, ImageFiles, RetrievalSet, RetrievalSource
from zoo.data.geo_layout import check_files
from zoo.data.pairs import Split
from zoo.errors import ZooError

_SPLIT_SEED = 20_260  # the split belongs to the data set: no run's seed moves it

Part = Literal["train", "test", "full"]
Size = int | tuple[int, int]


@dataclass
class GeoRecords:
    """G ground views and the T tiles that they are searched in.

    Attributes:
        ground: files of the ground views.
        tiles: files of the tiles.
        place: number of each view's tile.
        coords: where each view's place lies: latitude and longitude in degrees, or x and y in metres.
        semi_positive: numbers of further tiles that show the view's position off their centre, -1 where not in `tiles`.
        seen_from: where each view was taken, if that is not `coords`.
        columns: further columns of length G.
    """

    ground: Sequence[Path] = field(repr=False)
    tiles: Sequence[Path] = field(repr=False)
    place: Int[np.ndarray, " G"]
    coords: Float[np.ndarray, "G 2"]
    semi_positive: Int[np.ndarray, "G 3"] | None = None
    seen_from: Float[np.ndarray, "G 2"] | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def where(self, rows: Bool[np.ndarray, " G"]) -> GeoRecords:
        """Some of the views, and all tiles."""
        return GeoRecords(
            [self.ground[i] for i in np.flatnonzero(rows).tolist()],
            self.tiles,
            self.place[rows],
            self.coords[rows],
            None if self.semi_positive is None else self.semi_positive[rows],
            None if self.seen_from is None else self.seen_from[rows],
            {name: column[rows] for name, column in self.columns.items()},
        )

    def on_own_tiles(self) -> GeoRecords:
        """All views, and only the tiles that are the place of one, renumbered in their order."""
        kept = np.unique(self.place)
        number = np.full(len(self.tiles) + 1, -1)  # the last entry keeps -1 what it is
        number[kept] = np.arange(len(kept))
        return GeoRecords(
            self.ground,
            [self.tiles[i] for i in kept.tolist()],
            number[self.place],
            self.coords,
            None if self.semi_positive is None else number[self.semi_positive],
            self.seen_from,
            self.columns,
        )


class GeoSource(RetrievalSource):
    """Panoramas (queries) and tiles (documents); a document number is a place.

    The test split is the one that papers report on. The validation split is cut from the training places by a
    permutation that never changes. Training pairs have the tiles of their own places as documents, and the columns
    `coords` and, where there are such, `semi_positive` `[N, 3]` (document numbers, -1 padded).

    Args:
        tile_size: height and width of a tile as it is read, stretched to it; one number for a square.
        ground_size: the same for panoramas.
        val_fraction: part of the training places that becomes the validation split.

    Attributes:
        layout: files that are expected below the root.
        searches_all: does the validation split search all tiles of its cities, not only those of its own places?
    """

    layout: str
    searches_all = False

    def __init__(self, tile_size: Size, ground_size: Size, val_fraction: float) -> None:
        self.tile_size, self.ground_size = tile_size, ground_size
        self.val_fraction = checked_fraction(val_fraction)
        self._read: dict[tuple[Path, str], GeoRecords] = {}

    def prepare(self, root: Path | None) -> None:
        for part in ("train", "test"):
            records = self.records(root, part)
            check_files([*records.ground, *records.tiles], self.folder(root), self.layout)

    @abstractmethod
    def load(self, root: Path, part: Part) -> GeoRecords:
        """Read what lists the files of a part, without reading those.

        "full" is a further test part, where there is such.
        """

    @property
    def report(self) -> dict[str, int]:
        """Places and ground views of what has been read, by part."""
        counts: dict[str, int] = {}
        for (_, part), records in self._read.items():
            counts[f"{part}_tiles"], counts[f"{part}_views"] = len(records.tiles), len(records.ground)
        return counts

    def split(self, split: Split, root: Path | None) -> CollectionPairs:
        records = self._records_of(split, root)
        columns = {"coords": records.coords, **records.columns}
        if records.semi_positive is not None:
            columns["semi_positive"] = records.semi_positive
        queries, tiles = self._images(records)
        return CollectionPairs(queries, tiles, np.arange(len(queries)), records.place, columns=columns)

    def retrieval(self, split: Split, root: Path | None) -> RetrievalSet:
        return self.retrieval_set(self._records_of(split, root))

    def retrieval_set(self, records: GeoRecords) -> RetrievalSet:
        """Views against tiles; semi-positives are neither right nor wrong."""
        semi, seen_from = records.semi_positive, records.seen_from
        return RetrievalSet(
            *self._images(records),
            relevance=[{place: 1} for place in records.place.tolist()],
            ignored=None if semi is None else [set(row) - {-1} for row in semi.tolist()],
            coords=records.coords if seen_from is None else seen_from,
        )

    def folder(self, root: Path | None) -> Path:
        """The root, which must be given."""
        if root is None:
            raise ZooError(f"{self.name} is read from disk: pass --data.root, a folder that holds {self.layout}")
        return root

    def records(self, root: Path | None, part: Part) -> GeoRecords:
        """What a part consists of, read once."""
        folder = self.folder(root)
        if (folder, part) not in self._read:
            self._read[folder, part] = self.load(folder, part)
        return self._read[folder, part]

    def _records_of(self, split: Split, root: Path | None) -> GeoRecords:
        if split == "test":
            return self.records(root, "test")
        records = self.records(root, "train")
        cut = held_out(records.place, self.val_fraction, self.name)
        if split == "val" and self.searches_all:
            return records.where(cut)
        return records.where(cut if split == "val" else ~cut).on_own_tiles()

    def _images(self, records: GeoRecords) -> tuple[ImageFiles, ImageFiles]:
        ground = ImageFiles(records.ground, self.ground_size, resize="fit")
        return ground, ImageFiles(records.tiles, self.tile_size, resize="fit")


def checked_fraction(val_fraction: float) -> float:
    """The argument, if a validation and a training split remain."""
    if not 0 < val_fraction < 1:
        raise ZooError(f"val_fraction {val_fraction} leaves a split without places: choose one between 0 and 1")
    return val_fraction


def held_out(place: Int[np.ndarray, " N"], fraction: float, name: str) -> Bool[np.ndarray, " N"]:
    """Which rows belong to the validation split: all of the same places, by a permutation that never changes.

    Raises:
        ZooError: there are fewer than two places.
    """
    places = np.unique(place)
    if len(places) < 2:
        raise ZooError(f"{name} has {len(places)} training places, which cannot be divided: complete the data set")
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(places))
    n_val = min(max(1, round(fraction * len(places))), len(places) - 1)
    return np.isin(place, places[order[:n_val]])
