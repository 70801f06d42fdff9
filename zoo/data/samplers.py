"""Batch composition: which pairs share a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from zoo.data.pairs import PairDataset
from zoo.errors import ZooError

if TYPE_CHECKING:
    from zoo.negatives.table import NegativeTable


class BatchPlan(NamedTuple):
    """One batch of one rank before it is read: where it stands in the run, and the pairs in it."""

    epoch: int
    number: int
    indices: np.ndarray


class BatchSampler(Sampler[BatchPlan], ABC):
    """Composes the batches of an epoch, as a pure function of seed and epoch.

    A subclass says in `compose` which pairs share a batch. Partition over ranks, the epoch counter and resuming in the
    middle of an epoch live here, once.

    Attributes:
        reads_table: does it compose batches from a NegativeTable, which `set_table` gives it?
    """

    reads_table = False

    def __init__(self) -> None:
        self.epoch = 0
        self.start = 0

    def bind(
        self, dataset: PairDataset, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> BatchSampler:
        """Give the sampler what it composes: `batch_size` pairs of `dataset` for each of `world_size` ranks.

        Raises:
            ZooError: the data set holds fewer pairs than one batch of all ranks.
        """
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.world_size = rank, world_size
        if len(self) == 0:
            raise ZooError(
                f"one batch takes {batch_size} x {world_size} pairs but the training split holds {len(dataset)}: "
                "lower --data.batch_size"
            )
        return self

    def set_table(self, table: NegativeTable) -> None:
        """Compose batches from another table, from the next epoch on."""
        raise NotImplementedError

    @abstractmethod
    def compose(self, rng: np.random.Generator) -> np.ndarray:
        """Pair indices `[len(self), batch_size * world_size]` of one epoch; each row is the batch of all ranks."""

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this as each epoch starts."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def __len__(self) -> int:
        """Batches of an epoch; an incomplete last one is dropped, as it would change the number of negatives."""
        return len(self.dataset) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[BatchPlan]:
        batches = self.compose(np.random.default_rng([self.seed, self.epoch]))
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        start, self.start = self.start, 0
        for number in range(start, len(batches)):
            yield BatchPlan(self.epoch, number, batches[number, mine])


class RandomBatches(BatchSampler):
    """Uniform batches without replacement: the baseline of batch composition."""

    def compose(self, rng: np.random.Generator) -> np.ndarray:
        order = rng.permutation(len(self.dataset))
        return order[: len(self) * self.batch_size * self.world_size].reshape(len(self), -1)
