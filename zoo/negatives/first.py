"""ANCE's choice of negatives: the first of what a search finds."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad


def first_negatives(nearest: Int[Tensor, "Q K"], positives: Int[Tensor, "Q P"], n: int) -> Int[Tensor, "Q N"]:
    """The first documents found for each query that are not its positives, -1 padded.

    Only the first n + 1 hits are looked at, so a query with several positives among them, or with repeated documents,
    has fewer than n.

    Source: Xiong et al., ICLR 2021 (arXiv 2007.00808), code microsoft/ANCE.

    Args:
        nearest: ids of the documents found, nearest first, -1 padded.
        positives: ids of each query's known positives, -1 padded.
        n: negatives per query (N = n).
    """
    hits = nearest[:, : n + 1]
    same = hits[:, :, None] == hits[:, None, :]
    repeated = same.tril(-1).any(2)
    kept = (hits >= 0) & ~repeated & (hits[:, :, None] != positives[:, None, :]).all(2)
    first = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    found = hits.masked_fill(~kept, -1).gather(1, first)[:, :n]
    return pad(found, (0, n - found.shape[1]), value=-1)
