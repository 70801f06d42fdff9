"""InfoNCE that never holds the matrix of scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zoo.losses.scores import at_least_float32

Counted = Callable[[slice], Bool[Tensor, "C M"]]


def lean_info_nce(
    queries: Float[Tensor, "B D"],
    documents: Float[Tensor, "M D"],
    own: Int[Tensor, " B"],
    counted: Counted | None,
    temperature: float | Tensor = 0.1,
    label_smoothing: float = 0.0,
    chunk: int = 512,
) -> Float[Tensor, ""]:
    r"""`info_nce` of each query against all documents, from embeddings: memory $O((B + M) D + cM)$, not $O(BM)$.

    Scores of `chunk` queries at a time are multiplied out, turned into loss and gradient at once, and forgotten. Nothing
    is computed twice: the backward pass only scales the gradients that the forward pass has found.

    Args:
        queries: as scores use them (unit norm, for cosines).
        documents: the positives among them.
        own: number of each query's positive among the documents.
        counted: for a slice of the queries, which documents are their negatives; a query's own is not asked for. None
            counts all.
        temperature: as in `info_nce`; may carry gradient.
        label_smoothing: as in `info_nce`.
        chunk: c, queries at a time.
    """
    scale = 1 / (temperature if isinstance(temperature, Tensor) else queries.new_tensor(temperature))
    wide = at_least_float32(queries), at_least_float32(documents), at_least_float32(scale)
    return _LeanNCE.apply(*wide, own, counted, label_smoothing, chunk)  # type: ignore[return-value]


class _LeanNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        documents: Tensor,
        scale: Tensor,
        own: Tensor,
        counted: Counted | None,
        smoothing: float,
        chunk: int,
    ) -> Tensor:
        total = queries.new_zeros(())
        needs_grad = any(ctx.needs_input_grad)
        d_queries, d_documents, d_scale = torch.zeros_like(queries), torch.zeros_like(documents), total.clone()
        for start in range(0, len(queries), chunk):
            rows = slice(start, min(start + chunk, len(queries)))
            place = own[rows, None]
            logits = (queries[rows] * scale) @ documents.T
            kept = None if counted is None else counted(rows).scatter(1, place, True)
            if kept is not None:
                logits.masked_fill_(~kept, torch.finfo(logits.dtype).min)  # finite, as it meets gradients of 0
            normaliser = logits.logsumexp(1, keepdim=True)
            positive = logits.gather(1, place)
            total += (normaliser - (1 - smoothing) * positive).sum()
            share = None
            if smoothing:
                share = torch.full_like(logits, smoothing / logits.shape[1])
                if kept is not None:
                    share = kept * (smoothing / kept.sum(1, keepdim=True, dtype=logits.dtype))
                total -= torch.dot(share.flatten(), logits.flatten())
            if not needs_grad:
                continue
            grad = (logits - normaliser).exp_()  # with respect to the logits, times B
            if share is not None:
                grad -= share
            grad.scatter_add_(1, place, torch.full_like(positive, smoothing - 1))
            d_scale += torch.dot(grad.flatten(), logits.flatten())
            torch.mm(grad, documents, out=d_queries[rows])
            d_documents.addmm_(grad.T, queries[rows])
        factor = 1 / len(queries)
        ctx.save_for_backward(
            d_queries.mul_(scale * factor), d_documents.mul_(scale * factor), d_scale * factor / scale
        )
        return total * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        return *(x * grad for x in ctx.saved_tensors), None, None, None, None
