"""The rows about InfoNCE that never holds the matrix of scores."""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tests.benchmarks.rows import DEVICE, Pair
from tests.benchmarks.runner import Result, grown, summarize
from zoo.losses import InfoNCE, normalize
from zoo.losses.lean import KeyMask
from zoo.negatives.known import known_positives

Peer = Literal["plain", "inf_cl", "cut_cross_entropy", "liger_kernel"]
PACKAGES: tuple[Peer, ...] = ("inf_cl", "cut_cross_entropy", "liger_kernel")


def peers() -> list[Peer]:
    """Packages with such a loss that are installed; all of them need a GPU."""
    return [x for x in PACKAGES if DEVICE.type == "cuda" and importlib.util.find_spec(x) is not None]


@contextmanager
def over(peer: Peer, pairs: int, dim: int, dtype: torch.dtype = torch.float32) -> Iterator[Pair]:
    """Value and gradient on the same embeddings: with keys against the plain form, without against packages."""
    leaves = _embeddings(pairs, dim, dtype)
    yield Pair(_lean(*leaves, keyed=peer == "plain"), _steps[peer](*leaves), 1)


def _embeddings(pairs: int, dim: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    queries, documents = (normalize(torch.randn(pairs, dim, generator=draw)).to(DEVICE, dtype) for _ in range(2))
    return queries.requires_grad_(), documents.requires_grad_()


def _lean(queries: Tensor, documents: Tensor, keyed: bool) -> Callable[[], None]:
    loss, own = InfoNCE(0.07, learn_temperature=True).to(DEVICE), torch.arange(len(queries), device=DEVICE)
    keys = KeyMask(own[:, None], own[:, None]) if keyed else None
    return lambda: loss.lean(queries, documents, own, keys).backward()


def _plain(queries: Tensor, documents: Tensor) -> Callable[[], None]:
    loss, keys = InfoNCE(0.07, learn_temperature=True).to(DEVICE), torch.arange(len(queries), device=DEVICE)

    def step() -> None:
        positives = (queries * documents).sum(1, keepdim=True)
        loss(positives, queries @ documents.T, ~known_positives(keys[:, None], keys)).backward()

    return step


def _inf_cl(queries: Tensor, documents: Tensor) -> Callable[[], None]:
    from inf_cl import cal_flash_loss  # type: ignore[import-not-found]

    scale = nn.Parameter(torch.tensor(1 / 0.07, device=DEVICE))
    return lambda: cal_flash_loss(queries, documents, scale=scale).mean().backward()


def _cut_cross_entropy(queries: Tensor, documents: Tensor) -> Callable[[], None]:
    from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found]

    own, scale = torch.arange(len(queries), device=DEVICE), nn.Parameter(torch.tensor(1 / 0.07, device=DEVICE))
    # Without its filter, which leaves small gradients out.
    return lambda: linear_cross_entropy(queries * scale.to(queries.dtype), documents, own, filter_eps=None).backward()


def _liger_kernel(queries: Tensor, documents: Tensor) -> Callable[[], None]:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

    own, scale = torch.arange(len(queries), device=DEVICE), nn.Parameter(torch.tensor(1 / 0.07, device=DEVICE))
    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda: loss(documents, queries * scale.to(queries.dtype), own).backward()


_steps: dict[Peer, Callable[[Tensor, Tensor], Callable[[], None]]] = {
    "plain": _plain,
    "inf_cl": _inf_cl,
    "cut_cross_entropy": _cut_cross_entropy,
    "liger_kernel": _liger_kernel,
}


def _grown(pairs: int, dim: int) -> int:
    """Bytes by which value and gradient raise the peak, in a process of its own."""
    _lean(*_embeddings(600, dim), keyed=True)()  # libraries, threads and compiled kernels take memory once
    return grown(_lean(*_embeddings(pairs, dim), keyed=True))


def memory(name: str, goal: str, pairs: int, dim: int) -> Result:
    """Peak memory of value and gradient, beyond the embeddings, as a multiple of these: a constant is O(B D)."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = pool.apply(_grown, (pairs, dim))
    ours, peer = (x / 2**30 / 1e3 for x in (found, 2 * 4 * pairs * dim))  # `summarize` reports thousandths
    return summarize(name, [ours], [peer], goal)


def timed(quick: bool) -> list[tuple[str, str, Any, int]]:
    """Name, goal, pair and calls per repeat of each row."""
    if DEVICE.type != "cuda":
        return [("lean InfoNCE over plain, 4096 x 512", "<= 1.25", partial(over, "plain", 4096, 512), 1)]
    rows: list[tuple[str, str, Any, int]] = []
    for dtype, kind in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        for pairs in (8192, 32768):
            name = f"lean InfoNCE over plain, {pairs} x 512 {kind}"
            rows.append((name, "<= 1.00", partial(over, "plain", pairs, 512, dtype), 4))
    for peer in peers():
        for pairs in (8192, 32768) if quick else (8192, 32768, 131072):
            name = f"lean InfoNCE over {peer}, {pairs} x 512 bfloat16"
            rows.append((name, "<= 1.00", partial(over, peer, pairs, 512, torch.bfloat16), 2))
    return rows


def peaks(quick: bool) -> list[tuple[str, str, int, int]]:
    """Name, goal, pairs and dimension of each row about memory."""
    sizes = [1024, 4096, 16384] if quick else [1024, 4096, 16384, 65536]
    if DEVICE.type == "cuda":
        sizes.append(131072)
    return [(f"lean InfoNCE over its embeddings, peak of {n} x 512 in GB", "<= 4.00", n, 512) for n in sizes]
