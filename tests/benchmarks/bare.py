"""The peers: the same steps as plain PyTorch, and as lightly's building blocks."""
# pyright: reportMissingImports=false
# (lightly is in the group `bench` alone)

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from zoo.data.datamodule import NegativesDataModule
from zoo.data.pairs import PairBatch
from zoo.methods.dual import DualEncoder
from zoo.methods.momentum import MomentumContrast
from zoo.methods.siamese import SiameseContrast
from zoo.negatives.mochi import HardNegativeMixing

Loss = Callable[[PairBatch], Tensor]


def views(data: NegativesDataModule, device: torch.device) -> Iterator[PairBatch]:
    """Augmented training batches without end."""
    while True:
        for batch in data.train_dataloader():
            moved = batch.to(device, non_blocking=True)
            yield moved if data.transform is None else data.transform(moved)


def train(
    batches: Iterator[PairBatch],
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    total: int,
    tick: Callable[[], None],
    after: Callable[[], None] = lambda: None,
    clip_value: float | None = None,
) -> None:
    """The loop that everybody writes: cosine schedule, forward, backward, update."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / total)))
    for batch in batches:
        tick()
        value = loss(batch)
        optimizer.zero_grad()
        value.backward()
        if clip_value:
            nn.utils.clip_grad_value_([p for group in optimizer.param_groups for p in group["params"]], clip_value)
        after()
        optimizer.step()
        schedule.step()


def embed(encoder: nn.Module, inputs: Any, kind: str | None = None) -> Tensor:
    """Embeddings in float32; a GPU encodes in bfloat16, as the recipes have it."""
    device: str = kind or inputs.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        return encoder(inputs).float()


def simclr(model: SiameseContrast) -> Loss:
    """NT-Xent over the model's encoder."""
    encoder, temperature = model.encoder, cast(Any, model.loss).temperature

    def loss(batch: PairBatch) -> Tensor:
        b = len(batch)
        z = F.normalize(embed(encoder, torch.cat([batch.anchor, batch.positive])))
        own = torch.eye(2 * b, dtype=torch.bool, device=z.device)
        logits = (z @ z.T / temperature).masked_fill(own, -torch.inf)
        return F.cross_entropy(logits, torch.arange(2 * b, device=z.device).roll(b))

    return loss


def dual(model: DualEncoder) -> Loss:
    """InfoNCE over the model's towers, in one direction or both; documents that are known to be relevant are masked."""
    criterion = cast(Any, model.loss)

    def direction(logits: Tensor, masked: Tensor) -> Tensor:
        own = torch.arange(len(logits), device=logits.device)
        if not criterion.label_smoothing:  # smoothing reads all logits, and these batches repeat nothing
            logits = logits.masked_fill(masked, -torch.inf)
        return F.cross_entropy(logits, own, label_smoothing=criterion.label_smoothing)

    def loss(batch: PairBatch) -> Tensor:
        query = F.normalize(embed(model.tower("query"), batch.anchor, model.device.type))
        document = F.normalize(embed(model.tower("document"), batch.positive, model.device.type))
        known = batch.positive_key[:, None] if batch.known is None else batch.known
        masked = (known[:, :, None] == batch.positive_key).any(1)
        masked = masked & ~torch.eye(len(masked), dtype=torch.bool, device=masked.device)
        logits = query @ document.T / criterion.temperature
        value = direction(logits, masked)
        return (value + direction(logits.T, masked.T)) / 2 if model.symmetric else value

    return loss


class Momentum:
    """MoCo, with MoCHi's synthetic negatives if the model has them, over the model's two encoders.

    Queued copies of a pair's own image are masked as in `zoo`, since the loss would be another one otherwise.
    """

    def __init__(self, model: MomentumContrast) -> None:
        self.encoder, self.key_encoder = model.encoder, model.key_encoder
        self.momentum, self.temperature = model.momentum, cast(Any, model.loss).temperature
        self.mixing: HardNegativeMixing | None = next(iter(model.negatives), None)  # type: ignore[assignment]
        self.rows, self.keys = model.queue.rows.clone(), model.queue.keys.clone()
        self.at = 0

    def __call__(self, batch: PairBatch) -> Tensor:
        q = F.normalize(embed(self.encoder, batch.anchor))
        k = self.key(batch.positive)
        negatives = (q @ self.rows.T).masked_fill(batch.anchor_key[:, None] == self.keys, -torch.inf)
        scores = [(q * k).sum(1, keepdim=True), negatives]
        if self.mixing is not None:
            scores.append(torch.einsum("bd,bsd->bs", q, self.mix(q.detach(), negatives.detach())))
        self.pending = k, batch.positive_key
        target = torch.zeros(len(q), dtype=torch.long, device=q.device)
        return F.cross_entropy(torch.cat(scores, 1) / self.temperature, target)

    @torch.no_grad()
    def key(self, images: Tensor) -> Tensor:
        theirs, ours = list(self.key_encoder.parameters()), list(self.encoder.parameters())
        torch._foreach_lerp_(theirs, ours, 1 - self.momentum)  # type: ignore[attr-defined]
        order = torch.randperm(len(images), device=images.device)
        return F.normalize(embed(self.key_encoder, images[order])[order.argsort()])

    def mix(self, q: Tensor, scores: Tensor) -> Tensor:
        n, s, t = self.mixing.n_hard, self.mixing.n_mix, self.mixing.n_query_mix  # type: ignore[union-attr]
        pool = scores.topk(n, 1, sorted=False).indices
        i, j, l = (self.rows[pool.gather(1, torch.randint(n, (len(q), m), device=q.device))] for m in (s, s, t))
        alpha = torch.rand(len(q), s, 1, device=q.device)
        beta = torch.rand(len(q), t, 1, device=q.device) / 2
        mixed = torch.cat([alpha * i + (1 - alpha) * j, beta * q[:, None] + (1 - beta) * l], 1)
        return F.normalize(mixed, dim=2)

    def enqueue(self) -> None:
        k, keys = self.pending
        self.rows[self.at : self.at + len(k)], self.keys[self.at : self.at + len(k)] = k, keys  # the batch divides K
        self.at = (self.at + len(k)) % len(self.rows)


class Lightly(nn.Module):
    """MoCo of lightly's parts as its documentation puts them together, on copies of the model's backbone."""

    def __init__(self, model: MomentumContrast) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        super().__init__()
        encoder: Any = model.encoder
        features, dim = encoder.backbone.num_features, encoder.dim
        head = MoCoProjectionHead(features, features, dim)
        self.query = nn.Sequential(copy.deepcopy(encoder.backbone), head.to(model.device))
        self.keys = copy.deepcopy(self.query)
        deactivate_requires_grad(self.keys)
        size = (len(model.queue.rows), dim)
        self.criterion = NTXentLoss(cast(Any, model.loss).temperature, size).to(model.device)
        self.momentum = model.momentum

    def forward(self, batch: PairBatch) -> Tensor:
        from lightly.models.utils import batch_shuffle, batch_unshuffle, update_momentum

        update_momentum(self.query, self.keys, self.momentum)
        q = embed(self.query, batch.anchor)
        shuffled, order = batch_shuffle(batch.positive)
        k = batch_unshuffle(embed(self.keys, shuffled), order)
        return self.criterion(q, k)
