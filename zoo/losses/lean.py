"""InfoNCE that never holds the matrix of scores."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.negatives.known import known_positives

TILE_BYTES = 2**24


@dataclass(frozen=True)
class KeyMask:
    """Which documents are negatives of which queries, told by keys: those that share none with the query.

    A document without any key is padding, and nobody's negative. Whoever turns the roles of queries and documents
    around turns the two fields around.

    Attributes:
        queries: keys of what each query is known to match `[B, P]`, -1 padded.
        documents: keys of each document `[M, R]`, -1 padded.
    """

    queries: Int[Tensor, "B P"]
    documents: Int[Tensor, "M R"]

    def counted(self, rows: slice) -> Bool[Tensor, "C M"]:
        """Which documents are negatives of these queries."""
        masked = (self.documents < 0).all(1)
        for keys in self.documents.unbind(1):
            masked = masked | known_positives(self.queries[rows], keys)
        return ~masked


def lean_info_nce(
    queries: Float[Tensor, "B D"],
    documents: Float[Tensor, "M D"],
    own: Int[Tensor, " B"],
    keys: KeyMask | None = None,
    temperature: float | Tensor = 0.1,
    label_smoothing: float = 0.0,
    negatives: Float[Tensor, "B K D"] | None = None,
    negatives_mask: Bool[Tensor, "B K"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    r"""`info_nce` of each query against all documents, from embeddings: memory $O((B + M) D)$, not $O(BM)$.

    Scores of a few queries at a time are multiplied out, turned into loss and gradient at once, and forgotten. Nothing
    is computed twice: the backward pass only scales the gradients that the forward pass has found. On a CUDA device
    with Triton it is `zoo.losses.triton_nce` that does this, save for float64.

    The symmetric form is the mean of two calls, of which the second has the roles of queries and documents turned
    around.

    Args:
        queries: as scores use them (unit norm, for cosines).
        documents: the positives among them.
        own: number of each query's positive among the documents; it counts whatever its keys are.
        keys: which of the other documents are negatives; None counts all.
        temperature: as in `info_nce`; may carry gradient.
        label_smoothing: as in `info_nce`.
        negatives: further negatives of each query, that are no other query's.
        negatives_mask: False drops one of these; None keeps all.
        chunk: queries at a time; None takes as many as `TILE_BYTES`, or an eighth of the documents' bytes, hold scores of,
            up to 512.
    """
    wide = torch.promote_types(queries.dtype, torch.float32)
    scale = 1 / torch.as_tensor(temperature, dtype=wide, device=queries.device)
    if queries.is_cuda and wide == torch.float32 and importlib.util.find_spec("triton") is not None:
        from zoo.losses.triton_nce import triton_info_nce

        return triton_info_nce(queries, documents, own, keys, scale, label_smoothing, negatives, negatives_mask)
    q, d = queries.to(wide), documents.to(wide)
    more = q.new_zeros(len(q), 0)
    if negatives is not None:
        more = torch.einsum("bd,bkd->bk", q, negatives.to(wide)) * scale
    if chunk is None:
        chunk = min(512, max(1, TILE_BYTES // (q.element_size() * (len(d) + more.shape[1])), q.shape[1] // 8))
    return _LeanNCE.apply(q, d, scale, more, own, keys, negatives_mask, label_smoothing, chunk)  # type: ignore[return-value]


class _LeanNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        scale: Tensor,
        more: Tensor,
        own: Tensor,
        keys: KeyMask | None,
        more_mask: Tensor | None,
        smoothing: float,
        chunk: int,
    ) -> Tensor:
        shared = len(documents)
        total = queries.new_zeros(())
        d_queries, d_documents = torch.empty_like(queries), torch.zeros_like(documents)
        d_scale, d_more = total.clone(), torch.empty_like(more)
        tile = queries.new_empty(min(chunk, len(queries)), shared + more.shape[1])  # documents, then further negatives
        for start in range(0, len(queries), chunk):
            rows = slice(start, min(start + chunk, len(queries)))
            q, place, logits = queries[rows] * scale, own[rows, None], tile[: rows.stop - start]
            torch.mm(q, documents.T, out=logits[:, :shared])
            logits[:, shared:] = more[rows]
            counted = _counted(keys, more_mask, rows, logits)
            if counted is not None:
                counted.scatter_(1, place, True)
                logits.masked_fill_(~counted, torch.finfo(logits.dtype).min)  # finite: a row may have no other
            positive, peak = logits.gather(1, place), logits.amax(1, keepdim=True)
            excess = -positive  # of the normaliser over the target's part
            even = None
            if smoothing:
                even = torch.ones_like(logits) if counted is None else counted.to(logits.dtype)
                even /= even.sum(1, keepdim=True)
                excess += smoothing * (positive - (even * logits).sum(1, keepdim=True))
            mass = logits.sub_(peak).exp_().sum(1, keepdim=True)
            total += (peak + mass.log() + excess).sum()
            if not any(ctx.needs_input_grad):
                continue
            grad = logits.scatter_add_(1, place, -mass)  # of B times the loss by logits, times the mass
            if even is not None:
                grad -= even.mul_(smoothing * mass)
                grad.scatter_add_(1, place, smoothing * mass)
            torch.mm(grad[:, :shared], documents, out=d_queries[rows]).div_(mass)
            d_documents.addmm_(grad[:, :shared].T, q / mass)
            d_scale += torch.dot(d_queries[rows].flatten(), queries[rows].flatten())
            d_more[rows] = grad[:, shared:] / mass
        factor = 1 / len(queries)
        ctx.save_for_backward(
            d_queries.mul_(scale * factor), d_documents.mul_(factor), d_scale * factor, d_more.mul_(factor)
        )
        return total * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        return *(x * grad for x in ctx.saved_tensors), None, None, None, None, None


def _counted(keys: KeyMask | None, more_mask: Tensor | None, rows: slice, logits: Tensor) -> Tensor | None:
    """Which columns of these rows' logits are negatives; None if all are."""
    if keys is None and more_mask is None:
        return None
    counted = torch.ones_like(logits, dtype=torch.bool)
    if keys is not None:
        counted[:, : len(keys.documents)] = keys.counted(rows)
    if more_mask is not None:
        counted[:, logits.shape[1] - more_mask.shape[1] :] = more_mask[rows]
    return counted
