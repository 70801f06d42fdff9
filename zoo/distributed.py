"""Gathering embeddings from all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather as all_gather_with_gradient


def world_size() -> int:
    """Processes of the running group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process in the running group; 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather(x: Tensor) -> Tensor:
    """Rows of `x` from every rank, in rank order; the local rows stay where rank * len(x) says. No gradient."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def gather_with_grad(x: Tensor) -> Tensor:
    """`gather` whose gradient reaches the rows of every rank.

    The backward pass sums what all ranks ask of a row. With each rank's loss a mean over its own anchors, and gradients
    averaged over ranks (as DDP does), the result is the gradient of the mean over all anchors, without a further factor.
    """
    return x if world_size() == 1 else torch.cat(all_gather_with_gradient(x.contiguous()))


@torch.no_grad()
def shared_rows(work: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor) -> tuple[Tensor, ...]:
    """What `work` makes of each of the rows, of which every rank does its share; all ranks return everything.

    Args:
        work: maps rows `[n, ...]` to tensors `[n, ...]`, row by row.
        rows: the same on all ranks, which all have to call this.
    """
    if world_size() == 1:
        return work(rows)
    share = -(-len(rows) // world_size())
    own = torch.arange(share, device=rows.device) + rank() * share
    # Equal shares: the last row fills up.
    return tuple(gather(found)[: len(rows)] for found in work(rows[own.clamp_max(len(rows) - 1)]))


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Mean of each gradient over ranks, in place, as DDP has it; every rank must have the same gradients."""
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()


def shared_permutation(n: int, device: torch.device) -> Tensor:
    """A random permutation of 0..n-1 that all ranks agree on."""
    permutation = torch.randperm(n, device=device)
    if world_size() > 1:
        dist.broadcast(permutation, src=0)
    return permutation
