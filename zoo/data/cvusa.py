"""CVUSA and CVACT: one panorama per tile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.collections import RetrievalSet
from zoo.data.geo_files import GeoRecords, GeoSource, Part, Size
from zoo.data.geo_layout import floats, list_folder, read_fields
from zoo.data.pairs import Split
from zoo.errors import ZooError


class CVUSA(GeoSource):
    """CVUSA: places all over the United States, 35,532 to train on and 8,884 to test on.

    Coordinates are latitude and longitude of the panoramas; the column `place` holds the published number of each.

    Source: Zhai et al., "Predicting Ground-Level Scene Layout from Aerial Imagery", CVPR 2017; sizes of Sample4Geo.

    Args:
        tile_size: height and width of a tile as it is read; one number for a square.
        ground_size: the same for panoramas.
        val_fraction: part of the training places that becomes the validation split.
    """

    name = "cvusa"
    layout = (
        "splits/{train,val}-19zl.csv, split_locations/all.csv, bingmap/19/<place>.jpg and streetview/panos/<place>.jpg"
    )

    def __init__(self, tile_size: Size = 384, ground_size: Size = (140, 768), val_fraction: float = 0.05) -> None:
        super().__init__(tile_size, ground_size, val_fraction)

    def load(self, root: Path, part: Part) -> GeoRecords:
        path = root / "splits" / f"{'train' if part == 'train' else 'val'}-19zl.csv"
        rows = list(read_fields(path, root, self.layout, 3, ","))
        position = self._positions(root)
        places: dict[int, int] = {}
        for line, (tile, _, _) in rows:
            stem = Path(tile).stem
            if not stem.isdecimal() or int(stem) < 1:
                raise ZooError(f"{path}:{line}: {tile} is not named by a place's number; get the published file")
            if int(stem) > len(position):
                known = f"{root / 'split_locations' / 'all.csv'} ends with place {len(position)}"
                raise ZooError(f"{path}:{line}: {known}, without place {stem}; get the published files")
            if places.setdefault(int(stem), line) != line:
                raise ZooError(
                    f"{path}:{line}: place {stem} is in line {places[int(stem)]} already; get the published file"
                )
        numbers = np.array(list(places), np.int64)
        return GeoRecords(
            [root / ground for _, (_, ground, _) in rows],
            [root / tile for _, (tile, _, _) in rows],
            np.arange(len(rows)),
            position[numbers - 1],  # places are numbered from 1
            columns={"place": numbers},
        )

    def _positions(self, root: Path) -> np.ndarray:
        path = root / "split_locations" / "all.csv"
        rows = [floats(path, line, row[2:4]) for line, row in read_fields(path, root, self.layout, 5, ",")]
        return np.array(rows, np.float64).reshape(-1, 2)


class CVACT(GeoSource):
    """CVACT: places in Canberra, 35,532 to train on and 8,884 to test on (`valSet`, which papers call CVACT val).

    Coordinates are UTM metres. Places whose panorama or tile is missing are left out, and counted in `report`.

    Source: Liu and Li, "Lending Orientation to Neural Networks for Cross-view Geo-localization", CVPR 2019.

    Args:
        tile_size: height and width of a tile as it is read; one number for a square.
        ground_size: the same for panoramas.
        val_fraction: part of the training places that becomes the validation split.
        full_test: also test on the 92,802 places of `ANU_data_test`, as metrics that end in `_full`.
    """

    name = "cvact"
    layout = (
        "ACT_data.mat and ANU_data_small/streetview/<id>_grdView.jpg, ANU_data_small/satview_polish/"
        "<id>_satView_polish.jpg; ANU_data_test has the same two folders"
    )

    def __init__(
        self,
        tile_size: Size = 384,
        ground_size: Size = (140, 768),
        val_fraction: float = 0.05,
        full_test: bool = False,
    ) -> None:
        super().__init__(tile_size, ground_size, val_fraction)
        self.full_test = full_test
        self._skipped: dict[Part, int] = {}
        self._mat: dict[Path, tuple[np.ndarray, np.ndarray, dict[Part, np.ndarray]]] = {}

    @property
    def report(self) -> dict[str, int]:
        return super().report | {f"{part}_skipped": n for part, n in self._skipped.items()}

    def prepare(self, root: Path | None) -> None:
        super().prepare(root)
        if self.full_test:
            self.records(root, "full")

    def load(self, root: Path, part: Part) -> GeoRecords:
        ids, utm, sets = self._tables(root)
        folder = root / ("ANU_data_test" if part == "full" else "ANU_data_small")
        present = self._present(folder, root)
        listed = sorted(present) if part == "full" else ids[sets[part]].tolist()
        kept = [name for name in listed if name in present]
        if not kept:
            raise ZooError(f"{folder} has no {part} place with both its files; expected below {root}: {self.layout}")
        self._skipped[part] = len(listed) - len(kept)
        position = dict(zip(ids.tolist(), utm, strict=True))
        return GeoRecords(
            [folder / "streetview" / f"{name}_grdView.jpg" for name in kept],
            [folder / "satview_polish" / f"{name}_satView_polish.jpg" for name in kept],
            np.arange(len(kept)),
            np.array([position.get(name, (np.nan, np.nan)) for name in kept]),
        )

    def retrievals(self, split: Split, root: Path | None) -> dict[str, RetrievalSet]:
        found = super().retrievals(split, root)
        if self.full_test and split == "test":
            found["full"] = self.retrieval_set(self.records(root, "full"))
        return found

    def _present(self, folder: Path, root: Path) -> set[str]:
        """Ids that have both their files."""
        grounds = list_folder(folder / "streetview", root, self.layout)
        tiles = list_folder(folder / "satview_polish", root, self.layout)
        ends = ((grounds, "_grdView.jpg"), (tiles, "_satView_polish.jpg"))
        ground, tile = ({name.removesuffix(end) for name in names if name.endswith(end)} for names, end in ends)
        return ground & tile

    def _tables(self, root: Path) -> tuple[np.ndarray, np.ndarray, dict[Part, np.ndarray]]:
        """Ids, their positions in metres, and the rows of each part."""
        if root not in self._mat:
            path = root / "ACT_data.mat"
            if not path.is_file():
                raise ZooError(f"{path} is missing; expected below {root}: {self.layout}")
            mat = _loadmat(path)
            try:
                ids = np.array([str(name).strip() for name in mat["panoIds"].ravel()])
                utm = np.asarray(mat["utm"], np.float64).reshape(len(ids), 2)
                rows = {key: np.asarray(mat[key][0][0][1], np.int64).ravel() - 1 for key in ("trainSet", "valSet")}
                if any(((part < 0) | (part >= len(ids))).any() for part in rows.values()):
                    raise ValueError("an index beyond panoIds")
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise ZooError(
                    f"{path} lacks what CVACT's has: panoIds [n], utm [n, 2], trainSet and valSet with their indices "
                    f"second ({error}); get the published file"
                ) from error
            self._mat[root] = ids, utm, {"train": rows["trainSet"], "test": rows["valSet"]}
        return self._mat[root]


def _loadmat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat  # here, as few runs need it

    try:
        return loadmat(path)
    except Exception as error:  # damaged bytes end in whatever the parser stumbles over
        raise ZooError(f"{path} cannot be read as a MATLAB file ({error}); get the published file") from error
