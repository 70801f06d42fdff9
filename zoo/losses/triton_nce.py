"""`lean_info_nce` on a CUDA device, with Triton.

Forward, a kernel goes over tiles of scores and keeps a running log-sum-exp of each query's negatives (Milakov and
Gimelshein 2018, arXiv 1805.02867). Backward, a kernel computes the scores of some queries again and writes the gradient
with respect to them into a buffer of `BUFFER_BYTES`, which matrix products turn into gradients of queries and
documents: without atomic additions, so that equal inputs give equal bits, and for any dimension.

With `TRITON_INTERPRET=1` both kernels run on the CPU. They are exempt from the type checks of the tests, whose wrappers
Triton cannot read.
"""

# ruff: noqa: N803 - constants of a kernel are in capitals

from __future__ import annotations

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor
from triton import knobs

from zoo.losses.lean import KeyMask
from zoo.losses.nce import info_nce
from zoo.losses.scores import at_least_float32

BUFFER_BYTES = 2**27
SPLITS = 8  # programs that share the documents of one block of queries: few blocks fill a GPU, too
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
_SIZES = [(16, 32, 16)] if knobs.runtime.interpret else [(128, 128, 64), (128, 64, 64), (64, 128, 64), (64, 64, 64)]
TILES = [
    triton.Config({"ROWS": r, "COLUMNS": c, "BLOCK": d}, num_warps=8 if r * c > 64 * 64 else 4) for r, c, d in _SIZES
]


def triton_info_nce(
    queries: Float[Tensor, "B D"],
    documents: Float[Tensor, "M D"],
    own: Int[Tensor, " B"],
    keys: KeyMask | None,
    scale: Float[Tensor, ""],
    label_smoothing: float = 0.0,
    negatives: Float[Tensor, "B K D"] | None = None,
    negatives_mask: Bool[Tensor, "B K"] | None = None,
) -> Float[Tensor, ""]:
    """`lean_info_nce` with kernels; arguments as there, but for `scale`, which is 1 / temperature in float32.

    Products of bfloat16 are summed in float32. Products of float32 are exact to float32, or TF32's where torch's are
    (`torch.backends.cuda.matmul.allow_tf32`). float16 is widened: gradients of single scores leave its range.
    """
    narrow = queries.dtype == documents.dtype == torch.bfloat16
    q, d = (x.contiguous() if narrow else at_least_float32(x).contiguous() for x in (queries, documents))
    negative, positive, total, count = _RowSums.apply(q, d, scale, own, keys, bool(label_smoothing))  # type: ignore[misc]
    logits, mask = negative[:, None], None  # the log-sum-exp stands for all documents
    if negatives is not None:
        more = torch.einsum("bd,bkd->bk", at_least_float32(queries), at_least_float32(negatives)) * scale
        kept = torch.ones_like(more, dtype=torch.bool) if negatives_mask is None else negatives_mask
        logits, mask = (
            torch.cat([logits, more], 1),
            torch.cat([torch.ones_like(own[:, None], dtype=torch.bool), kept], 1),
        )
        total, count = total + (more * kept).sum(1), count + kept.sum(1)
    loss = info_nce(positive[:, None], logits, mask, temperature=1.0)
    if not label_smoothing:
        return loss
    return loss + label_smoothing * (positive - (positive + total) / (count + 1)).mean()


class _RowSums(torch.autograd.Function):
    """Per query: log-sum-exp over its negatives, its positive, sum over its negatives, number of them."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, documents: Tensor, scale: Tensor, own: Tensor, keys: KeyMask | None, sums: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        b, m = len(queries), len(documents)
        ctx.masks = (own, own[:, None], own[:, None]) if keys is None else (own, keys.queries, keys.documents)
        ctx.masks = tuple(x.contiguous() for x in ctx.masks)
        ctx.options = {
            "DIM": queries.shape[1],
            "QUERY_KEYS": ctx.masks[1].shape[1],
            "DOCUMENT_KEYS": ctx.masks[2].shape[1],
            "MASKED": keys is not None,
            "SUMS": sums,
            "PRECISION": "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3",
            "enable_fp_fusion": True,
        }
        parts = torch.empty(4, SPLITS, b, device=queries.device)
        _row_sums[lambda config: (triton.cdiv(b, config["ROWS"]), SPLITS)](
            parts, triton.cdiv(m, SPLITS), queries, documents, scale, *ctx.masks, b, m, **ctx.options
        )
        negative = parts[0].logsumexp(0)
        positive, total, count = parts[1:].sum(1)
        ctx.save_for_backward(queries, documents, scale, negative)
        ctx.mark_non_differentiable(count)
        return negative, positive, total, count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, documents, scale, negative = ctx.saved_tensors
        b, m = len(queries), len(documents)
        weights = torch.stack([negative, *grads[:3]])
        d_queries, d_scale = torch.empty_like(queries), torch.zeros_like(scale)
        d_documents = torch.zeros_like(documents, dtype=torch.float32)
        chunk = max(16, BUFFER_BYTES // (m * queries.element_size()))
        buffer = queries.new_empty(min(chunk, b), m)
        for first in range(0, b, chunk):
            rows = slice(first, min(first + chunk, b))
            n = rows.stop - first
            q, by_score = queries[rows], buffer[:n]
            _score_gradients[lambda config, n=n: (triton.cdiv(n, config["ROWS"]), triton.cdiv(m, config["COLUMNS"]))](
                by_score, weights, first, rows.stop, queries, documents, scale, *ctx.masks, b, m, **ctx.options
            )
            torch.mm(by_score, documents, out=d_queries[rows])
            d_scale += (at_least_float32(q) * d_queries[rows]).sum()
            if q.dtype == torch.float32:
                d_documents.addmm_(by_score.T, q)
            else:
                d_documents += by_score.T @ q
        return d_queries, d_documents.to(documents.dtype), d_scale / scale, None, None, None


@triton.jit
@no_type_check
def _logits(
    queries, documents, scale, rows, columns, has_row, has_column,
    DIM: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile of scores over temperature, in float32."""
    products = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    left = queries + rows.to(tl.int64)[:, None] * DIM
    right = documents + columns.to(tl.int64)[None, :] * DIM
    for start in range(0, DIM, BLOCK):
        along = start + tl.arange(0, BLOCK)
        inside = along < DIM
        q = tl.load(left + along[None, :], mask=has_row[:, None] & inside[None, :], other=0.0)
        d = tl.load(right + along[:, None], mask=inside[:, None] & has_column[None, :], other=0.0)
        products = tl.dot(q, d, products, input_precision=PRECISION)
    return products * tl.load(scale)


