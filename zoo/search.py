"""Nearest neighbours by inner product: exact on the tensors' device, or approximate through faiss."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import pad

from zoo.errors import ZooError
from zoo.losses.scores import at_least_float32

Approximate = Literal["hnsw", "ivf"]
Index = Literal["exact", Approximate]

_BLOCK = 16  # documents that share a maximum
_BFLOAT16 = 2.0**-7 * 1.01  # it moves each factor by up to 2^-8 of itself
_SLICE = 2**17  # numbers multiplied out at a time, which stay in the cache


@torch.no_grad()
def top_k(
    queries: Float[Tensor, "Q D"],
    corpus: Float[Tensor, "N D"],
    k: int,
    query_chunk: int = 1024,
    corpus_chunk: int = 8192,
) -> tuple[Float[Tensor, "Q k"], Int64[Tensor, "Q k"]]:
    """The `k` documents of greatest inner product with each query, ties by document number.

    A rough pass only rules documents out: those that cannot reach the k-th best so far whatever its rounding did. The
    others are multiplied out in at least float32, one by one, so that equal documents score equally and neither scores
    nor ids depend on the chunks. The more documents tie within the rough pass's error, the slower.

    Args:
        queries: on the device that searches; half precision is widened chunk by chunk.
        corpus: the documents, there or elsewhere (a file in memory map): chunks are moved as they are scored.
        k: documents per query.
        query_chunk: queries scored at a time; memory grows with `query_chunk * corpus_chunk`.
        corpus_chunk: documents scored at a time.

    Returns:
        Scores in at least float32, and document numbers, best first.

    Raises:
        ZooError: `k` is not in 1 to N, or an embedding is not finite.
    """
    _check(k, corpus)
    with torch.autocast(queries.device.type, enabled=False):
        found = [_search(at_least_float32(q), corpus, k, corpus_chunk) for q in queries.split(query_chunk)]
    scores, ids = zip(*found, strict=True)
    return torch.cat(scores), torch.cat(ids)


def _search(q: Tensor, corpus: Tensor, k: int, corpus_chunk: int) -> tuple[Tensor, Tensor]:
    norm = q.norm(dim=1).clamp_min(torch.finfo(q.dtype).tiny)
    unit = q / norm[:, None]
    # Shifting all documents changes no order, and what encoders have in common over documents need not be rounded.
    center = at_least_float32(corpus[:corpus_chunk].to(q.device)).mean(0)
    shift = unit @ center
    dtype, share = _rough(q.device)
    rough_q = unit.to(dtype).T
    best, ids = q.new_empty(len(q), 0), torch.empty(len(q), 0, dtype=torch.int64, device=q.device)
    radius, start, rows = center.norm(), 0, min(corpus_chunk, len(corpus))
    tile = rough_q.new_empty(rows + -rows % _BLOCK, len(q))
    for chunk in corpus.split(corpus_chunk):
        c = at_least_float32(chunk.to(q.device))
        centered = c - center
        spread = centered.norm(dim=1)
        radius = torch.maximum(radius, spread.max())
        if not torch.isfinite(radius + norm.sum()):
            raise ZooError("an embedding is not finite: look for NaN or overflow in the encoder's training")
        fill = -len(c) % _BLOCK
        rough = tile[: len(c) + fill]
        rough[len(c) :] = -torch.inf
        torch.mm(centered.to(rough.dtype), rough_q, out=rough[: len(c)])
        rough = rough.view(
            _BLOCK, -1, len(q)
        )  # a block is every (rows / 16)-th document: maxima of whole rows are fast
        top = rough.amax(0)
        error = pad(spread, (0, fill)).view(_BLOCK, -1).amax(0)[:, None] * share
        error = error + 16 * (q.shape[1] + 8) * 2.0**-24 * radius + 2.0**-100  # sums in float32, and underflow
        if best.shape[1] == k:
            bar = best[:, -1] / norm - shift
        elif len(c) >= k:  # the best ones of k groups of documents reach it
            group = 1 << min(_BLOCK, max(1, len(c) // (4 * k))).bit_length() - 1
            among = top[None] if group == _BLOCK else rough.unflatten(0, (-1, group)).amax(1)
            bar = (among - error).flatten(0, 1).topk(k, dim=0).values[-1]
            bar = bar - bar.abs() * share  # rounding of the rough score itself
        else:
            bar = torch.full_like(norm, -torch.inf)
        row, col = _reaching(rough, top, (bar - error).to(rough.dtype), len(c))  # rounding keeps order: no error here
        best, ids = _merge(best, ids, _products(q, c, row, col), row, col + start, k)
        start += len(c)
    return best, ids


def _rough(device: torch.device) -> tuple[torch.dtype, float]:
    """What the rough pass multiplies in, and the error of its products as a share of |q| |c|, sums apart."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)  # private, hence possibly missing
    if device.type == "cpu" and supported():
        return torch.bfloat16, _BFLOAT16
    # Otherwise a float32 product may be one of bfloat16 or TF32 numbers inside.
    setting = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    whole = device.type == "cpu" and setting in ("none", "ieee")
    return torch.float32, 2.0**-22 if whole else _BFLOAT16


