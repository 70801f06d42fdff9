"""VIGOR: panoramas anywhere in a tile, and tiles that overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from zoo.data.geo_files import GeoRecords, GeoSource, Part, Size
from zoo.data.geo_layout import floats, read_fields
from zoo.errors import ZooError

CITIES = ("Chicago", "NewYork", "SanFrancisco", "Seattle")
_CROSS: dict[Part, tuple[str, ...]] = {"train": ("NewYork", "Seattle"), "test": ("Chicago", "SanFrancisco")}


class VIGOR(GeoSource):
    """VIGOR: 105,214 panoramas and 90,618 tiles of four cities.

    A panorama's place is the tile in whose central quarter it lies; three further tiles that show its position are
    its semi-positives. Evaluation searches all tiles of the cities. Both trees are read: `<city>/panorama/`,
    `<city>/satellite/` as published and `ground/<city>/`, `satellite/<city>/` as Sample4Geo expects.

    Columns: `coords`, latitude and longitude of the tile (a retrieval set's are the panorama's); `group`, the city;
    `offset` `[N, 2]`, rows and columns from the centre of the 640-pixel tile to where the panorama was taken.

    Source: Zhu et al., "VIGOR: Cross-View Image Geo-localization beyond One-to-one Retrieval", CVPR 2021.

    Args:
        protocol: "same_area" trains and tests on panoramas of all four cities, "cross_area" trains on New York and
            Seattle and tests on Chicago and San Francisco.
        corrected: read SliceMatch's corrected labels, from `splits__corrected`.
        tile_size: height and width of a tile as it is read; one number for a square.
        ground_size: the same for panoramas.
        val_fraction: part of the training places that becomes the validation split.
    """

    name = "vigor"
    searches_all = True

    def __init__(
        self,
        protocol: Literal["same_area", "cross_area"] = "same_area",
        corrected: bool = False,
        tile_size: Size = 384,
        ground_size: Size = (384, 768),
        val_fraction: float = 0.05,
    ) -> None:
        super().__init__(tile_size, ground_size, val_fraction)
        self.protocol, self.corrected = protocol, corrected
        self._splits, suffix = ("splits__corrected", "__corrected") if corrected else ("splits", "")
        labels = {"train": "same_area_balanced_train", "test": "same_area_balanced_test"}
        if protocol == "cross_area":
            labels = dict.fromkeys(labels, "pano_label_balanced")
        self._labels = {part: f"{stem}{suffix}.txt" for part, stem in labels.items()}
        listed = ",".join(sorted({"satellite_list.txt", *self._labels.values()}))
        self.layout = (
            f"{self._splits}/<city>/{{{listed}}}, and the images in <city>/{{panorama,satellite}}/ or in "
            "{ground,satellite}/<city>/"
        )

    @property
    def arena(self) -> str:
        return f"{self.name}-{self.protocol}{'-corrected' if self.corrected else ''}"

    def load(self, root: Path, part: Part) -> GeoRecords:
        cities = CITIES if self.protocol == "same_area" else _CROSS[part]
        tiles: list[Path] = []
        positions: list[list[float]] = []
        ground: list[Path] = []
        rows: list[tuple[int, list[int], list[float], list[float]]] = []
        for city in cities:
            start = len(tiles)
            panoramas, satellite = self._folders(root, city)
            path = root / self._splits / city / "satellite_list.txt"
            for line, (name,) in read_fields(path, root, self.layout, 1):
                tiles.append(satellite / name)
                positions.append(_position(path, line, name, Path(name).stem.split("_")[1:]))
            number = {tile.name: start + i for i, tile in enumerate(tiles[start:])}
            path = self._label_file(root, city, part)
            for line, fields in read_fields(path, root, self.layout, 13):
                if unknown := [name for name in fields[1::3] if name not in number]:
                    raise ZooError(f"{path}:{line}: {unknown[0]} is not in satellite_list.txt; get the published files")
                ground.append(panoramas / fields[0])
                shown_in = [number[name] for name in fields[1::3]]
                down, left = floats(path, line, [text for i, text in enumerate(fields[1:]) if i % 3])[:2]
                seen_from = _position(path, line, fields[0], fields[0].split(",")[1:-1])
                rows.append((CITIES.index(city), shown_in, [down, -left], seen_from))
        if not rows:
            raise ZooError(f"{root / self._splits} lists no panoramas; expected below {root}: {self.layout}")
        group, shown_in, offset, seen_from = (np.array(column) for column in zip(*rows, strict=True))
        return GeoRecords(
            ground,
            tiles,
            shown_in[:, 0],
            np.array(positions)[shown_in[:, 0]],
            shown_in[:, 1:],
            seen_from,
            {"group": group, "offset": offset},
        )

    def _folders(self, root: Path, city: str) -> tuple[Path, Path]:
        """Where the panoramas and the tiles of a city are."""
        for panoramas, tiles in (
            (root / city / "panorama", root / city / "satellite"),
            (root / "ground" / city, root / "satellite" / city),
        ):
            if panoramas.is_dir() and tiles.is_dir():
                return panoramas, tiles
        raise ZooError(f"the images of {city} are missing; expected below {root}: {self.layout}")

    def _label_file(self, root: Path, city: str, part: Part) -> Path:
        """The labels, whose corrected files some rename to what the published ones are called."""
        folder, name = root / self._splits / city, self._labels[part]
        plain = folder / name.replace("__corrected", "")
        return plain if plain.is_file() and not (folder / name).is_file() else folder / name


def _position(path: Path, line: int, name: str, parts: list[str]) -> list[float]:
    """Latitude and longitude that the name of an image states."""
    try:
        latitude, longitude = map(float, parts)
    except ValueError as error:
        raise ZooError(f"{path}:{line}: {name} states no position; get the published file") from error
    return [latitude, longitude]