@triton.jit
@no_type_check
def _negatives(
    own, query_keys, document_keys, rows, columns, has_row, has_column,
    QUERY_KEYS: tl.constexpr, DOCUMENT_KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Which of a tile's documents are the query's positive, and which its negatives: as in `KeyMask`."""
    positive = tl.load(own + rows, mask=has_row, other=-1)[:, None] == columns[None, :]
    dropped = positive | ~has_row[:, None] | ~has_column[None, :]
    if MASKED:
        has_key = columns < 0
        for j in range(DOCUMENT_KEYS):
            document = tl.load(document_keys + columns.to(tl.int64) * DOCUMENT_KEYS + j, mask=has_column, other=-1)
            has_key |= document >= 0
            for i in range(QUERY_KEYS):
                query = tl.load(query_keys + rows.to(tl.int64) * QUERY_KEYS + i, mask=has_row, other=-1)
                dropped |= (query[:, None] == document[None, :]) & (query >= 0)[:, None]
        dropped |= ~has_key[None, :]
    return positive, ~dropped


@triton.autotune(TILES, key=["DIM", "PRECISION", "MASKED", "SUMS"])
@triton.jit
@no_type_check
def _row_sums(
    parts, span, queries, documents, scale, own, query_keys, document_keys, b, m,
    DIM: tl.constexpr, QUERY_KEYS: tl.constexpr, DOCUMENT_KEYS: tl.constexpr, MASKED: tl.constexpr, SUMS: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`_RowSums` of a block of queries over `span` documents."""
    split = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    has_row = rows < b
    last = tl.minimum(split * span + span, m)
    peak = tl.full((ROWS,), LOWEST, tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    match = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    count = tl.zeros((ROWS,), tl.float32)
    for start in range(split * span, last, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        has_column = columns < last
        logits = _logits(queries, documents, scale, rows, columns, has_row, has_column, DIM, PRECISION, BLOCK)
        positive, kept = _negatives(
            own, query_keys, document_keys, rows, columns, has_row, has_column, QUERY_KEYS, DOCUMENT_KEYS, MASKED
        )
        match += tl.sum(tl.where(positive & has_column[None, :], logits, 0.0), 1)
        higher = tl.maximum(peak, tl.max(tl.where(kept, logits, LOWEST), 1))
        mass = mass * tl.exp(peak - higher) + tl.sum(tl.exp(tl.where(kept, logits - higher[:, None], LOWEST)), 1)
        peak = higher
        if SUMS:
            total += tl.sum(tl.where(kept, logits, 0.0), 1)
            count += tl.sum(kept.to(tl.float32), 1)
    part = parts + split * b + rows
    step = tl.num_programs(1) * b
    tl.store(part, tl.where(mass > 0, peak + tl.log(tl.where(mass > 0, mass, 1.0)), LOWEST), mask=has_row)
    tl.store(part + step, match, mask=has_row)
    tl.store(part + 2 * step, total, mask=has_row)
    tl.store(part + 3 * step, count, mask=has_row)


@triton.autotune(TILES, key=["DIM", "PRECISION", "MASKED", "SUMS"])
@triton.jit
@no_type_check
def _score_gradients(
    by_score, weights, first, stop, queries, documents, scale, own, query_keys, document_keys, b, m,
    DIM: tl.constexpr, QUERY_KEYS: tl.constexpr, DOCUMENT_KEYS: tl.constexpr, MASKED: tl.constexpr, SUMS: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient with respect to a tile of scores, from log-sum-exps and the gradients of what `_RowSums` returns."""
    rows = first + tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    has_row, has_column = rows < stop, columns < m
    logits = _logits(queries, documents, scale, rows, columns, has_row, has_column, DIM, PRECISION, BLOCK)
    positive, kept = _negatives(
        own, query_keys, document_keys, rows, columns, has_row, has_column, QUERY_KEYS, DOCUMENT_KEYS, MASKED
    )
    normaliser = tl.load(weights + rows, mask=has_row, other=0.0)
    of_negatives = tl.load(weights + b + rows, mask=has_row, other=0.0)
    of_positive = tl.load(weights + 2 * b + rows, mask=has_row, other=0.0)
    by_logit = of_negatives[:, None] * tl.exp(tl.where(kept, logits - normaliser[:, None], LOWEST))
    if SUMS:
        by_logit += tl.load(weights + 3 * b + rows, mask=has_row, other=0.0)[:, None]
    by_logit = tl.where(kept, by_logit, tl.where(positive, of_positive[:, None], 0.0))
    place = by_score + (rows - first).to(tl.int64)[:, None] * m + columns[None, :]
    by_logit *= tl.load(scale)
    tl.store(place, by_logit.to(by_score.dtype.element_ty), mask=has_row[:, None] & has_column[None, :])
