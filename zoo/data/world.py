"""The embedded geo-localisation arena: a procedural map, panoramas of its streets and satellite tiles."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

from zoo.data import world_map, world_render
from zoo.data.cache import cache_folder, cached_arrays
from zoo.data.collections import CollectionPairs, ImageArray, RetrievalSet, RetrievalSource
from zoo.data.pairs import Split
from zoo.data.world_map import N_PLACES, Area, Places, corners, degrees, metres
from zoo.data.world_render import COLUMNS, ROWS, panoramas, polar_tiles, tiles
from zoo.errors import ZooError

Map = Literal["", "cross"]  # the map of training, and the other
_MAPS: tuple[Map, ...] = ("", "cross")
_SPLITS: tuple[Split, ...] = ("test", "val", "train")  # in which places are taken: more training places move no others
_VERSION = 1  # of what is drawn


class World(RetrievalSource):
    """Street panoramas against satellite tiles: which tile shows the place where a panorama was taken?

    A map is a grid of streets with a building per block; places are crossings. Two cues tell where one is. Its *region*,
    a Voronoi cell with a palette for buildings and ground, tells it from most other places; each palette occurs in
    several regions far apart. Inside a region only the coloured *poles* along the streets differ. Palettes alone solve a
    batch of random places; they do not solve one of neighbours, who share the region, or of look-alikes, who share the
    palette.

    Queries are panoramas, 16x64, ray-cast, north in the middle; documents are tiles, north up; a document's number is
    its place. Columns: `coords` (metres to the east and north), `latlon` (degrees), `group` (palette) and with
    `vigor` `semi_positive` (document numbers `[N, 3]`, -1 where not among the documents). Test and validation places lie
    on the map of training; the retrieval set "cross" has as many test places of another map, with other palettes but the
    same colours of poles.

    Images are rendered once and memory-mapped from a cache. Every random number is a uniform draw of NumPy's PCG64 and
    rendering is in float64, so that the same arguments give the same images on every machine, save for a rare unit in the
    last place of a pixel.

    Args:
        seed: of the data set, which is the same for every run; not the run's seed.
        n_train: training places.
        n_val: validation places.
        n_test: test places of each map.
        polar: tiles unrolled around their centres, 16x64, a column in the direction of the panorama's; else 24x24.
        vigor: panoramas are taken up to 3 cells off the crossing, one or two per place. The tiles of four crossings show
            each position: those of the other three, the semi-positives, join the collection that is searched, and are
            neither right nor wrong.
        regions: regions of a map.
        palettes: palettes of a map; as many as regions leave no look-alikes far away.
        poles: share of street cells with a pole.
        gain: standard deviation of the logarithm of each image's gain, per channel.
        noise: standard deviation of a pixel's noise.
        occluders: dark things in front of each panorama.

    Raises:
        ZooError: a map has fewer places, or no region or palette.
    """

    name = "world"

    def __init__(
        self,
        seed: int = 0,
        n_train: int = 1600,
        n_val: int = 600,
        n_test: int = 1200,
        polar: bool = False,
        vigor: bool = False,
        regions: int = 180,
        palettes: int = 60,
        poles: float = 0.035,
        gain: float = 0.03,
        noise: float = 0.05,
        occluders: int = 2,
    ) -> None:
        if n_train + n_val + n_test > N_PLACES:
            raise ZooError(f"a map has {N_PLACES} places: lower n_train, n_val or n_test, which take more in all")
        if min(regions, palettes) < 1:
            raise ZooError("a map needs at least one region and one palette: raise regions or palettes")
        self.seed, self.polar, self.vigor = seed, polar, vigor
        self.regions, self.palettes, self.poles = regions, palettes, poles
        self.gain, self.noise, self.occluders = gain, noise, occluders
        self.lengths: dict[Split, int] = {"train": n_train, "val": n_val, "test": n_test}
        self._task = (seed, vigor, regions, palettes, poles, gain, noise, occluders)
        self._areas: dict[Map, Area] = {}

    @property
    def arena(self) -> str:
        """The name, with digits for what makes the task; how tiles are presented does not."""
        task = (_VERSION, self._task, self.lengths["val"], self.lengths["test"])
        return f"{self.name}-{hashlib.sha256(repr(task).encode()).hexdigest()[:6]}"

    def prepare(self, root: Path | None) -> None:
        for split in self.lengths:
            self.retrievals(split, root)

    def split(self, split: Split, root: Path | None) -> CollectionPairs:
        places, n = self.places(split), self.lengths[split]
        block = places.block[places.place_of]
        position = corners(block)
        group = self.area().palette[block[:, 0], block[:, 1]]
        columns = {"coords": metres(position), "latlon": degrees(position), "group": group}
        if self.vigor:
            columns["semi_positive"] = np.where(places.semi < n, places.semi, -1)
        panorama, tile = self._images(split, "", root)
        # Tiles that only surround a panorama come last, and are no places of this split.
        documents = ImageArray(tile[:n])
        return CollectionPairs(ImageArray(panorama), documents, np.arange(len(block)), places.place_of, columns=columns)

    def retrieval(self, split: Split, root: Path | None) -> RetrievalSet:
        return self._retrieval(split, "", root)

    def retrievals(self, split: Split, root: Path | None) -> dict[str, RetrievalSet]:
        """Panoramas of a split against its tiles; of the test split also those of the other map."""
        return {which: self._retrieval(split, which, root) for which in (_MAPS if split == "test" else _MAPS[:1])}

    def _retrieval(self, split: Split, which: Map, root: Path | None) -> RetrievalSet:
        places = self.places(split, which)
        panorama, tile = self._images(split, which, root)
        relevance = [{place: 1} for place in places.place_of.tolist()]
        ignored = [set(row) for row in places.semi.tolist()] if self.vigor else None
        return RetrievalSet(ImageArray(panorama), ImageArray(tile), relevance, ignored, metres(places.position))

    def area(self, which: Map = "") -> Area:
        """The map of training, or the other."""
        if which not in self._areas:
            rng = np.random.default_rng([self.seed, _MAPS.index(which)])
            self._areas[which] = world_map.build_area(rng, self.regions, self.palettes, self.poles)
        return self._areas[which]

    def places(self, split: Split, which: Map = "") -> Places:
        """Where the images of a split were taken; splits share no place."""
        area, number = self.area(which), _SPLITS.index(split)
        first = sum(self.lengths[s] for s in _SPLITS[:number])
        blocks = area.crossings[first : first + self.lengths[split]]
        if self.vigor:
            return world_map.street_points(area, blocks, self._rng(split, which, 1))
        return world_map.crossing_points(blocks)

    def render(
        self, split: Split, which: Map = ""
    ) -> tuple[UInt8[np.ndarray, "Q 3 16 64"], UInt8[np.ndarray, "D 3 H W"]]:
        """Draw the panoramas and the tiles of a split (about 0.3 ms each)."""
        city, places = self.area(which).city, self.places(split, which)
        rng = self._rng(split, which, 2)
        ground = panoramas(city, places.position)
        for _ in range(self.occluders):
            _occlude(ground, rng.random((len(ground), 4)))
        draw = polar_tiles if self.polar else tiles
        return self._photograph(ground, rng), self._photograph(draw(city, corners(places.block)), rng)

    def _photograph(
        self, images: Float[np.ndarray, "N 3 H W"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "N 3 H W"]:
        gain = np.exp(self.gain * _spread(rng.random((len(images), 3, 1, 1))))
        noise = self.noise * _spread(rng.random(images.shape))
        return ((images * gain + noise).clip(0, 1) * 255).round().astype(np.uint8)

    def _rng(self, split: Split, which: Map, use: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, _MAPS.index(which), _SPLITS.index(split), use])

    def _images(self, split: Split, which: Map, root: Path | None) -> tuple[np.ndarray, np.ndarray]:
        # The files' names carry everything that their contents depend on, the text of what draws them included.
        folder = cache_folder(root)
        text = b"".join(Path(str(module.__file__)).read_bytes() for module in (world_map, world_render))
        digits = hashlib.sha256(
            repr((self._task, self.lengths, self.polar)).encode() + text + Path(__file__).read_bytes()
        )
        stem = f"world-{which or 'same'}-{split}-{digits.hexdigest()[:12]}"
        paths = [folder / f"{stem}-{view}.npy" for view in ("panoramas", "tiles")]
        panorama, tile = cached_arrays(paths, lambda: self.render(split, which))
        return panorama, tile


def _spread(uniform: np.ndarray) -> np.ndarray:
    """Mean 0 and standard deviation 1."""
    return (2 * uniform - 1) * 3**0.5


def _occlude(images: Float[np.ndarray, "N 3 16 64"], draws: Float[np.ndarray, "N 4"]) -> None:
    """Put something dark in front of each panorama, 3 to 7 columns wide, from the bottom to about the horizon."""
    start, width, top, grey = (draws * (COLUMNS, 5, 5, 0.15)).T[:, :, None]
    column = (np.arange(COLUMNS) - np.floor(start)) % COLUMNS < 3 + np.floor(width)
    row = np.arange(ROWS) >= 6 + np.floor(top)
    covered = (row[:, :, None] & column[:, None])[:, None]
    np.copyto(images, grey[:, :, None, None], where=covered)
