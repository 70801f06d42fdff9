"""SaHa: hard negatives whose owners, the queries that they answer, vouch that they are wrong."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.errors import ZooError
from zoo.losses.scores import at_least_float32
from zoo.search import top_k

Keep = Literal["farthest", "nearest", "hardest"]


class Clusters(NamedTuple):
    """Rows [anchor, kept owners ...], padded with -1 to K + 1; the second phase starts at `phase2`."""

    rows: Int[np.ndarray, "C K"]
    phase2: int


@torch.no_grad()
def self_aware_clusters(
    queries: Float[Tensor, "Q D"],
    documents: Float[Tensor, "P D"],
    owned: Int[np.ndarray, " Q"],
    k: int = 15,
    pool_mult: int = 3,
    keep: Keep = "farthest",
    disjoint: bool = True,
    known: Int[np.ndarray, "Q R"] | None = None,
) -> Clusters:
    """Anchors with the rows that own their hard negatives, so that a cluster is a batch of hard negatives all round.

    Of the `2 * k * pool_mult` documents that score highest for an anchor's query, in that order, each stands for the
    one of its rows whose query is most similar to the anchor's, until `k * pool_mult` rows are found. A candidate may be
    right in secret; then its own query is like the anchor's. So the k rows with the *least* similar queries stay. In a
    first pass no row is in two clusters. A second one gives the rows left over clusters of their own, out of twice as
    many candidates, which may repeat rows of the first pass. Ties go to the lower row number.

    Source: Ju and Lee 2025 (arXiv 2508.00955), github yeongjoonJu/Gen2Embed.

    Args:
        queries: unit-norm query of each row.
        documents: the distinct documents.
        owned: number of each row's positive document.
        k: rows beside the anchor, K.
        pool_mult: how many times as many are looked at first.
        keep: "farthest" is the method; "nearest" its reversal; "hardest" takes the first in the order of the documents'
            scores, as naive mining does (and the method for classification sets).
        disjoint: False lets every row be an anchor and rows come again in other clusters; then there is no second pass.
        known: further documents that are right for each row, -1 padded; None knows the positive alone.

    Raises:
        ZooError: `k` or `pool_mult` is below 1.
    """
    if k < 1 or pool_mult < 1:
        raise ZooError(f"top_k {k} and pool_mult {pool_mult} must be 1 or more")
    first = k * pool_mult
    pool = top_k(queries, documents, min(2 * first, len(documents)))[1].cpu().numpy()
    right = owned[:, None] if known is None else np.concatenate([owned[:, None], known], 1)
    members = _rows_of(owned, len(documents))
    vectors = at_least_float32(queries).cpu().numpy()
    found: list[list[int]] = []
    used = np.zeros(len(owned), bool)

    def pass_over(limit: int, taken: np.ndarray) -> None:
        for anchor in range(len(owned)):
            if used[anchor] and disjoint:
                continue
            allowed = [
                rows
                for document in pool[anchor].tolist()
                if document not in right[anchor] and len(rows := members[document][~taken[members[document]]])
            ]
            if not allowed:
                continue
            owners, similarity = _nearest_owners(vectors, anchor, allowed[:limit])
            if keep != "hardest":
                owners = owners[np.lexsort((owners, similarity if keep == "farthest" else -similarity))]
            kept = owners[:k]
            found.append([anchor, *kept.tolist()])
            if disjoint:
                used[anchor] = used[kept] = True
                taken[kept] = True

    if not disjoint:
        pass_over(first, np.zeros(len(owned), bool))
        return Clusters(_padded(found, k + 1), len(found))
    pass_over(first, used)  # what is used is taken
    phase2 = len(found)
    pass_over(2 * first, np.zeros(len(owned), bool))
    return Clusters(_padded(found, k + 1), phase2)


def _rows_of(owned: np.ndarray, n: int) -> list[np.ndarray]:
    """Rows of each document, ascending."""
    order = np.argsort(owned, kind="stable")
    return np.split(order, np.searchsorted(owned[order], np.arange(1, n)))


def _nearest_owners(vectors: np.ndarray, anchor: int, allowed: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of each document's rows the one whose query is most similar to the anchor's, and how similar."""
    rows = np.concatenate(allowed)
    similarity = (vectors[rows] * vectors[anchor]).sum(1)  # one by one, so that equal queries score equally
    document = np.repeat(np.arange(len(allowed)), [len(part) for part in allowed])
    order = np.lexsort((rows, -similarity, document))
    best = order[np.unique(document[order], return_index=True)[1]]
    return rows[best], similarity[best]


def _padded(clusters: list[list[int]], width: int) -> np.ndarray:
    rows = np.full((len(clusters), width), -1, np.int64)
    for row, cluster in zip(rows, clusters, strict=True):
        row[: len(cluster)] = cluster
    return rows
