"""Recall of composed retrieval: without the reference, among the images that look like the target, over categories."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from zoo.callbacks.recall import RecallEvaluation
from zoo.data.collections import RetrievalSet
from zoo.data.composed import ComposedSet
from zoo.ranking import positive_ranks, recall


class ComposedRecall(RecallEvaluation):
    """`r@k` with each query's reference out of the collection, and `r_s@k` among the query's subset alone (CIRR).

    Of several named sets (FashionIQ's categories) each has its own metrics (`test/r@10_dress`), and their mean has none
    of the names (`test/r@10`).

    Args:
        ks: depths; 1, 5, 10 and 50 for CIRR, 10 and 50 for FashionIQ.
        subset_ks: depths in the subset.
        references: as in `RecallEvaluation`.
    """

    def __init__(
        self, ks: Sequence[int] = (1, 5, 10, 50), subset_ks: Sequence[int] = (1, 2, 3), references: bool = True
    ) -> None:
        super().__init__(ks, references=references)
        self.subset_ks = tuple(subset_ks)

    def _metrics(self, sides: dict[str, tuple[RetrievalSet, Tensor, Tensor]]) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        named: dict[str, float] = {}
        for name, (data, queries, documents) in sides.items():
            ranks = positive_ranks(queries, documents, data.relevance, data.ignored)
            metrics = {k: v for k, v in recall(ranks, len(documents), self.ks).items() if k != "r@1%"}
            if isinstance(data, ComposedSet) and data.subsets is not None:
                ranks = subset_ranks(queries, documents, data.relevance, data.subsets)
                metrics |= {f"r_s@{k}": recall(ranks, len(documents), (k,))[f"r@{k}"] for k in self.subset_ks}
            for metric, value in metrics.items():
                found.setdefault(metric, []).append(value)
                if name:
                    named[f"{metric}_{name}"] = value
        return {metric: sum(values) / len(values) for metric, values in found.items()} | named


@torch.no_grad()
def subset_ranks(
    queries: Float[Tensor, "Q D"],
    documents: Float[Tensor, "N D"],
    relevance: Sequence[dict[int, int]],
    subsets: Sequence[Sequence[int]],
) -> Int64[Tensor, " Q"]:
    """Rank of each query's best relevant document among its subset, from 0; -1 for a query that has none there.

    Equal scores do not count against the right document, as in `positive_ranks`.
    """
    ranks = []
    for query, right, subset in zip(queries, relevance, subsets, strict=True):
        inside = [{i: 1 for i, number in enumerate(subset) if right.get(number, 0) > 0}]
        ranks.append(positive_ranks(query[None], documents[list(subset)], inside) if subset else -torch.ones(1))
    return torch.cat(ranks).long()
