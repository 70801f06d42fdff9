"""Momentum contrast: a slowly moving key encoder and a queue of its keys."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.data.pairs import PairBatch
from zoo.distributed import gather, shared_permutation, world_size
from zoo.losses.scores import normalize
from zoo.methods.encoders import split_batch_norm
from zoo.methods.gradient_cache import CachedMethod
from zoo.negatives.candidates import Candidates, EmbeddingNegatives
from zoo.negatives.queue import Queue


@torch.no_grad()
def ema_update(average: nn.Module, source: nn.Module, momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * source, over parameters that the two do not share.

    Buffers (BN statistics) are left alone.
    """
    pairs = [(a, s) for a, s in zip(average.parameters(), source.parameters(), strict=True) if a is not s]
    torch._foreach_lerp_([a for a, _ in pairs], [s for _, s in pairs], 1 - momentum)  # type: ignore[attr-defined]


def queue_candidates(query: Float[Tensor, "B D"], key: Float[Tensor, "B D"], queue: Queue, keys: Tensor) -> Candidates:
    """Raw embeddings of queries and keys against the queue; rows that hold the pair's own content are masked."""
    return Candidates(normalize(query), normalize(key).detach(), queue.rows, queue.mask(keys))


class MomentumContrast(CachedMethod):
    r"""MoCo and its descendants: $q$ against its key $k$ and K queued keys.

    $\theta_k \leftarrow m\,\theta_k + (1-m)\,\theta_q$ before the key pass; $\ell = -\log \frac{e^{q \cdot k/\tau}}{e^{q \cdot
    k/\tau} + \sum_j e^{q \cdot n_j/\tau}}$ with constant $k$ and $n_j$; keys are enqueued after the loss. The loss is the
    official code's: one view is the query. (Further views of a batch are queries too. Of an encoder with several readings
    of a view, see `encode_alike`, each meets each reading of the key, and all of the key's are enqueued.) Under several
    processes all keys are gathered into the one queue.

    ShuffleBN: keys pass the key encoder in an order of their own, so that BN statistics do not tell which key belongs
    to which query. Across devices the images themselves are shuffled over ranks; on one device `bn_splits` gives each
    BN layer several independent parts of the batch, without which the order has no effect.

    Sources: He et al. 2020 (arXiv 1911.05722), Chen et al. 2020 (arXiv 2003.04297), github facebookresearch/moco.

    Args:
        encoder: the query encoder; the key encoder starts as its copy (its `momentum_copy()`, where it has one, which may
            share parts with it). Has an attribute `dim`.
        loss: as in `ContrastiveMethod`.
        queue_size: K; 65,536 on ImageNet, at most some 16 batches at toy scale, as it starts with noise.
        momentum: m; 0.999 on ImageNet, about 0.99 where a run has few thousand steps.
        bn_splits: parts of the batch with BN statistics of their own; 1 leaves BN alone.
        symmetric: average with the loss of the second view as the query (both keys are enqueued).
        negatives: as in `ContrastiveMethod`: hard-negative mixing, feature transformation, ...
        **kwargs: gradient cache, optimiser and schedule, as in `CachedMethod`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        loss: nn.Module,
        queue_size: int = 65536,
        momentum: float = 0.999,
        bn_splits: int = 1,
        symmetric: bool = False,
        negatives: Sequence[EmbeddingNegatives] = (),
        **kwargs: Any,
    ) -> None:
        if bn_splits > 1:
            split_batch_norm(encoder, bn_splits)
        # The copy precedes a possible compilation, which marks the module in place.
        own_copy: Any = getattr(encoder, "momentum_copy", None)
        key_encoder = own_copy() if own_copy else copy.deepcopy(encoder).requires_grad_(False)
        super().__init__(encoder, loss, negatives=negatives, **kwargs)
        self.key_encoder, self.momentum, self.symmetric, self.bn_splits = key_encoder, momentum, symmetric, bn_splits
        self.queue = Queue(queue_size, encoder.dim)  # type: ignore[arg-type]
        self._pending: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: PairBatch, batch_idx: int) -> dict:
        step = self._contrast(batch, [batch.anchor, *batch.views], batch.positive)
        if not self.symmetric:
            return step
        other = self._contrast(batch, [batch.positive], batch.anchor, update=False)
        return {**step, "loss": (step["loss"] + other["loss"]) / 2}

    def _contrast(self, batch: PairBatch, query_views: list[Any], key_view: Any, update: bool = True) -> dict:
        encoded = self.encode_views(query_views)
        if update:
            ema_update(self.key_encoder, self.encoder, self.momentum)
        keys, readings, views = self.encode_keys(key_view), self.readings, len(query_views)
        own = None if batch.negatives is None else self.encode_keys(batch.negatives).chunk(readings)
        with torch.autocast(keys.device.type, enabled=False):
            steps = []
            for q, k in itertools.product(range(readings), repeat=2):
                query, key = torch.cat([view.chunk(readings)[q] for view in encoded]), keys.chunk(readings)[k]
                raw = queue_candidates(query, key.repeat(views, 1), self.queue, batch.anchor_key.repeat(views))
                if own is not None and batch.negative_mask is not None:
                    more = normalize(own[k]).view(len(batch), -1, key.shape[1]).repeat(views, 1, 1)
                    raw = raw.add_own(more, batch.negative_mask.repeat(views, 1))
                loss, scores = self.loss_of(self.transform_candidates(raw))
                steps.append((loss, raw, scores))
            self._pending.append((gather(normalize(keys)), gather(batch.positive_key.repeat(readings))))
            _, raw, scores = steps[0]
            raw_positives = (raw.query * raw.positive).sum(1, keepdim=True)
            loss = torch.stack([loss for loss, _, _ in steps]).mean()
            return self.report(loss, raw.query, scores, raw_positives=raw_positives)

    @torch.no_grad()
    def encode_keys(self, inputs: Float[Tensor, "B ..."]) -> Float[Tensor, "N D"]:
        """Raw embeddings under the key encoder, in training mode, batched in a shuffled order (ShuffleBN)."""
        if world_size() == 1 and self.bn_splits == 1:
            return self.key_encoder(inputs)
        everything = gather(inputs)
        order = shared_permutation(len(everything), inputs.device)
        mine = order.view(world_size(), -1)[self.global_rank]
        # The R readings of a view move together.
        encoded = gather(self.key_encoder(everything[mine]).unflatten(0, (self.readings, -1)).transpose(0, 1))
        keys = torch.empty_like(encoded)
        keys[order] = encoded
        return keys.unflatten(0, (world_size(), -1))[self.global_rank].transpose(0, 1).flatten(0, 1)

    def on_after_backward(self) -> None:
        # Not in the step itself: writing to the queue in place would spoil the pending backward pass, or cost a copy.
        for embeddings, keys in self._pending:
            self.queue.enqueue(embeddings, keys)
        self._pending.clear()
