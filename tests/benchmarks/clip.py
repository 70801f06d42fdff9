"""The rows about CLIP's loss and about ranks."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from tests.benchmarks.rows import DEVICE, Pair
from tests.benchmarks.runner import Result, grown, summarize
from zoo.data.pairs import PairBatch
from zoo.losses import InfoNCE, normalize
from zoo.methods.dual import DualEncoder, Encoded, pair_embeddings
from zoo.ranking import positive_ranks


def _embeddings(pairs: int, dim: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    images, texts = (normalize(torch.randn(pairs, dim, generator=draw)).to(DEVICE) for _ in range(2))
    return images.requires_grad_(), texts.requires_grad_()


def _ours(images: Tensor, texts: Tensor, lean: bool) -> Callable[[], None]:
    """The loss as a training step has it: with keys, so that no duplicate is a negative."""
    method = DualEncoder(nn.Identity(), InfoNCE(0.07, learn_temperature=True), symmetric=True, lean=lean).to(DEVICE)
    keys = torch.arange(len(images), device=DEVICE)
    batch = PairBatch(images, texts, keys, keys, keys)

    def step() -> None:
        x = pair_embeddings(Encoded(images, texts, None), batch)
        loss = method.lean_loss(x) if lean else method.plain_loss(x, batch)[0]
        loss.backward()

    return step


def _open_clip(images: Tensor, texts: Tensor) -> Callable[[], None]:
    from open_clip.loss import ClipLoss

    loss, scale = ClipLoss(), nn.Parameter(torch.tensor(1 / 0.07, device=DEVICE))
    return lambda: cast(Tensor, loss(images, texts, scale)).backward()


@contextmanager
def over_open_clip(pairs: int, dim: int, lean: bool) -> Iterator[Pair]:
    """Value and gradient of the loss on the same embeddings."""
    images, texts = _embeddings(pairs, dim)
    yield Pair(_ours(images, texts, lean), _open_clip(images, texts), 1)


@contextmanager
def ranks_over_dense(queries: int, documents: int, dim: int) -> Iterator[Pair]:
    """Ranks of the right documents, against comparing each chunk of a float64 score matrix."""
    draw = torch.Generator().manual_seed(0)
    sought, corpus = (normalize(torch.randn(n, dim, generator=draw)).to(DEVICE) for n in (queries, documents))
    relevance = [{i: 1} for i in range(queries)]

    def dense() -> Tensor:
        ranks = []
        for start, chunk in zip(range(0, queries, 256), sought.double().split(256), strict=True):
            scores = chunk @ corpus.double().T
            own = scores.gather(1, torch.arange(start, start + len(chunk), device=DEVICE)[:, None])
            ranks.append((scores > own).sum(1))
        return torch.cat(ranks)

    yield Pair(lambda: positive_ranks(sought, corpus, relevance), dense, queries)


def _grown(which: str, pairs: int, dim: int) -> float:
    """Gigabytes by which one step raises the peak, in a process of its own."""
    images, texts = _embeddings(pairs, dim)
    small = _embeddings(64, dim)
    makers: dict[str, Any] = {"lean": lambda *x: _ours(*x, lean=True), "open_clip": _open_clip}
    makers[which](*small)()  # libraries and threads take memory once
    return grown(makers[which](images, texts)) / 2**30


def memory(name: str, goal: str, repeats: int, pairs: int, dim: int) -> Result:
    """Peak memory of one step of the lean loss and of open_clip's, beyond that of the embeddings."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = [pool.starmap(_grown, [(which, pairs, dim)] * min(repeats, 2), 1) for which in ("lean", "open_clip")]
    ours, peer = ([gigabytes / 1e3 for gigabytes in x] for x in found)  # `summarize` reports thousandths
    return summarize(name, ours, peer, goal)
