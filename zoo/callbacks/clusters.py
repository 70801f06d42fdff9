"""Clusters of the training pairs, found anew as the encoder learns, for samplers that compose batches by them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch

from zoo.callbacks.encoding import encode
from zoo.data.cluster_samplers import ClusteredBatches, OverlappingClusters
from zoo.data.collections import CollectionPairs, OneSide, Side
from zoo.errors import ZooError
from zoo.losses.scores import normalize
from zoo.negatives.clusters import balanced_clusters, kmeans
from zoo.negatives.curriculum import cluster_size
from zoo.negatives.self_aware import Keep, self_aware_clusters


class RefreshClusters(pl.Callback):
    """Clusters the embeddings of the training pairs and hands the clusters to the sampler.

    TAS clusters queries once, by k-means. NGAME clusters documents into balanced clusters again and again, of a size
    that doubles at given epochs: from random batches to hard ones. Before the first clustering batches are random.

    Sources: Hofstätter et al. 2021 (arXiv 2104.06967); Dahiya et al. 2023 (arXiv 2207.04452).

    Args:
        method: "kmeans" with `n_clusters`, or "balanced" with clusters of a scheduled size.
        side: which side's embeddings.
        n_clusters: of k-means.
        start_epoch: first epoch with clusters.
        every_n_epochs: cluster again so often; 0 clusters once.
        double_at: "balanced": the size, 1 at first, doubles at each of these epochs, and takes effect at the next
            clustering.
        seed: of the clustering.
    """

    sampler = "zoo.data.ClusterUnions"

    def __init__(
        self,
        method: Literal["kmeans", "balanced"] = "balanced",
        side: Literal["query", "document"] = "document",
        n_clusters: int = 100,
        start_epoch: int = 1,
        every_n_epochs: int = 0,
        double_at: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        self.method, self.n_clusters, self.seed = method, n_clusters, seed
        self.side: Side = side
        self.start_epoch, self.every_n_epochs, self.double_at = start_epoch, every_n_epochs, tuple(double_at)
        self.clusters: np.ndarray | None = None

    def _due(self, epoch: int) -> bool:
        since = epoch - self.start_epoch
        return since == 0 or (since > 0 and self.every_n_epochs > 0 and since % self.every_n_epochs == 0)

    def _fits(self, sampler: Any) -> bool:
        return isinstance(sampler, ClusteredBatches) and not isinstance(sampler, OverlappingClusters)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not self._fits(trainer.datamodule.sampler):
            raise ZooError(
                f"{type(self).__name__} needs a sampler that reads clusters: set --data.sampler {self.sampler}"
            )
        if self.clusters is not None:  # resumed
            trainer.datamodule.sampler.set_clusters(self.clusters)
        elif self.start_epoch == 0:
            self._refresh(trainer, pl_module, 0)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        # The coming epoch's batches are composed right after this, as its loader starts.
        if trainer.current_epoch + 1 != trainer.max_epochs and self._due(trainer.current_epoch + 1):
            start = time.perf_counter()
            self._refresh(trainer, pl_module, trainer.current_epoch + 1)
            pl_module.log("refresh/seconds", time.perf_counter() - start)

    def _refresh(self, trainer: Any, pl_module: Any, epoch: int) -> None:
        pairs: CollectionPairs = trainer.datamodule.train_pairs
        texts, rows = (pairs.queries, pairs.query_of) if self.side == "query" else (pairs.documents, pairs.document_of)
        points = normalize(encode(trainer, pl_module, OneSide(texts, self.side)))
        if self.method == "kmeans":
            assigned = kmeans(points, min(self.n_clusters, len(points)), self.seed)
            self.clusters = np.asarray(assigned.cpu())[rows]
        else:
            size = cluster_size(epoch, self.double_at)
            found = balanced_clusters(points[torch.as_tensor(rows)], -(-len(rows) // size), self.seed)
            self.clusters = np.asarray(found.cpu())
        trainer.datamodule.sampler.set_clusters(self.clusters)

    def state_dict(self) -> dict[str, Any]:
        return {"clusters": None if self.clusters is None else torch.from_numpy(self.clusters)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        found = state_dict["clusters"]
        self.clusters = None if found is None else found.numpy()


class SelfAwareNegatives(RefreshClusters):
    """SaHa: clusters of pairs whose documents are hard negatives of each other, mined by the encoder.

    Pairs of one task (the column `task`, where there is one) are mined alone. Logs what it found: `refresh/clusters`,
    `refresh/members` (mean size) and, where the column `group` tells which pairs are right for each other,
    `refresh/false_negatives`, the share of such pairs among an anchor's negatives.

    Source: Ju and Lee 2025 (arXiv 2508.00955), github yeongjoonJu/Gen2Embed.

    Args:
        top_k: pairs beside the anchor; 15 in the paper. Batches should be a multiple of one more.
        pool_mult: how many times as many are looked at before the filter.
        keep: which of them stay, see `zoo.negatives.self_aware.self_aware_clusters`: "hardest" with `pool_mult` 1 is
            naive mining.
        disjoint: as there.
        start_epoch: first epoch with clusters; 0 mines with the model as it comes (zero-shot).
        every_n_epochs: mine again so often, with the current model; 0 mines once.
    """

    sampler = "zoo.data.OverlappingClusters"

    def __init__(
        self,
        top_k: int = 15,
        pool_mult: int = 3,
        keep: Keep = "farthest",
        disjoint: bool = True,
        start_epoch: int = 0,
        every_n_epochs: int = 0,
    ) -> None:
        super().__init__(start_epoch=start_epoch, every_n_epochs=every_n_epochs)
        self.top_k, self.pool_mult, self.disjoint = top_k, pool_mult, disjoint
        self.keep: Keep = keep

    def _fits(self, sampler: Any) -> bool:
        return isinstance(sampler, OverlappingClusters)

    def _refresh(self, trainer: Any, pl_module: Any, epoch: int) -> None:
        pairs: CollectionPairs = trainer.datamodule.train_pairs
        queries = normalize(encode(trainer, pl_module, OneSide(pairs.queries, "query")))
        documents = normalize(encode(trainer, pl_module, OneSide(pairs.documents, "document")))
        found, task = [], np.asarray(pairs.columns.get("task", np.zeros(len(pairs))))
        for number in np.unique(task):
            rows = np.flatnonzero(task == number)
            numbers, owned = np.unique(pairs.document_of[rows], return_inverse=True)
            known = np.asarray(pairs.columns["known"])[rows]
            place = np.searchsorted(numbers, known).clip(max=len(numbers) - 1)
            local, _ = self_aware_clusters(
                queries[torch.as_tensor(pairs.query_of[rows])],
                documents[torch.as_tensor(numbers)],
                owned,
                self.top_k,
                self.pool_mult,
                self.keep,
                self.disjoint,
                np.where(numbers[place] == known, place, -1),
            )
            found.append(np.where(local >= 0, rows[local], -1))
        self.clusters = np.concatenate(found)
        trainer.datamodule.sampler.set_clusters(self.clusters)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if self.clusters is not None:
            pl_module.log_dict(self._report(trainer.datamodule.train_pairs), rank_zero_only=True)
        super().on_train_epoch_end(trainer, pl_module)

    def _report(self, pairs: CollectionPairs) -> dict[str, float]:
        assert self.clusters is not None
        there = self.clusters >= 0
        found = {"refresh/clusters": float(len(there)), "refresh/members": float(there.sum(1).mean())}
        if "group" in pairs.columns:
            group = np.asarray(pairs.columns["group"])[self.clusters]
            false = (group[:, 1:] == group[:, :1]) & there[:, 1:]
            found["refresh/false_negatives"] = float(false.sum() / max(there[:, 1:].sum(), 1))
        return found
