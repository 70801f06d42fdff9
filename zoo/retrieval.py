"""Retrieval metrics of ranked lists, and the lexical reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zoo.data.tokenizers import words


def relevance_of(ids: Int[Tensor, "Q K"], relevance: Sequence[dict[int, int]]) -> Int[Tensor, "Q K"]:
    """Grade of each ranked document, 0 where it is not relevant; one vectorised look-up for all queries.

    Args:
        ids: ranked document numbers, -1 padded.
        relevance: for each query document number to grade.
    """
    ids = ids.cpu()
    sizes = torch.tensor([len(row) for row in relevance])
    if not sizes.sum():
        return torch.zeros_like(ids)
    row = torch.arange(len(relevance)).repeat_interleave(sizes)
    document, grade = torch.tensor([pair for r in relevance for pair in r.items()]).T
    width = int(max(document.max(), ids.max())) + 1
    keys, order = (row * width + document).sort()
    wanted = torch.arange(len(ids))[:, None] * width + ids
    at = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return grade[order][at].where((keys[at] == wanted) & (ids >= 0), 0)


def retrieval_metrics(
    ids: Int[Tensor, "Q K"], relevance: Sequence[dict[int, int]], ks: Sequence[int] = (1, 10, 100)
) -> dict[str, float]:
    """Means over the queries that have a relevant document; the others are left out, as no ranking can serve them.

    `mrr@10`: 1 / rank of the first relevant document among ten. `recall@k`: share of a query's relevant documents among
    the first k. `ndcg@10`: gain grade / log2(1 + rank) over the ideal order's (trec_eval's, linear in the grade).
    `map@K`: mean precision at the ranks of relevant documents, over all K ranks that were given.

    Args:
        ids: ranked document numbers, best first, -1 padded.
        relevance: for each query document number to grade (> 0).
        ks: depths of recall; those beyond K say what the K documents reach.
    """
    grades = relevance_of(ids, relevance)
    total = torch.tensor([sum(g > 0 for g in row.values()) for row in relevance])
    judged = total > 0
    if not judged.any():
        return dict.fromkeys(("mrr@10", *(f"recall@{k}" for k in ks), "ndcg@10", f"map@{ids.shape[1]}"), 0.0)
    grades, total = grades[judged].double(), total[judged].double()
    hits = (grades > 0).double()
    rank = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
    discount = (rank + 1).log2().reciprocal()
    ideal = torch.zeros(len(relevance), 10, dtype=torch.float64)
    for number, row in enumerate(relevance):
        best = sorted((g for g in row.values() if g > 0), reverse=True)[:10]
        ideal[number, : len(best)] = torch.tensor(best, dtype=torch.float64)
    best_gain = (ideal[judged] * (torch.arange(2, 12, dtype=torch.float64).log2().reciprocal())).sum(1)
    found = {
        "mrr@10": (hits[:, :10] / rank[:10]).amax(1).mean(),
        **{f"recall@{k}": (hits[:, :k].sum(1) / total).mean() for k in ks},
        "ndcg@10": ((grades * discount)[:, :10].sum(1) / best_gain).mean(),
        f"map@{ids.shape[1]}": ((hits * hits.cumsum(1) / rank).sum(1) / total).mean(),
    }
    return {name: float(value) for name, value in found.items()}


def bm25_run(queries: Sequence[str], documents: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best documents by `bm25_scores`, ties by document number.

    Returns:
        Document numbers and scores, `[Q, k]` each. A document that shares no word with the query is not retrieved: -1
        and -inf pad.
    """
    shape = len(queries), min(k, len(documents))
    ids, scores = np.empty(shape, np.int64), np.empty(shape, np.float32)
    for row, found in enumerate(bm25_scores(queries, documents)):
        ids[row], scores[row] = best_of(found, k)
    return ids, scores


def bm25_scores(queries: Sequence[str], documents: Sequence[str]) -> Iterator[Float[np.ndarray, " N"]]:
    """BM25 (k1 = 1.5, b = 0.75) of all documents over identifiers' parts, query by query; 0 where no word is shared."""
    import bm25s

    collection = [_terms(text) for text in documents]
    index = bm25s.BM25(k1=1.5, b=0.75)
    has_words = any(collection)
    if has_words:  # it cannot read a list without words
        index.index([terms or [""] for terms in collection], show_progress=False)
    for terms in map(_terms, queries):
        yield index.get_scores(terms) if terms and has_words else np.zeros(len(documents), np.float32)


def best_of(scores: Float[np.ndarray, " N"], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and scores of the `k` greatest positive scores, ties by number; -1 and -inf pad."""
    k = min(k, len(scores))
    able = np.flatnonzero(scores > 0)
    if len(able) > k:
        able = able[scores[able] >= np.partition(scores[able], -k)[-k]]
    best = able[np.argsort(-scores[able], kind="stable")][:k]
    gap = (0, k - len(best))
    return np.pad(best, gap, constant_values=-1), np.pad(scores[best], gap, constant_values=-np.inf)


def _terms(text: str) -> list[str]:
    return [word for word in words(text).split() if any(c.isalnum() for c in word)]
