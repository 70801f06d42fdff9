"""Batches that hold pairs together: images with their nearest images, variations of one scene."""

from __future__ import annotations

import numpy as np

from zoo.data.pairs import PairDataset
from zoo.data.samplers import BatchSampler
from zoo.errors import ZooError
from zoo.negatives.table import NegativeTable
from zoo.negatives.variations import sibling_probabilities


class NeighbourPairs(BatchSampler):
    """NegCLIP's hard images: half a batch is drawn at random, the other half are neighbours of the first.

    The batch of a rank is [pairs ; hard pairs], where hard pair i is drawn uniformly from the table's row of pair i. The
    table holds document numbers (`zoo.negatives.image_neighbours`); of a document with several pairs one is drawn. A pair
    without neighbours is followed by one drawn uniformly from all. Two halves may share a pair, which its keys then mask.
    An epoch has as many batches as with any other sampler, so that runs compare at equal numbers of images; the first
    halves of two epochs in a row are one pass over the data.

    Until there is a table, batches are random.

    Source: NegCLIP, Yuksekgonul et al. 2023 (arXiv 2210.01936), and its official implementation.
    """

    reads_table = True

    def __init__(self) -> None:
        super().__init__()
        self._table: NegativeTable | None = None

    def set_table(self, table: NegativeTable) -> None:
        self._table = table

    def bind(
        self, dataset: PairDataset, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> BatchSampler:
        """As in BatchSampler.

        Raises:
            ZooError: the batch size is odd, or there are too few pairs.
        """
        if batch_size % 2:
            raise ZooError(f"NeighbourPairs takes an even --data.batch_size, pairs and as many hard ones: {batch_size}")
        return super().bind(dataset, batch_size, seed, rank, world_size)

    def compose(self, rng: np.random.Generator) -> np.ndarray:
        half, n = self.batch_size // 2, len(self.dataset)
        if self._table is None:
            return rng.permutation(n)[: len(self) * self.batch_size * self.world_size].reshape(len(self), -1)
        count = len(self) * half * self.world_size
        turn = np.random.default_rng([self.seed, 0, self.epoch // 2]).permutation(n)
        order = turn[self.epoch % 2 * count :][:count]
        hard = self._neighbours(self._table, order, rng.integers(0, n, count), rng)
        shape = (len(self), self.world_size, half)
        return np.concatenate([order.reshape(shape), hard.reshape(shape)], 2).reshape(len(self), -1)

    def _neighbours(
        self, table: NegativeTable, order: np.ndarray, otherwise: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        if len(table) != len(self.dataset):
            raise ZooError(
                f"the table has {len(table)} rows and the training split {len(self.dataset)} pairs: mine it from these"
            )
        numbers = self.dataset.keys("positive", np.arange(len(self.dataset))).numpy()
        pairs = np.argsort(numbers, kind="stable")
        drawn = table.draw(order, 1, rng)[:, 0]
        first, last = (np.searchsorted(numbers[pairs], drawn, side) for side in ("left", "right"))
        chosen = np.minimum(first + (rng.random(len(order)) * (last - first)).astype(np.int64), len(pairs) - 1)
        return np.where((drawn >= 0) & (last > first), pairs[chosen], otherwise)


class SiblingBatches(BatchSampler):
    """GNM: groups of edited siblings, each followed by ordinary pairs.

    A column says which group a pair belongs to, and -1 that it is ordinary. It decides the mode: the edited object
    (item-based), the image that was edited (image-based), or each variation by itself (no grouping, `per_group` 1). Of
    a group `per_group` variations (distinct queries) are drawn without replacement, each with one of its pairs, drawn
    uniformly. Ordinary pairs are walked through in a random order, which is drawn anew when exhausted and goes on from
    epoch to epoch; where a group has fewer variations, further ones drawn uniformly fill up. An epoch meets every group
    once.

    Source: Sahin et al. 2024 (arXiv 2311.03964), and its official implementation.

    Args:
        column: of the data set, with the groups.
        per_group: siblings of a group in a batch.
        ordinary: ordinary pairs beside them.
        score: column of image-text matching scores, whose mean over a variation's pairs weights its draw
            (`zoo.negatives.variations.sibling_probabilities`); None draws uniformly.
        start_epoch: first epoch (from 0) with groups; before it batches are random.
    """

    def __init__(
        self,
        column: str = "group",
        per_group: int = 2,
        ordinary: int = 8,
        score: str | None = None,
        start_epoch: int = 0,
    ) -> None:
        super().__init__()
        if per_group < 1 or ordinary < 0:
            raise ZooError("SiblingBatches takes at least 1 sibling per group and no fewer than 0 ordinary pairs")
        self.column, self.per_group, self.ordinary, self.score = column, per_group, ordinary, score
        self.start_epoch = start_epoch

    def bind(
        self, dataset: PairDataset, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> BatchSampler:
        """As in BatchSampler.

        Raises:
            ZooError: a column is missing; the batch size is no multiple of a group's pairs; or there are too few groups,
                or no ordinary pairs.
        """
        for column in (self.column, self.score):
            if column is not None and column not in dataset.columns:
                known = ", ".join(sorted(dataset.columns))
                raise ZooError(f"the data set has no column {column!r} to compose batches by; it has {known}")
        unit = self.per_group + self.ordinary
        if batch_size % unit:
            raise ZooError(
                f"a group takes {self.per_group} + {self.ordinary} pairs: set --data.batch_size to a multiple of {unit}"
            )
        self._read(dataset)
        if len(self._siblings) < batch_size // unit * world_size:
            raise ZooError(
                f"one batch takes {batch_size // unit} x {world_size} groups but the training split holds "
                f"{len(self._siblings)}: lower --data.batch_size"
            )
        if not len(self._ordinary) and (self.ordinary or min(map(len, self._siblings)) < self.per_group):
            raise ZooError(
                f"no pair is ordinary (-1 in the column {self.column!r}), as batches need: set ordinary 0 and a "
                "per_group that no group falls short of, or use data with such pairs"
            )
        return super().bind(dataset, batch_size, seed, rank, world_size)

    def _read(self, dataset: PairDataset) -> None:
        group = np.asarray(dataset.columns[self.column])
        self._ordinary, edited = np.flatnonzero(group < 0), np.flatnonzero(group >= 0)
        query = dataset.keys("anchor", edited).numpy()
        (own, _), variation = np.unique(np.stack([group[edited], query]), axis=1, return_inverse=True)
        self._pairs = _members(variation, edited)
        self._siblings = _members(own, np.arange(len(own)))
        score = np.zeros(len(edited)) if self.score is None else np.asarray(dataset.columns[self.score])[edited]
        mean = np.bincount(variation, score, len(own)) / np.bincount(variation, minlength=len(own))
        self._probability = sibling_probabilities(mean, own)

    def __len__(self) -> int:
        return len(self._siblings) // (self.batch_size // (self.per_group + self.ordinary) * self.world_size)

    def compose(self, rng: np.random.Generator) -> np.ndarray:
        size = self.batch_size * self.world_size
        if self.epoch < self.start_epoch:
            return rng.permutation(len(self.dataset))[: len(self) * size].reshape(len(self), size)
        rows = np.empty(
            (len(self) * size // (self.per_group + self.ordinary), self.per_group + self.ordinary), np.int64
        )
        for row, group in zip(rows, rng.permutation(len(self._siblings)), strict=False):
            siblings = self._siblings[group]
            n = min(self.per_group, len(siblings))
            drawn = rng.choice(siblings, n, replace=False, p=self._probability[siblings])
            row[:n] = [rng.choice(self._pairs[variation]) for variation in drawn]
            row[n : self.per_group] = rng.choice(self._ordinary, self.per_group - n) if n < self.per_group else ()
        rows[:, self.per_group :] = self._walk(len(rows) * self.ordinary).reshape(len(rows), self.ordinary)
        return rows.reshape(len(self), size)

    def _walk(self, count: int) -> np.ndarray:
        """The next `count` ordinary pairs from where the epoch before has stopped."""
        n, start = len(self._ordinary), self.epoch * count
        if not count:
            return self._ordinary[:0]
        passes = range(start // n, (start + count - 1) // n + 1)
        order = np.concatenate([np.random.default_rng([self.seed, 0, p]).permutation(self._ordinary) for p in passes])
        return order[start % n :][:count]


def _members(group: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """Values of each group, groups in ascending order."""
    order = np.argsort(group, kind="stable")
    return np.split(values[order], np.flatnonzero(np.diff(group[order])) + 1) if len(group) else []
