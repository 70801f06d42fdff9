"""Batches of places that look alike: geographic neighbours, or those that the encoder confuses."""

from __future__ import annotations

import random
from collections import defaultdict, deque

import numpy as np
from jaxtyping import Int, Int64

from zoo.data.pairs import PairDataset
from zoo.data.samplers import BatchSampler
from zoo.errors import ZooError
from zoo.negatives.table import NegativeTable


def neighbour_order(
    place_of: Int[np.ndarray, " N"],
    lists: Int[np.ndarray, "N K"] | None,
    batch_size: int,
    select: int,
    neighbour_range: int,
    patience: int,
    rng: random.Random,
) -> Int64[np.ndarray, " M"]:
    """An epoch's order of samples whose every `batch_size` in a row are of distinct places and, given lists, clusters.

    Samples come in random order. Each brings neighbours of its place into the batch: the `select // 2` nearest, and as
    many drawn from the rest of the nearest `neighbour_range`. A sample whose place is in the batch already waits at
    the end of the queue. No sample comes twice; an unfinished last batch is dropped.

    Source: Deuser et al. 2023 (arXiv 2303.11851), section 3.3; the order of draws is that of the authors' code.

    Args:
        place_of: place of each sample.
        lists: for each sample the places near its own, nearest first, -1 padded; of several samples of one place the
            last one's list counts. None brings no neighbours: random order with distinct places.
        batch_size: B, over all ranks.
        select: neighbours that a sample brings at most, S.
        neighbour_range: places that count as near, R.
        patience: samples in a row that cannot be placed after which the epoch ends.
        rng: consumed by this order alone.

    Returns:
        Samples; M is a multiple of B.
    """
    places, half = place_of.tolist(), select // 2
    pool = list(range(len(places)))
    rng.shuffle(pool)
    queue = deque(pool)
    unused: dict[int, list[int]] = defaultdict(list)  # samples of each place, ascending
    row_of: dict[int, int] = {}
    if lists is not None:
        for i, place in enumerate(places):
            unused[place].append(i)
            row_of[place] = i
    again: dict[int, list[int]] = {}  # what is left of the list of a place that may be drawn again
    used = bytearray(len(places))
    order: list[int] = []
    batch: list[int] = []
    in_batch: set[int] = set()
    fails = 0
    while queue and fails < patience:
        i = queue.popleft()
        place = places[i]
        if used[i] or place in in_batch:
            if not used[i]:
                queue.append(i)
            fails += 1
            continue
        fails = 0
        batch.append(i)
        in_batch.add(place)
        used[i] = True
        if lists is not None:
            unused[place].remove(i)
            if len(batch) < batch_size:
                near = again.pop(place, None)
                if near is None:
                    near = [z for z in lists[row_of[place]].tolist() if z >= 0]
                others = near[half:neighbour_range]
                rng.shuffle(others)
                for z in near[: min(half, neighbour_range)] + others[:half]:
                    if len(batch) >= batch_size:
                        break
                    if z in in_batch or not (left := unused.get(z)):
                        continue
                    shuffled = left.copy()
                    rng.shuffle(shuffled)
                    batch.append(shuffled[0])
                    in_batch.add(z)
                    used[shuffled[0]] = True
                    left.remove(shuffled[0])
                    near.remove(z)
                if unused[place]:
                    again[place] = near
        if len(batch) >= batch_size:
            order += batch
            batch.clear()
            in_batch.clear()
    return np.array(order, np.int64)


class NeighbourBatches(BatchSampler):
    """Sample4Geo: a batch is a few clusters of places that are near each other, never two samples of one place.

    What is near comes from a NegativeTable: geography (`GeographicMiner` as `data.miner`), and later the encoder's own
    confusions (`EmbeddingMiner` in `RefreshNegatives`). Without a table batches are random, still of distinct places.
    A place is the document of a pair, by identity. The batch of all ranks is composed as one, so that clusters span
    them.

    A shuffle drops the samples that fit into no batch any more: fewer than B if places have one sample each, more if
    they have many. An epoch nevertheless has as many batches as with any other sampler, so that runs compare at equal
    steps and Lightning knows where the epoch ends: missing batches are the first ones of a further shuffle.

    Source: Deuser et al. 2023 (arXiv 2303.11851).

    Args:
        select: neighbours that a sample brings along: half of them the nearest, half drawn from the others in range.
        neighbour_range: how many of the nearest places are in range.
        patience: samples in a row that fit nowhere after which a shuffle ends.
    """

    reads_table = True

    def __init__(self, select: int = 64, neighbour_range: int = 128, patience: int = 1024) -> None:
        super().__init__()
        if select < 0 or neighbour_range < 0 or patience < 1:
            raise ZooError(
                f"select {select}, neighbour_range {neighbour_range}, patience {patience}: the first two take 0 or more, "
                "patience 1 or more"
            )
        self.select, self.neighbour_range, self.patience = select, neighbour_range, patience
        self._table: NegativeTable | None = None

    def bind(
        self, dataset: PairDataset, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> BatchSampler:
        """As in `BatchSampler`.

        Raises:
            ZooError: the data set holds fewer pairs, or fewer distinct places, than one batch of all ranks.
        """
        super().bind(dataset, batch_size, seed, rank, world_size)
        self._places = dataset.keys("positive", np.arange(len(dataset))).numpy()
        n_places = len(np.unique(self._places))
        if n_places < batch_size * world_size:
            raise ZooError(
                f"one batch takes {batch_size} x {world_size} distinct places but the training split holds {n_places}: "
                "lower --data.batch_size"
            )
        return self

    def set_table(self, table: NegativeTable) -> None:
        self._table = table

    def _lists(self) -> np.ndarray | None:
        """The table by places instead of document numbers, which are mostly the same."""
        if self._table is None:
            return None
        ids = self._table.ids
        if len(ids) != len(self.dataset):
            raise ZooError(
                f"the negative table has {len(ids)} rows for {len(self.dataset)} pairs: mine it from these pairs"
            )
        numbers = np.arange(self.dataset.n_documents)
        keys = self.dataset.document_keys(numbers).numpy()
        return ids if np.array_equal(keys, numbers) else np.where(ids >= 0, keys[ids], -1)

    def compose(self, rng: np.random.Generator) -> np.ndarray:
        size, draws, lists = self.batch_size * self.world_size, random.Random(int(rng.integers(2**63))), self._lists()
        passes: list[np.ndarray] = []
        while sum(map(len, passes)) < len(self) * size:
            order = neighbour_order(self._places, lists, size, self.select, self.neighbour_range, self.patience, draws)
            if not len(order):
                raise ZooError(
                    f"a shuffle ended before {size} distinct places met: lower --data.batch_size or raise the sampler's "
                    f"patience {self.patience}"
                )
            passes.append(order)
        return np.concatenate(passes)[: len(self) * size].reshape(len(self), size)
