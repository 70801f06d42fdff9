"""Batches of pairs that belong together: topics, unions of small clusters, tasks."""

from __future__ import annotations

import numpy as np

from zoo.data.samplers import BatchSampler
from zoo.errors import ZooError


class ClusteredBatches(BatchSampler):
    """Base of samplers that read a cluster of each pair: a column of the data set, or what a callback found.

    Args:
        column: column of the data set; None waits for `set_clusters`, and composes random batches until then.
    """

    def __init__(self, column: str | None = None) -> None:
        super().__init__()
        self.column = column
        self._clusters: np.ndarray | None = None

    def set_clusters(self, clusters: np.ndarray) -> None:
        """Use another assignment `[N]`, from the next epoch on."""
        self._clusters = clusters

    def clusters(self) -> np.ndarray | None:
        """Cluster of each pair `[N]`; None as long as there are none.

        Raises:
            ZooError: the data set has no such column.
        """
        if self._clusters is None and self.column is not None:
            if self.column not in self.dataset.columns:
                known = ", ".join(sorted(self.dataset.columns))
                raise ZooError(f"the data set has no column {self.column!r} to compose batches by; it has {known}")
            self._clusters = np.asarray(self.dataset.columns[self.column])
        return self._clusters

    def members(self) -> list[np.ndarray] | None:
        """Pairs of each cluster, clusters in ascending order."""
        clusters = self.clusters()
        if clusters is None:
            return None
        order = np.argsort(clusters, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1)

    def cut(self, order: np.ndarray) -> np.ndarray:
        """An order of pairs as whole batches."""
        size = self.batch_size * self.world_size
        return order[: len(self) * size].reshape(len(self), size)


class TopicBatches(ClusteredBatches):
    """TAS: every batch from one topic, so that its negatives are close.

    A batch takes `batch // clusters_per_batch` distinct pairs of a cluster drawn uniformly, all of a smaller one, and
    goes on until it is full. An epoch is a number of batches, not a pass over the data.

    Source: Hofstätter et al. 2021 (arXiv 2104.06967), section 3.1.

    Args:
        column: as in `ClusteredBatches`.
        clusters_per_batch: topics that share a batch.
    """

    def __init__(self, column: str | None = None, clusters_per_batch: int = 1) -> None:
        super().__init__(column)
        self.clusters_per_batch = clusters_per_batch

    def compose(self, rng: np.random.Generator) -> np.ndarray:
        members = self.members()
        if members is None:
            return self.cut(rng.permutation(len(self.dataset)))
        size = self.batch_size * self.world_size
        share = max(1, size // self.clusters_per_batch)
        batches = np.empty((len(self), size), np.int64)
        for batch in batches:
            filled, drawn = 0, rng.permutation(len(members))
            for cluster in drawn:
                pairs = rng.permutation(members[cluster])[: min(share, size - filled)]
                batch[filled : filled + len(pairs)] = pairs
                filled += len(pairs)
                if filled == size:
                    break
        return batches


class ClusterUnions(ClusteredBatches):
    """NGAME: an epoch is a shuffled list of small clusters, cut into batches, so that each is a union of clusters.

    Source: Dahiya et al. 2023 (arXiv 2207.04452), section 3.2.

    Args:
        column: as in `ClusteredBatches`.
    """

    def compose(self, rng: np.random.Generator) -> np.ndarray:
        members = self.members()
        if members is None:
            return self.cut(rng.permutation(len(self.dataset)))
        return self.cut(np.concatenate([rng.permutation(members[i]) for i in rng.permutation(len(members))]))


class OverlappingClusters(ClusteredBatches):
    """SaHa: batches of whole clusters `[C, K + 1]` (-1 padded) of pairs that are hard negatives of each other.

    Full clusters come first, in random order, so that a batch that is a multiple of K + 1 splits none of them; then the
    shorter ones; then, where pairs are missing, full ones again. The batches are shuffled. A pair may be in several
    clusters, and in none. Before the first clusters batches are random.

    Source: Ju and Lee 2025 (arXiv 2508.00955).
    """

    def __init__(self) -> None:
        super().__init__()

    def compose(self, rng: np.random.Generator) -> np.ndarray:
        clusters = self.clusters()
        if clusters is None:
            return self.cut(rng.permutation(len(self.dataset)))
        if not len(clusters):
            raise ZooError("there is not one cluster to compose batches of: raise top_k or pool_mult")
        wanted, passes = len(self) * self.batch_size * self.world_size, []
        while sum(map(len, passes)) < wanted:
            shuffled = clusters[rng.permutation(len(clusters))]
            shuffled = shuffled[np.argsort((shuffled < 0).sum(1), kind="stable")]
            passes.append(shuffled[shuffled >= 0])
        return rng.permutation(self.cut(np.concatenate(passes)))


class OneTaskBatches(ClusteredBatches):
    """Every batch, over all ranks, from one task: blocks of each task's shuffled pairs, in a shuffled order.

    What does not fill a block is dropped. Source: LLM-Embedder, Zhang et al. 2023 (arXiv 2310.07554).

    Args:
        column: of the data set that names the tasks.
        mixed: compose the batches of an epoch of the very same pairs, but at random: the baseline.
    """

    def __init__(self, column: str = "task", mixed: bool = False) -> None:
        super().__init__(column)
        self.mixed = mixed

    def _blocks(self) -> int:
        size = self.batch_size * self.world_size
        return sum(len(pairs) // size for pairs in self.members() or [])

    def __len__(self) -> int:
        return self._blocks()

    def compose(self, rng: np.random.Generator) -> np.ndarray:
        size = self.batch_size * self.world_size
        blocks = []
        for pairs in self.members() or []:
            n = len(pairs) // size * size
            blocks.append(rng.permutation(pairs)[:n].reshape(-1, size))
        batches = np.concatenate(blocks)
        return rng.permutation(batches.ravel()).reshape(batches.shape) if self.mixed else rng.permutation(batches)
