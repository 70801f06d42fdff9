"""Places that lie near each other."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from jaxtyping import Float, Int64
from sklearn.neighbors import BallTree, KDTree

from zoo.data.cache import cache_folder, cached_arrays
from zoo.errors import ZooError
from zoo.negatives.miners import Rules, SearchMiner

EARTH_RADIUS = 6_371_008.8  # metres, mean radius
Metric = Literal["haversine", "euclidean"]

_CHUNK = 2**22  # neighbours held at a time


def nearest_places(
    coords: Float[np.ndarray, "P 2"], k: int, metric: Metric = "haversine"
) -> tuple[Int64[np.ndarray, "P K"], Float[np.ndarray, "P K"]]:
    """The `k` nearest other points of each point, ascending by distance, ties by number.

    Args:
        coords: latitude and longitude in degrees (haversine), or x and y (euclidean).
        k: neighbours per point, K = min(k, P - 1).
        metric: great-circle or plane distance.

    Returns:
        Numbers of the neighbours, and distances: radians (haversine), or the unit of the coordinates.

    Raises:
        ZooError: a coordinate is not finite, or not a latitude (haversine).
    """
    coords = np.asarray(coords, np.float64)
    if not np.isfinite(coords).all():
        raise ZooError("a coordinate is not finite: leave out the pairs whose position is unknown")
    if metric == "haversine":
        if (np.abs(coords[:, 0]) > 90).any():
            raise ZooError(
                "a latitude is beyond 90 degrees: for coordinates in metres set the miner's metric: euclidean"
            )
        points = np.radians(coords)
        tree = BallTree(points, metric="haversine")
    else:
        points = coords
        tree = KDTree(points)
    n = len(points)
    k = min(k, n - 1)
    ids, distances = np.empty((n, k), np.int64), np.empty((n, k))
    # Of points at equal distance a tree finds any, so ask for the point itself and one beyond the last neighbour, and for
    # more where that one ties.
    todo, width = np.arange(n), min(k + 2, n)
    while len(todo):
        tied, step = [], max(1, _CHUNK // width)
        for rows in np.split(todo, range(step, len(todo), step)):
            near, which = tree.query(points[rows], width)
            complete = (near[:, -1] > near[:, k]) | (width == n)
            tied.append(rows[~complete])
            rows, near, which = rows[complete], near[complete], which[complete]
            order = np.lexsort((which, near))
            near, which = np.take_along_axis(near, order, 1), np.take_along_axis(which, order, 1)
            first = np.argsort(which == rows[:, None], axis=1, kind="stable")[:, :k]  # the point itself goes last
            ids[rows] = np.take_along_axis(which, first, 1)
            distances[rows] = np.take_along_axis(near, first, 1)
        todo, width = np.concatenate(tied), min(2 * width, n)
    return ids, distances


class GeographicMiner(SearchMiner):
    """The nearest other places, by the pairs' column `coords` `[N, 2]`; scores are negative distances in metres.

    A place is a document; it lies where the last of its pairs says. Documents without a pair have no position and are
    not found. A query's row holds the neighbours of its place (of its last pair's, where it has several). What was found is
    kept in the cache folder (`$ZOO_CACHE`).

    Source: Deuser et al. 2023 (arXiv 2303.11851), section 3.3. Their released scripts take degrees for radians; this
    does not.

    Args:
        depth: neighbours per place.
        metric: "haversine" for latitude and longitude in degrees, "euclidean" for metres.
        rules: as in `Miner`, but no margins.
    """

    def __init__(self, depth: int = 128, metric: Metric = "haversine", rules: Rules | None = None) -> None:
        super().__init__(depth, rules)
        self.metric: Metric = metric

    def search(self, pairs, embed):
        if "coords" not in pairs.columns:
            raise ZooError("GeographicMiner needs positions, which this data set has not: remove --data.miner")
        coords = np.full((pairs.n_documents, 2), np.nan)
        coords[pairs.document_of] = pairs.columns["coords"]
        places = np.unique(pairs.document_of)
        near, distances = self._nearest(coords[places])
        place_of = np.zeros(len(pairs.queries), np.int64)
        place_of[pairs.query_of] = np.searchsorted(places, pairs.document_of)
        unit = EARTH_RADIUS if self.metric == "haversine" else 1.0
        record = {"miner": "geographic", "metric": self.metric}
        return places[near][place_of], -(unit * distances).astype(np.float32)[place_of], None, record

    def _nearest(self, coords: Float[np.ndarray, "P 2"]) -> tuple[np.ndarray, np.ndarray]:
        """`nearest_places`, searched once per set of coordinates: positions do not change from run to run."""
        identity = hashlib.sha256(repr((self.depth, self.metric)).encode() + np.ascontiguousarray(coords).tobytes())
        name = f"nearest-{identity.hexdigest()[:16]}"
        paths = [cache_folder(None) / f"{name}-{part}.npy" for part in ("ids", "distances")]
        ids, distances = cached_arrays(paths, lambda: nearest_places(coords, self.depth, self.metric))
        return ids, distances
