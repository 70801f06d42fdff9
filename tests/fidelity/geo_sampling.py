"""Adapters of batches by neighbours, and of the lists of neighbours."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch

from tests.fidelity.common import Arrays
from zoo.data.neighbour_batches import neighbour_order
from zoo.data.text import TextPairs
from zoo.negatives.geographic import nearest_places
from zoo.negatives.miners import EmbeddingMiner, Rules, jaccard
from zoo.negatives.table import NegativeTable


def sampler(arrays: Arrays) -> dict[str, np.ndarray]:
    def order(case: str, place_of: np.ndarray, lists: np.ndarray | None, patience: int = 1024) -> np.ndarray:
        select, near = (int(arrays.get(f"{case}_neighbour_{name}", 0)) for name in ("select", "range"))
        rng = random.Random(int(arrays[f"{case}_seed"]))
        return neighbour_order(place_of, lists, int(arrays[f"{case}_batch_size"]), select, near, patience, rng)

    unique, several, classes = arrays["u_ids"], arrays["m_sat_of_ground"], arrays["c_class"]
    m = order("m", several, arrays["m_neighbours"][several])
    c = order("c", classes, None, 512)
    return {
        "u_order": unique[order("u", unique, arrays["u_neighbours"])],
        "u_order_random": unique[order("u", unique, None)],
        "m_order": np.stack([m, several[m]], 1),
        "c_order": np.stack([classes[c], c], 1),
    }


def confused_places(query: np.ndarray, reference: np.ndarray, place_of: np.ndarray, k: int) -> np.ndarray:
    """Rows [pairs, k] as a refresh of the table would find them; references are numbered by place."""
    names = [str(i) for i in range(max(len(query), len(reference)))]
    pairs = TextPairs(names[: len(query)], names[: len(reference)], np.arange(len(query)), place_of)
    sides = {"query": torch.as_tensor(query), "document": torch.as_tensor(reference)}
    return EmbeddingMiner(k + 1, Rules(keep=k)).mine(pairs, sides.__getitem__).ids[:, :k]


def neighbours(arrays: Arrays) -> dict[str, np.ndarray]:
    k = int(arrays["top_k"])
    near, distances = nearest_places(arrays["latlon_deg"], k)
    tables = [NegativeTable(ids, np.zeros(ids.shape)) for ids in (near, arrays["neigh_degrees_as_radians"])]
    rows = (NegativeTable(t.ids[i : i + 1], t.scores[i : i + 1]) for i in range(len(near)) for t in tables)
    shared = [jaccard(a, b) for a, b in zip(rows, rows, strict=True)]
    overlap = np.mean([2 * j / (1 + j) for j in shared])  # of lists that are equally long

    k, label = int(arrays["u_range"]), arrays["u_label"]
    one_each = confused_places(arrays["u_query"], arrays["u_reference"], np.arange(len(label)), k)
    positive = arrays["m_label"][:, 0]
    found = np.full((len(arrays["m_reference"]), k), -1)
    for place, row in zip(
        positive, confused_places(arrays["m_query"], arrays["m_reference"], positive, k), strict=True
    ):
        found[place] = row
    return {
        "neigh_rad": near,
        "dist_rad": distances,
        "overlap": np.asarray(overlap),
        "u_near": label[one_each],
        "m_near": found,
    }


GEO_SAMPLING: dict[str, Callable[[Arrays], dict[str, np.ndarray]]] = {
    "geo_sampler": sampler,
    "geo_neighbours": neighbours,
}