def _reaching(rough: Tensor, top: Tensor, limit: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Pairs of query and document, in this order, whose score `[16, blocks, Q]` reaches the limit `[blocks, Q]`."""
    hit = (top >= limit).flatten().nonzero()[:, 0]
    if len(hit) > top.numel() // 4:  # few blocks are ruled out
        row, col = (rough >= limit).flatten(0, 1)[:n].T.nonzero(as_tuple=True)
        return row, col
    near = rough.flatten(1).index_select(1, hit) >= limit.flatten().index_select(0, hit)
    lane, which = near.nonzero(as_tuple=True)
    hit = hit.index_select(0, which)
    row, col = hit % rough.shape[2], lane * rough.shape[1] + hit // rough.shape[2]
    pair = (row * n + col)[col < n].sort().values
    return pair // n, pair % n


def _products(q: Tensor, c: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Inner products of pairs by (row, col)."""
    if q.device.type == "cpu":  # reads the rows where they are
        ends = torch.bincount(row, minlength=len(q)).cumsum(0)
        with warnings.catch_warnings(action="ignore"):  # that the layout is in beta
            pairs = torch.sparse_csr_tensor(
                pad(ends, (1, 0)), col, q.new_zeros(len(row)), (len(q), len(c)), check_invariants=False
            )
        return torch.sparse.sampled_addmm(pairs, q, c.T, beta=0.0).values()
    size = max(1, _SLICE // max(1, q.shape[1]))
    slices = zip(row.split(size), col.split(size), strict=True)
    return torch.cat([q.index_select(0, i).mul_(c.index_select(0, j)).sum(1) for i, j in slices])


def _merge(best: Tensor, ids: Tensor, scores: Tensor, row: Tensor, col: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` best of what was and what comes: by (row, col), and of greater numbers than all before."""
    counts = torch.bincount(row, minlength=len(best))
    place = best.shape[1] + torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    width = int(counts.max())
    best, ids = pad(best, (0, width), value=-torch.inf), pad(ids, (0, width))
    best[row, place], ids[row, place] = scores, col
    best, order = best.sort(dim=1, descending=True, stable=True)
    return best[:, :k], ids.gather(1, order[:, :k])


def faiss_top_k(
    queries: Float[Tensor, "Q D"],
    corpus: Float[Tensor, "N D"],
    k: int,
    index: Approximate = "hnsw",
) -> tuple[Float[Tensor, "Q k"], Int64[Tensor, "Q k"]]:
    """As `top_k`, but approximate and on the CPU; the id of a neighbour that the index did not find is -1.

    Args:
        queries: on any device, to which the results return.
        corpus: the documents.
        k: documents per query.
        index: "hnsw" searches a graph, "ivf" the nearest sixteenth (at least 8) of up to `4 sqrt(N)` cells.

    Raises:
        ZooError: `k` is not in 1 to N, or faiss is not installed.
    """
    return FaissIndex(corpus, k, index).top_k(queries, k)


class FaissIndex:
    """A built index of `faiss_top_k`, to search block by block. Arguments and errors as there."""

    def __init__(self, corpus: Float[Tensor, "N D"], k: int, index: Approximate = "hnsw") -> None:
        _check(k, corpus)
        try:
            import faiss
        except ImportError:
            raise ZooError("an approximate index needs faiss: pip install negatives-zoo[ann]") from None
        n, dim = corpus.shape
        inner = faiss.METRIC_INNER_PRODUCT
        if index == "hnsw":
            self.built = faiss.IndexHNSWFlat(dim, 32, inner)
            self.built.hnsw.efConstruction, self.built.hnsw.efSearch = 80, max(128, 2 * k)
        else:
            cells = max(1, min(round(4 * n**0.5), n // 39))  # faiss asks for 39 points per cell to train
            self.built = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, inner)
            self.built.nprobe = max(8, cells // 16)
        vectors = _numpy(corpus)
        self.built.train(vectors)  # type: ignore[call-arg]
        self.built.add(vectors)  # type: ignore[call-arg]

    def top_k(self, queries: Float[Tensor, "Q D"], k: int) -> tuple[Float[Tensor, "Q k"], Int64[Tensor, "Q k"]]:
        """As `faiss_top_k`."""
        scores, ids = self.built.search(_numpy(queries), k)  # type: ignore[call-arg]
        return torch.from_numpy(scores).to(queries.device), torch.from_numpy(ids).to(queries.device)


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().float().cpu().contiguous().numpy()


def recall(
    found: Int64[Tensor, "Q k"], queries: Float[Tensor, "Q D"], corpus: Float[Tensor, "N D"], sample: int = 256
) -> float:
    """Share of the k nearest documents that an approximate search found, over a sample of its queries.

    Args:
        found: what it returned.
        queries: the queries.
        corpus: the documents.
        sample: queries that are searched exactly, evenly spaced.
    """
    at = torch.linspace(0, len(queries) - 1, min(sample, len(queries)), device=queries.device).long()
    _, exact = top_k(queries[at], corpus, found.shape[1])
    return (found[at][:, :, None] == exact[:, None]).any(1).float().mean().item()


def _check(k: int, corpus: Tensor) -> None:
    if not 0 < k <= len(corpus):
        raise ZooError(f"k = {k} of {len(corpus)} documents: choose a k from 1 to {len(corpus)}")
