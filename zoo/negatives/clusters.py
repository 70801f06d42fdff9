"""Clusters of embeddings: k-means for topics (TAS-B), balanced clusters to compose batches of (NGAME).

Both give the same result for the same points and seed, on one kind of device.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.errors import ZooError
from zoo.losses.scores import at_least_float32

_CHUNK = 8192  # points whose distances to all centres are in memory at once


@torch.no_grad()
def kmeans(x: Float[Tensor, "N D"], k: int, seed: int = 0, iterations: int = 25) -> Int[Tensor, " N"]:
    """Lloyd's k-means from random distinct points; cluster of each point.

    A cluster that runs empty starts anew at the point that is farthest from its centre.

    Args:
        x: the points.
        k: clusters.
        seed: of the first centres.
        iterations: at most so many; fewer if nothing changes any more.

    Raises:
        ZooError: there are not k points.
    """
    _check(k, len(x))
    x = at_least_float32(x)
    centres = x[_permutation(len(x), seed)[:k].to(x.device)]
    previous, (assigned, distance) = None, _nearest(x, centres)
    for _ in range(iterations):
        if previous is not None and torch.equal(assigned, previous):
            break
        counts = torch.bincount(assigned, minlength=k)
        centres = _sums(x, assigned, k) / counts.clamp_min(1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        centres[empty] = x[distance.topk(len(empty)).indices]
        previous, (assigned, distance) = assigned, _nearest(x, centres)
    return assigned


@torch.no_grad()
def balanced_clusters(
    x: Float[Tensor, "N D"], n_clusters: int, seed: int = 0, iterations: int = 10
) -> Int[Tensor, " N"]:
    """Clusters whose sizes differ by at most one, by recursive 2-means; cluster of each point.

    All clusters of a level are halved at once: from two random points of each, the points are ordered by how much
    closer they are to the second centre than to the first, and cut in the middle, until nothing changes. Where
    `n_clusters` is no power of two, a cluster is cut in proportion to the number of clusters that its parts have to
    make. Neighbouring numbers are neighbours in the tree.

    Source: the balanced clustering of NGAME, Dahiya et al. 2023 (arXiv 2207.04452).

    Args:
        x: the points, with unit norm for cosine similarity.
        n_clusters: at most N.
        seed: of the first centres.
        iterations: of 2-means per level, at most.

    Raises:
        ZooError: there are not `n_clusters` points.
    """
    _check(n_clusters, n := len(x))
    x = at_least_float32(x)
    edges = torch.arange(n_clusters + 1, device=x.device) * n // n_clusters  # where each final cluster starts
    order = torch.arange(n, device=x.device)
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.tensor(
        [0, n_clusters], device=x.device
    )  # a node makes the final clusters from nodes[i] to nodes[i+1]
    while n > n_clusters and len(nodes) <= n_clusters:
        halves = torch.stack([nodes[:-1], (nodes[:-1] + nodes[1:] + 1) // 2], 1).flatten()
        halves = torch.cat([halves, nodes[-1:]])
        order = _halve(x, order, edges[nodes], edges[halves], generator, iterations)
        nodes = halves.unique()
    clusters = torch.empty_like(order)
    clusters[order] = torch.arange(n_clusters, device=x.device).repeat_interleave(edges.diff())
    return clusters


def _halve(
    x: Tensor, order: Tensor, starts: Tensor, cuts: Tensor, generator: torch.Generator, iterations: int
) -> Tensor:
    """Reorder the points so that each node's two parts come one after the other.

    Args:
        x: the points.
        order: points by node.
        starts: first place of each node in `order`, and the end.
        cuts: the same of each part: two for each node, of which the second may be empty.
        generator: of the first centres.
        iterations: at most so many.
    """
    sizes, part_sizes = starts.diff(), cuts.diff()
    node = torch.arange(len(sizes), device=x.device).repeat_interleave(sizes)
    part = torch.arange(len(part_sizes), device=x.device).repeat_interleave(part_sizes)
    drawn = torch.rand(2, len(sizes), generator=generator).to(x.device)
    first = (drawn[0] * sizes).long()
    second = (first + 1 + (drawn[1] * (sizes - 1)).long()) % sizes
    centres = x[order[starts[:-1] + torch.stack([first, second])]]  # [2, nodes, D]
    parts = torch.full_like(part, -1)
    for _ in range(iterations):
        towards_second = (x[order] * (centres[1] - centres[0])[node]).sum(1)
        by_score = towards_second.argsort(stable=True)
        order = order[by_score[node[by_score].argsort(stable=True)]]
        before, parts = parts, parts.scatter(0, order, part)
        if torch.equal(before, parts):
            break
        sums = torch.segment_reduce(x[order], "sum", lengths=part_sizes, axis=0)
        centres = (sums / part_sizes.clamp_min(1)[:, None]).view(-1, 2, x.shape[1]).transpose(0, 1)
    return order


def _nearest(x: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centre of each point, and its squared distance (up to rounding)."""
    norms = centres.square().sum(1)
    chunks = [(norms - 2 * points @ centres.T).min(1) for points in x.split(_CHUNK)]
    return torch.cat([c.indices for c in chunks]), torch.cat([c.values for c in chunks]) + x.square().sum(1)


def _sums(x: Tensor, assigned: Tensor, k: int) -> Tensor:
    """Sum of each cluster's points; sorted, as adding them atomically would not be deterministic on a GPU."""
    lengths = torch.bincount(assigned, minlength=k)
    return torch.segment_reduce(x[assigned.argsort(stable=True)], "sum", lengths=lengths, axis=0)


def _permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _check(n_clusters: int, n: int) -> None:
    if not 1 <= n_clusters <= n:
        raise ZooError(f"cannot make {n_clusters} clusters of {n} points: ask for 1 to {n}")
