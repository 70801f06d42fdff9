"""Ranks of the right documents among all, and what geo-localisation and image retrieval report of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from zoo.errors import ZooError


@torch.no_grad()
def positive_ranks(
    queries: Float[Tensor, "Q D"],
    documents: Float[Tensor, "N D"],
    relevance: Sequence[dict[int, int]],
    ignored: Sequence[Collection[int]] | None = None,
    query_chunk: int = 256,
) -> Int64[Tensor, " Q"]:
    r"""How many documents outscore each query's best relevant one, from 0; -1 for a query that has no relevant one.

    $$\mathrm{rank}_q = \#\{r \notin \mathrm{ignored}_q : s_{qr} > \max_{t \in \mathrm{relevant}_q} s_{qt}\}$$

    Equal scores do not count against the right document. Scores are inner products in float64, equal if they differ by
    no more than its rounding: neither chunks nor the order of documents change a rank.

    Memory: about `8 * N * (2 * query_chunk + D)` bytes, whatever Q is (0.6 GB for 100 000 documents of 256 numbers).

    Args:
        queries: embeddings, whose device does the work.
        documents: on the same device.
        relevance: for each query its relevant documents: number to grade (> 0).
        ignored: for each query documents that do not count against it; a relevant one is not ignored.
        query_chunk: queries scored at a time.

    Raises:
        ZooError: an embedding is not finite.
    """
    ranks = []
    for part in _scored(queries, documents, relevance, ignored, query_chunk):
        best = part.others.new_full((len(part.others),), torch.inf)
        best = best.scatter_reduce(0, part.row, part.right, "amax", include_self=False)
        outscored = (part.others > (best + part.tie)[:, None]).sum(1)
        ranks.append(outscored.masked_fill(best == torch.inf, -1))
    return torch.cat(ranks).to(queries.device)


@torch.no_grad()
def average_precision(
    queries: Float[Tensor, "Q D"],
    documents: Float[Tensor, "N D"],
    relevance: Sequence[dict[int, int]],
    ignored: Sequence[Collection[int]] | None = None,
    query_chunk: int = 256,
) -> Float64[Tensor, " Q"]:
    r"""University-1652's average precision of each query: area below precision over recall, by the trapezoidal rule.

    $$AP = \frac{1}{n} \sum_{i<n} \frac{1}{2}\Big(\frac{i}{p_i} + \frac{i+1}{p_i+1}\Big)$$

    with $p_i$ the place, from 0, of the i-th of n relevant documents in the ranking without the ignored ones, and the
    first quotient 1 where $p_i = 0$; 0 for a query that has no relevant document (Zheng et al. 2020, arXiv 2002.12186,
    and its code). A relevant document stands before others of equal score, as in `positive_ranks`, whose arguments,
    errors and bound on memory (`4 * query_chunk` for `2 * query_chunk`, to sort) hold here too.
    """
    found = []
    for part in _scored(queries, documents, relevance, ignored, query_chunk):
        right, row = part.right.sort(descending=True).values, part.row[part.right.argsort(descending=True)]
        row, order = row.sort(stable=True)  # by query, then from the best to the worst
        right, counts = right[order], torch.bincount(row, minlength=len(part.others))
        number = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        hits = right.new_full((len(counts), int(counts.max())), torch.inf)
        hits[row, number] = right + part.tie[row]
        above = part.others.shape[1] - torch.searchsorted(part.others.sort(1).values, hits, right=True)
        i = torch.arange(hits.shape[1], device=row.device, dtype=torch.float64)
        place = above + i
        before = torch.where(place == 0, 1.0, i / place.clamp_min(1))
        area = ((before + (i + 1) / (place + 1)) / 2).where(hits < torch.inf, 0.0).sum(1)
        found.append(area / counts.clamp_min(1))
    return torch.cat(found).to(queries.device)


def recall(ranks: Int64[Tensor, " Q"], n_documents: int, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """`r@k`: share of queries with a rank below k, of those that have a relevant document (0 if none has).

    `r@1%` is R@k at k = floor(n_documents / 100), as in Sample4Geo (papers that use SAFA's code have one more), hence 0
    for fewer than 100 documents.

    Args:
        ranks: from `positive_ranks`.
        n_documents: size of the collection.
        ks: depths.
    """
    judged = ranks[ranks >= 0]
    depths = {f"r@{k}": k for k in ks} | {"r@1%": n_documents // 100}
    return {name: float((judged < k).sum() / max(len(judged), 1)) for name, k in depths.items()}


def cumulative_match(ranks: Int64[Tensor, " Q"], n_documents: int) -> Float64[Tensor, " N"]:
    """CMC: for each depth from 1 the share of all queries that found a relevant document by then.

    As in University-1652's code, queries that have none count as misses, and the curve is as long as the collection with
    its ignored documents. That code's R@1% is the value at index `percent_index(n_documents)`.
    """
    first = torch.bincount(ranks[ranks >= 0], minlength=n_documents)
    return first.cumsum(0).double() / max(len(ranks), 1)


def percent_index(n_documents: int) -> int:
    """Index of R@1% in University-1652's CMC: round(N / 100), hence recall at one more than that."""
    return round(n_documents * 0.01)


def transpose(relevance: Sequence[dict[int, int]], n_documents: int) -> list[dict[int, int]]:
    """Relevance of the opposite direction: for each document the queries to which it is relevant, with their grades."""
    found: list[dict[int, int]] = [{} for _ in range(n_documents)]
    for query, row in enumerate(relevance):
        for document, grade in row.items():
            found[document][query] = grade
    return found


class _Part(NamedTuple):
    """Scores of a chunk of queries: those of documents that count against them (others: -inf), and of relevant ones."""

    others: Float64[Tensor, "q N"]
    right: Float64[Tensor, " R"]
    row: Int64[Tensor, " R"]
    tie: Float64[Tensor, " q"]


def _scored(
    queries: Tensor,
    documents: Tensor,
    relevance: Sequence[dict[int, int]],
    ignored: Sequence[Collection[int]] | None,
    query_chunk: int,
) -> Iterator[_Part]:
    device = torch.device("cpu") if queries.device.type == "mps" else queries.device  # which has no float64
    documents = documents.to(device, torch.float64)
    longest = documents.norm(dim=1).max()
    for start in range(0, len(queries), query_chunk):
        rows = slice(start, start + query_chunk)
        q = queries[rows].to(device, torch.float64)
        others, norm = q @ documents.T, q.norm(dim=1)
        if not torch.isfinite(longest + norm.sum()):
            raise ZooError("an embedding is not finite: look for NaN or overflow in the encoder's training")
        row, column = _places([[d for d, grade in r.items() if grade > 0] for r in relevance[rows]], device)
        right = others[row, column]
        others[row, column] = -torch.inf
        if ignored is not None:
            others[_places(ignored[rows], device)] = -torch.inf
        yield _Part(others, right, row, norm * longest * (2 * q.shape[1] * 2.0**-53))


def _places(lists: Sequence[Collection[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns of what a list of lists names."""
    counts = [len(x) for x in lists]
    columns = np.fromiter((c for x in lists for c in x), np.int64, sum(counts))
    return torch.arange(len(lists)).repeat_interleave(torch.tensor(counts)).to(device), torch.from_numpy(columns).to(
        device
    )
